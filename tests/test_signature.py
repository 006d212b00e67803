"""Kernel parameter lists are read from CUDA source, and arguments are checked against them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpucnn.signature import (
    Packer,
    Parameter,
    Signature,
    convert_arguments,
    numpy_dtype,
    parse_kernels,
)

SOURCE = r"""
// extern "C" __global__ void commented(int a) {}
/* extern "C" __global__ void also_commented(int a) {} */
#define SIZE 4
const char* text = "extern \"C\" __global__ void quoted(int a) {}";
using scalar_t = float;
typedef unsigned char byte;

extern "C" __global__ void forward(float* y, int n);

extern "C" __global__ void __launch_bounds__(256, 2)
all_of_them(const float* __restrict__ x,   // with a comment, and a comma
            float const * y, float* __restrict__ const z,
            unsigned char a /* (odd) */, long long int b, const int4* c, __half* h,
            const __nv_bfloat16* __restrict__ q, unsigned n, const int m, unsigned long long u,
            bool flag, double d, size_t s, scalar_t t, const byte* p, std::uint32_t v[],
            __grid_constant__ const int w, volatile int* k) {
    if (n > 3) { z[0] = x[0]; }
}

extern "C" __launch_bounds__(64) __global__ void nothing() {}
__global__ void cplusplus(int a) {}
template <int N> __global__ void generic(float* y) {}

extern "C" {
static __device__ int helper(int a) { return a; }
__global__ void in_block(int a, float* y) { y[helper(a)] = 1; }
__global__ void __launch_bounds__(32) in_block_too(void) {}
}

extern "C" __global__ void forward(float* y, int n) {}
#line 100 "other.cu"
extern "C" __global__ void
after_line(int n) {}
"""


@pytest.fixture(scope="module")
def kernels() -> dict[str, Signature]:
    return parse_kernels(SOURCE)


def test_only_c_kernels_are_found(kernels: dict[str, Signature]) -> None:
    assert set(kernels) == {
        "all_of_them", "nothing", "in_block", "in_block_too", "forward", "after_line",
    }  # fmt: skip


def test_parameters(kernels: dict[str, Signature]) -> None:
    expected = [
        ("x", "float", True, True),
        ("y", "float", True, True),
        ("z", "float", True, False),
        ("a", "unsigned char", False, False),
        ("b", "long long", False, False),
        ("c", "int4", True, True),
        ("h", "__half", True, False),
        ("q", "__nv_bfloat16", True, True),
        ("n", "unsigned int", False, False),
        ("m", "int", False, False),
        ("u", "unsigned long long", False, False),
        ("flag", "bool", False, False),
        ("d", "double", False, False),
        ("s", "size_t", False, False),
        ("t", "float", False, False),
        ("p", "unsigned char", True, True),
        ("v", "uint32_t", True, False),
        ("w", "int", False, False),
        ("k", "int", True, False),
    ]
    assert kernels["all_of_them"].parameters == tuple(Parameter(*e) for e in expected)
    assert kernels["nothing"].parameters == ()
    assert kernels["in_block_too"].parameters == ()
    assert [p.name for p in kernels["in_block"].parameters] == ["a", "y"]


def test_lines_follow_line_directives(kernels: dict[str, Signature]) -> None:
    lines = SOURCE.split("\n")
    assert lines[kernels["all_of_them"].line - 1].startswith("all_of_them(")
    assert lines[kernels["forward"].line - 1].endswith("{}")
    assert kernels["after_line"].line == 101


def test_two_different_definitions_are_refused() -> None:
    one = 'extern "C" __global__ void f(int a) {}\n'
    assert list(parse_kernels(one + one)) == ["f"]
    with pytest.raises(ValueError, match=r"f is defined twice .* lines 1 and 2"):
        parse_kernels(one + one.replace("int", "float"))


def test_a_parameter_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'int' needs a type and a name"):
        parse_kernels('extern "C" __global__ void f(int) {}')


@pytest.mark.parametrize(
    ("c_type", "dtype"),
    [
        ("float", np.float32), ("double", np.float64), ("bool", np.bool_), ("char", np.int8),
        ("unsigned char", np.uint8), ("short", np.int16), ("unsigned short", np.uint16),
        ("int", np.int32), ("unsigned", np.uint32), ("unsigned int", np.uint32),
        ("long", np.int64), ("long long", np.int64), ("unsigned long long", np.uint64),
        ("long long unsigned int", np.uint64), ("size_t", np.uint64), ("int8_t", np.int8),
        ("std::uint16_t", np.uint16), ("uint64_t", np.uint64), ("__half", np.float16),
        ("__half2", np.float16), ("__nv_bfloat16", np.uint16), ("int4", np.int32),
        ("float2", np.float32), ("uchar4", np.uint8), ("ulonglong2", np.uint64),
    ],
)  # fmt: skip
def test_dtypes(c_type: str, dtype: Any) -> None:
    assert numpy_dtype(c_type) == dtype


@pytest.mark.parametrize("c_type", ["Params", "float5", "void", "float*"])
def test_unknown_types_are_named(c_type: str) -> None:
    with pytest.raises(TypeError, match=c_type.replace("*", r"\*")):
        numpy_dtype(c_type)


def signature(*parameters: tuple[str, str, bool]) -> Signature:
    return Signature("k", tuple(Parameter(n, t, p, False) for n, t, p in parameters), 1)


@pytest.mark.parametrize(
    ("c_type", "value", "expected"),
    [
        ("int", 5, np.int32(5)),
        ("int", np.int64(-5), np.int32(-5)),
        ("int", True, np.int32(1)),
        ("unsigned char", 255, np.uint8(255)),
        ("long long", -(2**63), np.int64(-(2**63))),
        ("unsigned long long", 2**64 - 1, np.uint64(2**64 - 1)),
        ("size_t", np.uint64(2**63), np.uint64(2**63)),
        ("bool", np.bool_(True), np.bool_(True)),
        ("bool", 0, np.bool_(False)),
        ("float", 0.1, np.float32(0.1)),
        ("float", 3, np.float32(3)),
        ("float", np.float64(0.1), np.float32(0.1)),
        ("float", float("inf"), np.float32("inf")),
        ("double", 0.1, np.float64(0.1)),
    ],
)
def test_scalars_become_their_exact_type(c_type: str, value: Any, expected: np.generic) -> None:
    (converted,) = convert_arguments(signature(("v", c_type, False)), [value])
    assert type(converted) is type(expected)
    assert converted == expected


def test_nan_is_a_float() -> None:
    (converted,) = convert_arguments(signature(("v", "float", False)), [float("nan")])
    assert np.isnan(converted)


@pytest.mark.parametrize(
    ("c_type", "value", "error", "says"),
    [
        ("int", 2**31, ValueError, "-2147483648 to 2147483647, got 2147483648"),
        ("unsigned int", -1, ValueError, "0 to 4294967295, got -1"),
        ("unsigned char", 256, ValueError, "0 to 255"),
        ("long long", 2**63, ValueError, "9223372036854775807"),
        ("bool", 2, ValueError, "0 or 1"),
        ("float", 1e39, ValueError, "1e\\+39"),
        ("float", 10**40, ValueError, "up to"),
        ("int", 1.0, TypeError, "an integer, got 1.0 of type float"),
        ("int", np.float32(1), TypeError, "an integer"),
        ("bool", 1.0, TypeError, "an integer"),
        ("float", "1", TypeError, "a real number, got '1'"),
        ("float", None, TypeError, "a real number"),
        ("float", 1j, TypeError, "a real number"),
        ("float", np.zeros(1, np.float32), TypeError, "a real number"),
        ("Params", 1, TypeError, "Params"),
        ("float4", 1.0, TypeError, "by value"),
    ],
)
def test_wrong_scalars_are_refused(c_type: str, value: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        convert_arguments(signature(("v", c_type, False)), [value])


def test_messages_name_kernel_and_parameter() -> None:
    with pytest.raises(ValueError, match="kernel k: int stride takes"):
        convert_arguments(signature(("stride", "int", False)), [2**40])
    with pytest.raises(TypeError, match=r"kernel k takes 2 arguments \(x, n\), got 1"):
        convert_arguments(signature(("x", "float", True), ("n", "int", False)), [1])


def test_arrays_pass_as_they_are() -> None:
    x = np.zeros((2, 3), np.float32)
    pointer = signature(("x", "float4", True))
    assert convert_arguments(pointer, [x])[0] is x
    assert convert_arguments(pointer, [None]) == [None]
    other = SimpleNamespace(dtype=np.dtype(np.float32), flags=SimpleNamespace(c_contiguous=True))
    assert convert_arguments(pointer, [other])[0] is other
    assert convert_arguments(signature(("x", "void", True)), [x])[0] is x
    for c_type, dtype in (("__half", np.float16), ("__nv_bfloat16", np.uint16)):
        h = np.zeros(4, dtype)
        assert convert_arguments(signature(("x", c_type, True)), [h])[0] is h


def test_wrong_arrays_are_refused() -> None:
    pointer = signature(("x", "float", True))
    x = np.zeros((4, 4), np.float32)
    with pytest.raises(TypeError, match=r"k: float\* x takes an array of float32, got float64"):
        convert_arguments(pointer, [x.astype(np.float64)])
    with pytest.raises(ValueError, match=r"C-contiguous array, got shape \(4, 4\)"):
        convert_arguments(pointer, [x.T])
    with pytest.raises(TypeError, match=r"array or None, got 3"):
        convert_arguments(pointer, [3])
    with pytest.raises(TypeError, match="array or None"):
        convert_arguments(pointer, [np.float32(3)])


MIXED = signature(("y", "float", True), ("k", "int", True), ("n", "int", False),
                  ("p", "float", False), ("on", "bool", False), ("s", "size_t", False))  # fmt: skip


def test_numbers_are_packed_once() -> None:
    y, packer = np.zeros(3, np.float32), Packer(MIXED)
    packed = packer((y, None, 3, 0.1, True, 2**63))
    assert packed is not None
    assert packed.scalars == (np.int32(3), np.float32(0.1), np.bool_(True), np.uint64(2**63))
    types = (np.int32, np.float32, np.bool_, np.uint64)
    assert tuple(map(type, packed.scalars)) == types
    assert packer((y.copy(), y.astype(np.int32), 3, 0.1, 1, 2**63)) is packed
    for other in ((4, 0.1, True, 2**63), (3, 0.2, True, 2**63), (3, -0.1, False, 2**63)):
        found = packer((y, None, *other))
        assert found is not None
        assert found.scalars == (*(t(v) for t, v in zip(types, other, strict=True)),)


def test_few_numbers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucnn.signature._MOST_KNOWN", 3)
    packer = Packer(signature(("n", "int", False)))
    for n in (*range(10), 9):
        packed = packer((n,))
        assert packed is not None
        assert packed.scalars == (n,)
        assert len(packer._known) <= 3


FIT = (np.zeros(3, np.float32), np.zeros((), np.int32)[None], 3, 0.1, True, 5)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, np.zeros(3)),
        (0, np.zeros((2, 2), np.float32).T),
        (0, np.zeros((), np.float32)),
        (0, np.float32(1)),
        (0, 3),
        (0, np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**31,), (0,))),
        (2, 3.0),
        (2, 2**31),
        (2, "3"),
        (3, "0.1"),
        (3, np.full((), 0.1, np.float32)),
        (3, 1e39),
        (5, -1),
    ],
)
def test_what_does_not_fit_is_left_to_a_closer_look(index: int, value: Any) -> None:
    """Also where the fitting call has been packed before."""
    packer = Packer(MIXED)
    assert packer(FIT) is not None
    assert packer((*FIT[:index], value, *FIT[index + 1 :])) is None
    assert packer(FIT[:-1]) is None
    assert packer((*FIT, 1)) is None


def test_a_flag_is_0_or_1() -> None:
    packer = Packer(MIXED)
    with pytest.raises(ValueError, match=r"bool on takes 0 or 1, got 2"):
        packer((*FIT[:4], 2, FIT[5]))


@pytest.mark.parametrize(
    "parameters",
    [
        (("n", "int", False), ("x", "float", True)),
        (("x", "void", True),),
        (("x", "Params", True),),
        (("n", "short", False),),
    ],
)
def test_unusual_kernels_always_get_a_closer_look(parameters: Any) -> None:
    arguments = tuple(np.zeros(2, np.float32) if p[2] else 1 for p in parameters)
    assert Packer(signature(*parameters))(arguments) is None
