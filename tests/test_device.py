"""Devices: the default, the choice, and what an import touches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import gpucnn
from gpucnn import driver
from gpucnn.device import DeviceError


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, without this suite's settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPUCNN_")} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(gpucnn.cuda_available(), reason="this machine has a GPU")
def test_import_without_a_gpu_needs_no_cupy() -> None:
    code = (
        "import sys, gpucnn; assert gpucnn.default_device() == 'cpu'; "
        "assert not {'cupy', 'torch'} & set(sys.modules); print(gpucnn.why_cpu())"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (
        "The device is 'cpu' because no NVIDIA driver was found (libcuda.so.1)."
    )


def test_environment_variables() -> None:
    show = "import gpucnn; print(gpucnn.default_device()); print(gpucnn.why_cpu())"
    result = python(show, GPUCNN_DEVICE="cpu")
    assert result.stdout.startswith("cpu\nThe device is 'cpu' because GPUCNN_DEVICE=cpu is set.")
    result = python(show, GPUCNN_DEVICE="gpu")
    assert "GPUCNN_DEVICE must be one of cpu, cuda, emulated, got 'gpu'" in result.stderr
    result = python(show, GPUCNN_COMPILE="never")
    assert result.returncode == 0, result.stderr
    assert "GPUCNN_COMPILE must be import or lazy, got 'never'; import is taken" in result.stderr
    for threads in ("many", "0", "²"):
        result = python("import gpucnn; gpucnn.threads.thread_count()", GPUCNN_THREADS=threads)
        assert "GPUCNN_THREADS must be an integer >= 1" in result.stderr


def test_use_device() -> None:
    with gpucnn.use_device("cpu"):
        assert gpucnn.default_device() == "cpu"
        assert "use_device('cpu') was called" in gpucnn.why_cpu()
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, emulated, got 'gpu'"):
        gpucnn.use_device("gpu")


@pytest.mark.emulated
def test_use_device_nests() -> None:
    with gpucnn.use_device("emulated"):
        assert gpucnn.Tensor([1.0]).device == "emulated"
        with gpucnn.use_device("cpu"):
            assert gpucnn.Tensor([1.0]).device == "cpu"
        assert gpucnn.Tensor([1.0]).device == "emulated"
    assert gpucnn.default_device() == "cpu"


def test_the_extra_that_fits_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, extra in [((13, 0), "cuda13x"), ((12, 4), "cuda12x"), ((11, 8), ""), (None, "")]:
        monkeypatch.setattr(driver, "driver_cuda_version", lambda version=version: version)
        assert driver.fitting_extra() == extra


@pytest.mark.skipif(gpucnn.cuda_available(), reason="this machine has a GPU")
def test_require_cuda() -> None:
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used"):
        gpucnn.use_device("cuda")
