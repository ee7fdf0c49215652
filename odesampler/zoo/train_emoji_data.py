"""The pictures that the emoji model is trained on: Noto Color Emoji at 32x32 on white, labelled by Unicode's subgroups.

Needs the Debian packages fonts-noto-color-emoji and unicode-data, and fontTools; nothing is downloaded. See EMOJI.md.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIZE = 32
SHAPE = (3, SIZE, SIZE)
SKIN_TONES = range(0x1F3FB, 0x1F400)
VARIATION_SELECTOR = 0xFE0F  # asks for the colour form; the font's ligatures are written without it
GENDER_SIGNS = (0x2640, 0x2642)  # each such form differs little from the one without
LEFT_OUT = ("Component", "Flags")  # groups
DUPLICATE = 0.06  # root mean square difference, black to white being 1, below which two pictures are the same
# Of each class one picture in ten is held out, the fifth first; classes of fewer than five keep all.
EVERY, FIRST = 10, 4


class Entry(NamedTuple):
    """One line of emoji-test.txt."""

    group: str
    subgroup: str
    name: str
    codepoints: tuple[int, ...]


@dataclass(frozen=True)
class Emoji:
    """Colour pictures on white, uint8, (n, 3, 32, 32), labels, uint8, (n,), and names; `classes` names the labels."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...]  # the group that each class belongs to

    def part(self, rows: Tensor) -> "Emoji":
        """The pictures where `rows`, bool, (n,), is true."""
        names = tuple(name for name, keep in zip(self.names, rows.tolist(), strict=True) if keep)
        return Emoji(self.images[rows], self.labels[rows], names, self.classes, self.groups)


def entries(text: str) -> Iterator[Entry]:
    """Read emoji-test.txt: fully qualified emoji without flags, skin tones and gender signs, in the file's order."""
    group = subgroup = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line and group not in LEFT_OUT:
            codes = tuple(int(code, 16) for code in line.split(";")[0].split())
            name = line.split("#", 1)[1].split(maxsplit=2)[2]
            codes = tuple(code for code in codes if code != VARIATION_SELECTOR)
            variant = any(code in SKIN_TONES for code in codes) or (len(codes) > 1 and codes[-1] in GENDER_SIGNS)
            if not variant:
                yield Entry(group, subgroup, name, codes)


class Font:
    """The pictures of a colour bitmap font by sequence of code points."""

    def __init__(self, path: Path) -> None:
        try:
            from fontTools.ttLib import TTFont
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("fontTools is missing: pip install 'odesampler[train]'") from error
        font: Any = TTFont(path, lazy=True)
        self.cmap: dict[int, str] = font.getBestCmap()
        self.pictures: dict[str, Any] = font["CBDT"].strikeData[0]
        self.ligatures: dict[tuple[str, ...], str] = {}
        for lookup in font["GSUB"].table.LookupList.Lookup:
            for table in lookup.SubTable if lookup.LookupType == 4 else ():
                for first, ligatures in table.ligatures.items():
                    self.ligatures |= {(first, *ligature.Component): ligature.LigGlyph for ligature in ligatures}

    def picture(self, codepoints: tuple[int, ...]) -> Image.Image | None:
        """The picture of a sequence, 32x32, RGB, on white; None if the font has none for the whole of it."""
        glyphs = tuple(self.cmap.get(code, "") for code in codepoints)
        bitmap = self.pictures.get(glyphs[0] if len(glyphs) == 1 else self.ligatures.get(glyphs, ""))
        if bitmap is None:
            return None
        drawn = Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA")
        side = max(drawn.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
        return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def emoji(font: Path = FONT, emoji_test: Path = EMOJI_TEST) -> Emoji:
    """Draw all emoji that differ visibly, labelled by subgroup.

    Raises:
        FileNotFoundError: The font or the list of emoji is not installed.
    """
    for path in (font, emoji_test):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: apt-get install fonts-noto-color-emoji unicode-data")
    drawn = Font(font)
    kept: list[Entry] = []
    pictures = np.empty((0, *SHAPE), dtype=np.uint8)
    for entry in entries(emoji_test.read_text(encoding="utf-8")):
        picture = drawn.picture(entry.codepoints)
        if picture is None:
            continue
        pixels = np.asarray(picture).transpose(2, 0, 1)[None]
        difference = ((pictures.astype(np.float32) - pixels) ** 2).mean(axis=(1, 2, 3)) ** 0.5 / 255
        if (difference > DUPLICATE).all():
            pictures = np.concatenate([pictures, pixels])
            kept.append(entry)
    group_of = {entry.subgroup: entry.group for entry in kept}
    classes = list(group_of)
    labels = torch.tensor([classes.index(entry.subgroup) for entry in kept], dtype=torch.uint8)
    names = tuple(entry.name for entry in kept)
    return Emoji(torch.from_numpy(pictures), labels, names, tuple(classes), tuple(group_of.values()))


def split(data: Emoji) -> tuple[Emoji, Emoji]:
    """Part the pictures into those to train on and those held out, the same at every call."""
    seen: Counter[int] = Counter()
    held_out = []
    for label in data.labels.tolist():
        held_out.append(seen[label] % EVERY == FIRST)
        seen[label] += 1
    rows = torch.tensor(held_out)
    return data.part(~rows), data.part(rows)
