"""Which launches are counted, and what counting must not depend on or change."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.emulator import flops
from gpucnn.ops.conv_geometry import conv_geometry
from gpucnn.primitive import PRIMITIVES
from gpucnn.xray.counters import count
from tests.support import randn
from tests.test_counters import SOURCE, site

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not flops.available(), reason="counted builds need an x86-64 CPU"),
]


@pytest.mark.parametrize("kernel", ["warps", "turns", "triangle", "transpose_naive"])
def test_the_order_of_threads_does_not_matter(kernel: str) -> None:
    grid, block, args = {
        "warps": ((2,), (64,), (np.zeros(128, np.float32), randn(128))),
        "turns": ((1,), (32,), (np.zeros(32, np.float32), randn(32), 3)),
        "triangle": ((1,), (45,), (np.zeros(45, np.float32), randn(45))),
        "transpose_naive": ((1,), (32, 32), (np.zeros((32, 32), np.float32), randn(32, 32))),
    }[kernel]
    with count() as counted:
        emulator.check_order(emulator.RawKernel(SOURCE, kernel), grid, block, args)
    forward, *others = counted.launches
    assert len(others) == 3
    assert all(other == forward for other in others)


def test_counting_changes_no_result() -> None:
    x = randn(37, 11)
    arrays = randn(2, 5, 7, 3), randn(4, 3, 3, 3), randn(4)
    geometry = conv_geometry(2, *arrays, stride=1, padding=1, dilation=1, groups=1)
    for name, *args in (
        ("softmax_forward", x),
        ("activation_forward", x, "gelu", ()),
        ("conv2d_forward", *arrays, geometry),
    ):
        plain = PRIMITIVES[name].on("emulated")(*args)
        with count() as counted:
            result = PRIMITIVES[name].on("emulated")(*args)
        assert counted.launches
        np.testing.assert_array_equal(plain, result)


def test_launches_are_listed_in_order_until_the_block_ends() -> None:
    x = randn(64)
    kernel = emulator.RawKernel(SOURCE, "copy")

    def launch(n: int) -> None:
        kernel((1,), (64,), (np.zeros_like(x), x, n, 1, 0))

    with count() as outer:
        launch(64)
        with count() as inner:
            launch(32)
        launch(16)
    launch(8)
    assert [a.read_bytes for a in outer.launches] == [256, 128, 64]
    assert [a.read_bytes for a in inner.launches] == [128]
    first = outer.launches[0]
    assert (first.kernel, first.spec) == ("copy", None)
    assert (first.grid, first.block, first.shared_mem) == ((1, 1, 1), (64, 1, 1), 0)


def test_launches_of_other_threads_are_not_listed() -> None:
    x = randn(32)
    with count() as counted:
        other = threading.Thread(
            target=emulator.RawKernel(SOURCE, "copy"),
            args=((1,), (32,), (np.zeros_like(x), x, 32, 1, 0)),
        )
        other.start()
        other.join()
    assert counted.launches == []


def test_a_launch_that_faults_is_not_listed() -> None:
    x = randn(32)
    kernel = emulator.RawKernel(SOURCE, "copy", check=False)
    with count() as counted, pytest.raises(emulator.KernelFault, match="out-of-bounds"):
        kernel((1,), (64,), (np.zeros_like(x), x, 64, 1, 0))
    assert counted.launches == []
    with count() as counted:
        kernel((1,), (32,), (np.zeros_like(x), x, 32, 1, 0))
    assert counted.launches[0].global_requests == 2


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "available", lambda: False)
    source = 'extern "C" __global__ void seen_nowhere_else(float* y) { y[0] = 1.0f; }'
    kernel = emulator.RawKernel(source, "seen_nowhere_else")
    with count(), pytest.raises(emulator.Unsupported, match="on x86-64 only"):
        kernel((1,), (1,), (np.zeros(1, np.float32),))
    kernel((1,), (1,), (np.zeros(1, np.float32),))


def test_lanes_that_run_far_apart_are_all_counted() -> None:
    far = r"""
    extern "C" __global__ void far(float* y, const float* x, int turns) {
        float sum = 0.0f;
        for (int i = 0; i < turns; ++i) sum += x[threadIdx.x];
        y[threadIdx.x] = sum;
    }"""
    turns = 1_100_000  # more than the emulator keeps open
    with count() as counted:
        emulator.RawKernel(far, "far")((1,), (2,), (np.zeros(2, np.float32), randn(2), turns))
    (launch,) = counted.launches
    s = site(launch, "global", "read")
    assert s.lanes == 2 * turns
    assert turns <= s.requests <= 2 * turns
    assert launch.operations == {"add": 2 * turns}
