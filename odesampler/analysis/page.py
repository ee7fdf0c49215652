"""Pages: sections as HTML that needs no other file and no network.

    page = head (style, what may be loaded: nothing) + sections + how it was made + a script that sorts tables

Figures are drawn once, and take the colours of the page: what matplotlib draws black becomes the colour of the text.
A figure that cannot be drawn loses its place to the reason, and the page stands.
"""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from odesampler.analysis import svg, tables
from odesampler.version import __version__

if TYPE_CHECKING:
    from odesampler.analysis.report import Section, Table

CONTENTS = 3  # sections from which a page has a table of contents
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
NOTEBOOK = (  # inside one class: a notebook has a style of its own
    ".odesampler-report table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".odesampler-report th,.odesampler-report td{padding:.2em .7em;text-align:left;white-space:nowrap}"
    ".odesampler-report .n{text-align:right}"
    ".odesampler-report .wide{overflow-x:auto}"
    ".odesampler-report p{margin:.4em 0;opacity:.75;font-size:.9em}"
    ".odesampler-report img{max-width:100%;background:#fff;border-radius:4px}"
)


def whole(
    title: str,
    sections: Sequence[Section],
    *,
    made: Mapping[str, object] | None = None,
    date: datetime | None = None,
) -> str:
    """A page of its own, complete.

    Args:
        title: Its name and first line.
        sections: Its parts, in order.
        made: What else is known of how it was made, name -> value, such as the command and the device.
        date: When; by default now. All else that is written depends on the report and the environment alone.
    """
    titles = ["Overview" if s.title == title else s.title for s in sections]
    parts = [_section(i, name, s) for i, (name, s) in enumerate(zip(titles, sections, strict=True), 1)]
    links = "".join(f'<li><a href="#part-{i}">{escape(name)}</a></li>' for i, name in enumerate(titles, 1))
    contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(parts) >= CONTENTS else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><button type="button" id="theme" hidden>Light / dark</button></header>
{contents}
<main>
{"".join(parts)}</main>
{_foot(made or {}, date or datetime.now(timezone.utc))}
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


def fragment(section: Section) -> str:
    """A section's table, notes and figure, as a notebook shows them; nothing of it is run."""
    found = [f"<style>{NOTEBOOK}</style>"]
    if section.table is not None:
        found.append(_table(section.table, section.title, sortable=False))
    if section.draw is not None:
        found.append(_png(section))
    return f'<div class="odesampler-report">{"".join(found)}</div>'


def _section(number: int, name: str, section: Section) -> str:
    words = [f"<p>{escape(' '.join(part.split()))}</p>" for part in section.words.split("\n\n") if part.strip()]
    table = "" if section.table is None else _table(section.table, section.title, sortable=True)
    figure = "" if section.draw is None else _figure(number, section)
    inside = "\n".join(filter(None, [*words, table, figure]))
    return f'<section id="part-{number}">\n<h2>{escape(name)}</h2>\n{inside}\n</section>\n'


def _table(table: Table, name: str, *, sortable: bool) -> str:
    box = f'<div class="wide" role="region" tabindex="0" aria-label="Table: {escape(name)}">'
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"{box}{tables.html(table.head, table.rows, sortable=sortable, fixed=table.expected)}</div>{notes}"


def _figure(number: int, section: Section) -> str:
    assert section.draw is not None
    try:
        label = " ".join(f"{section.title}: {section.words}".split()) if section.words else section.title
        picture = svg.inline(section.draw, f"part-{number}", label)
    except Exception as error:  # of whatever draws: the numbers are worth more than the picture
        return _lost(error)
    box = f'<div class="wide" role="region" tabindex="0" aria-label="Figure: {escape(section.title)}">'
    return f"<figure>{box}{picture}</div><figcaption>{escape(section.title)}</figcaption></figure>"


def _lost(error: Exception) -> str:
    return f'<p class="lost">This figure could not be drawn: {escape(f"{type(error).__name__}: {error}")}</p>'


def _png(section: Section) -> str:
    """The figure as an image on white: notebooks are also shown where neither styles nor SVG are let through."""
    assert section.draw is not None
    out = io.BytesIO()
    try:
        section.draw().savefig(out, format="png", dpi=80, metadata={"Software": None}, pil_kwargs={"optimize": True})
    except Exception as error:  # as above
        return _lost(error)
    return (
        f'<img alt="{escape(section.title)}" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
    )


def _foot(made: Mapping[str, object], date: datetime) -> str:
    import torch

    machine = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    facts = {"odesampler": __version__, "torch": torch.__version__, "Python": machine, **made}
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    when = date.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    lines += f'<dt>date</dt><dd><time datetime="{when}">{when}</time></dd>'
    words = "Each number here was computed in the run that made this page, save those said to be a paper's."
    return f'<footer>\n<h2>How this was made</h2>\n<dl>{lines}</dl>\n<p class="note">{words}</p>\n</footer>'


def _resource(name: str) -> str:
    return files("odesampler.analysis").joinpath(name).read_text(encoding="utf-8")
