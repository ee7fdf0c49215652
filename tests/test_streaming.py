"""Runs in shards: complete, none twice, and the same bits, whatever happens to the processes that make them."""

import errno
import gc
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import odesampler as ods
from odesampler.streaming import sample_many
from odesampler.streaming.shards import Beside, Shards, World

MODEL = ods.load("digits")
HOW = {"num_steps": 3, "cond": {"label": 3}}
PICTURES = ods.held_out("digits").images[:23]


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes of these tests have, since the bits of a network may depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def environment(monkeypatch):
    """Sets what torchrun and Slurm say, and nothing else."""

    def say(said):
        for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in said.items():
            monkeypatch.setenv(name, value)

    return say


def counted_calls(model):
    """The same model, and a list that grows by one a call."""
    calls = []

    def network(x_t, t, **cond):
        calls.append(len(x_t))
        return model.network(x_t, t, **cond)

    return ods.Model(network, model.schedule, "eps", data_shape=model.data_shape, null_cond=model.null_cond), calls


def contents(folder):
    """Every file of a run by name; what was noted of the place included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def drawn(folder, **how):
    return ods.sample_many(MODEL, 100, folder, shard_size=16, **{**HOW, **how})


@given(count=st.integers(1, 500), size=st.integers(1, 60), world=st.integers(1, 9))
def test_every_item_is_in_one_shard_and_every_shard_is_one_process(tmp_path_factory, count, size, world):
    shards = Shards(tmp_path_factory.getbasetemp() / "nothing", count, size)
    of_ranks = [shards.missing(World(rank, world)) for rank in range(world)]
    assert sorted(i for mine in of_ranks for i in mine) == list(range(len(shards)))
    assert [item for i in range(len(shards)) for item in shards.span(i)] == list(range(count))


@pytest.mark.parametrize(
    ("said", "world"),
    [
        ({}, World(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, World(3, 8)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, World(2, 4)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, World(3, 8)),
        ({"SLURM_PROCID": "2"}, World(0, 1)),
        ({"WORLD_SIZE": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, World(2, 4)),
        ({"RANK": "", "WORLD_SIZE": ""}, World(0, 1)),
    ],
)
def test_which_process_this_is_torchrun_and_slurm_say(environment, said, world):
    environment(said)
    assert World.of(None, None) == world
    assert World.of(1, 2) == World(1, 2)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK in the environment must be a whole number, not below 0; got 'a'"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "-1"}, "SLURM_NTASKS in the environment must be .*'-1'"),
        ({"WORLD_SIZE": "2"}, "belong together .* got RANK=None, WORLD_SIZE='2'"),
        ({"RANK": "1", "WORLD_SIZE": ""}, "belong together .* got RANK='1', WORLD_SIZE=''"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank must be one of"),
    ],
)
def test_an_environment_that_does_not_say_which_process_this_is_is_refused(environment, said, words):
    environment(said)
    with pytest.raises(ValueError, match=words):
        World.of(None, None)


def test_shards_hold_what_sample_gives_for_their_seeds(tmp_path):
    run = drawn(tmp_path, seed=5)
    assert run.complete
    assert run.made == tuple(range(7))
    for i in range(7):
        found = load_file(tmp_path / f"{i:05d}.safetensors")
        seeds = list(range(5 + 16 * i, 5 + min(16 * (i + 1), 100)))
        assert found["seed"].tolist() == seeds
        assert torch.equal(found["x"], ods.sample(MODEL, len(seeds), seed=seeds, **HOW).x)


def test_seeds_and_conditions_of_each_sample_go_with_it(tmp_path):
    seeds, labels = [7 * i % 41 for i in range(20)], [i % 10 for i in range(20)]
    ods.sample_many(MODEL, 20, tmp_path, shard_size=8, num_steps=3, seed=seeds, cond={"label": labels})
    for i in range(3):
        part = slice(8 * i, 8 * i + 8)
        alone = ods.sample(MODEL, len(seeds[part]), num_steps=3, seed=seeds[part], cond={"label": labels[part]})
        assert torch.equal(load_file(tmp_path / f"{i:05d}.safetensors")["x"], alone.x)


def test_the_union_is_the_same_whatever_the_number_of_processes(tmp_path):
    for world in (1, 2, 3):
        runs = [drawn(tmp_path / str(world), rank=rank, world=world) for rank in reversed(range(world))]
        assert [run.complete for run in runs] == [False] * (world - 1) + [True]
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_the_checksums_are_those_that_sha256sum_finds(tmp_path):
    drawn(tmp_path)
    said = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.stdout.count(": OK\n") == 7
    assert said.returncode == 0


def test_a_finished_run_asks_the_model_nothing(tmp_path):
    model, calls = counted_calls(MODEL)
    first = ods.sample_many(model, 40, tmp_path, shard_size=16, **HOW)
    asked, before = len(calls), contents(tmp_path)
    assert asked == 3 * 3
    again = ods.sample_many(model, 40, tmp_path, shard_size=16, **HOW)
    assert len(calls) == asked
    assert (first.made, again.made) == ((0, 1, 2), ())
    assert again.complete
    assert contents(tmp_path) == before


@pytest.mark.parametrize("harm", ["record gone", "record cut", "file gone", "file cut", "record of nothing"])
def test_what_was_harmed_is_made_again(tmp_path, harm):
    drawn(tmp_path)
    before = contents(tmp_path)
    file = tmp_path / ("00002.json" if harm.startswith("record") else "00002.safetensors")
    if harm.endswith("gone"):
        file.unlink()
    else:
        file.write_bytes(b"{}" if harm.endswith("nothing") else file.read_bytes()[:-7])
    assert drawn(tmp_path).made == (2,)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"num_steps": 4}, "sigmas"),
        ({"solver": "heun"}, "solver"),
        ({"cond": {"label": 4}}, "conditions"),
        ({"seed": 1}, "seeds"),
        ({"seed": list(range(1, 101))}, "seeds"),
        ({"max_batch": 8}, "max batch"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"kind": "png"}, "kind"),
        ({"noise": "brownian"}, "noise"),
        ({"state_dtype": torch.float64}, "state_dtype"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_by_name(tmp_path, how, named):
    drawn(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds another run .*{named}: .* there, .* asked"):
        drawn(tmp_path, **how)
    assert contents(tmp_path) == before


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        drawn(tmp_path)
    assert list(contents(tmp_path)) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"kind": "gif"}, "kind must be one of"),
        ({"rank": 1}, "belong together"),
        ({"rank": 2, "world": 2}, "rank must be"),
        ({"noise": "pink"}, "noise"),
        ({"solver": "hune"}, "hune"),
        ({"cond": {"label": [1, 2]}}, "one value a sample"),
        ({"seed": -5}, "seed"),
        ({"max_batch": 0}, "max_batch"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_folder_is_made(tmp_path, how, words):
    with pytest.raises(ValueError, match=words):
        drawn(tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


def test_samples_that_do_not_arrive_are_listed_and_the_others_stand(tmp_path):
    impatient = ods.Adaptive(ods.Dopri5(), rtol=1e-6, atol=1e-6, max_steps=1)
    with pytest.warns(RuntimeWarning, match="did not arrive"):
        run = ods.sample_many(MODEL, 3, tmp_path, shard_size=2, solver=impatient)
    assert run.late == (0, 1, 2)
    assert run.complete
    assert "3 samples did not arrive" in repr(run)


def test_samples_that_do_not_arrive_are_no_pictures_and_their_numbers_are_left_out(tmp_path, monkeypatch):
    written = sample_many._written

    def without_the_third(shards, i, kind, copied, seeds):
        x = copied()
        x[[s == 2 for s in seeds]] = torch.nan
        return written(shards, i, kind, lambda: x, seeds)

    monkeypatch.setattr(sample_many, "_written", without_the_third)
    for made in ((0, 1), ()):
        run = ods.sample_many(MODEL, 8, tmp_path, shard_size=4, kind="png", **HOW)
        assert (run.made, run.complete) == (made, True)
    assert [p.name for p in sorted((tmp_path / "00000").iterdir())] == [f"{i:08d}.png" for i in (0, 1, 3)]
    alone = ods.images.to_bytes(ods.sample(MODEL, 8, **HOW).x[[0, 1, 3]])
    assert torch.equal(ods.images.to_bytes(ods.images.load(tmp_path / "00000", (1, 8, 8))), alone)
    (tmp_path / "00000" / "00000003.png").unlink()
    for name in ("00000002.png", "00000009.png", "mine.png"):  # the first is of a making in which it arrived
        (tmp_path / "00000" / name).touch()
    (tmp_path / "00000.safetensors").touch()
    assert ods.sample_many(MODEL, 8, tmp_path, shard_size=4, kind="png", **HOW).made == (0,)
    left = {p.name for p in (tmp_path / "00000").iterdir()}
    assert left == {*(f"{i:08d}.png" for i in (0, 1, 3, 9)), "mine.png"}, "what the run did not write is not its own"
    assert (tmp_path / "00000.safetensors").exists()


def test_pictures_are_written_one_by_one_with_their_number(tmp_path):
    ods.sample_many(MODEL, 12, tmp_path, shard_size=8, kind="png", **HOW)
    alone = ods.images.to_bytes(ods.sample(MODEL, 8, **HOW).x)
    assert torch.equal(ods.images.to_bytes(ods.images.load(tmp_path / "00000", (1, 8, 8))), alone)
    assert [p.name for p in sorted((tmp_path / "00001").iterdir())] == [f"{i:08d}.png" for i in range(8, 12)]


def test_a_full_disk_stops_cleanly_and_the_same_call_goes_on(tmp_path, monkeypatch):
    whole, fsync, synced = tmp_path / "whole", os.fsync, []
    drawn(whole)

    def full(file):
        synced.append(file)
        if len(synced) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"shard 2 .* could not be written, 2 were before it and stand.*No space"
        ) as e:
            drawn(tmp_path / "run")
    assert e.value.errno == errno.ENOSPC
    assert not [name for name in contents(tmp_path / "run") if "part" in name]
    assert drawn(tmp_path / "run").made == (2, 3, 4, 5, 6)
    assert contents(tmp_path / "run") == contents(whole)


def plain(network):
    return ods.Model(network, ods.VP.linear(), data_shape=(3, 5, 5))


def held_up(monkeypatch, until):
    """Let every shard be written only after `until`, which says in time or not."""
    written = sample_many._written

    def late(*what):
        assert until.wait(60)
        return written(*what)

    monkeypatch.setattr(sample_many, "_written", late)


def test_a_shard_is_written_beside_the_computation_of_the_next(tmp_path, monkeypatch):
    asked, calls = threading.Event(), []

    def network(x_t, t):
        calls.append(len(x_t))
        if len(calls) == 3:  # two steps a shard: the first question of the second shard
            asked.set()
        return torch.zeros_like(x_t)

    held_up(monkeypatch, asked)
    run = ods.sample_many(plain(network), 8, tmp_path, shard_size=4, num_steps=2)
    assert run.complete
    assert run.made == (0, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_stops_the_next_shard_waits_for_the_one_that_is_being_written(tmp_path, monkeypatch, error):
    asked, calls = threading.Event(), []

    def network(x_t, t):
        calls.append(len(x_t))
        if len(calls) == 3:
            threading.Timer(0.2, asked.set).start()
            raise error
        return torch.zeros_like(x_t)

    held_up(monkeypatch, asked)
    with pytest.raises(error):
        ods.sample_many(plain(network), 12, tmp_path, shard_size=4, num_steps=2)
    shards = Shards(tmp_path, 12, 4)
    assert [shards.record(i) is not None for i in range(3)] == [True, False, False]


def test_one_piece_of_work_at_a_time_is_done_beside():
    under_way, most = [], []

    def work():
        under_way.append(None)
        time.sleep(0.02)
        most.append(len(under_way))
        under_way.pop()

    with Beside() as beside:
        for i in range(4):
            beside.begin(work)
            assert len(most) >= i  # all before it are done
    assert most == [1] * 4


def test_of_two_errors_the_one_of_the_earlier_work_is_raised():
    def fails():
        raise OSError("full")

    def then(later):
        with Beside() as beside:
            beside.begin(fails)
            later(beside)

    with pytest.raises(OSError, match="full"):
        then(lambda beside: int("no number"))
    with pytest.raises(OSError, match="full"):
        then(lambda beside: beside.begin(lambda: pytest.fail("begun after an error")))


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    alive = []

    def network(x_t, t):
        alive.append(sum(issubclass(type(o), torch.Tensor) and o.shape == x_t.shape for o in gc.get_objects()))
        return torch.zeros_like(x_t)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gc.get_objects touches what is deprecated elsewhere
        ods.sample_many(plain(network), 7 * 10, tmp_path, shard_size=7, num_steps=2, solver="ddim")
    assert len(alive) == 20
    assert max(alive[2:]) <= max(alive[:2]) + 1


# Encoding


@pytest.fixture
def folder(tmp_path):
    ods.images.save_each(PICTURES, tmp_path / "in")
    return tmp_path / "in"


def test_encoded_shards_are_latents_that_decode_to_their_pictures(tmp_path, folder):
    run = ods.encode_many(MODEL, folder, tmp_path / "out", shard_size=10, num_steps=5)
    assert run.complete
    for i in range(3):
        latent = ods.Latent.load(tmp_path / "out" / f"{i:05d}.safetensors")
        back = ods.images.to_bytes(ods.decode(MODEL, latent).x)
        assert torch.equal(back, ods.images.to_bytes(PICTURES[10 * i : 10 * i + 10]))
        noted = json.loads((tmp_path / "out" / f"{i:05d}.json").read_text())
        assert noted["pictures"] == [f"{k:05d}.png" for k in range(10 * i, min(10 * i + 10, 23))]


def test_a_damaged_picture_is_recorded_and_skipped(tmp_path, folder):
    (folder / "00003.png").write_bytes((folder / "00003.png").read_bytes()[:40])
    for k in range(20, 23):
        (folder / f"{k:05d}.png").write_text("no picture")
    labels = torch.arange(23) % 10
    run = ods.encode_many(MODEL, folder, tmp_path / "out", shard_size=10, num_steps=5, cond={"label": labels})
    assert run.complete
    assert [p.rsplit("/", 1)[1] for p in run.skipped] == ["00003.png", "00020.png", "00021.png", "00022.png"]
    assert "cannot read" in next(iter(run.skipped.values()))
    latent = ods.Latent.load(tmp_path / "out" / "00000.safetensors")
    good = [0, 1, 2, *range(4, 10)]
    assert latent.cond["label"].tolist() == labels[good].tolist()
    back = ods.images.to_bytes(ods.decode(MODEL, latent).x)
    assert torch.equal(back, ods.images.to_bytes(PICTURES[good]))
    assert not (tmp_path / "out" / "00002.safetensors").exists()
    assert ods.encode_many(
        MODEL, folder, tmp_path / "out", shard_size=10, num_steps=5, cond={"label": labels}
    ).made == ()  # fmt: skip


def test_other_pictures_under_the_same_folder_are_refused(tmp_path, folder):
    ods.encode_many(MODEL, folder, tmp_path / "out", shard_size=10, num_steps=2)
    (folder / "00000.png").unlink()
    with pytest.raises(ValueError, match=r"pictures: .* there, .* asked"):
        ods.encode_many(MODEL, folder, tmp_path / "out", shard_size=10, num_steps=2)


# Kills. The children come from a clean process that has imported the package, so that they start in no time.


def work(folder, rank, world, seconds):
    """A process of a run whose network takes its time."""
    torch.set_num_threads(1)
    network = MODEL.network

    def slow(x_t, t, **cond):
        time.sleep(seconds)
        return network(x_t, t, **cond)

    model = ods.Model(slow, MODEL.schedule, "eps", data_shape=(1, 8, 8), null_cond=MODEL.null_cond)
    ods.sample_many(model, 6 * 24, folder, shard_size=6, num_steps=2, rank=rank, world=world)


@pytest.mark.slow
def test_twenty_random_kills_of_two_processes_lose_nothing_and_make_nothing_twice(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_streaming"])

    def started(folder, rank):
        process = context.Process(target=work, args=(folder, rank, 2, 0.01))
        process.start()
        return process

    def finish(folder):
        for process in [started(folder, rank) for rank in range(2)]:
            process.join()
            assert process.exitcode == 0

    finish(tmp_path / "whole")
    whole, chance, kills, runs = contents(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < 20:
        folder = tmp_path / f"run {runs}"
        processes = [started(folder, rank) for rank in range(2)]
        for _ in range(6):
            time.sleep(chance.uniform(0.05, 0.25))
            rank = chance.randrange(2)
            if processes[rank].is_alive():
                os.kill(processes[rank].pid, signal.SIGKILL)
                processes[rank].join()
                kills += processes[rank].exitcode == -signal.SIGKILL
                processes[rank] = started(folder, rank)
        for process in processes:
            process.join()
        finish(folder)  # what the last kill left
        assert contents(folder) == whole
        runs += 1
    assert runs < 12


@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill_and_ends_with_the_same_files(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        "import os, time, pathlib, tests.test_streaming as t\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / f'{os.environ[\"RANK\"]}.{os.getpid()}.pid').touch()\n"
        "t.work(folder / 'run', None, None, 0.05)\n"
    )
    work(tmp_path / "whole", 0, 1, 0)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        "--nproc-per-node=2",
    ]
    launch += ["--max-restarts=2", "--monitor-interval=0.2", str(script)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(launch, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (list((tmp_path / "run").glob("0*.json")) and list(tmp_path.glob("1.*.pid"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    [victim] = tmp_path.glob("1.*.pid")
    os.kill(int(victim.name.split(".")[1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(list(tmp_path.glob("1.*.pid"))) == 2, "nothing was started again"
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
