"""The ``gpucnn`` command.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 ``doctor`` found something
broken or ``check`` a wrong kernel, 2 a wrong argument or file, 3 training diverged, 130 Ctrl-C, 143
SIGTERM. An error is one line, never a traceback.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import click

from gpucnn import __version__
from gpucnn.cli.bench import bench
from gpucnn.cli.catalog import datasets, models
from gpucnn.cli.check import check
from gpucnn.cli.doctor import doctor
from gpucnn.cli.evaluate import evaluate
from gpucnn.cli.export import export
from gpucnn.cli.kernels import kernels
from gpucnn.cli.parity import parity
from gpucnn.cli.predict import predict
from gpucnn.cli.shape import shape
from gpucnn.cli.summary import summary
from gpucnn.cli.train import train
from gpucnn.cli.tune import tune
from gpucnn.cli.visualize import visualize
from gpucnn.device import DeviceError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="gpucnn")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train small convolutional networks with hand-written CUDA kernels, or on the CPU."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


for _command in (
    *(train, evaluate, predict, visualize, export, datasets, models, summary, shape, doctor),
    *(bench, kernels, check, parity, tune),
):
    cli.add_command(_command)


def _show_warning(message: Warning | str, *_: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


def _fail(message: str) -> int:
    click.echo(f"Error: {message}", err=True)
    return 2


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv[1:]`` if None) and return its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code = cli.main(args=args, prog_name="gpucnn", standalone_mode=False)
    except click.ClickException as error:
        return _fail(" ".join(error.format_message().split()))
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except (ValueError, DeviceError) as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(f"out of memory ({error or 'try a smaller --batch-size'})")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return code if isinstance(code, int) else 0
