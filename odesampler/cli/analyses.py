"""The commands that measure: roundtrip, compare, likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odesampler.cli.common import (
    BATCH,
    DEVICE,
    GRID,
    GUIDANCE,
    HOW,
    LABEL,
    MODEL,
    PATHS,
    REPORT,
    check_arrived,
    cond_of,
    cost,
    every_class,
    images_of,
    loaded_model,
    numbers,
    options,
    out_option,
    separated,
    shown,
    write_report,
)

DRAWN = 24  # images that `roundtrip` draws from the model besides


@click.command()
@options(PATHS, MODEL)
@click.option("--solver", "solvers", multiple=True, help="Repeat for several.  [default: ddim, heun, rk4, alf]")
@click.option("--steps", "num_steps", type=int, multiple=True, help="Repeat for several.  [default: 10, 20, 50]")
@options(GRID, LABEL, GUIDANCE, BATCH, DEVICE)
@click.option("--num", type=int, default=8, show_default=True, help="Held-out images, where no pictures are given.")
@click.option("--sources", is_flag=True, help="Say where the error of each solver comes from; takes a minute or more.")
@options(out_option("roundtrip.png", "Picture to write."), REPORT)
def roundtrip(
    paths: tuple[str, ...],
    model: str,
    device: str,
    solvers: tuple[str, ...],
    num_steps: tuple[int, ...],
    label: str | None,
    num: int,
    out: Path,
    report: Path | None,
    **how: Any,
) -> None:
    """Encode pictures, decode them, and show what did not come back, by solver and steps; draw a few from the model."""
    import odesampler as ods
    from odesampler.analysis.round_trip import DEFAULT_SOLVERS
    from odesampler.files import written_whole

    loaded = loaded_model(model, device)
    found = ods.round_trip(
        loaded,
        images_of(loaded, paths, num),
        solvers or DEFAULT_SOLVERS,
        num_steps or (10, 20, 50),
        cond=cond_of(loaded, label),
        progress=shown(),
        **how,
    )
    click.echo(found.table())
    for source in found.sources:
        click.echo(f"\n{source.title}\n{source.table()}")
    if not found.trips:
        raise click.ClickException("no solver came back, so there is no picture")
    several = label is None or "," in label  # labels of the pictures, one each, are not those of the drawn
    cond = {} if several else cond_of(loaded, label)
    given = {k: how[k] for k in ("guidance_scale", "max_batch") if k in how}
    drawn = ods.sample(loaded, DRAWN, cond=cond or every_class(loaded, DRAWN), progress=shown(), **given)
    click.echo(f"{DRAWN} images drawn, {cost(drawn.nfe)}")
    with written_whole(out) as file:
        found.plot(samples=drawn.x).savefig(file, format="png", dpi=130)
    click.echo(f"picture: {out}")
    write_report(found, report, device)


@click.command()
@options(MODEL)
@click.option("--solvers", help="Names, separated by commas.  [default: default, ddim, dpmpp_2m, unipc, heun, rk4]")
@click.option("--steps", "num_steps", help="Numbers, separated by commas.  [default: 10 to 100 evaluations]")
@click.option("--grid", help="One of those of `sample`, or several separated by commas.")
@click.option("--tolerances", help="For solvers that choose their own steps, separated by commas.")
@click.option("--num", type=int, default=16, show_default=True, help="How many samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first sample; the next has seed + 1.")
@click.option("--reference-steps", type=int, default=400, show_default=True, help="Steps of what all is compared with.")
@options(LABEL, GUIDANCE, BATCH, DEVICE, out_option("compare.png", "Picture to write."))
@out_option(None, "Table to write, with all digits.", name="--csv", suffix=".csv")
@options(REPORT)
def compare(
    model: str,
    device: str,
    solvers: str | None,
    num_steps: str | None,
    grid: str | None,
    tolerances: str | None,
    num: int,
    label: str | None,
    out: Path,
    csv: Path | None,
    report: Path | None,
    **how: Any,
) -> None:
    """Measure the error of solvers against their evaluations, relative to a tight reference solve."""
    import odesampler as ods
    from odesampler.analysis.compare import DEFAULT_SOLVERS
    from odesampler.files import written_whole

    steps, wanted = numbers("--steps", num_steps, int), numbers("--tolerances", tolerances, float)
    loaded = loaded_model(model, device)
    found = ods.compare(
        loaded,
        DEFAULT_SOLVERS if solvers is None else separated(solvers),
        steps,
        grid=None if grid is None else separated(grid),
        tolerances=wanted,
        num_samples=num,
        cond=cond_of(loaded, label),
        progress=shown(),
        **how,
    )
    click.echo(f"{found.table()}\n\n{found.best_table()}\n")
    if not found.cells:
        raise click.ClickException("no solver came back, so there is no picture")
    with written_whole(out) as file:
        found.plot().savefig(file, format="png", dpi=130)
    click.echo(f"picture: {out}")
    if csv is not None:
        found.to_csv(csv)
        click.echo(f"table: {csv}")
    write_report(found, report, device)


@click.command()
@options(PATHS, MODEL, *HOW)
@click.option("--divergence", help="exact or hutchinson.  [default: exact for up to 256 values an image]")
@click.option("--probes", type=int, default=8, show_default=True, help="Of each image, with hutchinson.")
@click.option("--dequantise", type=int, help="Levels of the pixels, 256 for pictures.  [default: none, a density]")
@click.option("--draws", type=int, default=1, show_default=True, help="With --dequantise: draws of the noise.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first image; the next has seed + 1.")
@click.option("--check/--no-check", default=None, help="Solve again with half the steps, and tell the difference.")
@options(LABEL, GUIDANCE, BATCH, DEVICE)
@click.option("--num", type=int, default=8, show_default=True, help="Held-out images, where no pictures are given.")
@options(out_option(None, "Table to write, with all digits.", suffix=".csv"), REPORT)
def likelihood(
    paths: tuple[str, ...],
    model: str,
    device: str,
    label: str | None,
    num: int,
    out: Path | None,
    report: Path | None,
    **how: Any,
) -> None:
    """How probable pictures are under a model: nats and bits per dimension; without any, its held-out images."""
    import odesampler as ods

    loaded = loaded_model(model, device)
    cond = cond_of(loaded, label)
    found = ods.log_likelihood(loaded, images_of(loaded, paths, num), cond=cond, progress=shown(), **how)
    check_arrived(found.log_p[:, None])
    click.echo(found.table())
    if out is not None:
        found.to_csv(out)
        click.echo(f"table: {out}")
    write_report(found, report, device)
