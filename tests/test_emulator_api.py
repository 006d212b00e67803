"""Compiling, caching and launching emulated kernels, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.emulator import memory

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

SOURCE = r"""
#line 1 "basic.cu"
#include <cassert>
#include <cstdio>
extern "C" __global__ void scale(float* y, const float* x, float by, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = by * x[i];
}
extern "C" __global__ void arguments(long long* y, unsigned char a, long long b, bool c, double d,
                                     const int* p) {
    y[0] = a, y[1] = b, y[2] = c, y[3] = (long long)(d * 8), y[4] = p == nullptr;
}
extern "C" __global__ void nothing() {}
extern "C" __global__ void big_static(float* y) {
    __shared__ float s[12289];
    s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[0] = s[0];
}
extern "C" __global__ void dynamic(char* y, int n) {
    extern __shared__ char s[];
    s[n] = 3;
    y[0] = s[n];
}
extern "C" __global__ void in_place(float* y, const float* x) {
    y[threadIdx.x] = x[threadIdx.x] + 1;
}
extern "C" __global__ void shift(float* y, const float* x) { y[threadIdx.x] = x[threadIdx.x + 1]; }
extern "C" __global__ void last_writer(int* y) { *(volatile int*)y = threadIdx.x; }
extern "C" __global__ void first_come(int* y, int* count) { y[threadIdx.x] = atomicAdd(count, 1); }
extern "C" __global__ void half_written(float* y) {
    if (threadIdx.x % 2) y[threadIdx.x] = 1.0f;
}
extern "C" __global__ void add(float* y, const float* x) { y[threadIdx.x] += x[threadIdx.x]; }
extern "C" __global__ void add_bytes(unsigned char* y, const unsigned char* x) {
    y[threadIdx.x] = x[threadIdx.x] + 1;
}
extern "C" __global__ void slow(float* y, int n) {
    float v = 0.0f;
    for (int i = 0; i < n; ++i) v += y[threadIdx.x] + i;
    y[threadIdx.x] = v < 0 ? 1.0f : 0.0f;
    __syncthreads();
}
extern "C" __global__ void barriers(float* y, int n) {
    for (int i = 0; i < n; ++i) __syncthreads();
    y[threadIdx.x] = 1.0f;
}
extern "C" __global__ void says(int n) { if (threadIdx.x == 0) printf("n is %d\n", n); }
"""


def kernel(name: str, check: bool = True) -> emulator.RawKernel:
    return emulator.RawKernel(SOURCE, name, check=check)


@pytest.mark.parametrize("check", [True, False])
def test_every_kind_of_argument(check: bool) -> None:
    x, y = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    kernel("scale", check)((2,), (8,), (y, x, 0.1, 10))
    np.testing.assert_array_equal(y, np.float32(0.1) * x)
    out = np.zeros(5, np.int64)
    args = (out, np.uint8(200), -(2**40), True, 2.5, None)
    kernel("arguments", check)((1,), (1,), args)
    assert out.tolist() == [200, -(2**40), 1, 20, 1]


@pytest.mark.parametrize(
    ("grid", "block", "shared", "says"),
    [
        ((1,), (1025,), 0, "1025"),
        ((1,), (64, 17), 0, "1088 threads"),
        ((1,), (1, 1, 65), 0, "64"),
        ((0,), (1,), 0, "grid"),
        ((1, 65536), (1,), 0, "65535"),
        ((2**31,), (1,), 0, "2147483647"),
        ((1, 1, 1, 1), (1,), 0, "1 to 3"),
        ((1,), (1,), 227 * 1024 + 1, "shared_mem"),
        ((1,), (1,), -1, "shared_mem"),
    ],
)
def test_impossible_launches_are_refused(grid: Any, block: Any, shared: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kernel("nothing")(grid, block, (), shared)


@pytest.mark.parametrize("sizes", [1, None, "xy"])
def test_a_grid_that_is_no_sequence_of_sizes(sizes: Any) -> None:
    with pytest.raises(TypeError, match="kernel nothing: grid must be 1 to 3 sizes, got"):
        kernel("nothing")(sizes, (1,), ())


def test_shared_memory_limits() -> None:
    with pytest.raises(ValueError, match="49156 bytes of static"):
        kernel("big_static")((1,), (1,), (np.zeros(1, np.float32),))
    y = np.zeros(1, np.int8)
    most = 227 * 1024
    kernel("dynamic")((1,), (1,), (y, most - 1), most)
    assert y[0] == 3


def test_bad_arguments_are_refused_by_name() -> None:
    x = np.zeros(8, np.float32)
    with pytest.raises(TypeError, match="kernel scale: float\\* x takes an array of float32"):
        kernel("scale")((1,), (8,), (x, x.astype(np.float64), 1.0, 8))
    with pytest.raises(ValueError, match="C-contiguous"):
        kernel("scale")((1,), (4,), (x, x[::2], 1.0, 4))
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kernel("scale")((1,), (8,), (frozen, x, 1.0, 8))
    with pytest.raises(TypeError, match="takes 4 arguments"):
        kernel("scale")((1,), (8,), (x, x))


def test_overlapping_arguments_share_memory() -> None:
    x = np.arange(33, dtype=np.float32)
    kernel("in_place")((1,), (32,), (x[:32], x[:32]))
    assert x.tolist() == [*range(1, 33), 32]
    with pytest.raises(emulator.KernelFault, match="race"):
        kernel("shift")((1,), (32,), (x[:32], x))


@pytest.mark.parametrize("check", [True, False])
def test_vector_alignment_is_that_of_the_allocation(check: bool) -> None:
    source = """extern "C" __global__ void copy(float4* y, const float4* x) {
        y[threadIdx.x] = x[threadIdx.x];
    }"""
    raw = np.zeros(68, np.uint8)
    start = 4 - raw.ctypes.data % 16  # a host address no vector load could use
    odd = np.frombuffer(raw.data, np.float32, 8, start % 16)
    x = np.arange(8, dtype=np.float32)
    emulator.RawKernel(source, "copy", check=check)((1,), (2,), (odd, x))
    np.testing.assert_array_equal(odd, x)


def test_compile_errors_name_the_file_and_line() -> None:
    source = '#line 40 "kernels/broken.cu"\nextern "C" __global__ void f(int* y) {\n y[0] = z;\n}\n'
    with pytest.raises(emulator.CompileError, match=r"kernels/broken.cu:41:.*'z' was not declared"):
        emulator.RawKernel(source, "f").compile()
    with pytest.raises(emulator.CompileError, match=r"no kernel 'g'.*scale"):
        kernel("g").compile()


def test_float_atomics_are_refused_with_the_reason() -> None:
    source = 'extern "C" __global__ void f(float* y) { atomicAdd(y, 1.0f); }'
    with pytest.raises(emulator.CompileError, match="reduce in a fixed order"):
        emulator.RawKernel(source, "f").compile()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('asm volatile("bar.sync 0;");', "inline PTX"),
        ("f<<<1, 1>>>(y);", "dynamic parallelism"),
        ("auto g = cooperative_groups::this_grid();", "cooperative groups"),
        ("y[0] = tex2D<int>(0, 0, 0);", "textures"),
    ],
)
def test_unsupported_features_are_refused_by_name(body: str, says: str) -> None:
    source = f'#line 7 "new.cu"\nextern "C" __global__ void f(int* y) {{\n{body}\n}}\n'
    with pytest.raises(emulator.Unsupported, match=f"new.cu:8: .*{says}"):
        emulator.RawKernel(source, "f").compile()
    with pytest.raises(NotImplementedError):
        emulator.RawKernel("#include <cooperative_groups.h>\n" + source, "f").compile()
    hidden = f"""
        #ifndef GPUCNN_EMULATED
        extern "C" __global__ void f(int* y) {{ {body} }}
        #else  // {body}
        extern "C" __global__ void f(int* y) {{ const char* s = "asm("; y[0] = s[0]; }}
        #endif
    """
    y = np.zeros(1, np.int32)
    emulator.RawKernel(hidden, "f")((1,), (1,), (y,))
    assert y[0] == ord("a")


@pytest.mark.parametrize("header", ["cooperative_groups", "mma", "cuda_pipeline"])
def test_unsupported_headers_are_refused_where_they_are_included(header: str) -> None:
    source = f"#include <cuda_fp16.h>\n\n#include <{header}.h>\n" + SOURCE
    with pytest.raises(emulator.Unsupported, match=rf"^kernel.cu:3: .*{header.split('_')[0]}"):
        emulator.RawKernel(source, "nothing").compile()


def test_a_kernel_may_have_any_name() -> None:
    y = np.zeros(1, np.int32)
    for name in ("a", "I", "P", "kernel", "call"):
        source = f'extern "C" {{ __global__ void {name}(int* a, int P) {{ a[0] = P; }} }}'
        emulator.RawKernel(source, name)((1,), (1,), (y, len(name)))
        assert y[0] == len(name)


def test_options() -> None:
    source = """#include "value.h"
    extern "C" __global__ void f(int* y) { y[0] = A; y[1] = B; y[2] = VALUE; }"""
    y = np.zeros(3, np.int32)
    with pytest.raises(emulator.CompileError, match=r"value\.h"):
        emulator.RawKernel(source, "f").compile()
    with pytest.raises(ValueError, match="--wrong"):
        emulator.RawKernel(source, "f", ("--wrong",)).compile()
    folder = Path(__file__).parent
    source = source.replace('#include "value.h"', "")
    options = ("-DA=1", "-D", "B=A+1", "--define-macro=VALUE=7", f"-I{folder}", "-std=c++17",
               "--gpu-architecture=sm_90", "--fmad=false", "-lineinfo")  # fmt: skip
    emulator.RawKernel(source, "f", options)((1,), (1,), (y,))
    assert y.tolist() == [1, 2, 7]


def test_printf(capfd: pytest.CaptureFixture[str]) -> None:
    kernel("says")((1,), (2,), (42,))
    assert capfd.readouterr().out == "n is 42\n"


# ---- uninitialised memory


def test_empty_is_initialised_by_whoever_writes_it() -> None:
    x = np.ones(32, np.float32)
    y = emulator.empty(32)
    add, half = kernel("add"), kernel("half_written")
    with pytest.raises(emulator.KernelFault, match="uninitialised-read"):
        add((1,), (32,), (y, x))
    half((1,), (32,), (y,))
    with pytest.raises(emulator.KernelFault, match=r"reads y\[0\]"):
        add((1,), (32,), (y, x))
    y[::2] = 5  # by the host, through a strided view
    add((1,), (32,), (y, x))
    assert y.tolist() == [6, 2] * 16
    z = emulator.empty((3, 32))
    z[1] = 0
    add((1,), (32,), (z[1], x))
    with pytest.raises(emulator.KernelFault):
        add((1,), (32,), (z[2], x))
    add((1,), (32,), (np.empty(32, np.float32), x))


@pytest.mark.parametrize("value", [0, 255, 127, 244])
def test_bytes_written_by_the_host_are_never_reported(value: int) -> None:
    x, y = emulator.empty(64, np.uint8), emulator.empty(64, np.uint8)
    x[...] = value
    kernel("add_bytes")((1,), (64,), (y, x))
    assert (y == np.uint8((value + 1) % 256)).all()
    with pytest.raises(emulator.KernelFault):
        kernel("add_bytes")((1,), (64,), (y, emulator.empty(64, np.uint8)))


def test_a_new_array_at_an_old_address_is_not_poisoned() -> None:
    known = len(memory._poisoned)
    x = np.ones(32, np.float32)
    for _ in range(50):
        emulator.empty(32)
        fresh = np.zeros(32, np.float32)
        kernel("add")((1,), (32,), (fresh, x))
    held = [emulator.empty(32) for _ in range(5)]
    assert len(memory._poisoned) == known + 5
    del held
    assert len(memory._poisoned) == known


# ---- order


def test_check_order_finds_what_depends_on_it() -> None:
    y, count = np.zeros(32, np.int32), np.zeros(1, np.int32)
    with pytest.raises(emulator.KernelFault, match=r"y\[0\] is .* in reverse order") as caught:
        emulator.check_order(kernel("first_come"), (1,), (32,), (y, count))
    assert caught.value.kind == "order-dependence"
    assert y.tolist() == list(range(32))
    z = np.zeros(1, np.int32)
    with pytest.raises(emulator.KernelFault, match="order-dependence"):
        emulator.check_order(kernel("last_writer", check=False), (1,), (32,), (z,))
    assert z[0] == 31


def test_check_order_leaves_the_forward_result() -> None:
    x, y = np.arange(70, dtype=np.float32), np.zeros(70, np.float32)
    emulator.check_order(kernel("scale"), (3,), (32,), (y, x, 2.0, 70))
    np.testing.assert_array_equal(y, 2 * x)
    x = np.zeros(32, np.float32)
    emulator.check_order(kernel("in_place"), (1,), (32,), (x, x))
    assert (x == 1).all()
