"""Runs: shards made one after another, by as many processes as there are.

    shard i is written     beside     the computation of shard i + 1,     which waits for it before it is written itself

So two shards are in memory at most. Knows plans, not what the shards hold.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from odesampler.guidance import rows_a_sample
from odesampler.lossless import place_of
from odesampler.model import Model
from odesampler.plan import Plan, make_plan
from odesampler.room import AnyBatch, check_max_batch
from odesampler.streaming.shards import Beside, Shards, World

SHARD = 1024  # samples

Write: TypeAlias = Callable[[], list[Path]]  # writes a shard; returns its files, all whole
Make: TypeAlias = Callable[[int, range], tuple[Write, dict[str, Any]]]  # of a shard's number and items; what is noted


@dataclass(frozen=True, repr=False)
class Run:
    """How a run ended, as far as this process knows."""

    folder: Path
    count: int  # samples, of all processes
    shards: int  # likewise
    made: tuple[int, ...]  # shards that this process made now; the others stood, or are others' work
    complete: bool  # all shards are done
    late: tuple[int, ...]  # samples of this process that did not arrive: NaN, or no picture
    skipped: Mapping[str, str]  # pictures of this process that could not be read -> why
    seconds: float

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete yet"
        trouble = f", {len(self.late)} samples did not arrive" if self.late else ""
        trouble += f", {len(self.skipped)} pictures skipped" if self.skipped else ""
        made = f"{len(self.made)} of {self.shards} shards made now"
        return f"Run({self.folder}: {self.count} items, {made}, {state}{trouble}, {self.seconds:.3g} s)"


def carry_out(
    shards: Shards, world: World, where: Callable[[], Mapping[str, Any]], make: Make, progress: str | None
) -> Run:
    """Make the shards that this process has to, one after another, each written while the next is computed.

    `where` says what the bits depend on, for the record of each shard.
    """
    from tqdm.auto import tqdm

    began = time.perf_counter()
    missing = shards.missing(world)
    stood = len(shards.of(world)) - len(missing)
    total = sum(len(shards.span(i)) for i in missing)
    with tqdm(total=total, desc=progress, disable=progress is None) as bar, Beside() as beside:

        def naming(i: int, what: str, done: int) -> AbstractContextManager[None]:
            return shards.naming(f"shard {i}", f"{what}, {stood + done} were before it and stand")

        def finish(i: int, done: int, write: Write, noted: dict[str, Any]) -> None:
            with naming(i, "written", done):
                shards.finish(i, write(), **noted)
            bar.update(len(shards.span(i)))

        for done, i in enumerate(missing):
            with naming(i, "made", done):
                write, noted = make(i, shards.span(i))
            beside.begin(partial(finish, i, done, write, {"place": where(), **noted}))
    complete, late, skipped = _ended(shards, world)
    seconds = time.perf_counter() - began
    return Run(shards.folder, shards.count, len(shards), tuple(missing), complete, late, skipped, seconds)


def _ended(shards: Shards, world: World) -> tuple[bool, tuple[int, ...], dict[str, str]]:
    """Whether all shards are done, whoever made them, which ends the run; what is late or skipped in those of `world`.

    One record after another is read, and let go: together they are as long as the run.
    """
    complete, late, skipped, places = True, list[int](), dict[str, str](), list[Mapping[str, Any]]()
    for i in range(len(shards)):
        record = shards.record(i)
        if record is None:
            complete = False
            continue
        if i in shards.of(world):
            late += record.get("late", [])
            skipped |= record.get("skipped", {})
        if (place := record.get("place", {})) not in places:
            places.append(place)
    if complete:
        shards.end()
        _warn_of_places(places)
    return complete, tuple(late), skipped


def _warn_of_places(places: Sequence[Mapping[str, Any]]) -> None:
    """Warns of shards that would have come out with other bits elsewhere in the same run."""
    differ = sorted({k for place in places for k in place if place[k] != places[0].get(k)})
    if differ:
        warnings.warn(
            f"the shards of this run were made on machines or settings that differ in {', '.join(differ)}: "
            "made again elsewhere they may differ in their last bits",
            stacklevel=5,
        )


def planned(verb: str, model: Model, max_batch: AnyBatch, *, into_zero: bool, **how: Any) -> Plan:
    """The plan that every shard will have.

    Raises:
        TypeError: An argument that `verb` does not take.
        ValueError: What cannot be meant.
    """
    numbers: dict[str, Any] = {"solver": None, "num_steps": None, "grid": None, "rtol": None, "atol": None}
    known = {*numbers, "guidance_scale", "clip_denoised", "state_dtype"}
    for name in how.keys() - known:
        raise TypeError(f"{verb}() takes no argument {name!r}; of how to solve it takes {', '.join(sorted(known))}")
    plan = make_plan(model, into_zero=into_zero, **{**numbers, **how})
    check_max_batch(max_batch, rows_a_sample(model, plan.guidance_scale))
    return plan


def place(model: Model, shards: Shards, max_batch: AnyBatch, plan: Plan) -> dict[str, Any]:
    """What the bits of a shard depend on here and now."""
    return place_of(model, shards.size, max_batch, rows_a_sample(model, plan.guidance_scale))


def checked_size(size: int) -> int:
    """Raises: ValueError: no number of samples."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"shard_size must be a whole number of 1 or more; got {size!r}")
    return size
