"""The emulator in several processes and threads: its cache, interrupts, and turns."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.kernel import kernel_folder
from tests.test_emulator_api import SOURCE, kernel

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    """The environment of a process with its own, empty cache."""
    return {**os.environ, "GPUCNN_CACHE_DIR": str(tmp_path), "GPUCNN_COMPILE": "lazy"}


def python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_runs_no_compiler(cache: dict[str, str]) -> None:
    out = python("import gpucnn.emulator as e; print(e.available())", cache)
    assert out.strip() == "True"
    assert list(Path(cache["GPUCNN_CACHE_DIR"]).iterdir()) == []


def test_without_a_compiler_it_says_what_to_install(cache: dict[str, str]) -> None:
    out = python(
        """
        import gpucnn.emulator as e
        print(e.available(), e.why_unavailable())
        try:
            e.RawKernel('extern "C" __global__ void f() {}', 'f').compile()
        except e.CompileError as error:
            print(error)
        """,
        {**cache, "PATH": "/nowhere"},
    )
    assert out.startswith("False")
    assert out.count("apt install g++") == 2


_RUN = """
import numpy as np, time
import gpucnn.emulator as e
k = e.RawKernel('extern "C" __global__ void f(int* y) {{ y[threadIdx.x] = {value}; }}', 'f')
y = np.zeros(4, np.int32)
start = time.perf_counter()
k((1,), (4,), (y,))
print(y.tolist(), k.check)
"""


def test_processes_share_a_cache(cache: dict[str, str]) -> None:
    code = _RUN.format(value=7)
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=cache, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0] for p in both] == ["[7, 7, 7, 7] True\n"] * 2
    compiled = sorted(p.name for p in Path(cache["GPUCNN_CACHE_DIR"], "emulator").iterdir())
    assert not [name for name in compiled if name.startswith(".")]
    assert python(code, {**cache, "GPUCNN_EMULATOR_CHECK": "0"}) == "[7, 7, 7, 7] False\n"
    assert python(code, {**cache, "GPUCNN_EMULATOR_CHECK": ""}) == "[7, 7, 7, 7] True\n"
    before = {p: p.stat().st_mtime_ns for p in Path(cache["GPUCNN_CACHE_DIR"]).rglob("*.so")}
    assert python(code, cache) == "[7, 7, 7, 7] True\n"
    after = {p: p.stat().st_mtime_ns for p in Path(cache["GPUCNN_CACHE_DIR"]).rglob("*.so")}
    assert before == after


def test_faults_name_the_users_line_whoever_compiled_the_kernel(
    cache: dict[str, str], tmp_path: Path
) -> None:
    package = Path(emulator.__file__).resolve().parents[1]
    for place in ("one", "other"):
        shutil.copytree(package, tmp_path / place / "gpucnn")
        shutil.copytree(kernel_folder(), tmp_path / place / "kernels")
    code = """
    import sys
    sys.path.insert(0, {place!r})
    import numpy as np
    import gpucnn.emulator as e
    k = e.RawKernel('extern "C" __global__ void f(float* y) {{ y[0] = __ldg(y + 1); }}', 'f')
    try:
        k((1,), (1,), (np.zeros(1, np.float32),))
    except e.KernelFault as fault:
        print(fault.kind, fault.file, fault.line, e.__file__)
    """
    for place in ("one", "other"):
        out = python(code.format(place=str(tmp_path / place)), cache)
        found = tmp_path / place / "gpucnn" / "emulator" / "__init__.py"
        assert out == f"out-of-bounds kernel.cu 1 {found}\n"
    assert len([*Path(cache["GPUCNN_CACHE_DIR"]).rglob("kernel_*.so")]) == 1


def test_the_check_variable_is_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "off")
    with pytest.raises(ValueError, match="GPUCNN_EMULATOR_CHECK must be 0 or 1, got 'off'"):
        emulator.RawKernel(SOURCE, "nothing")
    assert emulator.RawKernel(SOURCE, "nothing", check=False).check is False


def test_unwritable_cache_falls_back(cache: dict[str, str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    environment = {**cache, "GPUCNN_CACHE_DIR": str(blocked)}
    assert "[3, 3, 3, 3]" in python(_RUN.format(value=3), environment)


def test_interrupt_is_honoured_at_a_block_boundary(cache: dict[str, str]) -> None:
    code = """
    import signal
    import numpy as np
    import gpucnn.emulator as e
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start without it
    k = e.RawKernel('extern "C" __global__ void f(float* y, int n) {'
                    'float v = 0; for (int i = 0; i < n; ++i) v += y[threadIdx.x];'
                    'y[threadIdx.x + 32 * (blockIdx.x & 1023)] = v; }', 'f', check=False)
    y = np.zeros(32 * 1024, np.float32)
    k((1,), (32,), (y, 10))
    print('ready', flush=True)
    try:
        k((2**31 - 1,), (32,), (y, 1000))
    except KeyboardInterrupt:
        k((1,), (32,), (y, 10))
        print('interrupted')
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=cache, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted\n"
    finally:
        process.kill()


def test_threads_take_turns() -> None:
    results: list[np.ndarray[Any, Any]] = []

    def work(by: float) -> None:
        x, y = np.arange(500, dtype=np.float32), np.zeros(500, np.float32)
        for _ in range(20):
            kernel("scale")((4,), (128,), (y, x, by, 500))
        results.append(y / np.float32(by) - x)

    threads = [threading.Thread(target=work, args=(2.0**k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4
    assert all((r == 0).all() for r in results)


def test_the_interpreter_runs_during_a_launch() -> None:
    y = np.ones(32, np.float32)
    launch = threading.Thread(target=kernel("slow"), args=((1,), (32,), (y, 200000)))
    launch.start()
    ticks = 0
    while launch.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


def test_a_barrier_takes_less_than_a_microsecond_a_thread() -> None:
    y = np.zeros(256, np.float32)
    barriers = kernel("barriers", check=False)
    barriers((1,), (256,), (y, 1))
    start = time.perf_counter()
    barriers((1,), (256,), (y, 1000))
    assert (time.perf_counter() - start) / (256 * 1000) < 1e-6
