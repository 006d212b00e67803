"""``gpucnn doctor``."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from typing import Any

import click

from gpucnn.cli.options import json_option


def _blas() -> str:
    """The BLAS that NumPy computes with."""
    import numpy as np

    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown (threadpoolctl is missing, so its threads cannot be limited)"
    np.dot(np.ones((2, 2)), np.ones((2, 2)))
    libraries = [
        f"{entry['internal_api']} {entry.get('version') or '(unknown version)'}"
        for entry in threadpool_info()
        if entry["user_api"] == "blas"
    ]
    return ", ".join(dict.fromkeys(libraries)) or "unknown"


def _cupy() -> str:
    try:
        import cupy
    except Exception as error:  # an ImportError, or whatever a broken installation raises
        return f"not usable ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    return str(cupy.__version__)


def _compiler() -> str | None:
    """The first line of ``g++ --version``, or None without g++."""
    program = shutil.which("g++")
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.splitlines()[0] if result.stdout else program


def _gpus() -> list[str]:
    from gpucnn.device import cuda_available

    if not cuda_available():
        return []
    import cupy

    runtime = cupy.cuda.runtime
    found = []
    for number in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(number)
        found.append(
            f"{properties['name'].decode()}, sm_{properties['major']}{properties['minor']}, "
            f"{properties['totalGlobalMem'] / 2**30:.0f} GiB"
        )
    return found


def _versions() -> dict[str, str]:
    import numpy as np

    from gpucnn import __version__
    from gpucnn.driver import driver_cuda_version
    from gpucnn.kernel import nvrtc_version

    driver, nvrtc = driver_cuda_version(), nvrtc_version()
    return {
        "gpucnn": __version__,
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "NumPy": f"{np.__version__}, BLAS {_blas()}",
        "CuPy": _cupy(),
        "NVRTC": "not found" if nvrtc is None else ".".join(map(str, nvrtc)),
        "driver": "not found" if driver is None else f"runs CUDA {driver[0]}.{driver[1]}",
        "GPU": "; ".join(_gpus()) or "none usable",
        "g++": _compiler() or "not found: the emulator needs it (Debian: apt install g++)",
    }


@click.command(short_help="Check device, versions, compilers and kernels.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Say which device is used and why, what is installed, and compile every kernel.

    Each kernel is compiled with NVRTC and with g++, as far as they are there. Exits 0 if all
    compiled, 1 if one did not.
    """
    from gpucnn.device import DeviceError, default_device, why_cpu
    from gpucnn.kernel import compile_report

    try:
        device, reason = default_device(), why_cpu()
    except DeviceError as error:
        device, reason = "none", f"{error}."
    versions = _versions()
    click.echo("compiling every kernel ...", err=True)
    rows = compile_report()
    healthy = device != "none" and all(row.ok for row in rows)
    if as_json:
        kernels = [vars(row) for row in rows]
        result: dict[str, Any] = {"ok": healthy, "device": device, "reason": reason}
        click.echo(json.dumps({**result, "versions": versions, "kernels": kernels}))
    else:
        click.echo(reason)
        for name, value in versions.items():
            click.echo(f"{name:8}{value}")
        _print_report(rows)
    ctx.exit(0 if healthy else 1)


def _print_report(rows: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo("kernels  not compiled: neither NVRTC nor g++ is here")
        return
    table = Table()
    table.add_column("kernels", overflow="fold")
    table.add_column("compiler")
    table.add_column("seconds", justify="right")
    table.add_column("result")
    for row in rows:
        result = Text("ok", "green") if row.ok else Text("failed", "red")
        table.add_row(Text(row.file), row.compiler, f"{row.seconds:.2f}", result)
    Console().print(table)
    failed = [row for row in rows if not row.ok]
    for row in failed:
        click.echo(f"\n{row.file}, {row.compiler}:\n{row.message}")
    count = sum(len(row.kernels) for row in rows if row.ok)
    click.echo(f"{count} kernels compiled, {len(failed)} files failed")
