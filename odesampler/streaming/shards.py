"""Shards: a long run cut into parts that are finished one by one, through kills, restarts and many processes.

    shard i = items [i * size, (i + 1) * size);     process r of w makes the shards i = r mod w

In a run's folder are `manifest.json`, which says what is made; for each shard its files and a record, 00012.json, with
their checksums; and at the end `SHA256SUMS`, for `sha256sum -c`. Every file is written whole, and the record last: a
shard that has one is done, all else is made again, from the same seeds. So it does not matter when a process dies, nor
how many there are, and they need not know of each other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from odesampler.files import sha256, sweep, written_whole

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
LEFT = 3600.0  # seconds after which a file that is not whole belongs to no living process


class World(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    size: int

    @classmethod
    def of(cls, rank: int | None, size: int | None) -> World:
        """As given, else as torchrun or Slurm say in the environment, else the only one.

        Raises:
            ValueError: A rank outside the world, one without the other, or a variable that says no number.
        """
        if (rank is None) != (size is None):
            raise ValueError(f"rank and world belong together; got rank={rank}, world={size}")
        if rank is None or size is None:
            torchrun, slurm = environment("RANK", "WORLD_SIZE"), environment("SLURM_PROCID", "SLURM_NTASKS")
            if len(torchrun) == 1 and len(slurm) < 2:
                got = ", ".join(f"{name}={os.environ.get(name)!r}" for name in ("RANK", "WORLD_SIZE"))
                raise ValueError(
                    f"RANK and WORLD_SIZE belong together in the environment, as torchrun sets them; got {got}"
                )
            rank, size = next((said for said in (torchrun, slurm) if len(said) == 2), (0, 1))
        if not 0 <= rank < size:
            raise ValueError(f"rank must be one of 0 .. world - 1; got rank={rank}, world={size}")
        return cls(rank, size)


def environment(*names: str) -> tuple[int, ...]:
    """The numbers that these variables of the environment say, of those that say something.

    Raises:
        ValueError: One says no whole number.
    """
    said = {name: os.environ[name] for name in names if os.environ.get(name)}
    for name, value in said.items():
        if not value.isdecimal():
            raise ValueError(f"{name} in the environment must be a whole number, not below 0; got {value!r}")
    return tuple(map(int, said.values()))


@dataclass(frozen=True)
class Shards:
    """The shards of one run, in one folder."""

    folder: Path
    count: int  # items
    size: int  # items a shard; the last may have fewer

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def span(self, i: int) -> range:
        """The items of shard `i`."""
        return range(i * self.size, min((i + 1) * self.size, self.count))

    def path(self, i: int, suffix: str = "") -> Path:
        """A file of shard `i`, or its folder."""
        return self.folder / f"{i:05d}{suffix}"

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Say what is made, or see that it is what was begun here.

        Raises:
            ValueError: Another run was begun here: names what differs, in the order of the facts.
            OSError: The folder cannot be written.
        """
        said = json.loads(json.dumps({"count": self.count, "shard size": self.size, **facts}))
        path = self.folder / MANIFEST
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            what = "a file" if self.folder.exists() else "a link to nothing"
            raise ValueError(f"{self.folder} is {what}, and shards are written into a folder: take another name")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            foreign = any(not p.name.startswith(".") for p in self.folder.iterdir())
            if foreign and not path.exists():  # looked for again: another process may have begun in between
                raise ValueError(f"{self.folder} holds other files and no {MANIFEST}: take a new or an empty folder")
            with self.naming(MANIFEST, "written"), written_whole(path, first=True) as file:
                file.write(json.dumps(said, indent=1).encode())
        advice = "bring it back from a copy, or take another folder"
        try:
            begun = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {advice}") from error
        if not isinstance(begun, dict):
            raise ValueError(f"{path} is damaged ({_short(begun)} is no manifest): {advice}")
        other = [k for k in {**said, **begun} if begun.get(k) != said.get(k)]
        if other:
            differ = "; ".join(f"{k}: {_short(begun.get(k))} there, {_short(said.get(k))} asked" for k in other)
            raise ValueError(f"{self.folder} holds another run ({differ}): take another folder")

    def of(self, world: World) -> range:
        """The shards of this process."""
        return range(world.rank, len(self), world.size)

    def missing(self, world: World) -> list[int]:
        """The shards of this process that are not done."""
        return [i for i in self.of(world) if self.record(i) is None]

    def record(self, i: int) -> dict[str, Any] | None:
        """What was noted when shard `i` was done; None: it is not, or what is there is damaged or of another shard."""
        items = self.span(i)
        try:
            noted: dict[str, Any] = json.loads(self.path(i, ".json").read_text())
            whole = noted["items"] == [items.start, items.stop] and all(
                fact["sha256"] and fact["bytes"] == (self.folder / name).stat().st_size
                for name, fact in noted["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # AttributeError: JSON, not of this shape
            return None
        return noted if whole else None

    def finish(self, i: int, files: list[Path], **facts: Any) -> None:
        """Note that shard `i` is done: its `files`, all written whole, and what else is to be said of it."""
        noted = {path.relative_to(self.folder).as_posix(): _sum(path) for path in files}
        items = self.span(i)
        with written_whole(self.path(i, ".json")) as file:
            file.write(json.dumps({"items": [items.start, items.stop], "files": noted, **facts}, indent=1).encode())

    @contextmanager
    def naming(self, what: str, done: str) -> Iterator[None]:
        """Errors in here say that `what` is in this folder, and could not be `done`: written, or made."""
        where = f"{what} of {self.folder} could not be {done}"
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{where}: {error.strerror or error}", error.filename) from error
        except FloatingPointError as error:
            raise FloatingPointError(f"{where}: {error}") from error
        except MemoryError as error:
            raise MemoryError(f"{where}: {error}") from error

    def end(self) -> None:
        """Write down the checksums of all shards, which are done by now: line by line, however many there are."""
        path = self.folder / CHECKSUMS
        with open(path if path.exists() else os.devnull, "rb") as said:
            stand = all(old == new for old, new in zip_longest(said, self._sums()))
        if not stand:  # else the folder may be read only by now
            with self.naming(CHECKSUMS, "written"), written_whole(path) as file:
                file.writelines(self._sums())
        sweep(self.folder, LEFT)

    def _sums(self) -> Iterator[bytes]:
        for i in range(len(self)):
            files = json.loads(self.path(i, ".json").read_text())["files"]
            yield from (f"{fact['sha256']}  {name}\n".encode() for name, fact in files.items())


class Beside:
    """A thread that does one piece of work beside what its caller does next, and never has two: `begin` waits.

    As a context manager: leaving it, by an error or Ctrl-C too, waits for what is under way. What fails there is raised
    by the next `begin` or at the end, instead of an error of the caller's, which is later.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "odesampler.beside")
        self._last: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Wait for the last piece of work, and begin this one."""
        self._settle()
        self._last = self._thread.submit(work)

    def _settle(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._settle()
        finally:
            self._thread.shutdown()


def _sum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": sha256(file)}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:28]} ... {text[-28:]}"
