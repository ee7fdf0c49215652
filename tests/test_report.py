"""Reports as pages: whole, alone, legible, the same every time, and no worse for a figure that cannot be drawn."""

import base64
import io
import re
import sys
from datetime import datetime, timezone
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import odesampler as ods
from odesampler.analysis import page, pictures, svg, tables
from odesampler.analysis.report import Report, Section, Table

DATE = datetime(2031, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
HOSTILE = """<b>&"'</script>"""
VOID = {"meta", "link", "img", "br"}


def drawn() -> Figure:
    """Lines with markers, clipped; a picture; hatches; a legend on white."""
    figure = Figure(figsize=(4, 2))
    left, right = figure.subplots(1, 2)
    left.plot([1, 2, 3], [1e-3, 1e-2, 1], "ko-", label="black")
    left.plot([1, 2, 3], [1, 1e-2, 1e-3], "s--", color="#0072B2", label="blue")
    left.fill_between([1, 2], [1, 2], hatch="//", color="0.4")
    left.set_yscale("log")
    left.set_xlabel("evaluations & steps")
    left.legend()
    right.imshow(numpy.eye(4))
    return figure


class Found(Report):
    """A report of three sections, with names that are no HTML."""

    title = f"Solvers of {HOSTILE}"
    drawings = 0

    def draw(self):
        self.drawings += 1
        return drawn()

    def sections(self):
        rows = [("rk4", "10", "1.2e-03"), (HOSTILE, "9", "-"), ("ddim", "own", "2")]
        table = Table(("solver", f"steps {HOSTILE}", "error"), rows, (f"note {HOSTILE}",))
        return [
            Section(self.title, table=table, draw=self.draw),
            Section(f"Second {HOSTILE}", words=f"One {HOSTILE}.\n\nAnother.", draw=self.draw),
            Section("Third", draw=self.draw),
        ]

    def records(self):
        nothing = {"solver": HOSTILE, "steps": None, "error": float("nan")}
        return [{"solver": "rk4", "steps": 10, "error": 0.1 + 0.2}, nothing]


class Parsed(HTMLParser):
    """A page's elements, each with its attributes and the text inside it; fails where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        element = (tag, dict(attributes), [])
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def texts(self, tag):
        return ["".join(text) for found, _, text in self.found if found == tag]

    def attributes(self, tag):
        return [attributes for found, attributes, _ in self.found if found == tag]

    def every(self, name):
        return [attributes[name] for _, attributes, _ in self.found if name in attributes]


@pytest.fixture(scope="module")
def text():
    return Found().to_html(made={"command": f"odesampler {HOSTILE}"})


def test_a_page_has_the_parts_of_a_page_and_says_all_names_as_they_are(text):
    found = Parsed(text)
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert {"charset": "utf-8"} in found.attributes("meta")
    assert "viewport" in found.every("name")
    assert found.texts("title") == found.texts("h1") == [Found.title]
    assert found.texts("h2") == ["Overview", f"Second {HOSTILE}", "Third", "How this was made"]
    assert [len(found.texts(tag)) for tag in ("main", "section", "figure", "figcaption", "svg")] == [1, 3, 3, 3, 3]
    assert found.texts("th") == ["solver", f"steps {HOSTILE}", "error"]
    assert found.texts("td") == ["rk4", "10", "1.2e-03", HOSTILE, "9", "-", "ddim", "own", "2"]
    assert {f"note {HOSTILE}", f"One {HOSTILE}.", "Another."} <= set(found.texts("p"))
    assert f"odesampler {HOSTILE}" in found.texts("dd")
    assert ods.__version__ in found.texts("dd")
    assert torch.__version__ in found.texts("dd")
    figures = [f"Figure: {s.title}" for s in Found().sections()]
    said = [Found.title, f"Second {HOSTILE}: One {HOSTILE}. Another.", "Third"]
    assert [a["aria-label"] for a in found.attributes("svg")] == said, "what is to be seen, too"
    boxes = [a for a in found.attributes("div") if a.get("class") == "wide"]
    assert [a["aria-label"] for a in boxes] == [f"Table: {Found.title}", *figures]
    assert {(a["role"], a["tabindex"]) for a in boxes} == {("region", "0")}, "a keyboard scrolls them"
    assert {a["role"] for a in found.attributes("svg")} == {"img"}


def test_a_page_loads_nothing_from_elsewhere_and_forbids_it_too(text):
    found = Parsed(text)
    for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
        assert all(value.startswith(("#", "data:")) for value in found.every(name)), name
    assert len(found.every("href")) > 10
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"\S*https?://\S*?(?=[\s>])", text)) == {'xmlns="http://www.w3.org/2000/svg"'}
    (policy,) = [a["content"] for a in found.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_three_equal_figures_share_no_id_and_find_what_they_refer_to(text):
    found = Parsed(text)
    ids = found.every("id")
    assert len(ids) == len(set(ids))
    wanted = [v[1:] for name in ("href", "xlink:href") for v in found.every(name) if v.startswith("#")]
    wanted += re.findall(r"url\(#([^)]+)\)", text)
    assert len(set(wanted)) > 3 * 4
    assert set(wanted) <= set(ids)
    assert set(re.findall(r'getElementById\("(\w+)"\)', text)) <= set(ids)


def test_a_table_of_contents_is_given_from_three_sections_on(text):
    assert [a["href"] for a in Parsed(text).attributes("a")] == ["#part-1", "#part-2", "#part-3"]
    assert "<nav" not in page.whole("t", Found().sections()[:2])


def test_the_same_report_is_the_same_page_whatever_the_users_style_and_no_setting_is_left_behind():
    once = page.whole("t", Found().sections(), date=DATE)
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        before = dict(matplotlib.rcParams)
        assert page.whole("t", Found().sections(), date=DATE) == once
        assert dict(matplotlib.rcParams) == before
    later = page.whole("t", Found().sections(), date=DATE.replace(second=7))
    assert "2031-02-03T04:05:06Z" in once
    assert later.replace("04:05:07Z", "04:05:06Z") == once


def test_a_figure_is_drawn_once_when_the_page_is_made():
    found = Found()
    found.to_html()
    assert found.drawings == 3


def test_a_figure_that_fails_loses_its_place_to_the_reason_and_the_page_stands():
    def fails():
        raise ZeroDivisionError(HOSTILE)

    first, _, third = Found().sections()
    found = Parsed(page.whole("t", [first, Section("Second", draw=fails), third]))
    assert f"This figure could not be drawn: ZeroDivisionError: {HOSTILE}" in found.texts("p")
    assert len(found.texts("svg")) == 2
    shown = Parsed(page.fragment(Section("t", table=first.table, draw=fails)))
    assert len(shown.texts("td")) == 9
    assert any("ZeroDivisionError" in p for p in shown.texts("p"))


def test_an_interrupt_while_drawing_stops():
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        page.whole("t", [Section("t", draw=stopped)])


def embedded(address):
    """The pixels of a picture inside a page, (height, width, 4)."""
    with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))) as picture:
        return numpy.array(picture.convert("RGBA"))


def inlined(figure, name="f"):
    return svg.inline(lambda: figure, name, "what it shows")


def test_a_figure_is_xml_with_text_as_text_in_the_pages_colours():
    found = inlined(drawn())
    root = ElementTree.fromstring(found)
    texts = ["".join(node.itertext()) for node in root.iter(svg.SVG + "text")]
    assert {"evaluations & steps", "black", "blue"} <= set(texts)
    assert root.attrib["fill"] == "currentColor"  # text and shapes without a colour are black otherwise
    styles = [node.attrib["style"] for node in root.iter() if "style" in node.attrib]
    colours = set(re.findall(r"#[0-9a-f]{6}\b", " ".join(styles).lower()))
    assert colours == {"#0072b2"}
    assert any("stroke:currentColor" in style for style in styles)
    assert sum("var(--paper" in style for style in styles) == 1, "the legend's white box, nothing else"
    assert any("color-mix(in srgb,currentColor 60%,transparent)" in style for style in styles), "the grey area"
    assert not list(root.iter(svg.SVG + "style")), "it would reach out to the page"
    assert "DejaVu" not in " ".join(styles)


@pytest.mark.parametrize("black", ["#000000", "#262626", "k", "0.1"])
def test_black_and_near_black_lines_take_the_colour_of_the_text(black):
    figure = Figure()
    figure.subplots().plot([1, 2], [1, 2], color=black, linewidth=7)
    (style,) = re.findall(r'style="([^"]*stroke-width:7[^"]*)"', inlined(figure))
    assert "stroke:currentColor" in style


def test_colours_that_are_numbers_stay_black_and_white():
    figure = Figure()
    figure.subplots().pcolormesh(numpy.eye(2), cmap="gray")
    root = ElementTree.fromstring(inlined(figure))
    (mesh,) = (g for g in root.iter(svg.SVG + "g") if len(g) == 4 and all("z" not in path.get("d", "z") for path in g))
    fills = [dict(re.findall(r"(\S+):([^;]+)", path.get("style", ""))).get("fill", mesh.get("fill")) for path in mesh]
    assert fills == ["#ffffff", "#000000", "#000000", "#ffffff"]


def test_fonts_of_older_versions_of_matplotlib_are_replaced_too():
    old = "font: oblique 700 10px 'DejaVu Sans', 'Bitstream Vera Sans', sans-serif"
    assert svg._declaration(old, False) == f"font:oblique 700 10px {svg.FAMILY}"


@pytest.mark.parametrize("channels", [1, 3])
def test_what_lies_between_pictures_is_clear_and_the_pictures_keep_their_pixels(channels):
    images = torch.linspace(-1, 1, 2 * channels * 16).reshape(2, channels, 4, 4)
    figure = Figure()
    pictures.show(figure.subplots(), images)
    root = ElementTree.fromstring(inlined(figure))
    (image,) = root.iter(svg.SVG + "image")
    pixels = embedded(image.attrib["href"])
    assert pixels.shape == (4, 9, 4)
    assert (pixels[..., 3] == 255).all(axis=0).tolist() == [True] * 4 + [False] + [True] * 4
    assert (pixels[:, 4, 3] == 0).all()


def test_large_pictures_are_put_into_the_page_as_large_as_they_are_seen():
    figure = Figure(figsize=(2, 2))
    figure.subplots().imshow(numpy.random.default_rng(0).random((600, 600)))
    (image,) = ElementTree.fromstring(inlined(figure)).iter(svg.SVG + "image")
    assert embedded(image.attrib["href"]).shape[0] < 2 * svg.DPI


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["10", "9", "100"], [1, 0, 2]),
        (["1.2e-03", "1e-4", "3", "-2"], [2, 1, 3, 0]),
        (["own", "20", "-", "10", "", "20"], [None, 1, None, 0, None, 1]),
        (["inf", "-inf", "nan", "0"], [2, 0, None, 1]),
        (["12 %", "9 %", "0.5 +- 0.1", "3.0 (2.1 to 4)", "4[3, 5]"], [4, 3, 0, 1, 2]),
        (["rk4", "DDIM", "ddim", "alf"], [2, 1, 1, 0]),
        (["10 steps", "tol 1e-4", "4 steps", "tol 1e-3"], [1, 2, 0, 3]),
        (["dpmpp_2m", "dpmpp_2m(order=3)", "2"], [1, 2, 0]),
        (["1e5x", "3"], [1, 0]),
        ([], []),
    ],
    ids=str,
)
def test_cells_have_their_place_in_the_column(column, expected):
    assert tables.ranks(column) == expected


@pytest.mark.parametrize(
    ("column", "number"), [(["-", "own", "1e-3"], True), (["-", ""], False), (["3", "x"], False), (["3", "4x"], False)]
)
def test_columns_of_numbers_are_told(column, number):
    assert tables.numeric(column) == number


def test_a_pages_table_carries_ranks_and_heads_that_a_keyboard_reaches(text):
    found = Parsed(text)
    assert [a.get("data-rank") for a in found.attributes("td")] == ["2", "1", "0", "0", "0", None, "1", None, "1"]
    assert [a.get("class") for a in found.attributes("td")][:3] == [None, "n", "n"]
    assert [a["scope"] for a in found.attributes("th")] == ["col"] * 3
    assert len(found.texts("button")) == 1, "the heads are no buttons until the script has made them such"
    assert len([a for a in found.attributes("table") if "data-sortable" in a]) == 1
    assert "data-sortable" not in Found()._repr_html_()
    assert tables.html(("a",), [], sortable=True).count("<tr>") == 1


def luminance(colour):
    """Of WCAG 2.2: linear light, weighted."""
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (v / 255 for v in colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [0, 1])
@pytest.mark.parametrize("paper", ["paper", "shade"])
@pytest.mark.parametrize("ink", ["ink", "soft", "accent"])
def test_words_stand_out_from_their_background(ink, paper, dark):
    colours = dict(re.findall(r"--(\w+): light-dark\((#\w+, #\w+)\)", page._resource("page.css")))
    one, other = (luminance(bytes.fromhex(colours[name].split(", ")[dark][1:])) for name in (ink, paper))
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


def test_a_notebook_shows_the_first_section_and_runs_nothing():
    shown = Found()._repr_html_()
    found = Parsed(shown)
    assert [len(found.texts(tag)) for tag in ("table", "tr", "script", "button")] == [1, 4, 0, 0]
    assert f"note {HOSTILE}" in found.texts("p")
    (image,) = found.attributes("img")
    assert image["alt"] == Found.title
    assert embedded(image["src"]).shape == (160, 320, 4)
    (style,) = found.texts("style")
    assert all(rule.startswith(".odesampler-report ") for rule in style.split("}") if rule), "it is only for us"


def test_a_notebook_falls_back_to_text_where_a_report_fails():
    class Broken(Found):
        def sections(self):
            raise RuntimeError("no sections")

    assert Broken()._repr_html_() is None


def test_columns_for_other_programs_have_all_digits_and_nothing_for_nothing(tmp_path):
    csv = Found().to_csv(tmp_path / "found.csv")
    assert (tmp_path / "found.csv").read_bytes().decode() == csv
    assert csv.splitlines()[:2] == ["solver,steps,error", "rk4,10,0.30000000000000004"]
    assert csv.splitlines()[2] == """"<b>&""'</script>",,"""


def test_a_report_without_rows_is_an_empty_file_and_no_empty_line(tmp_path):
    class Empty(Found):
        def records(self):
            return []

    assert Empty().to_csv(tmp_path / "none.csv") == ""
    assert (tmp_path / "none.csv").read_bytes() == b""


def test_pandas_gets_numbers():
    frame = Found().to_pandas()
    assert list(frame.columns) == ["solver", "steps", "error"]
    assert frame["error"][0] == 0.1 + 0.2
    assert frame["error"].isna().tolist() == frame["steps"].isna().tolist() == [False, True]


def test_without_pandas_it_is_said_what_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas\); to_csv does without"):
        Found().to_pandas()


def test_a_page_is_written_whole_and_says_what_is_known_of_how(tmp_path):
    written = tmp_path / "out.html"
    text = Found().to_html(written, made={"device": "cuda"})
    assert written.read_text() == text
    assert "<dt>device</dt><dd>cuda</dd>" in text
    with pytest.raises(OSError, match="nowhere"):
        Found().to_html(tmp_path / "nowhere" / "out.html")


def test_what_latents_should_be_stays_above_them_however_one_sorts():
    model = ods.load("digits")
    report = ods.diagnose(model, ods.encode(model, ods.held_out("digits").images[:3], num_steps=3))
    text = report.to_html()
    above, _, below = text.partition("<table")[2].partition("</thead>")
    assert "<td>N(0, 1)</td>" in above
    assert ">+-</td>" in above
    assert "data-rank" not in above
    body = Parsed("<table>" + below.partition("</table>")[0] + "</table>")
    width = len(report.head)
    assert [a.get("data-rank") for a in body.attributes("td")][::width] == ["0", "1", "2"]


def test_what_is_known_of_how_need_not_be_words():
    assert "<dt>n</dt><dd>3</dd>" in Found().to_html(made={"n": 3})


def test_a_round_trip_with_pictures_is_a_page_of_modest_size():
    images = ods.held_out("digits").images[:2]
    report = ods.round_trip(ods.load("digits"), images, ["ddim", "alf"], 3)
    found = Parsed(text := report.to_html())
    assert [len(found.texts(tag)) > 0 for tag in ("table", "svg", "image")] == [True] * 3
    assert "could not be drawn" not in text
    assert len(text) < 300_000


def test_a_report_of_nothing_but_failures_is_a_page():
    model = ods.load("digits")
    with pytest.warns(RuntimeWarning, match="did not arrive"):
        report = ods.round_trip(model, ods.held_out("digits").images[:1], "adaptive:dopri5(max_steps=1)")
    assert not report.trips
    assert "failed" in " ".join(Parsed(report.to_html()).texts("p"))
