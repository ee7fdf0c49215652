"""Tables of the analyses: text for terminals, comma-separated values, HTML for notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from odesampler.files import written_whole

Rows = Sequence[Sequence[str]]


def text(head: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """Columns as wide as they need, the first to the left, the others to the right; then the notes, a line each."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, *notes])


def comma_separated(head: Sequence[str], rows: Rows, path: str | Path | None = None) -> str:
    """The table as comma-separated values; written to `path`, if given, whole or not at all."""
    out = io.StringIO()
    csv.writer(out).writerows([head, *rows])
    if path is not None:
        with written_whole(path) as file:
            file.write(out.getvalue().encode())
    return out.getvalue()


def html(head: Sequence[str], rows: Rows) -> str:
    """The table as a notebook shows it."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
