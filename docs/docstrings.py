"""From the docstrings of this house, which are plain text, to what Sphinx sets.

- Outside of backticks `*` and `|` mean themselves: shapes are (batch, *shape), and |x| is an absolute value.
- A solver's facts, in fixed order, "Order 2. Evaluations: 2 a step. ...", become a list; formulas below keep lines.
- Indented formulas of a module become literal blocks.
- A comment behind a field, `nfe: Tensor  # (batch,) ...`, says what the field is.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

FACT = re.compile(r"(?:^|(?<=\. ))(Order|Evaluations|Error estimate|Memory|Exactly invertible):? ")
SPAN = re.compile(r"(`[^`]*`)")


def escaped(line: str) -> str:
    """A line of plain text, as reStructuredText that reads the same."""
    parts = SPAN.split(line)
    return "".join(part if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts)


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
    for line in lines:
        if not line.startswith("    "):
            out.append(escaped(line))
            continue
        above = next((kept for kept in reversed(out) if kept.strip()), "")
        if re.fullmatch(r"[A-Z]\w+:", above):  # a section, such as References
            return [*out, *map(escaped, lines[len(out) :])]
        out += ([] if above.startswith("    ") else ["::", ""]) + [line]
    return out


def fields_of(kind: type) -> list[str]:
    """A section "Attributes" from the comments behind the fields of a class; empty if there are none."""
    try:
        lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    except OSError:  # made by a function, as NamedTuple does: there is no such text
        return []
    found = []
    for node in ast.parse("\n".join(lines)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            _, mark, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("# ")  # type: ignore[operator]
            found += [f"    {ast.unparse(node.target)}: {comment}"] if mark and "type:" not in comment else []
    return ["", "Attributes:", *found, ""] if found else []


def processed(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's autodoc-process-docstring, before napoleon reads the sections."""
    if what == "module":
        lines[:] = formulas_set(lines)
        return
    text = [*lines, *fields_of(subject)] if what == "class" and lines else list(lines)
    lines[:] = facts_listed([escaped(line) for line in text])


def setup(app: Any) -> None:
    """Called by conf.py."""
    app.connect("autodoc-process-docstring", processed, priority=400)  # napoleon's is 500
