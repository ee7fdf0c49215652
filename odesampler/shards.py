"""Shards: a long run cut into parts that are finished one by one, through kills, restarts and many processes.

    shard i = items [i * size, (i + 1) * size);     process r of w makes the shards i = r mod w

In a run's folder are `manifest.json`, which says what is made; for each shard its files and a record, 00012.json, with
their checksums; and at the end `SHA256SUMS`, for `sha256sum -c`. Every file is written whole, and the record last: a
shard that has one is done, all else is made again, from the same seeds. So it does not matter when a process dies, nor
how many there are, and they need not know of each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from odesampler.files import written_whole

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"


class World(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    size: int

    @classmethod
    def of(cls, rank: int | None, size: int | None) -> World:
        """As given, else as torchrun or Slurm say in the environment, else the only one.

        Raises:
            ValueError: A rank outside the world, or one without the other.
        """
        if (rank is None) != (size is None):
            raise ValueError(f"rank and world belong together; got rank={rank}, world={size}")
        if rank is None or size is None:
            pairs = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
            rank, size = next(((int(os.environ[r]), int(os.environ[w])) for r, w in pairs if _both(r, w)), (0, 1))
        if not 0 <= rank < size:
            raise ValueError(f"rank must be one of 0 .. world - 1; got rank={rank}, world={size}")
        return cls(rank, size)


def _both(*names: str) -> bool:
    return all(name in os.environ for name in names)


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
            ValueError: Another run was begun here: names what differs.
            OSError: The folder cannot be written.
        """
        said = json.loads(json.dumps({**facts, "count": self.count, "shard size": self.size}))
        path = self.folder / MANIFEST
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds other files and no {MANIFEST}: take a new or an empty folder")
            _write_first(path, json.dumps(said, indent=1))
        try:
            begun = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        other = [k for k in {**begun, **said} if begun.get(k) != said.get(k)]
        if other:
            differ = "; ".join(f"{k}: {_short(begun.get(k))} there, {_short(said.get(k))} asked" for k in other)
            raise ValueError(f"{self.folder} holds another run ({differ}): take another folder")

    def missing(self, world: World) -> list[int]:
        """The shards of this process that are not done."""
        return [i for i in range(world.rank, len(self), world.size) if self.record(i) is None]

    def record(self, i: int) -> dict[str, Any] | None:
        """What was noted when shard `i` was done; None: it is not, or a file of it is gone or cut short."""
        try:
            noted: dict[str, Any] = json.loads(self.path(i, ".json").read_text())
            sizes = {name: (self.folder / name).stat().st_size for name in noted["files"]}
            whole = all(size == noted["files"][name]["bytes"] for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return noted if whole else None

    def finish(self, i: int, files: list[Path], **facts: Any) -> None:
        """Note that shard `i` is done: its `files`, all written whole, and what else is to be said of it."""
        noted = {
            path.relative_to(self.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
        items = self.span(i)
        with written_whole(self.path(i, ".json")) as file:
            file.write(json.dumps({"items": [items.start, items.stop], "files": noted, **facts}, indent=1).encode())

    def end(self) -> list[dict[str, Any]] | None:
        """The records of all shards, once all are done, whoever made them; their checksums are written down then."""
        records = [self.record(i) for i in range(len(self))]
        done = [r for r in records if r is not None]
        if len(done) < len(records):
            return None
        sums = "".join(f"{fact['sha256']}  {name}\n" for r in done for name, fact in r["files"].items())
        with written_whole(self.folder / CHECKSUMS) as file:
            file.write(sums.encode())
        for part in self.folder.rglob(".*.part"):  # of processes that were killed while they named a file
            part.unlink(missing_ok=True)
        return done


def _write_first(path: Path, text: str) -> None:
    """Write a file unless another process does so first."""
    own = path.with_name(f".{path.name}.{os.getpid()}.own.part")
    with written_whole(own) as file:
        file.write(text.encode())
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:28]} ... {text[-28:]}"
