"""``python -m bench.passes``: both sides compute the same, and the table has its rows."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from bench import cpu_steps, passes
from bench.rivals.torch_models import as_torch
from bench.steps import Step
from tests.support import assert_close, needs_torch, torch


@needs_torch
def test_the_table_has_a_row_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "TURNS", 1)
    monkeypatch.setattr(passes, "BATCH", 2)
    monkeypatch.setenv("GPUCNN_THREADS", "1")  # as many as this suite leaves to PyTorch
    done = CliRunner().invoke(passes.main, ["--calls", "1"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in passes.NETWORKS)


@needs_torch
def test_whole_steps_have_a_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cpu_steps, "STEPS", [Step("lenet5", 2, "layer"), Step("shapenet", 2, "layer")]
    )
    monkeypatch.setenv("GPUCNN_THREADS", "1")
    done = CliRunner().invoke(cpu_steps.main, ["--calls", "1", "--turns", "1"])
    assert done.exit_code == 0, done.output
    assert "lenet5" in done.output
    assert "shapenet" in done.output
    chosen = CliRunner().invoke(cpu_steps.main, ["--calls", "1", "--turns", "1", "lenet5"])
    assert "lenet5" in chosen.output
    assert "shapenet" not in chosen.output


def test_whole_steps_refuse_an_unknown_network() -> None:
    done = CliRunner().invoke(cpu_steps.main, ["lenet6"])
    assert done.exit_code == 2
    assert "'lenet6' is none of lenet5, shapenet" in done.output


@needs_torch
def test_both_sides_of_a_step_start_with_the_same_losses() -> None:
    ours, *theirs = cpu_steps.contenders(Step("lenet5", 3, "layer"))
    losses = [float(step().item()) for step in (ours, *theirs)]
    assert_close(np.array(losses[1:]), np.full(2, losses[0]), "training")


@needs_torch
def test_both_sides_compute_the_same() -> None:
    step = Step("lenet5", 3, "typical")
    images, _ = step.batch_of_images()
    ours = step.build()(passes.gpucnn.Tensor(images)).numpy()
    theirs = as_torch(step.build())(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert_close(ours, np.asarray(theirs.detach()), "torch", 400)
