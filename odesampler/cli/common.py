"""What the commands share: their options, and how these become models, images and conditions."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from torch import Tensor

    from odesampler.analysis.report import Report
    from odesampler.model import Model
    from odesampler.room import AnyBatch

TINY = 500_000  # parameters
SEPARATORS = tuple({os.sep, os.altsep or os.sep})

F = TypeVar("F", bound=Callable[..., Any])
N = TypeVar("N", int, float)


def _rows(_context: click.Context, _option: click.Parameter, value: str | None) -> AnyBatch:
    """A number, or "auto": as many as fit."""
    if value is None:
        return None
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"--max-batch takes a number, or auto; got {value!r}") from None


PATHS = click.argument("paths", nargs=-1, metavar="[PICTURES]...")
PIPELINE = "diffusers:"  # before a hub id
MODEL = click.option(
    "--model",
    default="digits",
    show_default=True,
    help="An embedded model, see `odesampler models`; a folder of a diffusers pipeline; or diffusers:HUB/ID.",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, mps.")
BATCH = click.option("--max-batch", callback=_rows, help="The most images to give the network at once; or auto.")
PROMPT = click.option("--prompt", help="What the pictures show, for a model that takes text.")
NEGATIVE = click.option("--negative-prompt", help="What they do not show, likewise; heeded under guidance.")
LABEL = click.option("--label", help="Class by name or number, or one a sample separated by commas; none by default.")
GRID = click.option("--grid", help="See `odesampler grids`.  [default: by solver and number of steps]")
SOLVER = click.option("--solver", help="See `odesampler solvers`.  [default: by the number of steps]")
STEPS = click.option("--steps", "num_steps", type=int, help="Transitions of a fixed grid.  [default: 20]")
HOW = (
    SOLVER,
    STEPS,
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


def GUIDANCE(command: F) -> F:  # one of the options above, though it takes three to say
    """Guidance as the verbs take it: a number, or with more said an `ods.Guidance`."""

    @wraps(command)
    def guided(*args: Any, rescale: float, interval: tuple[float, float] | None, **how: Any) -> Any:
        if rescale or interval:
            if how["guidance_scale"] in (None, 1):
                raise click.BadParameter("--guidance-rescale and --guidance-interval need --guidance, which is off")
            from odesampler.guidance import Guidance

            how["guidance_scale"] = Guidance(how["guidance_scale"], rescale, interval)
        elif how["guidance_scale"] is None:  # the verb has its own default
            del how["guidance_scale"]
        return command(*args, **how)

    add = options(
        click.option("--guidance", "guidance_scale", type=float, help="Guidance scale.  [default: 1, off]"),
        click.option("--guidance-rescale", "rescale", type=float, default=0.0, help="0 to 1: keep the contrast."),
        click.option("--guidance-interval", "interval", type=float, nargs=2, help="Guide between these sigmas only."),
    )
    return add(guided)  # type: ignore[return-value]  # the same command with other options


class Folder(NamedTuple):
    """A folder to write shards into, made if it is not there."""

    path: Path


def out_option(
    default: str | None, what: str, *, name: str = "--out", suffix: str = "", folder: bool = False
) -> Callable[[F], F]:
    """A file to write, checked before anything is computed: its folder exists and can be written.

    With `folder` a path without a suffix, one that is a folder, and one with a slash at its end are a `Folder`.
    """
    ending = Path(default).suffix if default else suffix

    def check(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | Folder | None:
        if value is None:
            return None
        path = Path(value)
        if folder and (not path.suffix or path.is_dir() or value.endswith(SEPARATORS)):
            return Folder(path)
        if path.suffix.lower() != ending:
            raise click.BadParameter(f"{path} must end in {ending}" + (", or be a folder" if folder else ""))
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise click.BadParameter(f"cannot write {path}: {error.strerror}") from error
        if path.is_dir():
            raise click.BadParameter(f"{path} is a folder")
        return path

    return click.option(name, default=default, show_default=default is not None, callback=check, help=what)


REPORT = out_option(None, "Page to write, for a browser: tables and pictures.", name="--report", suffix=".html")


def write_report(report: Report, path: Path | None, device: str) -> None:
    """The report as a page that says how it was made, where one is asked for."""
    if path is not None:
        arguments = click.get_current_context().obj  # as they were typed; None where another program runs the command
        command = {} if arguments is None else {"command": shlex.join(["odesampler", *arguments])}
        report.to_html(path, made={**command, "device": device})
        click.echo(f"report: {path}")


def separated(text: str) -> list[str]:
    """The parts between commas, those inside parentheses left alone: `ddim,ancestral(eta=0.5, sigma_hat=True)`."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def numbers(option: str, text: str | None, kind: type[N]) -> list[N] | None:
    """The numbers between commas; None for no text.

    Raises:
        click.BadParameter: Something else stands there.
    """
    if text is None:
        return None
    try:
        return [kind(part) for part in separated(text)]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise click.BadParameter(f"{option} takes {what} separated by commas; got {text!r}") from None


def loaded_model(name: str, device: str, **text: Any) -> Model:
    """The model of that name, embedded or a pipeline of diffusers, on a device that is there.

    `text` is what a pipeline that takes text is told: prompts.
    """
    import torch

    from odesampler.zoo.models import load

    told = {what: words for what, words in text.items() if words is not None}
    pipeline = name.startswith(PIPELINE) or Path(name).is_dir()
    if told and not pipeline:
        raise click.BadParameter(f"--prompt is for a pipeline that takes text; {name} takes none")
    try:
        torch.empty(1, device=device)
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        raise click.BadParameter(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if pipeline:
        from odesampler.adapters.diffusers import from_pretrained

        return from_pretrained(name.removeprefix(PIPELINE), device=device, progress=shown(), **told)
    model = load(name, device=device)
    weights = model.network.parameters() if isinstance(model.network, torch.nn.Module) else ()
    if device == "cpu" and sum(w.numel() for w in weights) < TINY:
        torch.set_num_threads(1)  # more gain little, and on a busy machine wait for each other ten times as long
    return model


def images_of(model: Model, paths: Sequence[str], num: int, *, whole: bool = False, option: str = "--num") -> Tensor:
    """Pictures from files; without paths, held-out images of the model, as many as `option` says."""
    from odesampler.images import load
    from odesampler.zoo.models import held_out, models

    if paths:
        return load(paths, model.image_shape, whole=whole)
    if num < 1:
        raise click.BadParameter(f"{option} must be 1 or more; got {num}")
    if model.name not in models():
        raise click.BadParameter(f"{model.name} has no held-out images: name pictures of your own")
    images = held_out(model.name).images
    if num > len(images):
        raise click.BadParameter(f"{option} {num}: {model.name} has {len(images)} held-out images")
    return images[:num]


def cond_of(model: Model, label: str | None) -> dict[str, Any]:
    """Conditions from classes, by name or number, separated by commas."""
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


def every_class(model: Model, num: int) -> dict[str, Any]:
    """Conditions that go through the classes in turn."""
    return {"label": [i % len(model.labels) for i in range(num)]} if model.labels else {}


def cost(nfe: Any) -> str:
    """Evaluations a sample in words."""
    low, high = int(nfe.min()), int(nfe.max())
    return f"{high} evaluations each" if low == high else f"{low} to {high} evaluations each"


def check_arrived(x: Tensor) -> None:
    """Raises: click.ClickException: a sample is NaN, so nothing should be written."""
    late = int((~x.isfinite().flatten(1).all(1)).sum())
    if late:
        takes = {option.name for option in click.get_current_context().command.params}
        advice = "raise --rtol, --atol" if "rtol" in takes else "take more --steps, or another --solver"
        raise click.ClickException(f"{late} of {len(x)} samples did not arrive, so nothing was written: {advice}")


def shown() -> bool:
    """Whether to show progress: somebody watches."""
    return sys.stderr.isatty()
