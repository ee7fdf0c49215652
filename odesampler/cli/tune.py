"""The command that tunes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odesampler.cli.common import (
    BATCH,
    DEVICE,
    GUIDANCE,
    LABEL,
    MODEL,
    PATHS,
    REPORT,
    cond_of,
    every_class,
    images_of,
    loaded_model,
    options,
    out_option,
    shown,
    write_report,
)

if TYPE_CHECKING:
    from odesampler.room import AnyBatch


@click.command()
@options(PATHS, MODEL)
@click.option("--steps", "num_steps", type=int, required=True, help="Evaluations of the sampler that is tuned.")
@click.option("--task", type=click.Choice(["sample", "encode"]), default="sample", show_default=True)
@click.option("--iterations", type=int, help="Of the fit.  [default: 500; with --task encode 60 settings]")
@click.option("--budget", type=float, help="Seconds of processor time, after which the fit ends.")
@click.option(
    "--num", type=int, default=96, show_default=True, help="Latents, a third validates; or held-out images, a fourth."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first latent; the next has seed + 1.")
@click.option("--knots-only", is_flag=True, help="Tune the grid, and leave the solver's weights as they are.")
@click.option("--reference-steps", type=int, default=200, show_default=True, help="Of what all is compared with.")
@click.option("--checkpoint", type=click.Path(dir_okay=False), help="A .safetensors from which to go on after a kill.")
@options(LABEL, GUIDANCE, BATCH, DEVICE, out_option("recipe.json", "File to write, for --solver."), REPORT)
def tune(
    paths: tuple[str, ...],
    model: str,
    device: str,
    num_steps: int,
    task: str,
    num: int,
    knots_only: bool,
    label: str | None,
    max_batch: AnyBatch,
    out: Path,
    report: Path | None,
    **how: Any,
) -> None:
    """Find the sampler that suits a model at a number of steps, by measurement; for every class in turn.

    With --task encode the solver for pictures (or held-out images) whose latents are best alone.
    """
    import odesampler as ods

    loaded = loaded_model(model, device)
    if task == "encode":
        images = images_of(loaded, paths, num)
        how |= {"images": images, "cond": cond_of(loaded, label)}
    elif paths:
        raise click.BadParameter("pictures are for --task encode")
    else:
        how |= {"num_samples": num, "cond": every_class(loaded, num) if label is None else cond_of(loaded, label)}
    told: dict[str, Any] = {"task": task, "coefficients": not knots_only, "max_batch": max_batch, "progress": shown()}
    found = ods.tune(loaded, num_steps, out=out, **told, **how)
    click.echo(found.report.table())
    if found.warning:
        click.echo(f"note: {found.warning}")
    click.echo(f"recipe: {out}")
    write_report(found.report, report, device)
