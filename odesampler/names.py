"""Names with arguments, such as `karras(rho=5)`: reading them, and printing what has a name as a table.

What users type for a solver and for a grid is one small language, and this is all of it. Knows neither.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any


def parsed(spec: str, kind: str, whole: str | None = None) -> tuple[str, dict[str, Any]]:
    """'name(a=1)' as its name and arguments. Only literals: nothing is evaluated.

    Args:
        spec: What to read.
        kind: What it names, for the error: "solver", "grid".
        whole: What the user typed, if `spec` is a part of it.

    Raises:
        ValueError: Neither a name nor a name with keyword arguments.
    """
    if "(" not in spec:
        return spec.strip(), {}
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
            raise ValueError("not a name with keyword arguments")
        return call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {kind} {whole or spec!r}; write a name, or name(argument=value)") from error


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows under their heads, in columns: None is a dash, yes-or-no is "yes" or nothing, several are joined."""
    cells = [tuple(head), *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        return ", ".join(value)
    return "-" if value is None else str(value)
