"""The command that repeats published tables: reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odesampler.cli.common import BATCH, DEVICE, MODEL, images_of, loaded_model, options, out_option, shown

if TYPE_CHECKING:
    from odesampler.room import AnyBatch

KNOWN = ("ddim-table2",)


def _known(_context: click.Context, _argument: click.Parameter, name: str) -> str:
    if name not in KNOWN:
        raise click.BadParameter(f"nothing called {name!r} can be reproduced; known: {', '.join(KNOWN)}")
    return name


@click.command()
@click.argument("name", callback=_known)
@options(MODEL)
@click.option("--num", type=int, help="How many held-out images.  [default: all]")
@options(BATCH, DEVICE, out_option(None, "Table to write, with all digits.", suffix=".csv"))
def reproduce(name: str, model: str, num: int | None, max_batch: AnyBatch, device: str, out: Path | None) -> None:
    """Repeat a published table in form, on an embedded model, with all choices stated.

    NAME is ddim-table2: what DDIM loses of images by encoding and decoding them, for 10 to 1000 times.
    """
    from odesampler.analysis.ddim_table2 import ddim_table2
    from odesampler.zoo.models import held_out

    loaded = loaded_model(model, device)
    images = images_of(loaded, (), len(held_out(model).images) if num is None else num)
    found = ddim_table2(loaded, images, max_batch=max_batch, progress=shown())
    click.echo(found.table())
    if out is not None:
        found.to_csv(out)
        click.echo(f"table: {out}")
