"""Runs a foreign kernel where our launcher would run ours, and compares what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpucnn.device import to_device, to_host
from gpucnn.kernel import Kernel, Launch, standing_in
from gpucnn.primitive import PRIMITIVES
from gpucnn.signature import Signature, convert_arguments

from ..harness.arguments import map_arrays, results, widened
from ..tolerances import BARS, float32_bar
from .expression import Expression, parse_sizes
from .target import Case, Target, dims_of, is_output

THREADS = 256
_EACH_OUTPUT = parse_sizes("--grid", "outputs/threads", {"outputs": 0, "threads": 0})
_WORTH_CHANGING = 24  # bytes of the smallest case that has a variant
_VARIED = 3  # cases that have one


@dataclass(frozen=True)
class Configuration:
    """How a foreign kernel is launched; ours: as our own kernel would be."""

    block: tuple[Expression, ...] = ()
    grid: tuple[Expression, ...] = ()
    shared: Expression | None = None
    ours: bool = False

    def launch(self, kernel: Kernel, replaced: Launch, arguments: Sequence[Any]) -> Launch:
        """The launch of ``kernel`` that stands in for one of ours with these arguments."""
        if self.ours:
            defined = {**dict(replaced.kernel.spec.macros), **dict(kernel.spec.macros)}
            spec = replace(kernel.spec, macros=tuple(sorted(defined.items())))
            kernel = replace(kernel, spec=spec)
            return Launch(kernel, replaced.grid, replaced.block, replaced.shared_mem)
        names = {**dims_of(replaced.kernel, arguments), "threads": 0}
        block = tuple(e.value(names) for e in self.block) or (THREADS,)
        names["threads"] = math.prod(block)
        grid = tuple(e.value(names) for e in self.grid or _EACH_OUTPUT)
        return Launch(kernel, grid, block, self.shared.value(names) if self.shared else 0)


@dataclass(frozen=True)
class Check:
    """A case as it is run.

    variant: "" for the numbers of the problem, "NaN" for one NaN among them, "ties" for many equal
    ones.
    """

    case: Case
    variant: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.case.features, *((self.variant,) if self.variant else ()))

    @property
    def name(self) -> str:
        return ",".join(part for part in (self.case.problem.case, self.variant) if part)

    def arguments(self) -> tuple[Any, ...]:
        """Those of the problem; a variant changes the first array of numbers."""
        arguments = self.case.problem.make(0)
        if not self.variant:
            return arguments
        done = False

        def change(array: Any) -> Any:
            nonlocal done
            if done or array.dtype.kind != "f":
                return array
            done, changed = True, array.copy()
            if self.variant == "ties":
                return np.round(changed, out=changed)
            changed.reshape(-1)[array.size // 3] = np.nan
            return changed

        return map_arrays(arguments, change)


def checks(target: Target, without: Sequence[str] = ()) -> list[Check]:
    """The target's cases, the simple ones first, and variants of some of them.

    without: features whose cases are left out.
    """
    plain = sorted(
        (case for case in target.cases if not {*case.features} & {*without}),
        key=lambda case: (len(case.features), case.problem.bytes),
    )
    found = [Check(case) for case in plain]
    selects = any(p.type == "int" and is_output(p) for p in target.kernel.signature.parameters)
    large = [case for case in plain if case.problem.bytes >= _WORTH_CHANGING]
    some = large[:: max(1, len(large) // _VARIED)][:_VARIED]
    for variant in ("NaN", "ties") if selects else ("NaN",):
        if variant not in without:
            found += [Check(case, variant) for case in some]
    return found


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a result.

    kind: "value", "input changed", or that of the emulator's fault; index: where in the array that
    the kernel calls ``array``; lines: (number, text) of the source lines concerned.
    """

    kind: str
    message: str
    array: str = ""
    index: tuple[int, ...] = ()
    expected: float | None = None
    found: float | None = None
    lines: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a check went on a device; error: the largest one where all is right."""

    check: Check
    device: str
    error: float
    trouble: Trouble | None


@dataclass
class _Observed:
    """The launch that the foreign kernel stood in for: its arrays, and what they held before."""

    signature: Signature
    arrays: list[Any] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)

    def keep(self, arguments: Sequence[Any]) -> None:
        self.arrays = list(arguments)
        self.before = [a.copy() if getattr(a, "ndim", 0) else a for a in arguments]

    def named(self, wanted: Callable[[int], bool]) -> Iterator[tuple[str, Any, Any]]:
        """(parameter, array, its content before the launch) of the arrays wanted."""
        for i, parameter in enumerate(self.signature.parameters):
            if parameter.pointer and self.arrays[i] is not None and wanted(i):
                yield parameter.name, self.arrays[i], self.before[i]


def _emulated_once(launch: Launch, arguments: Sequence[Any]) -> None:
    from gpucnn import emulator

    spec = launch.kernel.spec
    raw = emulator.RawKernel(spec.source, launch.kernel.name, spec.options, check=True)
    raw(launch.grid, launch.block, arguments, launch.shared_mem)


def _emulated(launch: Launch, arguments: Sequence[Any]) -> None:
    """Run with every check on, in several orders of threads and blocks."""
    from gpucnn import emulator

    spec = launch.kernel.spec
    raw = emulator.RawKernel(spec.source, launch.kernel.name, spec.options, check=True)
    emulator.check_order(raw, launch.grid, launch.block, arguments, launch.shared_mem)


def _cuda(launch: Launch, arguments: Sequence[Any]) -> None:
    import cupy

    launch.kernel.run(launch, arguments)
    cupy.cuda.get_current_stream().synchronize()


def solve(
    target: Target,
    case: Case,
    arguments: tuple[Any, ...],
    kernel: Kernel,
    configuration: Configuration,
    run: Callable[[Launch, Sequence[Any]], None],
) -> tuple[list[Any], _Observed]:
    """What the target's launcher returns, and changes in place, where ``run`` does its launch."""
    observed = _Observed(kernel.signature)

    def instead(replaced: Launch, given: Sequence[Any]) -> None:
        converted = convert_arguments(kernel.signature, given)
        observed.keep(converted)
        run(configuration.launch(kernel, replaced, given), converted)

    with standing_in(instead):
        returned = PRIMITIVES[target.primitive].launchers[target.variant](*arguments)
    return results(returned, arguments, case.problem.updated), observed


def run_check(
    target: Target,
    check: Check,
    kernel: Kernel,
    configuration: Configuration,
    device: str,
    *,
    in_orders: bool = True,
) -> Outcome:
    """Run one check on "emulated" or "cuda"; only bad launch sizes raise (ValueError).

    in_orders: emulated, in several orders of threads and blocks.
    """
    from gpucnn import emulator

    arguments = check.arguments()
    wide = widened(arguments)
    with np.errstate(all="ignore"):
        returned = PRIMITIVES[target.primitive].definition(*wide)
    expected = [np.asarray(r) for r in results(returned, wide, check.case.problem.updated)]
    on_device = map_arrays(arguments, lambda a: to_device(a, device))
    run = _cuda if device == "cuda" else _emulated if in_orders else _emulated_once
    try:
        actual, observed = solve(target, check.case, on_device, kernel, configuration, run)
    except emulator.KernelFault as fault:
        here = fault.file.startswith(f"{kernel.spec.family}.")
        lines = source_lines(kernel, [fault.line] if here else [])
        return Outcome(check, device, np.inf, Trouble(fault.kind, str(fault), lines=lines))
    except (TypeError, ValueError):
        raise
    except Exception as failure:  # whatever the driver raises
        if device != "cuda":
            raise
        message = f"{type(failure).__name__}: {failure}"
        return Outcome(check, device, np.inf, Trouble("CUDA error", message))
    ours = target.kernel.signature.parameters
    for name, array, before in observed.named(lambda i: not is_output(ours[i])):
        if not np.array_equal(to_host(array), to_host(before), equal_nan=array.dtype.kind == "f"):
            message = f"{name} is an input, but the kernel changes it"
            return Outcome(check, device, np.inf, Trouble("input changed", message, name))
    worst = 0.0
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        error, trouble = _compare(to_host(a), e, check.case.problem.terms, _origin(a, i, observed))
        if trouble is not None:
            return Outcome(check, device, error, trouble)
        worst = max(worst, error)
    return Outcome(check, device, worst, None)


def _origin(array: Any, i: int, observed: _Observed) -> tuple[str, Any]:
    """(the parameter whose memory an output is, what it held before)."""
    for name, own, before in observed.named(lambda _: True):
        if own.size == array.size and _address(own) == _address(array):
            return name, before
    return f"output {i}", None


def _address(array: Any) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _compare(
    actual: Any, expected: Any, terms: int, origin: tuple[str, Any]
) -> tuple[float, Trouble | None]:
    """(largest error, the first element that is further off than the tolerance table allows)."""
    name, before = origin
    actual = actual.reshape(expected.shape)
    limit = BARS[float32_bar(terms) if expected.dtype.kind == "f" else "exact"]
    own, wanted = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        close = np.isclose(own, wanted, limit.rtol, limit.atol * np.sqrt(terms), equal_nan=True)
        errors = np.abs(own - wanted)[~(np.isnan(wanted) | np.isinf(wanted))]
    if close.all():
        return float(errors.max(initial=0)), None
    at = tuple(int(k) for k in np.argwhere(~close)[0]) if close.ndim else ()
    place = f"{name}[{', '.join(map(str, at))}]" if at else name
    found, want = actual[at], expected[at]
    form = ".9g" if expected.dtype.kind == "f" else "d"
    message = f"{place}: expected {want:{form}}, found {found:{form}}"
    if before is not None:
        flat = int(np.ravel_multi_index(at, expected.shape)) if at else 0
        same = to_host(before).reshape(-1)[flat]
        if same.tobytes() == found.tobytes():
            message = f"{place}: expected {want:{form}}, never written"
    wrong = int((~close).sum())
    if close.size > 1:
        message += f" ({wrong} of {close.size} elements are wrong)"
    return np.inf, Trouble("value", message, name, at, float(want), float(found))


def source_lines(kernel: Kernel, numbers: Sequence[int]) -> tuple[tuple[int, str], ...]:
    """The user's source lines of these numbers."""
    current, own, texts = 0, False, {}
    for text in kernel.spec.source.split("\n"):
        if text.startswith("#line "):
            _, number, name = text.split(" ", 2)
            current, own = int(number), name.strip('"').startswith(f"{kernel.spec.family}.")
            continue
        if own:
            texts[current] = text.strip()
        current += 1
    return tuple((n, texts[n]) for n in numbers if n in texts)
