"""The stages of a run, the most telling first, each in a process of its own.

A stage that hangs, or breaks the GPU's context, takes nothing with it: it is ended when its time is
over, and what it wrote stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from . import accuracy, facts, memory, startup, steps
from .journal import FILE, Journal, read

ROOT = Path(__file__).resolve().parents[2]
TABLE = "goals.md"
RESERVE = 8.0  # seconds that a stage has to itself after it should begin nothing more


@dataclass(frozen=True)
class Stage:
    """seconds: the most that it may take. work: (journal, when to begin nothing more, options)."""

    seconds: float
    what: str
    work: Callable[[Journal, float, Options], None]


@dataclass(frozen=True)
class Options:
    """out: the folder of the results. data: that of Fashion-MNIST, None for where Debian has it."""

    out: Path
    data: Path | None = None


def _layers(journal: Journal, until: float, options: Options) -> None:
    from .. import command
    from ..steps import FAMILY

    families = sorted({p.family for p in command.selected((), (), quick=False)} - {FAMILY})
    minutes = max(0.1, (until - time.monotonic()) / 60)
    code = command.run(
        families,
        cases=(),
        variants=(),
        precisions=(),
        against="torch,cupy",
        device="cuda",
        quick=False,
        minutes=minutes,
        out=options.out,
        compare_with=None,
        as_json_text=False,
        cross_check=False,
        pictures=False,
    )
    if code:
        journal.note(f"the bench ended with {code}")


def _startup(journal: Journal, until: float, options: Options) -> None:
    startup.measure(journal, until)


def _steps(journal: Journal, until: float, options: Options) -> None:
    steps.measure(journal, steps.networks(), until)


def _compiled(journal: Journal, until: float, options: Options) -> None:
    left = until - time.monotonic()
    steps.measure(
        journal,
        steps.compiled_networks(),
        until,
        compile_seconds=left,
        variants=(steps.GRAPH,),
    )


def _jax(journal: Journal, until: float, options: Options) -> None:
    steps.measure(journal, steps.networks(), until, against=("jax",), variants=(steps.GRAPH,))


STAGES = {
    "steps": Stage(120, "training steps beside PyTorch, eager and as graphs", _steps),
    "parts": Stage(
        60,
        "blocks, losses, optimizers beside PyTorch",
        lambda journal, until, options: steps.measure(journal, steps.parts(), until),
    ),
    "memory": Stage(
        45,
        "peak memory and kernels of a step",
        lambda journal, until, options: memory.measure(journal, until),
    ),
    "startup": Stage(45, "import, with an empty and with a filled cache", _startup),
    "fashion": Stage(
        75,
        "seconds to 93 % on Fashion-MNIST",
        lambda journal, until, options: accuracy.measure(journal, until, options.data),
    ),
    "compiled": Stage(150, "training steps beside torch.compile", _compiled),
    "copying": Stage(
        100,
        "memory-bound kernels beside a copy",
        lambda journal, until, options: steps.measure(
            journal, steps.copying(), until, against=(), variants=("default",)
        ),
    ),
    "facts": Stage(
        75,
        "what nodes, launches, barriers and cuDNN's layers take",
        lambda journal, until, options: facts.measure(journal, until),
    ),
    "jax": Stage(90, "training steps beside JAX", _jax),
    "layers": Stage(480, "every layer and kernel, in what time is left", _layers),
}


def inside(name: str, seconds: float, options: Options) -> None:
    """Do the work of a stage, in this process."""
    until = time.monotonic() + max(1.0, seconds - RESERVE)
    STAGES[name].work(Journal(options.out, name), until, options)


def write_table(out: Path) -> Path:
    """``goals.md`` of what the folder's runs have found so far."""
    from .committed import read_counts
    from .table import markdown

    journal = out / FILE
    found = read(*([journal] if journal.exists() else []))
    (out / TABLE).write_text(markdown(found, read_counts()), encoding="utf-8")
    return out / TABLE


def run(names: Sequence[str], minutes: float, options: Options) -> int:
    """Run stages one after the other, each in a process -> how many did not come to their end."""
    deadline, broken = time.monotonic() + 60 * minutes, 0
    for name in names:
        left = deadline - time.monotonic()
        journal = Journal(options.out, name)
        if left < 2 * RESERVE:
            click.echo(f"goals: no time is left for {name}", err=True)
            journal.ended("no time was left", 0.0)
            broken += 1
            continue
        start = time.monotonic()
        how = _in_process(name, min(left, STAGES[name].seconds), options)
        journal.ended(how, time.monotonic() - start)
        broken += how != "done"
        write_table(options.out)
        click.echo(f"goals: {name} {how} after {time.monotonic() - start:.0f} s", err=True)
    return broken


def _in_process(name: str, seconds: float, options: Options) -> str:
    """Run a stage in a process of its own -> "done", or how it ended."""
    data = ["--data", str(options.data.resolve())] if options.data else []
    inside = ["--inside", "--minutes", str(seconds / 60), "--out", str(options.out.resolve())]
    command = [sys.executable, "-m", "bench.goals", name, *inside, *data]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "was ended"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "done" if code == 0 else f"failed with {code}"
