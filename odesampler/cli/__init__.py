"""The command line: thin. Options in, one verb called, files out; every mistake is one line and exit code 2.

torch is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import click

from odesampler.cli.analyses import compare, likelihood, roundtrip
from odesampler.cli.interpolate import interpolate
from odesampler.cli.reproduce import reproduce
from odesampler.cli.tune import tune
from odesampler.cli.verbs import decode, encode, sample
from odesampler.version import __version__


def _say_version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """What a report of an error should begin with: the library, Python, torch, the devices."""
    if not asked:
        return
    import platform

    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])])
    system = f"{platform.system()} {platform.machine()}"
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    click.echo(f"odesampler {__version__}, {python}, {system}, devices: {devices}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_say_version, help="For reports.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def cli(debug: bool) -> None:
    """Sample, encode and decode images with diffusion models, by solving dx/dsigma = eps(x, sigma)."""


for command in (sample, encode, decode, roundtrip, compare, likelihood, interpolate, reproduce, tune):
    cli.add_command(command)


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


@cli.command()
def grids() -> None:
    """List the named grids, with their parameters."""
    import odesampler as ods

    click.echo(str(ods.grids()))


@cli.command()
@click.argument("name", required=False)
def cite(name: str | None) -> None:
    """Print the sources of a solver, a grid or anything public, as BibTeX; without a NAME the library's own."""
    import odesampler as ods

    click.echo(ods.cite(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with 2 after one line on what is wrong."""
    warnings.filterwarnings("ignore", ".*did not arrive", RuntimeWarning)  # said by an error, once
    warnings.showwarning = lambda message, *_: click.echo(f"odesampler: warning: {message}", err=True)
    try:
        typed = list(sys.argv[1:] if arguments is None else arguments)
        sys.exit(cli.main(typed, prog_name="odesampler", standalone_mode=False, obj=typed) or 0)
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
