"""Tables of the analyses: text for terminals, comma-separated values, HTML for pages and notebooks.

    rank of a cell = its place among the values of its column, equal ones sharing a place; none where nothing is known

A page sorts by ranks alone, so what is a number, and what comes before what, is decided here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from odesampler.files import written_whole

Rows = Sequence[Sequence[str]]
NOTHING = {"", "-", "own", "none", "nan"}  # cells that say that there is no value
NUMBER = re.compile(r"[+-]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?=$|[\s%(\[±])", re.IGNORECASE)
DIGITS = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)", re.IGNORECASE)


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
    """The table as comma-separated values; written to `path`, if given, whole or not at all. Nothing, of no columns."""
    out = io.StringIO()
    csv.writer(out).writerows([head, *rows] if head else [])
    if path is not None:
        with written_whole(path) as file:
            file.write(out.getvalue().encode())
    return out.getvalue()


def html(head: Sequence[str], rows: Rows, *, sortable: bool = False, fixed: int = 0) -> str:
    """The table for a page or a notebook: columns of numbers have the class "n".

    `sortable` says so of the table and gives each cell its rank as `data-rank`: a script makes the heads buttons.
    The first `fixed` rows belong to the head, and are not sorted.
    """
    columns = [[row[i] for row in rows] for i in range(len(head))]
    kinds = [' class="n"' if numeric(column) else "" for column in columns]
    ranked = [[None] * fixed + ranks(c[fixed:]) if sortable else [None] * len(rows) for c in columns]
    top = "".join(f'<th scope="col"{kind}>{escape(h)}</th>' for kind, h in zip(kinds, head, strict=True))
    lines = [
        "<tr>" + "".join(map(_cell, row, kinds, places)) + "</tr>"
        for row, places in zip(rows, zip(*ranked, strict=True), strict=True)
    ]
    top, body = f"<tr>{top}</tr>" + "".join(lines[:fixed]), "".join(lines[fixed:])
    return f"<table{' data-sortable' if sortable else ''}><thead>{top}</thead><tbody>{body}</tbody></table>"


def _cell(cell: str, kind: str, rank: int | None) -> str:
    place = "" if rank is None else f' data-rank="{rank}"'
    return f"<td{kind}{place}>{escape(cell)}</td>"


def numeric(column: Sequence[str]) -> bool:
    """Whether all cells with a value start with a number, as `1.2e-03`, `12 %` and `0.3 +- 0.1` do."""
    values = [cell for cell in column if not _missing(cell)]
    return bool(values) and all(NUMBER.match(cell.strip()) for cell in values)


def ranks(column: Sequence[str]) -> list[int | None]:
    """The place of each cell in rising order, from 0: numbers by size, words by the alphabet, numbers in them by size.

    Cells without a value have None, and are to be put last whichever way is sorted.
    """
    key = _number if numeric(column) else _words
    places = {value: i for i, value in enumerate(sorted({key(cell) for cell in column if not _missing(cell)}))}
    return [None if _missing(cell) else places[key(cell)] for cell in column]


def _missing(cell: str) -> bool:
    return cell.strip().lower() in NOTHING


def _number(cell: str) -> Any:
    found = NUMBER.match(cell.strip())
    assert found is not None  # `numeric` has looked
    return float(found[0])


def _words(cell: str) -> Any:
    """Words and numbers in turn, so that `tol 1e-3` is above `tol 1e-4` and `4 steps` below `10 steps`."""
    return tuple(float(part) if i % 2 else part.casefold() for i, part in enumerate(DIGITS.split(cell.strip())))
