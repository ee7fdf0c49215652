"""Long runs as they are lived through: started together, killed, moved, with odd pictures and mistyped arguments."""

import errno
import json
import multiprocessing
import os
import tracemalloc
from dataclasses import replace

import pytest
import torch
from PIL import Image

import odesampler as ods
from odesampler import files
from odesampler.streaming import pictures, sample_many, shards
from odesampler.streaming.pictures import PictureFiles
from odesampler.streaming.runs import carry_out
from odesampler.streaming.shards import MANIFEST, Shards, World
from tests.lockstep import work
from tests.test_streaming import contents

MODEL = ods.load("digits")
PICTURES = ods.held_out("digits").images[:6]
HOW = {"num_steps": 2, "shard_size": 2}


def drawn(folder, model=MODEL, count=4, **how):
    return ods.sample_many(model, count, folder, **{**HOW, **how})


def encoded(paths, folder, model=MODEL, **how):
    return ods.encode_many(model, paths, folder, **{**HOW, **how})


def full(path, **how):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.fixture
def folder(tmp_path):
    ods.images.save_each(PICTURES, tmp_path / "in")
    return tmp_path / "in"


# Processes that meet


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
def test_two_processes_that_begin_and_end_at_the_same_moments_do_not_harm_each_other(tmp_path, unnamed):
    context = multiprocessing.get_context("spawn")
    barrier, said, rounds = context.Barrier(2), context.Queue(), 150
    processes = [
        context.Process(target=work, args=(rank, 2, tmp_path, rounds, unnamed, barrier, said)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert [said.get(timeout=120) for _ in processes] == [None, None]
    for process in processes:
        process.join()
    assert not list(tmp_path.rglob(".*"))
    assert len(list(tmp_path.glob("*/SHA256SUMS"))) == rounds


def test_a_manifest_that_another_process_writes_in_between_is_seen(tmp_path, monkeypatch):
    first, second = Shards(tmp_path / "run", 4, 2), Shards(tmp_path / "run", 4, 2)
    exists, asked = type(tmp_path).exists, []

    def late(path):
        there = exists(path)
        if path.name == MANIFEST and not asked:
            asked.append(path)
            first.begin({"a": 1})
        return there

    monkeypatch.setattr(type(tmp_path), "exists", late)
    second.begin({"a": 1})
    assert asked


@pytest.mark.parametrize("left", [".manifest.json.4711.own.part", "..manifest.json.4711.own.part.4711.part"])
def test_a_kill_while_the_manifest_was_written_does_not_lock_the_folder(tmp_path, left):
    (tmp_path / left).write_text("{")
    assert drawn(tmp_path).complete


def test_an_existing_manifest_of_another_run_stands_where_two_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_unnamed", lambda folder: None)
    Shards(tmp_path, 4, 2).begin({"a": 1})
    with pytest.raises(ValueError, match="a: 1 there, 2 asked"):
        Shards(tmp_path, 4, 2).begin({"a": 2})


# The same files again


def test_encoding_twice_gives_the_same_bytes(tmp_path, folder):
    for i in range(6):
        encoded(folder, tmp_path / str(i), exact="residual")
        assert contents(tmp_path / str(i)) == contents(tmp_path / "0")


@pytest.mark.parametrize(
    "said", ["[]", "null", "3", '{"files": {}}', '{"files": []}', '{"items": [2, 4], "files": [1]}']
)
def test_a_shard_whose_record_says_something_else_is_made_again(tmp_path, said):
    drawn(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "00001.json").write_text(said)
    assert drawn(tmp_path).made == (1,)
    assert contents(tmp_path) == before


def test_the_record_of_another_shard_is_not_believed(tmp_path):
    drawn(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "00001.json").write_bytes(before["00000.json"])
    (tmp_path / "00001.safetensors").unlink()
    assert drawn(tmp_path).made == (1,)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("said", ["[]", "null", "3", "{"])
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path, said):
    drawn(tmp_path)
    (tmp_path / MANIFEST).write_text(said)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*take another folder"):
        drawn(tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(MODEL, autocast=torch.bfloat16), "autocast: .None. there, .torch.bfloat16. asked"),
        (replace(MODEL, dtype=torch.bfloat16), "network dtype: .torch.float32. there, .torch.bfloat16. asked"),
        (replace(MODEL, null_cond={"label": 9}), "null conditions: "),
    ],
    ids=["autocast", "dtype", "null condition"],
)
def test_a_shard_is_not_made_again_with_what_would_change_it(tmp_path, other, named):
    how = {"cond": {"label": 3}, "guidance_scale": 2.0}
    drawn(tmp_path, **how)
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(ValueError, match=f"another run .{named}"):
        drawn(tmp_path, other, **how)


def test_a_null_condition_that_has_no_part_in_a_run_may_differ(tmp_path):
    drawn(tmp_path, cond={"label": 3})
    assert drawn(tmp_path, replace(MODEL, null_cond={"label": 9}), cond={"label": 3}).made == ()


def test_the_same_seeds_and_conditions_may_be_said_in_other_words(tmp_path):
    drawn(tmp_path, cond={"label": 3}, seed=2)
    for seed in ([2, 3, 4, 5], torch.arange(2, 6), torch.arange(2, 6).numpy(), range(2, 6)):
        assert drawn(tmp_path, cond={"label": [3, 3, 3, 3]}, seed=seed).made == ()


def test_a_refusal_names_only_what_was_changed(tmp_path):
    drawn(tmp_path, cond={"label": 3})
    with pytest.raises(ValueError, match=r"another run \(count: 4 there, 5 asked\): take"):
        drawn(tmp_path, count=5, cond={"label": 3})


def test_a_refusal_says_first_what_the_user_typed(tmp_path):
    drawn(tmp_path, cond={"label": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match=r"\(count: 4 there, 5 asked; sigmas: .*conditions: "):
        drawn(tmp_path, count=5, num_steps=3, cond={"label": [1, 2, 3, 4, 5]})


def test_a_complete_run_is_at_home_where_nothing_can_be_written(tmp_path, monkeypatch):
    drawn(tmp_path)

    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.os, "open", refused)
    monkeypatch.setattr(shards, "written_whole", refused)
    monkeypatch.setattr(type(tmp_path), "unlink", refused)
    assert drawn(tmp_path).complete


def test_what_did_not_arrive_is_known_after_a_restart_too(tmp_path):
    impatient = ods.Adaptive(ods.Dopri5(), rtol=1e-6, atol=1e-6, max_steps=1)
    how = {"shard_size": 2, "solver": impatient, "num_steps": None}
    with pytest.warns(RuntimeWarning, match="did not arrive"):
        drawn(tmp_path, **how)
    assert drawn(tmp_path, **how).late == (0, 1, 2, 3)
    assert drawn(tmp_path, **how, rank=1, world=2).late == (2, 3)


def test_a_picture_that_was_renamed_is_named(tmp_path, folder):
    how = {"shard_size": 4}
    twice = [*sorted(folder.iterdir())[:3], folder / "00000.png", folder / "00004.png"]
    for paths, out in ((folder, "out"), (twice, "twice")):
        assert encoded(paths, tmp_path / out, **how).made == (0, 1)
        assert encoded(paths, tmp_path / out, **how).made == ()
    (folder / "00004.png").rename(folder / "4.png")
    with pytest.raises(ValueError, match=r"another run \(pictures: 00004.png there, 00005.png asked\)"):
        encoded(folder, tmp_path / "out", **how)


def test_what_was_skipped_is_known_after_a_restart_too(tmp_path, folder):
    (folder / "00003.png").write_text("no picture")
    before = encoded(folder, tmp_path / "out")
    after = encoded(folder, tmp_path / "out")
    assert after.made == ()
    assert after.skipped == before.skipped
    assert "1 pictures skipped" in repr(after)


def test_records_are_not_in_memory_together(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    run = Shards(tmp_path, 200, 1)
    for i in range(200):
        run.finish(i, [], place={}, seen="x" * 20_000)
    tracemalloc.start()
    assert carry_out(run, World(0, 1), dict, lambda i, items: pytest.fail("made again"), None).complete
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10**6


# Pictures


def test_another_picture_of_the_same_name_and_size_is_noticed(tmp_path, folder):
    Image.new("L", (8, 8), 10).save(folder / "00001.bmp")
    Image.new("L", (8, 8), 90).save(tmp_path / "other.bmp")
    (folder / "00001.bmp").rename(folder / "00001.png")
    encoded(folder, tmp_path / "out")
    (folder / "00001.png").write_bytes((tmp_path / "other.bmp").read_bytes())
    with pytest.raises(ValueError, match=r"00001.png is not the picture that was encoded in shard 0"):
        encoded(folder, tmp_path / "out")


def test_pictures_may_be_copied_to_another_place_at_another_time(tmp_path, folder):
    encoded(folder, tmp_path / "out")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    folder.rename(tmp_path / "elsewhere")
    assert encoded(tmp_path / "elsewhere", tmp_path / "out").made == ()


def test_pictures_whose_times_stand_are_not_read_again(tmp_path, folder, monkeypatch):
    found = PictureFiles(sorted(folder.iterdir()))
    seen = {found.names[i]: found.read(i, (1, 8, 8), False).seen for i in range(6)}
    monkeypatch.setattr("odesampler.streaming.pictures.sha256", lambda file: pytest.fail("read again"))
    assert found.changed(range(6), seen) is None


def test_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name in ("a", "b"):
        ods.images.save_each(PICTURES[:2], tmp_path / name)
    encoded([tmp_path / "a", tmp_path / "b"], tmp_path / "out", shard_size=4)
    noted = json.loads((tmp_path / "out" / "00000.json").read_text())
    assert noted["pictures"] == ["a/00000.png", "a/00001.png", "b/00000.png", "b/00001.png"]
    with pytest.raises(ValueError, match="pictures"):
        encoded([tmp_path / "b", tmp_path / "a"], tmp_path / "out", shard_size=4)


def test_odd_entries_of_a_folder_are_skipped_and_a_name_of_any_bytes_is_taken(tmp_path, folder):
    odd = os.path.join(os.fsencode(folder), b"\xff\xfe.png")
    os.rename(folder / "00005.png", odd)
    (folder / "00001.png").unlink()
    (folder / "00001.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    ods.images.save_each(PICTURES, folder / "folder.png")
    os.mkfifo(folder / "pipe.png")
    run = encoded(folder, tmp_path / "out", shard_size=8)
    assert [os.path.basename(path) for path in run.skipped] == ["00001.png", "folder.png", "pipe.png"]
    assert all("is no file" in why for why in run.skipped.values())
    assert ods.Latent.load(tmp_path / "out" / "00000.safetensors").x.shape[0] == 5
    assert encoded(folder, tmp_path / "out", shard_size=8).made == ()


@pytest.mark.parametrize(
    "trouble",
    [OSError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error"), MemoryError()],
    ids=["permission", "disk", "memory"],
)
@pytest.mark.parametrize("where", ["opening", "decoding"])
def test_what_cannot_be_read_now_ends_the_run_by_name_and_is_read_by_the_next(
    tmp_path, folder, monkeypatch, trouble, where
):
    patched, told = (pictures, "sha256") if where == "opening" else (Image.Image, "convert")
    real, asked = getattr(patched, told), []

    def fails(*args, **how):
        asked.append(args)
        if len(asked) == 4:
            raise trouble
        return real(*args, **how)

    monkeypatch.setattr(patched, told, fails)
    with pytest.raises(type(trouble), match=r"shard 1 of .*made, 1 .*00003\.png"):
        encoded(folder, tmp_path / "out")
    run = encoded(folder, tmp_path / "out")
    assert run.made == (1, 2)
    assert run.skipped == {}


def test_a_picture_that_is_gone_since_the_run_began_ends_it(tmp_path, folder, monkeypatch):
    convert = Image.Image.convert

    def unmounted(*args, **how):
        (folder / "00003.png").unlink(missing_ok=True)
        return convert(*args, **how)

    monkeypatch.setattr(Image.Image, "convert", unmounted)
    with pytest.raises(FileNotFoundError, match=r"shard 1 of .*made, 1 .*00003\.png"):
        encoded(folder, tmp_path / "out")


def test_a_reason_without_words_is_its_kind(tmp_path, folder, monkeypatch):
    def fails(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Image.Image, "convert", fails)
    assert "as a picture: ZeroDivisionError" in str(encoded(folder, tmp_path / "out").skipped)


def test_pictures_that_cannot_be_read_at_all_leave_no_list_of_checksums(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert encoded(tmp_path / "a.png", tmp_path / "out").complete
    assert not (tmp_path / "out" / "SHA256SUMS").exists()


def test_a_shard_that_is_made_again_of_nothing_leaves_no_old_file(tmp_path, folder):
    encoded(folder, tmp_path / "out")
    for name in ("00002.png", "00003.png"):
        (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    (tmp_path / "out" / "00001.json").unlink()
    mine = tmp_path / "out" / "00001" / "mine.png"  # which the run has not written
    mine.parent.mkdir()
    mine.touch()
    assert encoded(folder, tmp_path / "out").made == (1,)
    assert mine.exists()
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
        "00000.safetensors",
        "00002.safetensors",
    ]
    assert "00001" not in (tmp_path / "out" / "SHA256SUMS").read_text()


# What cannot be meant


class Own(ods.Heun):
    """A solver without a name."""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"max_batch": 2.5}, "max_batch must be a whole number"),
        ({"max_batch": True}, "max_batch must be a whole number"),
        ({"micro_batch": 2.5, "exact": "bits"}, "micro_batch must be"),
        ({"convention": "sauce"}, "sauce"),
        ({"exact": "bits", "solver": "heun"}, "exact=.bits. needs"),
        ({"solver": Own()}, "Own"),
    ],
)
def test_encoding_that_cannot_be_leaves_no_manifest(tmp_path, folder, how, words):
    with pytest.raises(ValueError, match=words):
        encoded(folder, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_images_is_refused_before_a_folder_is_made(tmp_path, folder):
    shapeless = replace(MODEL, data_shape=None)
    for make in (lambda: drawn(tmp_path / "out", shapeless), lambda: encoded(folder, tmp_path / "out", shapeless)):
        with pytest.raises(ValueError, match="data_shape"):
            make()
    points = ods.exact.GaussianMixture.ring().model()
    with pytest.raises(ValueError, match="pictures are images"):
        encoded(folder, tmp_path / "out", points)
    assert not (tmp_path / "out").exists()


def test_no_pictures_are_no_run(tmp_path):
    with pytest.raises(ValueError, match="paths must name a picture"):
        encoded([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistyped_argument_is_said_of_the_verb(tmp_path, folder):
    with pytest.raises(TypeError, match=r"sample_many\(\) takes no argument 'num_step'.*num_steps"):
        ods.sample_many(MODEL, 2, tmp_path / "out", num_step=5)
    with pytest.raises(TypeError, match=r"encode_many\(\) takes no argument 'num_step'.*num_steps"):
        ods.encode_many(MODEL, folder, tmp_path / "out", num_step=5)


def test_a_file_is_no_folder_for_shards(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file, and shards are written into a folder"):
        drawn(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_link_to_nothing_is_no_folder_for_shards(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(ValueError, match="out is a link to nothing, and shards are written into a folder"):
        drawn(tmp_path / "out")


def test_hidden_files_do_not_make_a_folder_another_ones(tmp_path):
    (tmp_path / ".DS_Store").touch()
    assert drawn(tmp_path).complete


@pytest.mark.parametrize(("synced", "name"), [(0, "manifest.json"), (5, "SHA256SUMS")])
def test_a_disk_that_is_full_for_what_is_no_shard_is_said_with_the_folder(tmp_path, monkeypatch, synced, name):
    fsync, done = os.fsync, []

    def fills(file):
        if len(done) == synced:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(fsync(file))

    monkeypatch.setattr(os, "fsync", fills)
    with pytest.raises(OSError, match=f"{name} of .*{tmp_path.name}/out could not be written: No space left") as caught:
        drawn(tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC


def test_what_an_earlier_call_made_is_counted_among_what_stands(tmp_path, monkeypatch):
    drawn(tmp_path, count=6)
    (tmp_path / "00002.json").unlink()
    monkeypatch.setattr(sample_many, "written_whole", full)
    with pytest.raises(OSError, match=r"shard 2 of .* could not be written, 2 were before it and stand"):
        drawn(tmp_path, count=6)


def test_an_error_of_the_disk_says_its_number_once_and_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_many, "written_whole", full)
    with pytest.raises(OSError, match="shard 0 of") as caught:
        drawn(tmp_path)
    assert str(caught.value).count("[Errno") == 1
    assert "00000.safetensors" in str(caught.value)


def test_numbers_that_are_none_are_said_with_the_shard(tmp_path):
    def network(x_t, t, label):
        return x_t * torch.nan

    broken = ods.Model(network, MODEL.schedule, data_shape=(1, 8, 8), null_cond={"label": 10})
    with pytest.raises(FloatingPointError, match=r"shard 0 of .* could not be made, 0 were before it and stand"):
        drawn(tmp_path, broken)
