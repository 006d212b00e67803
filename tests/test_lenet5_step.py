"""A whole training step of LeNet-5 in one launch: the step layer by layer, whatever the grid."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import LENET5_STEP
from gpucnn import Tensor, emulator, kernel, launch_plan, models, nn, optim
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.kernel import Launch, observe_launches
from gpucnn.ops import lenet5_step as module
from gpucnn.ops.adam import AdamStep
from gpucnn.ops.lenet5_step import lenet5_step, parameter_offsets
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.training import TrainingStep
from tests import fake_capture
from tests.support import assert_close, needs_torch, on, randn, torch

# b1 = 0 makes the first moment the gradient; eps keeps a rounding error of a small gradient from
# being a whole step of Adam.
GRADIENT = AdamStep(0.1, 0.0, 0.9, 1e-2, 0.0, False, 1)
DECAYING = AdamStep(0.1, 0.9, 0.99, 1e-2, 0.3, True, 4)


def images(n: int, dtype: Any = np.float32) -> np.ndarray:
    return randn(n, 28, 28, 1, dtype=dtype)


def labels(n: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(n).integers(0, classes, n).astype(np.int32)


def model_of(classes: int = 10, dtype: Any = np.float32) -> nn.Sequential:
    gpucnn.seed(classes)
    with gpucnn.use_device("cpu"):
        model = models.lenet5(classes)
    for t in model.parameters():
        t.data = t.data.astype(dtype)
    return model


def flat_buffers(classes: int, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    """Parameters at their places, and moments as after some steps."""
    optimizer = optim.Adam(model_of(classes, dtype).parameters())
    p = optimizer.flat_step()[0].copy()
    m = 0.01 * randn(p.size, dtype=dtype)
    m[p == 0] = 0  # as between parameters all is
    return p, m, m * m


def arguments(n: int, classes: int, numbers: AdamStep, dtype: Any = np.float32) -> list[Any]:
    meeting = np.zeros(1, np.int32)
    batch = images(n, dtype), labels(n, classes), np.array(numbers.adam(), dtype), meeting
    return [*flat_buffers(classes, dtype), *batch, classes, IGNORE_INDEX]


def run(device: str, args: list[Any]) -> list[np.ndarray]:
    """(loss, scores, p, m, v) after a step."""
    arrays = [a.copy() if isinstance(a, np.ndarray) else a for a in args[:7]]
    arrays = on(device, *arrays)
    results = lenet5_step.on(device)(*arrays, *args[7:])
    return [np.array(to_host(a)) for a in (*results, *arrays[:3])]


def by_layers(args: list[Any], classes: int, dtype: Any) -> tuple[Any, Any, np.ndarray]:
    """(loss, scores, flat gradients) of the network."""
    model = model_of(classes, dtype)
    optimizer = optim.Adam(model.parameters())
    scores = model(Tensor(args[3]))
    loss = F.cross_entropy(scores, Tensor(args[4]))
    loss.backward()
    flat = np.zeros(parameter_offsets(classes)[-1], dtype)
    for t, start in zip(optimizer.params, parameter_offsets(classes), strict=False):
        flat[start : start + t.size] = t.grad.numpy().ravel()
    return loss.numpy(), scores.numpy(), flat


# ---- the definition


@pytest.mark.parametrize(("n", "classes"), [(1, 10), (3, 2), (5, 16)])
def test_definition_is_the_network_layer_by_layer(n: int, classes: int) -> None:
    args = arguments(n, classes, GRADIENT, np.float64)
    loss, scores, gradients = by_layers(args, classes, np.float64)
    got = run("cpu", args)
    for actual, expected, what in zip(got, (loss, scores), ("loss", "scores"), strict=False):
        assert_close(actual, expected, "float64", what=what)
    assert_close(got[3], gradients, "float64", what="gradients")
    p, m, v = (a.copy() for a in args[:3])
    from gpucnn.ops.adam import adam_step

    adam_step(p, m, v, None, gradients, args[5])
    assert_close(got[2], p, "float64", what="parameters")
    assert_close(got[4], v, "float64", what="squares")


def test_definition_against_differences() -> None:
    args = arguments(2, 10, GRADIENT, np.float64)
    gradients, h = run("cpu", args)[3], 1e-6
    starts = parameter_offsets(10)
    for i in [starts[k] + j for k in range(10) for j in (0, 5)]:
        losses = []
        for step in (h, -h):
            p = args[0].copy()
            p[i] += step
            losses.append(run("cpu", [p, *args[1:]])[0])
        assert abs((losses[0] - losses[1]) / (2 * h) - gradients[i]) < 1e-8


@needs_torch
def test_definition_against_torch() -> None:
    from bench.rivals.torch_models import as_torch

    args = arguments(4, 10, GRADIENT)
    net = as_torch(model_of(10))
    loss = torch.nn.functional.cross_entropy(
        net(torch.tensor(args[3].transpose(0, 3, 1, 2))), torch.tensor(args[4]).long()
    )
    loss.backward()
    got = run("cpu", args)
    assert_close(got[0], loss.detach().numpy(), "torch")
    first = next(net.parameters()).grad.numpy().transpose(0, 2, 3, 1)
    assert_close(got[3][: first.size].reshape(first.shape), first, "torch")


# ---- the kernel


def check(device: str, args: list[Any]) -> list[np.ndarray]:
    wide = [a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in args]
    got, expected = run(device, args), run("cpu", wide)
    for a, e, what in zip(got, expected, ("loss", "scores", "p", "m", "v"), strict=True):
        assert_close(a, e, "float32", what=what)
    return got


@pytest.mark.parametrize(("n", "classes"), LENET5_STEP)
def test_kernel(kernel_device: str, n: int, classes: int) -> None:
    """More images than blocks, and than warps; odd ones."""
    check(kernel_device, arguments(n, classes, DECAYING))


def test_labels_that_do_not_count(kernel_device: str) -> None:
    args = arguments(4, 10, GRADIENT)
    args[4][1] = IGNORE_INDEX
    got = check(kernel_device, args)
    args[4][[0, 2, 3]] = IGNORE_INDEX
    nothing = check(kernel_device, args)
    assert np.isfinite(got[0])
    assert np.isnan(nothing[0])
    assert not nothing[3].any()
    args[4][2] = 10  # no class
    assert np.isnan(check(kernel_device, args)[0])


def test_nan_in_nan_out(kernel_device: str) -> None:
    args = arguments(3, 10, GRADIENT)
    args[3][1, 14, 14] = np.nan
    loss, scores, p, *_ = run(kernel_device, args)
    assert np.isnan(loss)
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, False]
    starts = parameter_offsets(10)
    assert np.isnan(p[starts[8] : starts[8] + 840]).all()


@functools.cache
def _bits(n: int) -> list[bytes]:
    return [a.tobytes() for a in run("emulated", arguments(n, 10, DECAYING))]


@pytest.mark.emulated
@pytest.mark.parametrize(("blocks", "rows"), [(1, 120), (2, 0), (5, 41), (3, 120)])
def test_bits_depend_neither_on_the_grid_nor_on_what_fits(
    blocks: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _bits(5)
    shared = module._BLOCK + max(module._ROOM, rows * module._ROW)
    monkeypatch.setattr(module, "_sizes", lambda gpu: (blocks, shared, rows))
    assert [a.tobytes() for a in run("emulated", arguments(5, 10, DECAYING))] == expected


@pytest.mark.emulated
def test_bits_do_not_depend_on_the_order() -> None:
    launches: list[Any] = []
    args = arguments(2, 10, DECAYING)

    def keep(launch: Launch, passed: Any) -> None:
        launches.append((launch, list(passed)))
        for a in passed[:6]:
            a[...] = 0

    arrays = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    from gpucnn.kernel import standing_in

    with standing_in(keep):
        lenet5_step.on("emulated")(*arrays)
    ((launch, passed),) = launches
    for a, original in zip(passed, args[:3], strict=False):
        a[...] = original
    raw = emulator.RawKernel(
        launch.kernel.spec.source, launch.kernel.name, launch.kernel.spec.options,
        enable_cooperative_groups=True,
    )  # fmt: skip
    emulator.check_order(raw, launch.grid, launch.block, passed, launch.shared_mem)


# ---- as a training step


def trained(device: str, steps: int, *, at_once: bool, graph: bool = False) -> tuple[Any, Any]:
    model = model_of().to(device)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    step: Any = TrainingStep(model, optimizer)
    if graph:
        step = gpucnn.cuda_graph(step, device=device)
    x, y = Tensor(images(3), device=device), Tensor(labels(3), device=device)
    losses = []
    with gpucnn.use_variant(lenet5_step="persistent" if at_once else None):
        for _ in range(steps):
            loss, scores = step(x, y)
            losses.append(loss.item())
            assert scores.shape == (3, 10)
    assert optimizer.steps == steps
    if graph:
        assert (step.reason, step.replays, step.launches) == ("", steps - 3, 1)
    return losses, [t.numpy() for t in model.parameters()]


def test_five_steps_are_those_of_the_layers(device: str) -> None:
    expected, _ = trained("cpu", 5, at_once=False)
    with launches() as seen:
        losses, _ = trained(device, 5, at_once=True)
    assert_close(np.array(losses), np.array(expected), "training")
    assert losses[-1] < losses[0]
    assert seen == ([] if device == "cpu" else ["lenet5_step"] * 5)


class launches(list):  # type: ignore[type-arg]
    """The names of the kernels launched inside the ``with`` block."""

    def __enter__(self) -> launches:
        self._watch = observe_launches(lambda launch: self.append(launch.kernel.name))
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)


def test_graph_has_the_bits_of_eager_steps(device: str) -> None:
    eager, graph = (trained(device, 6, at_once=True, graph=g) for g in (False, True))
    assert eager[0] == graph[0]
    assert all((a == b).all() for a, b in zip(eager[1], graph[1], strict=True))


def test_a_trainer_takes_it(kernel_device: str) -> None:
    from gpucnn.data import Dataset
    from gpucnn.training import Trainer

    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), np.uint8)
    sets = Dataset("noise", pixels, labels(12), tuple(map(str, range(10))), (0.5,), (0.25,))
    model = model_of().to(kernel_device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(
        model, optimizer, sets, sets, epochs=1, batch_size=4, device=kernel_device, graph=False
    )
    with gpucnn.use_variant(lenet5_step="persistent"), launches() as seen:
        for _ in range(3):
            trainer._step()
    trainer._settle()
    assert seen == ["gather_batch", "lenet5_step"] * 3
    assert trainer.progress.seen == 12
    assert np.isfinite(trainer.progress.loss)


def other_model() -> nn.Module:
    return models.fashionnet()


REFUSED: list[tuple[Any, Any, str]] = [
    (other_model, optim.Adam, "models.lenet5 alone"),
    (lambda: nn.Sequential(*list(model_of())[:-1]), optim.Adam, "models.lenet5 alone"),
    (lambda: nn.Sequential(*list(model_of())[:-1], nn.Linear(84, 10, bias=False)), optim.Adam,
     "models.lenet5 alone"),
    (lambda: model_of(17), optim.Adam, "up to 16 classes, got 17"),
    (model_of, optim.AMSGrad, "by Adam or AdamW, got AMSGrad"),
    (model_of, lambda p: optim.SGD(p, lr=0.1), "by Adam or AdamW, got SGD"),
    (model_of, lambda p: optim.Adam(optim.weight_decay_groups(p, 0.1)), "one group"),
    (model_of, lambda p: optim.Adam(list(p)[:-1]), "all of the model's parameters"),
    (model_of, lambda p: optim.Adam(list(p)[::-1]), "all of the model's parameters"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "optimizer", "says"), REFUSED)
def test_other_models_and_optimizers_are_refused(model: Any, optimizer: Any, says: str) -> None:
    made = model()
    step = TrainingStep(made, optimizer(made.parameters()))
    x = Tensor(images(2))
    with gpucnn.use_variant(lenet5_step="persistent"), pytest.raises(ValueError, match=says):
        step(x, Tensor(labels(2)))
    assert step.optimizer.steps == 0


def test_clipping_is_refused() -> None:
    made = model_of()
    step = TrainingStep(made, optim.Adam(made.parameters()), clip_norm=1.0)
    chosen = gpucnn.use_variant(lenet5_step="persistent")
    with chosen, pytest.raises(ValueError, match="clip_norm: lenet5_step='persistent' does not"):
        step(Tensor(images(2)), Tensor(labels(2)))


def test_wrong_batches() -> None:
    model = model_of()
    step = TrainingStep(model, optim.Adam(model.parameters()))
    x, y = Tensor(images(2)), labels(2)
    wrong: Iterator[tuple[Any, Any, Any, str]] = iter((
        (images(2), y, TypeError, "images must be a Tensor, got ndarray"),
        (Tensor(randn(2, 32, 32, 1)), y, ValueError, r"\(N, 28, 28, 1\).* got \(2, 32, 32, 1\)"),
        (Tensor(images(2)[:0]), y[:0], ValueError, "N >= 1"),
        (x, y[:1], ValueError, r"target must have shape \(2,\)"),
        (x, y + 10, ValueError, "target: the label"),
        (x, np.ones((2, 10), np.float32), TypeError, "target must be integers"),
    ))  # fmt: skip
    with gpucnn.use_variant(lenet5_step="persistent"):
        for bad, target, error, says in wrong:
            with pytest.raises(error, match=says):
                step(bad, target)
        if emulator.available():
            with pytest.raises(ValueError, match="images must be on 'cpu'"):
                step(Tensor(images(2), device="emulated"), y)
    assert step.optimizer.steps == 0


def test_variants() -> None:
    assert gpucnn.primitive.variants("lenet5_step") == ("persistent",)
    with pytest.raises(ValueError, match="lenet5_step is one of persistent, got 'fast'"):
        gpucnn.use_variant(lenet5_step="fast")


# ---- cooperative launches


@pytest.mark.emulated
def test_a_gpu_gets_a_cooperative_launch_of_as_many_blocks_as_it_runs(
    cuda_path: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._sizes.cache_clear()
    try:
        check("cuda", arguments(2, 10, DECAYING))
        monkeypatch.setattr(
            cuda_path.cuda.driver, "occupancyMaxActiveBlocksPerMultiprocessor", lambda *_: 0
        )
        launch_plan.forget()
        with pytest.raises(ValueError, match="3 blocks that wait for each other; this GPU runs 0"):
            run("cuda", arguments(2, 10, DECAYING))
        module._sizes.cache_clear()
        monkeypatch.setitem(
            cuda_path.cuda.Device.attributes, "MaxSharedMemoryPerBlockOptin", 64 * 1024
        )
        launch_plan.forget()
        with pytest.raises(ValueError, match=r"needs 85504 bytes of shared memory .* has 65536"):
            run("cuda", arguments(2, 10, DECAYING))
    finally:
        module._sizes.cache_clear()


@pytest.mark.emulated
def test_a_graph_captures_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained("emulated", 6, at_once=True)
    monkeypatch.setitem(sys.modules, "cupy", fake_capture.module())
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    caches = kernel._cuda_kernel, module._sizes
    for cache in caches:
        cache.cache_clear()
    try:
        losses, parameters = trained("cuda", 6, at_once=True, graph=True)
    finally:
        for cache in caches:
            cache.cache_clear()
    assert losses == expected[0]
    assert all((a == b).all() for a, b in zip(parameters, expected[1], strict=True))
