"""From the docstrings of this house, which are plain text, to what Sphinx sets.

- Outside of backticks `*` and `|` mean themselves: shapes are (batch, *shape), and |x| is an absolute value.
- A solver's facts, in fixed order, "Order 2. Evaluations: 2 a step. ...", become a list; formulas below keep lines.
- Indented formulas and examples become literal blocks.
- A comment behind a field, `nfe: Tensor  # (batch,) ...`, says what the field is.
- `ods.sample` and docs/inversion.md become links. What is returned is a sentence, and no colon in it makes a type.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

FACT = re.compile(r"(?:^|(?<=\. ))(Order|Evaluations|Error estimate|Memory|Exactly invertible):? ")
SPAN = re.compile(r"(`[^`]*`)")
HIDDEN = "\x00"


def escaped(line: str) -> str:
    """A line of plain text, as reStructuredText that reads the same."""
    return "".join(span(part) if part.startswith("`") else plain(part) for part in SPAN.split(line))


def span(code: str) -> str:
    """Code in backticks; of a public name a link."""
    return re.sub(r"^`(ods\.(\w+))(\(.*\))?`$", r":py:obj:`\1\3 <odesampler.\2>`", code)


def plain(text: str) -> str:
    """Text between such."""
    text = re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", text)
    return re.sub(r"\bdocs/(\w+)\.md\b", r":doc:`/\1`", text)


def colons_hidden(lines: list[str], what: str) -> list[str]:
    """In these places napoleon takes what stands before a colon for a type: another sign in its place."""
    sections = {"property": 0, "attribute": 0}
    first = sections.get(what, lines.index("Returns:") + 1 if "Returns:" in lines else len(lines))
    return [line.replace(":", HIDDEN) if i == first else line for i, line in enumerate(lines)]


def facts_listed(lines: list[str]) -> list[str]:
    """The paragraph that begins with "Order" as a list of fields, what follows the facts line by line."""
    begin = next((i for i, line in enumerate(lines) if line.startswith("Order ")), len(lines))
    end = next((i for i in range(begin, len(lines)) if not lines[i].strip()), len(lines))
    paragraph = [line.strip() for line in lines[begin:end]]
    last = next((i for i, line in enumerate(paragraph) if "invertible:" in line), None)
    if last is None:
        return lines
    while not paragraph[last].endswith(".") and last + 1 < len(paragraph):  # the last fact may take more lines
        last += 1
    parts = FACT.split(" ".join(paragraph[: last + 1]))[1:]
    listed = [f":{name}: {said.strip()}" for name, said in zip(parts[::2], parts[1::2], strict=True)]
    return [*lines[:begin], *listed, "", *(f"| {line}" for line in paragraph[last + 1 :]), *lines[end:]]


def formulas_set(lines: list[str]) -> list[str]:
    """Every indented block below a blank line as a literal block; the rest escaped."""
    out: list[str] = []
    for i, line in enumerate(lines):
        if not line.startswith("    "):
            out.append(escaped(line))
            continue
        above = next((kept for kept in reversed(out) if kept.strip()), "")
        if re.fullmatch(r"[A-Z]\w+:", above):  # a section, such as References
            return out + sections_escaped(lines[i:])
        out += ([] if above.startswith("    ") else ["::", ""]) + [line]
    return out


def sections_escaped(lines: list[str]) -> list[str]:
    """The rest escaped, but for examples: from a prompt to the next blank line all is code."""
    out, code = [], False
    for line in lines:
        code = bool(line.strip()) and (code or line.lstrip().startswith(">>>"))
        out.append(line if code else escaped(line))
    return out


def fields_of(kind: type) -> list[str]:
    """A list of the fields of a class that have a comment behind them; empty if there are none."""
    try:
        lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    except OSError:  # made by a function, as NamedTuple does: there is no such text
        return []
    found = []
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            _, mark, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")  # type: ignore[operator]
            written = escaped(ast.unparse(node.annotation).strip("'"))
            if mark and "type:" not in comment:
                found.append(f"    - **{ast.unparse(node.target)}** ({written}): {escaped(comment)}")
    return ["", ":Fields:", *found, ""] if found else []


def processed(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's autodoc-process-docstring, before napoleon reads the sections."""
    fields = fields_of(subject) if what == "class" and lines else []
    lines[:] = colons_hidden([*facts_listed(formulas_set(lines)), *fields], what)


def colons_shown(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """The same, after napoleon."""
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]


def signed(app: Any, what: str, name: str, subject: Any, options: Any, signature: str, returned: str) -> Any:
    """Sphinx's autodoc-process-signature: a default that is no Python would keep it from being read."""
    return (signature and signature.replace("<factory>", "..."), returned)


def skipped(app: Any, what: str, name: str, subject: Any, skip: bool, options: Any) -> bool | None:
    """Sphinx's autodoc-skip-member: fields of a NamedTuple are in the list above."""
    return True if str(getattr(subject, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Called by conf.py."""
    app.connect("autodoc-process-docstring", processed, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", colons_shown, priority=600)
    app.connect("autodoc-process-signature", signed)
    app.connect("autodoc-skip-member", skipped)
