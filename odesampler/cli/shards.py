"""What `sample` and `encode` share where they write into a folder, shard after shard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from odesampler.streaming import Run

SHARD = click.option("--shard-size", type=int, help="Into a folder: how many a file.  [default: 1024]")


def local(device: str) -> str:
    """The device of this process: of several on a machine, each has its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_unused(out: Path, **values: Any) -> None:
    """Raises: click.BadParameter: one was given that is for folders only."""
    for name in given(**values):
        option = "--" + name.replace("_", "-")
        raise click.BadParameter(f"{option} is for a folder, and --out {out} is a file")


def report_run(run: Run) -> None:
    """What was done, in a line; and a line for each picture that was skipped."""
    for path, why in run.skipped.items():
        click.echo(f"skipped {path}: {why}", err=True)
    state = "complete" if run.complete else "the rest is other processes' work"
    late = f", {len(run.late)} did not arrive and are NaN" if run.late else ""
    done = f"{len(run.made)} of {run.shards} shards made"
    click.echo(f"{run.count} items, {done}, {state}{late}, {run.seconds:.2f} s: {run.folder}")
