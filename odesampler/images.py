"""Pictures: files and bytes to tensors and back. Pillow is imported when used.

A tensor is (batch, channels, height, width), float32, in [-1, 1], the data range of nearly all diffusion models.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from odesampler.files import written_whole

SUFFIXES = (".png", ".jpg", ".jpeg")
WRITERS = 4  # threads: a disk syncs several files in the time of one, which made it 8 times as fast


def to_float(pixels: Tensor) -> Tensor:
    """Bytes 0 .. 255, uint8 of any shape, as float32 in [-1, 1].

    Raises:
        TypeError: Not uint8.

    Examples:
        >>> ods.images.to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
        [-1.0, 1.0]
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"to_float takes uint8 pixels, 0 .. 255; got {pixels.dtype}")
    return pixels.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], of any shape, as uint8; what lies outside is clamped, for looking at.

    Examples:
        >>> ods.images.to_bytes(torch.tensor([-1.0, 0.0, 1.0, 7.0])).tolist()
        [0, 128, 255, 255]
    """
    return ((images.detach().double().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def find(paths: Sequence[str | Path]) -> list[Path]:
    """The pictures among `paths`: files of any format as named; of folders (not their subfolders) PNG and JPEG, sorted.

    Warns of folders and other files that lie beside pictures, and are left out; hidden ones are not looked at.

    Raises:
        FileNotFoundError: A path that does not exist, or a folder without pictures.
        ValueError: A file that is no picture by the ending of its name.

    Examples:
        >>> paths = ods.images.save_each(torch.zeros(3, 1, 8, 8), "found")
        >>> [path.name for path in ods.images.find(["found"])]
        ['00000.png', '00001.png', '00002.png']
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no such file or folder: {path}")
        if not path.is_dir() and not _may_be_picture(path):
            raise ValueError(f"{path} is no picture by its ending: name pictures, or folders of them as in folder/*/")
        found += _inside(path) if path.is_dir() else [path]
    return found


def _inside(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted."""
    inside, below, others = list[Path](), 0, 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES:
            inside.append(path)
        else:
            below, others = (below + 1, others) if path.is_dir() else (below, others + 1)
    if not inside:
        advice = f"; folders in it are not searched: name them, as in {folder}/*/" if below else ""
        raise FileNotFoundError(f"no {', '.join(SUFFIXES)} files in folder {folder}{advice}")
    if below or others:
        left = f"{below} folders and {others} files of other endings than {', '.join(SUFFIXES)}"
        warnings.warn(f"{left} in {folder} are left out: those that are meant must be named", stacklevel=4)
    return inside


def _may_be_picture(path: Path) -> bool:
    """Whether Pillow reads files of this ending."""
    from PIL import Image

    suffix = path.suffix.lower()
    return suffix in SUFFIXES or Image.registered_extensions().get(suffix) in Image.OPEN


def load(
    paths: str | Path | Sequence[str | Path], shape: tuple[int, ...] | None = None, *, whole: bool = False
) -> Tensor:
    """Read pictures as one batch.

    Args:
        paths: Files or folders, or one. Transparent pictures are laid on white; those that their EXIF data say to turn,
            as cameras do, are upright.
        shape: (channels, height, width) that they must have; colour is converted (1 is grey, 3 is RGB), size is not.
        whole: Refuse pictures of which something would be lost so: transparent ones, coloured ones for grey, those of
            several frames.

    Returns:
        (batch, channels, height, width), float32 in [-1, 1].

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: A file that is no picture, by its ending or as it is read, or has 16 bits a channel, another size
            than `shape` or than the first, or more than is kept (`whole`).

    Examples:
        >>> paths = ods.images.save_each(ods.held_out("digits").images[:2], "loaded")
        >>> ods.images.load("loaded").shape, ods.images.load("loaded", shape=(1, 8, 8)).shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 1, 8, 8]))
        >>> ods.images.load("nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no such file or folder: nowhere
    """
    pictures: list[Tensor] = []
    for path in find([paths] if isinstance(paths, (str, Path)) else paths):
        like = shape if shape is not None or not pictures else (3, *pictures[0].shape[1:])
        try:
            with open(path, "rb") as file:
                pictures.append(read(file, path, like, whole=whole))
        except OSError as error:
            raise ValueError(f"cannot read {path} as a picture: {error}") from error
    return torch.stack(pictures)


def read(file: IO[bytes], name: str | Path, shape: tuple[int, ...] | None = None, *, whole: bool = False) -> Tensor:
    """One picture (channels, height, width), as `load` reads it, from an open file; errors call it `name`.

    Raises:
        ValueError: As for `load`; the size is looked at before the pixels are.
        OSError: The file cannot be read now, which says nothing of the picture.

    Examples:
        >>> paths = ods.images.save_each(torch.ones(1, 3, 8, 8), "read")
        >>> with open(paths[0], "rb") as file:
        ...     picture = ods.images.read(file, "my picture", shape=(1, 8, 8))
        >>> tuple(picture.shape), picture.min().item()
        ((1, 8, 8), 1.0)
    """
    from PIL import Image, UnidentifiedImageError

    mode = "L" if shape is not None and shape[0] == 1 else "RGB"
    refusal = None
    try:
        with Image.open(file) as opened:
            refusal = _refusal(opened, mode, shape, whole)
            picture = opened if refusal else _upright(opened)
            refusal = refusal or _other_size(picture, shape)
            if refusal is None and picture.has_transparency_data:
                white = Image.new("RGBA", picture.size, "white")
                converted = Image.alpha_composite(white, picture.convert("RGBA")).convert(mode)
            elif refusal is None:
                converted = picture.convert(mode)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read {name} as a picture: no format that Pillow knows, or damaged") from error
    except Exception as error:  # Pillow's readers raise nearly any kind where a file is damaged
        if _of_the_machine(error):
            raise
        raise ValueError(f"cannot read {name} as a picture: {str(error) or type(error).__name__}") from error
    if refusal is not None:
        raise ValueError(f"{name} {refusal}")
    data = torch.frombuffer(bytearray(converted.tobytes()), dtype=torch.uint8)
    return to_float(data.reshape(converted.height, converted.width, -1).permute(2, 0, 1))


def _upright(picture: Any) -> Any:
    """A picture, opened, turned as its EXIF data say; as it lies where they are damaged, which its pixels are not."""
    from PIL import ExifTags, ImageOps

    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        if _of_the_machine(error):
            raise
        return picture
    return picture if orientation == 1 else ImageOps.exif_transpose(picture)


def _of_the_machine(error: Exception) -> bool:
    """Not of the file. EINVAL is what a damaged one asks for: to be read before its beginning."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL)


def _refusal(picture: Any, mode: str, shape: tuple[int, ...] | None, whole: bool) -> str | None:
    """Why a picture, opened and not decoded yet, is not taken; None where it is."""
    if shape is not None and sorted(picture.size) != sorted(shape[1:]):  # turned it may have the other
        return _other_size(picture, shape)
    deep = re.search(r";16[BLN]", str(picture.tile))  # so Pillow says of colours what it would cut to 8 bits
    if deep or picture.mode.startswith(("I", "F")):  # or off at 255
        return "has more than 8 bits a channel: convert it first"
    if whole and (picture.has_transparency_data or (mode == "L" and picture.mode not in ("1", "L"))):
        return "has transparency, or colours in place of greys, which would be lost"
    frames = getattr(picture, "n_frames", 1) if whole else 1
    return f"has {frames} frames, all but one of which would be lost" if frames > 1 else None


def _other_size(picture: Any, shape: tuple[int, ...] | None) -> str | None:
    """Why a picture of this size is not taken; None where it is."""
    if shape is None or picture.size == (shape[2], shape[1]):
        return None
    size, asked = (f"{width} x {height}" for width, height in (picture.size, (shape[2], shape[1])))
    return f"is {size} pixels; {asked} are wanted: resize it first"


def grid(images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = 1) -> Tensor:
    """Pictures side by side as one, uint8 (channels, height, width).

    Args:
        images: (batch, channels, height, width) in [-1, 1].
        columns: Pictures a row; about a square by default.
        scale: How many times to enlarge each pixel; by default small pictures become about 64 pixels high.
        gap: White pixels between neighbours, before enlarging.

    Examples:
        >>> ods.images.grid(torch.zeros(6, 3, 32, 32), columns=3, scale=1).shape
        torch.Size([3, 67, 100])
    """
    batch, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(batch))
    rows = math.ceil(batch / columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, picture in enumerate(to_bytes(images)):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = picture
    scale = scale or max(1, round(64 / height))
    return canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def save_grid(images: Tensor, path: str | Path, **options: Any) -> None:
    """Write pictures side by side as one PNG, whole or not at all; `options` as for `grid`.

    Raises:
        ValueError: `path` does not end in .png.
        OSError: It cannot be written.

    Examples:
        >>> ods.images.save_grid(ods.held_out("digits").images[:16], "digits.png", columns=8)
        >>> ods.images.save_grid(ods.held_out("digits").images[:16], "digits.jpg")
        Traceback (most recent call last):
            ...
        ValueError: pictures are written as PNG; got digits.jpg
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG; got {path}")
    _write(grid(images, **options), Path(path))


def save_each(images: Tensor, folder: str | Path, *, first: int = 0, digits: int = 5) -> list[Path]:
    """Write each picture (batch, channels, height, width) as folder/00000.png, ..., which `load` reads in this order.

    The first has the number `first`, written with so many `digits`. One that is NaN is no picture: it is not written,
    and its number is left out.

    Raises:
        OSError: One cannot be written.

    Examples:
        >>> [path.name for path in ods.images.save_each(torch.zeros(2, 3, 8, 8), "numbered", first=7)]
        ['00007.png', '00008.png']
    """
    good = (~images.detach().isnan().flatten(1).any(1)).nonzero().flatten().cpu()
    paths = [Path(folder) / f"{first + i:0{digits}d}.png" for i in good.tolist()]
    Path(folder).mkdir(exist_ok=True)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(_write, to_bytes(images)[good], paths))  # raises the first error, and lets the rest be
    return paths


def _write(pixels: Tensor, path: Path) -> None:
    """One picture, uint8 (channels, height, width)."""
    from PIL import Image

    flat = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(flat.squeeze(-1) if flat.shape[-1] == 1 else flat)
    with written_whole(path) as file:
        picture.save(file, format="PNG")
