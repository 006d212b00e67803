"""Fixtures and the rules of the whole suite."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

os.environ.setdefault("GPUCNN_COMPILE", "lazy")

import pytest
from hypothesis import settings

import gpucnn
from gpucnn import emulator, kernel, launch_plan, misuse
from tests import fake_cupy

settings.register_profile("gpucnn", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("gpucnn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why; GPUCNN_REQUIRE_GPU=1 forbids the excuse."""
    require_gpu = os.environ.get("GPUCNN_REQUIRE_GPU") == "1"
    for item in items:
        if item.get_closest_marker("gpu") and not require_gpu and not gpucnn.cuda_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
        if item.get_closest_marker("emulated") and not emulator.available():
            item.add_marker(pytest.mark.skip(reason=emulator.why_unavailable()))


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Each device that runs the CUDA kernels."""
    return str(request.param)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Every device."""
    return str(request.param)


@pytest.fixture
def cuda_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The device ``cuda`` over :mod:`tests.fake_cupy`, which has no arithmetic of its own."""
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    for forget in (kernel._cuda_kernel.cache_clear, launch_plan.forget):
        forget()
    yield cupy
    for forget in (kernel._cuda_kernel.cache_clear, launch_plan.forget):
        forget()


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> object:
    """Each test starts on ``cpu``, from seed 0, with the default kernels, all warnings given."""
    gpucnn.seed(0)
    monkeypatch.setattr(misuse, "_said", set(misuse.SUBJECTS))
    with gpucnn.use_device("cpu"), gpucnn.use_variant(), gpucnn.precision("fp32"):
        yield


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was warned of yet, as in a new process."""
    monkeypatch.setattr(misuse, "_said", set())
    monkeypatch.setattr(misuse, "_looks", 0)
