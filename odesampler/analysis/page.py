"""Pages: sections as HTML that needs no other file and no network.

    page = head (style, a script that sorts tables) + sections;    figure = SVG in the page

Figures are drawn once, and take the colours of the page: what matplotlib draws black becomes the colour of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from odesampler.analysis import tables
from odesampler.files import written_whole

if TYPE_CHECKING:
    from odesampler.analysis.report import Section


def whole(title: str, sections: Sequence[Section], path: str | Path | None = None) -> str:
    """A page of its own; written to `path`, if given, whole or not at all."""
    text = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>{fragment(sections)}"
    if path is not None:
        with written_whole(path) as file:
            file.write(text.encode())
    return text


def fragment(sections: Sequence[Section]) -> str:
    """The sections' tables, as a notebook shows them."""
    return "".join(tables.html(s.table.head, s.table.rows) for s in sections if s.table is not None)
