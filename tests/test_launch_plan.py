"""Calls by a plan launch what the launcher launches: the same numbers, on the same memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.problems import all_problems
from bench.problems.problem import Problem
from gpucnn import emulator, launch_plan
from gpucnn import functional as F
from gpucnn.device import empty, into, result
from gpucnn.graph.record import is_array
from gpucnn.kernel import FILES, observe_launches
from gpucnn.ops.activation import activation_forward, relu_forward
from gpucnn.ops.conv2d import conv2d_forward, conv2d_geometry, conv2d_weight_gradient
from gpucnn.ops.conv2d_fused import conv2d_fused_forward
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, use_tile
from gpucnn.ops.elementwise import add_forward, affine_forward
from gpucnn.ops.loss import scale_rows
from gpucnn.primitive import PRIMITIVES, Primitive
from tests.support import randn

Event = tuple[Any, ...]
_MOST_BYTES = 1 << 16
_OF_LISTS = {"join_columns", "clip_norm", "clip_value"}  # of arrays, for which there is no plan


@pytest.fixture(autouse=True)
def nothing_planned() -> Iterator[None]:
    launch_plan.forget()
    yield
    launch_plan.forget()


class Seen:
    """What the emulator's kernels are called with, in the order of the calls; none runs."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arguments: list[np.ndarray] = []
        self._memory: list[np.ndarray] = []

    def launch(
        self, kernel: emulator.RawKernel, grid: Any, block: Any, args: Any, shared_mem: int = 0
    ) -> None:
        places = [self._place(a) if is_array(a) else (type(a), repr(a)) for a in args]
        self.events.append((kernel.name, kernel.options, grid, block, shared_mem, places))

    def _place(self, array: np.ndarray) -> Event:
        """An argument or memory by number, and where in it the array lies."""
        at, size = array.ctypes.data, array.nbytes
        for kind, known in (("argument", self._arguments), ("memory", self._memory)):
            for i, home in enumerate(known):
                if home.ctypes.data <= at < home.ctypes.data + home.nbytes:
                    return kind, i, at - home.ctypes.data, size, array.dtype
        self._memory.append(emulator.memory.owner(array))
        return self._place(array)

    def _result(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._result(v) for v in value)
        return value if value is None else (self._place(value), value.shape)

    def of(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[list[Event], Any]:
        """The launches of a call, and the memory and shapes of what it returns."""
        self.events, self._memory = [], []
        self._arguments = [a for a in arguments if is_array(a)]
        returned = call(*arguments)
        return self.events, self._result(returned)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    made = Seen()
    monkeypatch.setattr(
        emulator.RawKernel, "__call__", lambda *args, **options: made.launch(*args, **options)
    )
    return made


def plans() -> int:
    """How many calls go by a plan when they are made again."""
    return len(launch_plan.plans)


def problems() -> dict[str, list[Problem]]:
    """Small ones, by family."""
    found: dict[str, list[Problem]] = {}
    for problem in all_problems():
        made = PRIMITIVES[problem.primitive]
        if problem.bytes <= _MOST_BYTES and made.launchers and made.name not in _OF_LISTS:
            found.setdefault(problem.family, []).append(problem)
    return found


@pytest.mark.emulated
@pytest.mark.parametrize("mode", ["fp32", "tf32"])
@pytest.mark.parametrize("family", problems())
def test_a_second_call_launches_what_the_launcher_does(family: str, mode: str, seen: Seen) -> None:
    with gpucnn.precision(mode):
        for problem in problems()[family]:
            made = PRIMITIVES[problem.primitive]
            made.on("emulated")(*problem.make(0))
            arguments = problem.make(1)
            by_plan = seen.of(made.on("emulated"), arguments)
            with launch_plan.without_plans():
                assert by_plan == seen.of(made.on("emulated"), arguments), problem


@pytest.mark.emulated
def test_most_calls_have_plans(seen: Seen) -> None:
    without = set()
    for problem in (p for group in problems().values() for p in group):
        before = plans()
        seen.of(PRIMITIVES[problem.primitive].on("emulated"), problem.make(0))
        if plans() == before:
            without.add(problem.primitive)
        launch_plan.forget()
    assert without <= {"gather_batch", "weighted_bce_forward", "weighted_bce_backward"}


@pytest.mark.emulated
def test_values_by_a_plan() -> None:
    f = relu_forward.on("emulated")
    for seed in range(3):
        x = randn(2, 3, seed=seed)
        np.testing.assert_array_equal(f(x), np.maximum(x, 0))
    assert plans() == 1


@pytest.mark.emulated
def test_what_a_plan_holds_for(seen: Seen) -> None:
    """Another shape, dtype, precision, number or type of a number is another call."""
    add, affine = add_forward.on("emulated"), affine_forward.on("emulated")
    add(randn(2, 3), randn(2, 3))
    add(randn(3, 2), randn(3, 2))
    assert plans() == 2
    affine(randn(4), 1.0, 0.0)
    affine(randn(4), 2.0, 0.0)
    affine(randn(4), 2, 0.0)
    assert plans() == 5
    with gpucnn.precision("tf32"):
        affine(randn(4), 1.0, 0.0)
    assert plans() == 6
    rows = scale_rows.on("emulated")
    rows(randn(4, 2), randn(4))
    with pytest.raises(TypeError, match="x takes an array of float32"):
        rows(randn(4, 2, dtype=np.float64), randn(4))


@pytest.mark.emulated
def test_a_zero_keeps_its_sign() -> None:
    affine = affine_forward.on("emulated")
    x = np.full(4, -0.0, np.float32)
    for shift in (0.0, -0.0, 0.0, -0.0):
        assert not np.signbit(affine(x, 1.0, 0.0)).any()
        assert np.signbit(affine(x, 1.0, shift)).all() == np.signbit(shift)
    launch_plan.forget()
    assert np.signbit(affine(x, 1.0, -0.0)).all()
    assert not np.signbit(affine(x, 1.0, 0.0)).any()


@pytest.mark.emulated
def test_wrong_calls_after_right_ones() -> None:
    rows = scale_rows.on("emulated")
    x, factor = randn(4, 4), randn(4)
    for _ in range(2):
        rows(x, factor)
    with pytest.raises(ValueError, match="C-contiguous"):
        rows(x.T, factor)
    with pytest.raises(TypeError, match="factor takes an array"):
        rows(x, [1.0])
    with pytest.raises(TypeError):
        rows(x)


@pytest.mark.emulated
def test_one_array_twice() -> None:
    """A plan made from one array in two places would read that place for both."""
    add = add_forward.on("emulated")
    x, z = randn(8), randn(8, seed=1)
    np.testing.assert_array_equal(add(x, x), x + x)
    np.testing.assert_array_equal(add(x, z), x + z)
    np.testing.assert_array_equal(add(x, x), x + x)


@pytest.mark.emulated
def test_memory_that_is_offered() -> None:
    x, w = randn(2, 4, 4, 8), randn(8, 3, 3, 8)
    s = conv2d_geometry(x, w, None, 1, 1, 1, 1)
    dy = randn(*s.y_shape)
    call = conv2d_weight_gradient.on("emulated")
    expected = call(dy, x, s)
    for home in (np.zeros(w.size, np.float32), np.zeros(w.size, np.float32)):
        with into(home):
            made = call(dy, x, s)
        assert np.shares_memory(made, home)
        np.testing.assert_array_equal(made, expected)
    with into(None):
        assert not np.shares_memory(call(dy, x, s), home)


@pytest.mark.emulated
def test_addresses_that_matter() -> None:
    """Where a kernel copies four numbers at once, an array between two of them takes another."""
    x, w = randn(1, 4, 4, 8), randn(8, 1, 1, 8)
    s = conv2d_geometry(x, w, None, 1, 0, 1, 1)
    call = conv2d_forward.on("emulated")
    with gpucnn.precision("tf32"):
        expected = call(x, w, None, s)
        odd = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
        odd[...] = x
        np.testing.assert_array_equal(call(odd, w, None, s), expected)
        launch_plan.forget()
        np.testing.assert_array_equal(call(odd, w, None, s), expected)
        np.testing.assert_array_equal(call(x, w, None, s), expected)
        np.testing.assert_array_equal(call(odd, w, None, s), expected)
        assert plans() == 1


@pytest.mark.emulated
def test_where_no_call_goes_by_a_plan() -> None:
    x = randn(1, 4, 4, 8)
    w = randn(8, 3, 3, 8)
    s = conv2d_geometry(x, w, None, 1, 1, 1, 1)

    def names() -> list[str]:
        launches: list[Any] = []
        with observe_launches(launches.append):
            conv2d_forward.on("emulated")(x, w, None, s)
        return [launch.kernel.name for launch in launches]

    conv2d_forward.on("emulated")(x, w, None, s)
    assert names() == names() != []
    with gpucnn.use_variant(conv2d="naive"):
        assert names() == ["conv2d_naive_forward"]
    held = conv2d_fused_forward.on("emulated")
    held(x, w, *(None,) * 4, s, "relu", 0.0, False)
    made = plans()
    with gpucnn.use_variant(conv2d="naive"):
        expected = F.relu(gpucnn.Tensor(conv2d_forward.on("emulated")(x, w, None, s))).numpy()
        y, _ = held(x, w, *(None,) * 4, s, "relu", 0.0, False)
        assert y.tobytes() == expected.tobytes()
    with gpucnn.precision("tf32"), use_tile(IMPLICIT_GEMM, 3):
        conv2d_forward.on("emulated")(x, w, None, s)
        assert plans() == made
    assert not launch_plan.off


def launching(body: Callable[..., Any]) -> Primitive:
    """A primitive of one array with this launcher."""

    def definition(x: Array) -> Array:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    made = Primitive(definition)

    def launcher(x: Array) -> Array:  # type: ignore[name-defined]  # noqa: F821
        return body(x)

    made.kernel()(launcher)
    return made


def doubled(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    FILES["elementwise"]["affine"]((1,), (256,), y, x, x.size, 2.0, 0.0)
    return y


CONSTANT = np.ones(8, np.float32)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("body", "planned"),
    [
        (lambda x: doubled(empty(x, x.shape), x), True),
        (lambda x: doubled(result(x, (1, *x.shape)), x).reshape(x.shape), True),
        (lambda x: doubled(empty(x, x.shape), x.reshape(2, 4)), True),
        (lambda x: (doubled(empty(x, x.shape), x), None, (x,)), True),
        (lambda x: doubled(empty(x, (16,))[:8], x), True),
        (lambda x: doubled(empty(x, (1,)), x[2:3]).reshape(()), True),
        (lambda x: doubled(empty(x, x.shape), CONSTANT), False),
        (lambda x: doubled(np.empty(x.shape, np.float32), x), False),
        (lambda x: doubled(empty(x, x.shape), x.copy()), False),
        (lambda x: float(doubled(empty(x, x.shape), x)[0]), False),
        (lambda x: [doubled(empty(x, x.shape), x)], False),
        (lambda x: doubled(empty(x, x.shape), x).view(np.int32), False),
    ],
)  # fmt: skip
def test_what_a_launcher_may_do(body: Callable[..., Any], planned: bool) -> None:
    call = launching(body).on("emulated")
    for seed in range(3):
        x = randn(8, seed=seed)
        made, expected = call(x), body(x)
        assert type(made) is type(expected)
        pair = (made, expected) if isinstance(made, tuple | list) else ([made], [expected])
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)
    assert plans() == planned


@pytest.mark.emulated
def test_arguments_with_a_value_of_their_own() -> None:
    def definition(x: Array, scale: float = 2.0) -> Array:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    made = Primitive(definition)

    @made.kernel()
    def launcher(x: Array, scale: float = 2.0) -> Array:  # type: ignore[name-defined]  # noqa: F821
        y = empty(x, x.shape)
        FILES["elementwise"]["affine"]((1,), (256,), y, x, x.size, scale, 0.0)
        return y

    call = made.on("emulated")
    for _ in range(2):
        np.testing.assert_array_equal(call(CONSTANT), 2 * CONSTANT)
        np.testing.assert_array_equal(call(CONSTANT, 3.0), 3 * CONSTANT)
        np.testing.assert_array_equal(call(CONSTANT, scale=4.0), 4 * CONSTANT)
    assert plans() == 3


@pytest.mark.emulated
def test_a_launcher_that_fails_is_not_remembered() -> None:
    calls = []

    def body(x: np.ndarray) -> np.ndarray:
        calls.append(x)
        if len(calls) == 1:
            raise RuntimeError("once")
        return doubled(empty(x, x.shape), x)

    call = launching(body).on("emulated")
    with pytest.raises(RuntimeError, match="once"):
        call(CONSTANT)
    assert launch_plan.watched is None
    assert not launch_plan.off
    for _ in range(3):
        np.testing.assert_array_equal(call(CONSTANT), 2 * CONSTANT)
    assert len(calls) == 2


@pytest.mark.emulated
def test_threads_do_not_disturb_a_call_that_is_watched() -> None:
    inside, done = threading.Event(), threading.Event()

    def body(x: np.ndarray) -> np.ndarray:
        y = empty(x, x.shape)
        inside.set()
        assert done.wait(60)
        return doubled(y, x)

    def other() -> None:
        assert inside.wait(60)
        F.relu(gpucnn.Tensor(randn(5), device="emulated"))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    call = launching(body).on("emulated")
    call(CONSTANT)
    thread.join()
    np.testing.assert_array_equal(call(3 * CONSTANT), 6 * CONSTANT)
    (plan,) = launch_plan.plans.values()
    assert len(plan.memory) == len(plan.launches) == 1


def test_on_the_cuda_path(cuda_path: Any) -> None:
    """The same numbers, wrapped for CuPy; null pointers are zeros of their size."""
    x, w = randn(2, 4, 4, 8), randn(8, 3, 3, 8)
    s = conv2d_geometry(x, w, None, 1, 1, 1, 1)
    arrays = [cuda_path.asarray(a) for a in (x, w)]
    with gpucnn.precision("tf32"):
        first, second = (conv2d_forward.on("cuda")(*arrays, None, s).get() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert plans() == 1
    call = activation_forward.on("cuda")
    for _ in range(2):
        y = call(arrays[0], "elu", (1.0, 1.0)).get()
    np.testing.assert_allclose(y, np.where(x > 0, x, np.expm1(x)), rtol=1e-6)
    assert plans() == 2
