"""``gpucnn check``: somebody's own kernel in the place of one of ours."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpucnn.cli.bench_package import bench_module
from gpucnn.cli.options import Name, json_option

if TYPE_CHECKING:
    from bench.checking.rank import Ranking
    from bench.checking.run import Check, Configuration, Outcome
    from bench.checking.target import Case, Target
    from gpucnn.kernel import Kernel

ARCH = "sm_90"  # whose registers the ranking shows where there is no GPU


def _targets() -> dict[str, Target]:
    import gpucnn.functional  # noqa: F401  registers every primitive

    found: dict[str, Target] = bench_module("checking.target").targets()
    return found


class _TargetName(Name):
    """The name of a target; for a primitive that is none, the reason."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from gpucnn.primitive import PRIMITIVES

        if value not in _targets() and value in PRIMITIVES:
            self.fail(bench_module("checking.target").why_not(value) + ".")
        return super().convert(value, param, ctx)


def _macro(value: str) -> tuple[str, str]:
    name, _, number = value.partition("=")
    if not name.isidentifier():
        raise click.BadParameter(f"{value!r} is not NAME or NAME=VALUE.", param_hint="-D")
    return name, number or "1"


@click.command(short_help="Check your own CUDA kernel against one of ours.")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--as",
    "target_name",
    type=_TargetName("primitive with one kernel", lambda: tuple(_targets())),
    metavar="NAME",
    help="What the kernel stands in for; --signatures lists the names.",
)
@click.option("--kernel", metavar="NAME", help="The kernel, where the file has several.")
@click.option(
    "--signatures", is_flag=True, help="Print the parameters a kernel must have, and stop."
)
@click.option("--block", metavar="SIZES", help='Threads of a block: "256" (the default), "16,16".')
@click.option(
    "--grid",
    metavar="SIZES",
    help='Blocks: "outputs/threads" (the default), "OW/16, OH/16, N*OC". / rounds up.',
)
@click.option("--shared", metavar="BYTES", help="Dynamic shared memory of a block.")
@click.option("--ours", is_flag=True, help="Launch and compile as our own kernel is.")
@click.option("-D", "macros", multiple=True, metavar="NAME=VALUE", help="Define a macro.")
@click.option(
    "--without",
    metavar="FEATURES",
    help='Leave out cases with these features: "groups,dilation".',
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Seconds after which one case is given up: a loop that does not end.",
)
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    /,
    file: Path | None,
    target_name: str | None,
    kernel: str | None,
    signatures: bool,
    block: str | None,
    grid: str | None,
    shared: str | None,
    ours: bool,
    macros: tuple[str, ...],
    without: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Run the CUDA C kernel in FILE in the place of one of ours, and say whether it is right.

    The kernel takes outputs, inputs and sizes in our order. It runs emulated, with every check on
    (races, bounds, order of threads), and on the GPU where there is one, over the edge cases of the
    tests: windows larger than the image, strides that do not divide, padding, one channel, NaN. The
    results are compared with the NumPy definition. A right kernel is then ranked beside ours.

    \b
    gpucnn check --signatures --as conv2d_forward
    gpucnn check my_conv.cu --as conv2d_forward
    gpucnn check my_conv.cu --as conv2d_forward --block 16,16 --grid "OW/16, OH/16, N*OC"
    gpucnn check my_conv.cu --as conv2d_forward --without groups,dilation

    The file may include headers beside it and ours ("common.cuh"). Exits 0 if the kernel is right,
    1 if it is wrong, 2 if it cannot be run (a wrong argument or file, code that does not compile).
    """
    if signatures:
        chosen = {n: t for n, t in _targets().items() if target_name in (None, n)}
        bench_module("checking.report").print_signatures(chosen, as_json)
        return
    if file is None or target_name is None:
        missing = "FILE" if file is None else "--as NAME"
        raise click.UsageError(f"{missing} is missing; 'gpucnn check --help' shows examples.")
    _need_emulator()
    target = _targets()[target_name]
    launching = _configuration(target, block, grid, shared, ours)
    theirs = _read(file, target, kernel, dict(map(_macro, macros)), ours)
    left_out = _features(without)
    shown = bench_module("checking.rank").representative(target, left_out)
    outcomes = _run(target, theirs, launching, left_out, shown, timeout)
    wrong = next((o for o in outcomes if o.trouble is not None), None)
    lines = _lines(target, theirs, launching, wrong) if wrong else ()
    ranking = None if wrong else _rank(target, theirs, launching, shown)
    report = bench_module("checking.report")
    report.print_report(report.Report(file, target, theirs, outcomes, lines, ranking), as_json)
    ctx.exit(1 if wrong else 0)


def _need_emulator() -> None:
    from gpucnn import emulator

    if not emulator.available():
        raise click.ClickException(f"check runs kernels emulated: {emulator.why_unavailable()}")


def _features(text: str | None) -> tuple[str, ...]:
    known = bench_module("checking.target").FEATURES
    given = tuple(part.strip() for part in text.split(",")) if text else ()
    for name in given:
        if name not in known:
            raise click.BadParameter(
                f"{name!r} is not a feature, which must be one of {', '.join(known)}.",
                param_hint="--without",
            )
    return given


def _configuration(
    target: Target, block: str | None, grid: str | None, shared: str | None, ours: bool
) -> Configuration:
    if ours and (block or grid or shared):
        raise click.UsageError("--ours takes the place of --block, --grid and --shared.")
    parse = bench_module("checking.expression").parse_sizes
    names = dict.fromkeys(target.names)

    def sizes(option: str, text: str | None) -> Any:
        return parse(option, text, names) if text is not None else ()

    bytes_of = sizes("--shared", shared)
    if len(bytes_of) > 1:
        raise click.UsageError(f"--shared takes one size, got {shared!r}.")
    dynamic = bytes_of[0] if bytes_of else None
    run = bench_module("checking.run")
    made: Configuration = run.Configuration(
        sizes("--block", block), sizes("--grid", grid), dynamic, ours
    )
    return made


def _read(
    file: Path, target: Target, kernel: str | None, macros: dict[str, str], ours: bool
) -> Kernel:
    source = bench_module("checking.source")
    signature = target.kernel.signature
    found: Kernel = _refusing(source.read_kernel, file, signature, target.name, kernel, macros)
    _refusing(source.compile_emulated, found, target.kernel.spec.macros if ours else ())
    return found


def _refusing(step: Callable[..., Any], *arguments: Any) -> Any:
    """A step that may refuse the kernel: its details go to stderr, before the one sentence."""
    try:
        return step(*arguments)
    except bench_module("checking.source").Refused as error:
        if error.details:
            click.echo(error.details, err=True)
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def _watched(seconds: float, case: str) -> Iterator[None]:
    """End the process where a case takes too long: a loop in a kernel cannot be interrupted."""

    def give_up() -> None:
        click.echo(
            f"First failing case: {case}\n  not finished after {seconds:g} s: does a loop not end?"
        )
        sys.stdout.flush()
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _run(
    target: Target,
    kernel: Kernel,
    launching: Configuration,
    without: tuple[str, ...],
    shown: Case,
    timeout: float,
) -> list[Outcome]:
    """Every case, and at last the one of the ranking, which may be larger."""
    from gpucnn.device import cuda_available

    run = bench_module("checking.run")
    todo: list[Check] = run.checks(target, without)
    if shown not in [each.case for each in todo]:
        todo.append(run.Check(shown))
    outcomes = []
    for each in todo:
        orders = each.case.problem.group == "edge"
        with _watched(timeout, each.name):
            outcomes.append(
                run.run_check(target, each, kernel, launching, "emulated", in_orders=orders)
            )
    if cuda_available() and not any(o.trouble for o in outcomes):
        _refusing(bench_module("checking.source").compile_cuda, kernel, architecture())
        for each in todo:
            outcomes.append(run.run_check(target, each, kernel, launching, "cuda"))
            if outcomes[-1].trouble:
                break
    return outcomes


def _lines(
    target: Target, kernel: Kernel, launching: Configuration, outcome: Outcome
) -> tuple[tuple[int, str], ...]:
    """The source lines to show: that of the fault, else those that write the outputs."""
    run, rank = bench_module("checking.run"), bench_module("checking.rank")
    lines: tuple[tuple[int, str], ...] = outcome.trouble.lines if outcome.trouble else ()
    if outcome.trouble is None or outcome.trouble.kind != "value":
        return lines
    case, arguments = outcome.check.case, outcome.check.arguments()
    numbers = rank.writing_lines(target, case, arguments, kernel, launching)
    lines = run.source_lines(kernel, numbers)
    return lines


def architecture() -> str:
    """That of the current GPU."""
    import cupy

    return f"sm_{cupy.cuda.Device().compute_capability}"


def _rank(target: Target, kernel: Kernel, launching: Configuration, shown: Case) -> Ranking:
    """The kernel beside ours on the case ``shown``."""
    from gpucnn.device import cuda_available

    cuda = cuda_available()
    arch = architecture() if cuda else ARCH
    found: Ranking = bench_module("checking.rank").rank(
        target, kernel, launching, arch, shown, cuda=cuda
    )
    return found
