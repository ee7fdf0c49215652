"""What `sample` and `encode` share where they write into a folder, shard after shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from odesampler.streaming.runs import Run

SHARD = click.option("--shard-size", type=int, help="Into a folder: how many a file.  [default: 1024]")


def local(device: str) -> str:
    """The device of this process: of several on a machine, each has its own, as torchrun or Slurm say.

    Slurm may show each process one GPU only (--gpus-per-task), which is the first there: hence the remainder.
    """
    import torch

    from odesampler.streaming.shards import environment

    there = torch.cuda.device_count() if device == "cuda" else 0
    numbers = environment("LOCAL_RANK", "SLURM_LOCALID") if there else ()
    return f"cuda:{numbers[0] % there}" if numbers else device


def given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_unused(out: Path, **values: Any) -> None:
    """Raises: click.BadParameter: one was given that is for folders only."""
    for name in given(**values):
        option = "--" + name.replace("_", "-")
        raise click.BadParameter(f"{option} is for a folder, and --out {out} is a file")


def report_run(run: Run) -> None:
    """What became of the run, in a line; and a line for each picture that was skipped, now or earlier.

    Raises:
        click.ClickException: All were.
    """
    for path, why in run.skipped.items():
        click.echo(f"skipped {path}: {why}", err=True)
    state = "complete" if run.complete else "the rest is other processes' work"
    skipped = f", {len(run.skipped)} skipped" if run.skipped else ""
    late = f", {len(run.late)} did not arrive" if run.late else ""
    done = f"{len(run.made)} of {run.shards} shards made"
    click.echo(f"{run.count} items, {done}, {state}{skipped}{late}, {run.seconds:.2f} s: {run.folder}")
    if len(run.skipped) == run.count:
        raise click.ClickException("no picture could be encoded: all were skipped")
