"""Memory planned once: no two live buffers share bytes, nobody else gets them, replays prove it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.graphs import count
from bench.steps import Step
from gpucnn import Tensor, buffers, emulator
from gpucnn.emulator.fault import KernelFault
from gpucnn.graph import MemoryPlan
from gpucnn.graph.plan import ALIGNMENT, Lifetime, PlannedBuffer, plan_memory
from gpucnn.graph.record import Regions
from tests.graphs import Run, trace
from tests.support import hundreds, randn


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    """Births and deaths in one order of events, as a recording numbers them."""
    count = draw(st.integers(0, 14))
    found, alive, clock = [], [], 0
    for _ in range(count):
        while alive and draw(st.booleans()):
            clock += 1
            alive.pop(draw(st.integers(0, len(alive) - 1))).died = clock
        clock += 1
        found.append(Lifetime(draw(st.integers(1, 3000)), clock))
        alive.append(found[-1])
    return found


def bytes_at(plan: MemoryPlan, event: float) -> list[int]:
    """The bytes that are in use at a moment, each as often as it is."""
    return [
        byte
        for b in plan.buffers
        if b.lifetime.born <= event and (b.lifetime.died is None or event < b.lifetime.died)
        for byte in range(b.offset, b.end)
    ]


@given(lifetimes())
@hundreds
def test_live_buffers_never_overlap(found: list[Lifetime]) -> None:
    plan = plan_memory(found)
    assert [b.lifetime for b in plan.buffers] == found
    assert not list(plan.overlaps())
    assert all(b.offset % ALIGNMENT == 0 for b in plan.buffers)
    last = max((max(b.born, b.died or 0) for b in found), default=0)
    for event in range(last + 1):
        used = bytes_at(plan, event + 0.5)
        assert len(used) == len(set(used))
        assert not used or max(used) < plan.bytes
    assert plan.live_bytes <= plan.bytes <= plan.unshared_bytes


def test_a_wrong_plan_is_found() -> None:
    first, second, third = Lifetime(300, 1, 4), Lifetime(100, 3, 6), Lifetime(50, 5)
    placed = [PlannedBuffer(b, at) for b, at in ((first, 0), (second, 256), (third, 0))]
    assert list(MemoryPlan(tuple(placed)).overlaps()) == [(0, 1)]
    assert not list(plan_memory([first, second, third]).overlaps())


def test_a_chain_needs_two_buffers() -> None:
    """y = f(x) over and over: each array dies when the next but one is made."""
    chain = [Lifetime(1000, 2 * i, 2 * i + 3) for i in range(10)]
    plan = plan_memory(chain)
    assert plan.bytes == plan.live_bytes == 2 * 1024
    assert plan.unshared_bytes == 10 * 1024
    assert str(plan) == "10 buffers of 10,240 bytes in an arena of 2,048; 2,048 are in use at once"
    assert plan_memory([]).bytes == 0


def test_the_smallest_gap_that_fits_is_taken() -> None:
    big, middle, small = Lifetime(1024, 1, 9), Lifetime(512, 2), Lifetime(256, 3, 9)
    others = [big, middle, small, Lifetime(768, 10), Lifetime(256, 11)]
    plan = plan_memory(others)
    assert [b.offset for b in plan.buffers] == [0, 1024, 1536, 0, 768]


def test_regions_are_found_by_address() -> None:
    regions = Regions()
    for start, size, label in ((100, 50, "a"), (200, 10, "b"), (150, 50, "c"), (300, 0, "none")):
        regions.add(start, size, label)
    found = [regions.find(a) for a in (99, 100, 149, 150, 209, 210, 300)]
    assert found == [None, ("a", 0), ("a", 49), ("c", 0), ("b", 9), None, None]
    regions.remove(150)
    assert regions.find(160) is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("emulated", marks=pytest.mark.emulated)])
def test_memory_of_others_is_left_alone(device: str) -> None:
    """Whatever is allocated and overwritten between replays, the bits are those of eager steps."""
    run, held = Run("small", device, graph=True), []

    def spoil() -> None:
        for size in (64, 1 << 12, 1 << 16, 1 << 18, 12 * 1024, 768):
            for array in (buffers.empty((size,), np.uint8), emulator.empty((size,), np.uint8)):
                array[...] = 0xFF
                held.append(array)
        del held[: len(held) // 2]

    run.steps(0, 12, spoil)
    assert run.step.replays == 9
    assert run.trace() == trace("small", device, False, 12)
    plan = run.step.memory
    assert not list(plan.overlaps())
    assert plan.live_bytes <= plan.bytes < 0.7 * plan.unshared_bytes
    assert len(plan.buffers) > 15


@pytest.mark.emulated
def test_buffers_that_share_too_much_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan broken by hand: other bits, or the emulator sees what nobody may read."""

    def careless(found: list[Lifetime]) -> MemoryPlan:
        return MemoryPlan(tuple(PlannedBuffer(b, 64 * i) for i, b in enumerate(found)))

    monkeypatch.setattr("gpucnn.graph.host.plan_memory", careless)
    monkeypatch.setattr("gpucnn.graph.record.Recording.expect_free", lambda *_: None)
    step = gpucnn.cuda_graph(lambda x: (x * 2.0) * (x * 3.0))
    x = randn(70)
    try:
        found = [step(Tensor(x, device="emulated")).numpy().copy() for _ in range(5)]
    except KernelFault:
        return
    assert list(step.memory.overlaps())
    np.testing.assert_array_equal(found[0], 2 * x * (3 * x))
    assert (found[-1] != found[0]).any()


@pytest.mark.emulated
def test_what_the_bench_counts() -> None:
    found = count(Step("lenet5", 2, "typical"), timed=False)
    assert found.launches > 25
    assert found.slices > 0
    # the linear layers, whose data gradients read exchanged weights: whole 256-byte lines each
    assert found.copies == 4 * (120 * 400 + (84 * 120 + 32) + (10 * 84 + 56))
    memory = found.memory
    assert memory.live_bytes <= memory.bytes < memory.unshared_bytes
    assert found.row().startswith(f"| lenet5-b2 | {found.launches} | ")


def test_the_arena_lives_as_long_as_a_result(device: str) -> None:
    def result() -> Any:
        step = gpucnn.cuda_graph(lambda x: x * 2.0)
        return [step(Tensor(np.ones(40_000), device=device)) for _ in range(4)][-1]

    y = result()
    others = [Tensor(np.full(40_000, 9.0), device=device) for _ in range(4)]
    assert (y.numpy() == 2).all()
    assert len(others) == 4


def test_an_array_of_cupy_holds_the_owner_of_its_memory() -> None:
    """What tells when memory of a step is free on ``cuda``; needs CuPy, and no GPU."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy")

    class Owner:
        pass

    died: list[Any] = []
    sizes: list[int] = []

    def allocate(size: int) -> Any:
        owner = Owner()
        died.append(weakref.ref(owner))
        sizes.append(size)
        memory = cupy.cuda.UnownedMemory(1 << 40, size, owner, 0)
        return cupy.cuda.MemoryPointer(memory, 0)

    before = cupy.cuda.get_allocator()
    with cupy.cuda.using_allocator(allocate):
        array = cupy.empty((3, 5), np.float32)
    assert cupy.cuda.get_allocator() == before
    view = array[1:].reshape(-1)[2:4].view(np.uint8)
    assert (sizes, array.data.ptr, view.data.ptr) == ([60], 1 << 40, (1 << 40) + 4 * 7)
    del array
    assert died[0]() is not None
    del view
    assert died[0]() is None
