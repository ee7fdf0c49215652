"""The command line: thin. Options in, one verb called, files out; every mistake is one line and exit code 2.

torch is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from odesampler.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from odesampler.model import Model

DRAWN = 24  # images that `roundtrip` draws from the model besides
TINY = 500_000  # parameters

F = TypeVar("F", bound=Callable[..., Any])
PATHS = click.argument("paths", nargs=-1, metavar="[PICTURES]...")
MODEL = click.option("--model", default="digits", show_default=True, help="An embedded model; see `odesampler models`.")
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, mps.")
BATCH = click.option("--max-batch", type=int, help="The most images to give the network at once.")
LABEL = click.option("--label", help="Class by name or number, or one a sample separated by commas; none by default.")
GUIDANCE = click.option("--guidance", "guidance_scale", type=float, default=1.0, help="Guidance scale; 1 is off.")
GRID = click.option("--grid", help="log_snr, karras, trailing, leading, linspace or quadratic.  [default: log_snr]")
HOW = (
    click.option("--solver", default="heun", show_default=True, help="See `odesampler solvers`."),
    click.option("--steps", "num_steps", type=int, help="Transitions of a fixed grid.  [default: 20]"),
    GRID,
    click.option("--rtol", type=float, help="Relative tolerance: adaptive steps, per sample."),
    click.option("--atol", type=float, help="Absolute tolerance, likewise."),
)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which --help shows them."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def out_option(default: str, what: str) -> Callable[[F], F]:
    """--out, checked before anything is computed: its folder exists and can be written."""
    suffix = Path(default).suffix

    def check(_context: click.Context, _option: click.Parameter, value: str) -> Path:
        path = Path(value)
        if path.suffix.lower() != suffix:
            raise click.BadParameter(f"{path} must end in {suffix}")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise click.BadParameter(f"cannot write {path}: {error.strerror}") from error
        if path.is_dir():
            raise click.BadParameter(f"{path} is a folder")
        return path

    return click.option("--out", default=default, show_default=True, callback=check, help=what)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="odesampler")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def cli(debug: bool) -> None:
    """Sample, encode and decode images with diffusion models, by solving dx/dsigma = eps(x, sigma)."""


@cli.command()
@click.option("--num", type=int, default=16, show_default=True, help="How many images.")
@options(MODEL, *HOW)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first image; the next has seed + 1.")
@options(LABEL, GUIDANCE, BATCH, DEVICE, out_option("samples.png", "Picture to write."))
def sample(num: int, model: str, device: str, label: str | None, out: Path, **how: Any) -> None:
    """Draw images from a model."""
    import odesampler as ods

    loaded = _model(model, device)
    found = ods.sample(loaded, num, cond=_cond(loaded, label), progress=_shown(), **how)
    _check_arrived(found.x)
    ods.images.save_grid(found.x, out)
    click.echo(f"{num} images, {_cost(found.nfe)}, {found.seconds:.2f} s: {out}")


@cli.command()
@options(PATHS, MODEL, *HOW, LABEL, GUIDANCE, BATCH, DEVICE)
@click.option("--num", type=int, default=8, show_default=True, help="Held-out images, where no pictures are given.")
@out_option("latents.safetensors", "File to write.")
def encode(paths: tuple[str, ...], model: str, device: str, label: str | None, num: int, out: Path, **how: Any) -> None:
    """Turn pictures (PNG, JPEG, folders of them) into latents; without any, held-out images of the model."""
    import odesampler as ods

    loaded = _model(model, device)
    latent = ods.encode(loaded, _images(loaded, paths, num), cond=_cond(loaded, label), progress=_shown(), **how)
    _check_arrived(latent.x)
    latent.save(out)
    click.echo(f"{len(latent)} latents, {_cost(latent.nfe)}, standard deviation {latent.x.std():.3f}: {out}")


@cli.command()
@click.argument("latent", metavar="LATENTS")
@options(MODEL, BATCH, DEVICE)
@click.option("--insist", is_flag=True, help="Decode although the latents were made with another model.")
@out_option("decoded.png", "Picture to write.")
def decode(latent: str, model: str, device: str, insist: bool, max_batch: int | None, out: Path) -> None:
    """Turn latents back into pictures; the file knows how they were made."""
    import odesampler as ods

    made = ods.Latent.load(latent)
    found = ods.decode(_model(model, device), made, insist=insist, max_batch=max_batch, progress=_shown())
    ods.images.save_grid(found.x, out)
    click.echo(f"{len(made)} images, {_cost(found.nfe)}, {found.seconds:.2f} s: {out}")


@cli.command()
@options(PATHS, MODEL)
@click.option("--solver", "solvers", multiple=True, help="Repeat for several.  [default: ddim, heun, rk4, reversible]")
@click.option("--steps", "num_steps", type=int, multiple=True, help="Repeat for several.  [default: 10, 20, 50]")
@options(GRID, LABEL, GUIDANCE, BATCH, DEVICE)
@click.option("--num", type=int, default=8, show_default=True, help="Held-out images, where no pictures are given.")
@options(out_option("roundtrip.png", "Picture to write."))
def roundtrip(
    paths: tuple[str, ...],
    model: str,
    device: str,
    solvers: tuple[str, ...],
    num_steps: tuple[int, ...],
    label: str | None,
    num: int,
    out: Path,
    **how: Any,
) -> None:
    """Encode pictures, decode them, and show what did not come back, by solver and steps; draw a few from the model."""
    import odesampler as ods
    from odesampler.analysis.round_trip import DEFAULT_SOLVERS
    from odesampler.files import written_whole

    loaded = _model(model, device)
    report = ods.round_trip(
        loaded,
        _images(loaded, paths, num),
        solvers or DEFAULT_SOLVERS,
        num_steps or (10, 20, 50),
        cond=_cond(loaded, label),
        progress=_shown(),
        **how,
    )
    click.echo(report.table())
    if not report.trips:
        raise click.ClickException("no solver came back, so there is no picture")
    cond = (
        {} if label is None or "," in label else _cond(loaded, label)
    )  # labels of the pictures are not those of the drawn
    options = {k: how[k] for k in ("guidance_scale", "max_batch")}
    drawn = ods.sample(loaded, DRAWN, cond=cond or _every_class(loaded, DRAWN), progress=_shown(), **options)
    click.echo(f"{DRAWN} images drawn, {_cost(drawn.nfe)}")
    with written_whole(out) as file:
        report.plot(samples=drawn.x).savefig(file, format="png", dpi=130)
    click.echo(f"picture: {out}")


@cli.command()
def models() -> None:
    """List the embedded models."""
    from odesampler.zoo.models import CARDS

    for name, card in CARDS.items():
        click.echo(f"{name:10} {' x '.join(map(str, card.shape)):12} {card.summary}")


@cli.command()
def solvers() -> None:
    """List the solvers, with their facts."""
    import odesampler as ods

    click.echo(str(ods.solvers()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with 2 after one line on what is wrong."""
    warnings.filterwarnings("ignore", ".*did not arrive", RuntimeWarning)  # said by an error, once
    warnings.showwarning = lambda message, *_: click.echo(f"odesampler: warning: {message}", err=True)
    try:
        sys.exit(cli.main(arguments, prog_name="odesampler", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.Abort:
        click.echo("odesampler: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in (sys.argv if arguments is None else arguments):
            raise
        _fail(str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}")


def _fail(message: str) -> None:
    click.echo(f"odesampler: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _model(name: str, device: str) -> Model:
    import torch

    from odesampler.zoo.models import load

    try:
        torch.empty(1, device=device)
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        raise click.BadParameter(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    model = load(name, device=device)
    weights = model.network.parameters() if isinstance(model.network, torch.nn.Module) else ()
    if device == "cpu" and sum(w.numel() for w in weights) < TINY:
        torch.set_num_threads(1)  # more gain little, and on a busy machine wait for each other ten times as long
    return model


def _images(model: Model, paths: Sequence[str], num: int) -> Tensor:
    from odesampler.images import load
    from odesampler.zoo.models import held_out

    if paths:
        return load(paths, model.data_shape)
    if num < 1:
        raise click.BadParameter(f"--num must be 1 or more; got {num}")
    images = held_out(model.name).images
    if num > len(images):
        raise click.BadParameter(f"--num {num}: {model.name} has {len(images)} held-out images")
    return images[:num]


def _cond(model: Model, label: str | None) -> dict[str, Any]:
    if label is None:
        return {}
    try:
        labels = [model.labels.index(part) if part in model.labels else int(part) for part in label.split(",")]
    except ValueError:
        names = ", ".join(model.labels)
        raise click.BadParameter(
            f"--label is a class of {model.name}, or several; got {label!r}, not of {names}"
        ) from None
    return {"label": labels[0] if len(labels) == 1 else labels}


def _every_class(model: Model, num: int) -> dict[str, Any]:
    return {"label": [i % len(model.labels) for i in range(num)]} if model.labels else {}


def _cost(nfe: Any) -> str:
    low, high = int(nfe.min()), int(nfe.max())
    return f"{high} evaluations each" if low == high else f"{low} to {high} evaluations each"


def _check_arrived(x: Tensor) -> None:
    late = int((~x.isfinite().flatten(1).all(1)).sum())
    if late:
        raise click.ClickException(
            f"{late} of {len(x)} samples did not arrive, so nothing was written: raise --rtol, --atol"
        )


def _shown() -> bool:
    return sys.stderr.isatty()
