"""Figures as SVG inside a page: text as text, the page's colours in place of black and white, no id said twice.

    grey g in [0, 1] -> the page's text at strength 1 - g;     white -> its background;     colours and pictures stay

So one drawing is legible on a light and on a dark page. What matplotlib writes for a file of its own goes: a document
type, metadata with a date and addresses, a style that would reach out to the whole page, ids that nothing refers to.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEUTRAL, STRONG = 8, 85  # a grey's channels differ by at most so much of 255; darker than so many percent is black
FAMILY = "'DejaVu Sans',Verdana,sans-serif"  # equally wide, so that text fits where matplotlib measured it
SMALL, DPI = 128, 144  # images of up to so many rows keep their own pixels; larger ones get so many an inch
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
HEX = re.compile(r"#([0-9a-fA-F]{6})\b")
ADDRESS = re.compile(r"url\(#([^)]+)\)")
MESHES = ("QuadMesh", "PolyQuadMesh")  # whose colours are data: their black is a number, no ink


def inline(draw: Callable[[], Figure], name: str, label: str) -> str:
    """The figure as an element of a page, the same text every time.

    Args:
        draw: Called once, with matplotlib's own defaults, which are put back as they were.
        name: Distinguishes it from the other figures of the page: ids are made from it.
        label: What a screen reader says in its place.
    """
    root = ElementTree.fromstring(_drawn(draw, name))
    for parent in (root, *root.findall(f"{SVG}defs")):
        for child in [child for child in parent if child.tag in (f"{SVG}metadata", f"{SVG}style")]:
            parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    used = {*ADDRESS.findall(text), *re.findall(r'href="#([^"]+)"', text)}
    _tidy(root, used, data=False)
    _, _, width, _ = (float(v) for v in root.attrib["viewBox"].split())
    pixels = f"{width * 96 / 72:.0f}px"  # points are written without their unit
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {
        "xmlns": SVG.strip("{}"),
        "role": "img",
        "aria-label": label,
        "style": f"--natural:{pixels};width:{pixels}",
    }
    root.attrib |= {"fill": "currentColor", "font-family": FAMILY, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(draw: Callable[[], Figure], name: str) -> str:
    import matplotlib
    from matplotlib.image import AxesImage

    out = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a style of the user's own may be made for another background
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
        figure = draw()
        for image in figure.findobj(AxesImage):
            if image.get_size()[0] <= SMALL:
                image.set_interpolation("none")
        figure.savefig(out, format="svg", dpi=DPI, transparent=True)
    return out.getvalue()


def _tidy(node: ElementTree.Element, used: set[str], data: bool) -> None:
    """Names, colours, fonts, ids and white space of `node` and all below it; `data`: its colours are numbers."""
    if node.get("id", "").startswith(MESHES):
        data = True
        node.set("fill", "#000000")  # which matplotlib leaves out
    if node.get("id") not in used:
        node.attrib.pop("id", None)
    if XLINK + "href" in node.attrib:
        node.set("href", node.attrib.pop(XLINK + "href").replace("\n", ""))
    for name in ("d", "points"):
        if name in node.attrib:
            node.set(name, " ".join(node.attrib[name].split()))
    if "style" in node.attrib:
        kept = (_declaration(part.strip(), data) for part in node.attrib["style"].split(";"))
        node.set("style", ";".join(filter(None, kept)))
    node.tag = node.tag.removeprefix(SVG)  # the root says it for all
    if node.tag not in ("text", "tspan") and not (node.text or "").strip():
        node.text = None
    for child in node:
        _tidy(child, used, data)
        if not (child.tail or "").strip():
            child.tail = None


def _declaration(text: str, data: bool) -> str:
    """One `property: value` of a style; nothing for a font, which all share."""
    name, _, value = (part.strip() for part in text.partition(":"))
    if name == "font-family":
        return ""
    if name == "font":  # of older versions: style, size and family in one
        value = re.sub(r"(?<=px )'.*", FAMILY, value)
    return f"{name}:{value}" if data or not name else f"{name}:{HEX.sub(_ink, value)}"


def _ink(colour: re.Match[str]) -> str:
    """A grey as the page's text, as strong as it is dark; white as its background; other colours as they are."""
    channels = bytes.fromhex(colour[1])
    if min(channels) == 255:
        return "var(--paper,#fff)"
    if max(channels) - min(channels) > NEUTRAL:
        return colour[0]
    strength = 100 - 100 * max(channels) / 255
    return "currentColor" if strength > STRONG else f"color-mix(in srgb,currentColor {strength:.0f}%,transparent)"
