"""A Trainer whose steps are graphs: the bits, files and resumes of one whose steps are eager."""

from __future__ import annotations

import signal
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, optim
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.training import Evaluator, Interrupted, RunFolder, Trainer
from gpucnn.training.build import make_optimizer
from tests.test_training import (
    CONFIG,
    fit_with_signals,
    quiet,
    rows_without_times,
    toy_dataset,
    toy_model,
)


def make_trainer(
    run: RunFolder | None, device: str, graph: bool | None, clip_norm: float | None = None
) -> Trainer:
    """Two epochs of seven steps."""
    gpucnn.seed(5)
    model = toy_model().to(device)
    chosen = make_optimizer("adam", model, 0.01)
    sets = toy_dataset(30, 1), toy_dataset(9, 2)
    trainer = Trainer(
        model, chosen, *sets, epochs=2, batch_size=4, seed=5, run=run, device=device, graph=graph,
        clip_norm=clip_norm,
    )  # fmt: skip
    trainer.scheduler = optim.OneCycleLR(chosen, 0.01, trainer.total_steps)
    return trainer


def test_whole_and_resumed_runs_are_those_of_eager_steps(tmp_path: Path, device: str) -> None:
    """14 steps equal 5, save, load and 9, as graphs; between epochs the model is evaluated."""
    eager_run = RunFolder.create(tmp_path / "eager", CONFIG)
    eager = make_trainer(eager_run, device, graph=False)
    accuracy = eager.fit(quiet(eager))

    run = RunFolder.create(tmp_path / "graph", CONFIG)
    first = make_trainer(run, device, graph=True)
    with pytest.raises(Interrupted):
        fit_with_signals(first, 4, signal.SIGINT)
    gpucnn.seed(99)
    resumed = make_trainer(run, device, graph=True)
    resumed.restore(run.latest_checkpoint())
    assert resumed.progress.step == 5
    assert resumed.fit(quiet(resumed)) == accuracy
    step = resumed._train_on_batch
    assert isinstance(step, gpucnn.graph.CudaGraph)
    assert (step.replays, step.reason) == (14 - 5 - 3, "")

    expected, got = eager.state(), resumed.state()
    for name, value in expected.tensors.items():
        assert got.tensors[name].tobytes() == value.tobytes(), name
    for state in (expected.state, got.state):
        del state["progress"]["seconds"]
    assert got.state == expected.state
    assert rows_without_times(run) == rows_without_times(eager_run)


def test_clipping_is_a_part_of_the_graph(device: str) -> None:
    found = []
    for graph, clip_norm in ((False, 0.5), (True, 0.5), (False, None)):
        trainer = make_trainer(None, device, graph, clip_norm)
        for _ in range(5):
            trainer._step()
            if clip_norm is not None:
                grads = [p.grad.numpy() for p in trainer.model.parameters() if p.grad is not None]
                norm = sum(float((g.astype(np.float64) ** 2).sum()) for g in grads) ** 0.5
                assert norm <= clip_norm * (1 + 1e-5)
        if graph:
            assert isinstance(trainer._train_on_batch, gpucnn.graph.CudaGraph)
            assert trainer._train_on_batch.replays == 2
        found.append([p.numpy().copy() for p in trainer.model.parameters()])
    for eager, replayed, free in zip(*found, strict=True):
        assert np.array_equal(eager, replayed)
        assert not np.array_equal(eager, free)


def test_graphs_are_the_default_on_cuda_only(cuda_path: types.ModuleType) -> None:
    assert make_trainer(None, "cuda", None).graph
    assert not make_trainer(None, "cuda", False).graph
    assert not make_trainer(None, "cpu", None).graph
    with gpucnn.use_device("cuda"):
        sets = toy_dataset(30, 1), toy_dataset(9, 2)
        model = toy_model().to("cuda")
        optimizer = make_optimizer("sgd", model, 0.1)
        assert Trainer(model, optimizer, *sets, epochs=1, batch_size=4).graph
    assert cuda_path.cuda.Device(0).id == 0


@pytest.mark.parametrize("labels_per_pixel", [False, True])
def test_replayed_evaluations_are_eager_ones(
    device: str, labels_per_pixel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three whole batches, of which one has no label, and a rest; again with other weights."""
    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 3)
    monkeypatch.setattr("gpucnn.training.evaluation._MOST_WAITING", 100)
    data = toy_dataset(11, 2)
    data.labels[3:6] = data.labels[1] = IGNORE_INDEX
    model: nn.Module = toy_model()
    if labels_per_pixel:
        maps = np.repeat(data.labels, 8 * 9).reshape(11, 8, 9)
        maps[0, 2:] = IGNORE_INDEX
        data = replace(data, labels=maps)
        model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
    model = model.to(device)
    replayed = Evaluator(model, data, device=device, graph=True)
    eager = Evaluator(model, data, device=device, graph=False)
    before = replayed()
    assert before == eager() == replayed()
    graph = replayed._forward
    assert isinstance(graph, gpucnn.graph.CudaGraph)
    assert (graph.replays, graph.reason) == (1, "")
    next(iter(model.parameters())).data[...] *= -1
    assert replayed() == eager() != before
    assert model.training


def test_nothing_to_evaluate_by_is_refused() -> None:
    data = toy_dataset(5, 2)
    data.labels[...] = IGNORE_INDEX
    with pytest.raises(ValueError, match="holds no label to evaluate by"):
        Evaluator(toy_model(), data, device="cpu", graph=True)
