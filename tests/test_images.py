"""Pictures in and out."""

import errno
import os
import struct
import time
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import odesampler as ods


@given(value=st.integers(0, 255))
def test_bytes_become_floats_and_the_same_bytes_again(value):
    pixels = torch.full((1, 2, 2), value, dtype=torch.uint8)
    floats = ods.images.to_float(pixels)
    assert floats.abs().max() <= 1
    assert torch.equal(ods.images.to_bytes(floats), pixels)


def test_what_lies_outside_the_range_is_clamped_for_looking_at():
    assert ods.images.to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_floats_are_not_taken_for_bytes():
    with pytest.raises(TypeError, match="uint8"):
        ods.images.to_float(torch.zeros(1))


def test_colour_and_grey_files_are_read_as_the_model_wants_them(tmp_path):
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "red.png")
    assert ods.images.load([tmp_path / "red.png"], (3, 2, 3))[0, :, 0, 0].tolist() == [1, -1, -1]
    assert ods.images.load([tmp_path], (1, 2, 3)).shape == (1, 1, 2, 3)
    assert ods.images.load([tmp_path]).shape == (1, 3, 2, 3)


def test_transparent_pictures_are_laid_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert (ods.images.load(tmp_path / "nothing.png", (1, 2, 2)) == 1).all()


def test_pictures_of_two_sizes_make_no_batch(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    Image.new("L", (3, 2)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b.png is 3 x 2 pixels; 2 x 2 are wanted"):
        ods.images.load([tmp_path])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_picture_where_it_belongs(tmp_path, channels):
    batch = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, channels, 2, 2)
    whole = ods.images.grid(batch, columns=3, scale=1, gap=1)
    assert whole.shape == (channels, 7, 10)
    assert torch.equal(whole[:, 4:6, 4:6], ods.images.to_bytes(batch[4]))
    ods.images.save_grid(batch, tmp_path / "g.png", columns=3, scale=2)
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == (20, 14)


def test_a_picture_is_written_as_png_and_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="PNG"):
        ods.images.save_grid(torch.zeros(1, 1, 2, 2), tmp_path / "g.jpg")


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    from odesampler.files import written_whole

    path = tmp_path / "f"
    path.write_bytes(b"before")

    def fail():
        with written_whole(path) as file:
            file.write(b"half")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_each_picture_is_in_the_file_of_its_number(tmp_path):
    batch = torch.rand(40, 3, 4, 5) * 2 - 1
    paths = ods.images.save_each(batch, tmp_path / "each", first=7)
    assert [p.name for p in paths] == [f"{i:05d}.png" for i in range(7, 47)]
    assert torch.equal(ods.images.to_bytes(ods.images.load(tmp_path / "each")), ods.images.to_bytes(batch))


def test_a_full_disk_is_raised_and_the_pictures_after_it_are_let_be(tmp_path, monkeypatch):
    tried = []

    def full(file):
        tried.append(file)
        time.sleep(0.002)  # as a disk does
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ods.images.save_each(torch.zeros(2000, 1, 2, 2), tmp_path / "each")
    assert len(tried) < 1500
    assert list((tmp_path / "each").iterdir()) == []


def test_whatever_pillow_says_of_a_damaged_file_is_a_value_error_that_names_it(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.dds")
    data = bytearray((tmp_path / "a.dds").read_bytes())
    data[80:88] = (4).to_bytes(4, "little") + b"XYZW"  # a pixel format that does not exist
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(NotImplementedError):
        Image.open(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"cannot read .*a\.png as a picture: Unimplemented pixel format"):
        ods.images.load(tmp_path / "a.png")


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])  # the size is there, the pixels are not
    with pytest.raises(ValueError, match=r"a\.png is 30 x 20 pixels; 8 x 8 are wanted"):
        ods.images.load(tmp_path / "a.png", (1, 8, 8))


def deep_png(kind, channels):
    """A PNG of 2 x 2 pixels of 16 bits a channel, which Pillow cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes(range(4 * channels))) * 2
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "colour", "grey, alpha", "colour, alpha"]
)
def test_sixteen_bits_are_not_cut_to_eight(tmp_path, kind, channels):
    (tmp_path / "deep.png").write_bytes(deep_png(kind, channels))
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits a channel"):
        ods.images.load(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_frames_are_not_lost_where_nothing_may_be(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    first, *others = (Image.new("L", (2, 2), value) for value in (0, 100, 200))
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(ValueError, match="has 3 frames"):
        ods.images.load(path, whole=True)
    assert (ods.images.load(path) == -1).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_turned_upright(tmp_path, suffix):
    lying, path = Image.new("L", (16, 8)), tmp_path / f"a.{suffix}"
    lying.paste(255, (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees, clockwise
    lying.save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    upright = ods.images.load(path, (1, 16, 8))[0, 0]
    assert (upright[:8] == 1).all()
    assert (upright[8:] == -1).all()
    with pytest.raises(ValueError, match="is 8 x 16 pixels; 16 x 8 are wanted"):
        ods.images.load(path, (1, 8, 16))


@pytest.mark.parametrize("name", ["00000.json", "SHA256SUMS", "latents.safetensors"])
def test_a_named_file_that_is_no_picture_by_its_ending_is_refused_before_any_is_read(tmp_path, name):
    (tmp_path / name).write_text("{}")
    (tmp_path / "a.png").write_text("would not be read either")
    with pytest.raises(ValueError, match=f"{name} is no picture by its ending: .*folder/\\*/"):
        ods.images.load([tmp_path / "a.png", tmp_path / name])


def test_a_named_picture_may_be_of_any_format_that_pillow_reads(tmp_path):
    Image.new("L", (2, 2), 255).save(tmp_path / "a.BMP", format="BMP")
    assert (ods.images.load(tmp_path / "a.BMP") == 1).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!!", b"Exif\0\0XX\0*\0\0\0\x08"])
def test_damaged_exif_is_no_damaged_picture(tmp_path, exif):
    Image.new("L", (8, 8), 255).save(tmp_path / "a.png", exif=exif)
    assert (ods.images.load(tmp_path / "a.png") == 1).all()


def test_what_is_left_out_of_a_folder_with_pictures_is_counted(tmp_path):
    ods.images.save_each(torch.zeros(2, 1, 2, 2), tmp_path)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "._00000.png").touch()
    assert len(ods.images.find([tmp_path])) == 2  # of hidden files nothing is said
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.webp").touch()
    with pytest.warns(UserWarning, match=r"2 folders and 1 files of other endings .* left out") as said:
        assert ods.images.load(tmp_path).shape[0] == 2
    assert said[0].filename == __file__


def test_a_folder_whose_pictures_are_in_folders_says_so(tmp_path):
    (tmp_path / "cats").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cats" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"folders in it are not searched: name them, as in .*/\*/$"):
        ods.images.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*dogs"):
        ods.images.load(tmp_path / "dogs")
