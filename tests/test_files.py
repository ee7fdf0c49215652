"""Files that are written whole, by processes that know nothing of each other."""

import os
import time

import pytest

from odesampler import files
from odesampler.files import is_part, sweep, written_whole


@pytest.fixture(params=["unnamed", "named"])
def either_way(request, monkeypatch):
    """On systems that have files without a name, and on those that have not."""
    if request.param == "named":
        monkeypatch.setattr(files, "_unnamed", lambda folder: None)


@pytest.mark.usefixtures("either_way")
def test_what_a_killed_process_of_the_same_number_left_is_not_taken_for_the_file(tmp_path):
    for left in (f".f.{os.getpid()}.part", f"..f.{os.getpid()}.own.part.{os.getpid()}.part"):
        (tmp_path / left).write_bytes(b"stale, and longer than what is written")
    with written_whole(tmp_path / "f") as file:
        file.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.mark.usefixtures("either_way")
def test_two_writers_with_one_process_number_do_not_write_into_each_other(tmp_path):
    with written_whole(tmp_path / "f") as slow:
        slow.write(b"s")
        with written_whole(tmp_path / "f") as quick:
            quick.write(b"quick")
        assert (tmp_path / "f").read_bytes() == b"quick"
    assert (tmp_path / "f").read_bytes() == b"s"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.usefixtures("either_way")
def test_of_two_that_write_a_file_first_the_one_that_is_done_first_stands(tmp_path):
    with written_whole(tmp_path / "f", first=True) as slow:
        slow.write(b"slow")
        with written_whole(tmp_path / "f", first=True) as quick:
            quick.write(b"quick")
    assert (tmp_path / "f").read_bytes() == b"quick"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_parts_that_may_be_alive_are_not_swept_away(tmp_path):
    (tmp_path / "00001").mkdir()
    old, young, other = tmp_path / "00001" / ".a.1.part", tmp_path / ".b.2.part", tmp_path / "c.part"
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 4000,) * 2)
    sweep(tmp_path, 3600)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
    assert is_part(young)


def test_a_part_that_vanishes_while_it_is_swept_is_no_error(tmp_path, monkeypatch):
    part = tmp_path / ".a.1.part"
    part.touch()
    os.utime(part, (0, 0))
    monkeypatch.setattr(type(part), "unlink", lambda self, missing_ok=False: os.remove(self.with_name("gone")))
    sweep(tmp_path, 3600)
