"""The command that shows what lies between images: interpolate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odesampler.cli.common import (
    BATCH,
    DEVICE,
    GRID,
    GUIDANCE,
    LABEL,
    MODEL,
    PATHS,
    REPORT,
    SOLVER,
    STEPS,
    check_arrived,
    cond_of,
    images_of,
    loaded_model,
    numbers,
    options,
    out_option,
    shown,
    write_report,
)

if TYPE_CHECKING:
    from odesampler.room import AnyBatch


@click.command()
@options(PATHS, MODEL)
@click.option("--seeds", help="Of the ends, where no pictures are given, separated by commas.  [default: 0,1,2,3]")
@click.option("--held-out", type=int, help="Between so many held-out images, in place of seeds.")
@click.option("--num", type=int, default=8, show_default=True, help="Images a row, both ends included.")
@click.option("--square", is_flag=True, help="The square between four ends, not a row between each two.")
@click.option("--how", default="slerp", show_default=True, help="slerp, or linear to see what that loses.")
@options(
    SOLVER, STEPS, GRID, LABEL, GUIDANCE, BATCH, DEVICE, out_option("interpolation.png", "Picture to write."), REPORT
)
def interpolate(
    paths: tuple[str, ...],
    model: str,
    device: str,
    seeds: str | None,
    held_out: int | None,
    num: int,
    square: bool,
    how: str,
    label: str | None,
    max_batch: AnyBatch,
    out: Path,
    report: Path | None,
    **made: Any,
) -> None:
    """Show what lies between pictures, two by two, by interpolating their latents; without any, between seeds."""
    import odesampler as ods
    from odesampler.files import written_whole

    if sum(map(bool, (paths, seeds, held_out is not None))) > 1:
        raise click.BadParameter("the ends are pictures, --seeds or --held-out images: give one of these")
    loaded = loaded_model(model, device)
    cond = cond_of(loaded, label)
    run: dict[str, Any] = {"max_batch": max_batch, "progress": shown()}
    if paths or held_out is not None:
        images = images_of(loaded, paths, held_out or 0, option="--held-out")
        latent = ods.encode(loaded, images, cond=cond, **made, **run)
        check_arrived(latent.x)
        found = ods.interpolation_grid(loaded, latent, num, square=square, how=how, **run)
    else:
        ends = numbers("--seeds", seeds, int) or [0, 1, 2, 3]
        found = ods.interpolation_grid(loaded, ends, num, square=square, how=how, cond=cond, **made, **run)
    check_arrived(found.x.flatten(0, 1))
    click.echo(found.table())
    with written_whole(out) as file:
        found.plot().savefig(file, format="png", dpi=130)
    click.echo(f"picture: {out}")
    write_report(found, report, device)
