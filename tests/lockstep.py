"""Processes that begin, make and end the same runs at the same moments. Without torch, so that they start quickly."""

import traceback
from pathlib import Path

from odesampler import files
from odesampler.streaming.shards import Shards, World


def work(rank, world, folder, rounds, unnamed, barrier, said):
    """So many runs of two shards a process, each run in a folder of its own; what goes wrong is put into `said`."""
    if not unnamed:
        files._unnamed = lambda folder: None
    for i in range(rounds):
        barrier.wait()
        try:
            shards = Shards(Path(folder) / f"{i}", 2 * world, 1)
            shards.begin({"what": "lockstep"})
            for k in shards.missing(World(rank, world)):
                with files.written_whole(shards.path(k, ".bin")) as file:
                    file.write(b"x")
                shards.finish(k, [shards.path(k, ".bin")])
            barrier.wait()
            if shards.missing(World(0, 1)):
                said.put(f"round {i}: not complete")
            shards.end()
        except Exception:
            said.put(f"round {i}: {traceback.format_exc()}")
            barrier.abort()
            raise
    said.put(None)
