"""Training from batches that a device makes: the same on every device, resumed to the bit."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import gpucnn
from gpucnn import data, nn, optim
from gpucnn.data import batches as batches_module
from gpucnn.training import Config, Interrupted, RunFolder, Trainer
from gpucnn.training.progress import Reporter
from tests.support import assert_close
from tests.test_data_batches import AUGMENTED, toy

CONFIG = Config(
    "toy", None, 40, "toy", "cpu", 5, 2, 8, "sgd", {}, 0.05, ("a", "b", "c"), (6, 7, 3), 0.5, 0.3
)


def make_trainer(
    train: data.Dataset,
    device: str,
    run: RunFolder | None = None,
    epochs: int = 2,
    graph: bool = False,
) -> Trainer:
    gpucnn.seed(5)
    if train.per_pixel:
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    else:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    model.to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    test = toy(n=12, per_pixel=train.per_pixel)
    return Trainer(
        model, optimizer, train, test, epochs=epochs, batch_size=8, seed=5, run=run,
        device=device, graph=graph,
    )  # fmt: skip


def fit(trainer: Trainer) -> Any:
    trainer.fit(Reporter(trainer.total_steps, Console(file=io.StringIO())))
    return trainer.state()


@pytest.mark.parametrize(
    ("augmentation", "per_pixel"), [(f"{AUGMENTED},mixup=0.3", False), (AUGMENTED, True)]
)
def test_training_from_device_memory(
    augmentation: str, per_pixel: bool, kernel_device: str
) -> None:
    """The batches are the same, the steps equal as far as two devices' sums are."""
    train = toy(augmentation, per_pixel=per_pixel)
    trainers = [make_trainer(train, device) for device in ("cpu", kernel_device)]
    assert trainers[1].batches.data.device == kernel_device
    cpu, other = (fit(trainer) for trainer in trainers)
    for name, value in cpu.tensors.items():
        assert_close(other.tensors[name], value, "training")


def assert_same(state: Any, expected: Any) -> None:
    for name, value in expected.tensors.items():
        assert state.tensors[name].tobytes() == value.tobytes()
    for key in ("loss_sum", "correct", "seen"):
        assert state.state["progress"][key] == expected.state["progress"][key]


@pytest.mark.parametrize("graph", [False, True])
def test_what_does_not_fit_trains_from_the_host_to_the_same_bits(
    graph: bool, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = toy(f"{AUGMENTED},mixup=0.3")
    resident = fit(make_trainer(train, kernel_device))
    monkeypatch.setattr("gpucnn.training.trainer.home", lambda dataset, device: "cpu")
    trainer = make_trainer(train, kernel_device, graph=graph)
    assert trainer.batches.data.device == "cpu"
    assert_same(fit(trainer), resident)


@pytest.mark.parametrize(
    ("augmentation", "per_pixel"),
    [(f"{AUGMENTED},mixup=0.3", False), (AUGMENTED, True), ("none", False)],
)
def test_a_graph_gathers_the_batches_of_eager_steps(
    augmentation: str, per_pixel: bool, device: str
) -> None:
    """The order of each epoch and the position reach the replays."""
    train = toy(augmentation, per_pixel=per_pixel)
    trainer = make_trainer(train, device, epochs=3, graph=True)
    state = fit(trainer)
    step: Any = trainer._train_on_batch
    assert (step.replays, step.reason) == (15 - 3, "")
    assert_same(state, fit(make_trainer(train, device, epochs=3)))


def test_a_loop_of_ones_own_with_a_graph(device: str) -> None:
    """``take`` goes from epoch to epoch by itself, within the recorded step too."""
    plain = toy(AUGMENTED).to(device).batches(12, seed=2)
    recorded = toy(AUGMENTED).to(device).batches(12, seed=2)

    def step() -> gpucnn.Tensor:
        images, _ = recorded.take()
        return images * 2

    run = gpucnn.cuda_graph(step)
    for _ in range(11):
        expected = (plain.take()[0] * 2).numpy().tobytes()
        assert run().numpy().tobytes() == expected
    assert (run.replays, run.reason) == (8, "")
    assert (recorded.epoch, recorded.batch) == (plain.epoch, plain.batch) == (3, 2)


def test_a_graph_of_several_steps_goes_past_the_end_of_an_epoch(device: str) -> None:
    """Which the host prepares before it launches any of them: both orders lie there."""
    plain, recorded = (toy(AUGMENTED).to(device).batches(12, seed=2) for _ in range(2))

    def step() -> gpucnn.Tensor:
        return recorded.take()[0] * 2

    run = gpucnn.cuda_graph(step, steps=2)
    for _ in range(8):
        expected = [(plain.take()[0] * 2).numpy().tobytes() for _ in range(2)]
        assert [y.numpy().tobytes() for y in run()] == expected
    assert (run.replays, run.reason) == (5, "")


@pytest.mark.parametrize("graph", [False, True])
def test_resuming_in_mid_epoch_gives_the_same_bits(
    graph: bool, device: str, tmp_path: Path
) -> None:
    train = toy(f"{AUGMENTED},mixup=0.3")
    whole = fit(make_trainer(train, device))
    run = RunFolder.create(tmp_path / "run", CONFIG)
    trainer = make_trainer(train, device, run, graph=graph)
    step = trainer._step

    def interrupted() -> None:
        if trainer.progress.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        step()

    trainer._step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        fit(trainer)
    resumed = make_trainer(train, device, run, graph=graph)
    resumed.restore(run.checkpoint_path(7))
    assert resumed.progress.step == 7
    state = fit(resumed)
    assert_same(state, whole)


def test_accuracy_with_mixup_is_of_the_larger_share() -> None:
    """What is counted is whether an image's own label is predicted."""
    train = toy("mixup=0.3")
    trainer = make_trainer(train, "cpu", epochs=12)
    fit(trainer)
    assert trainer.test_accuracy > 0.9


def test_steps_whose_labels_all_moved_out_count_nothing() -> None:
    """One labelled pixel in a corner of each image, which cropping often moves out."""
    train = toy("crop=5", per_pixel=True)
    labels = np.full_like(train.labels, -100)
    labels[:, 0, 0] = 1
    train = dataclasses.replace(train, labels=labels)
    trainer = make_trainer(train, "cpu", epochs=3)
    trainer.batch_size = 1
    trainer.batches = train.to("cpu").batches(1, seed=5)
    kept = [(trainer.batches.take()[1].numpy() != -100).any() for _ in range(120)]
    assert 0 < sum(kept) < 120
    epochs: list[int] = []
    honest = trainer._end_epoch
    trainer._end_epoch = lambda *a: (  # type: ignore[method-assign]
        trainer._settle(), epochs.append(trainer.progress.seen), honest(*a),
    )  # fmt: skip
    fit(trainer)
    assert epochs == [sum(kept[at : at + 40]) for at in (0, 40, 80)]


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_the_cuda_path_gathers_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "free_memory", lambda: 1 << 30)
    train = toy(f"{AUGMENTED},mixup=0.3")
    results = []
    for device in ("cuda", "emulated"):
        trainer = make_trainer(train, device, epochs=1)
        assert trainer.batches.data.device == device
        results.append(fit(trainer).tensors)
    for name, value in results[1].items():
        assert results[0][name].tobytes() == value.tobytes()
