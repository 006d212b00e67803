"""``python -m bench.passes``: both sides compute the same, and the table has its rows."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from bench import passes
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
def test_both_sides_compute_the_same() -> None:
    step = Step("lenet5", 3, "typical")
    images, _ = step.batch_of_images()
    ours = step.build()(passes.gpucnn.Tensor(images)).numpy()
    theirs = as_torch(step.build())(torch.tensor(images.transpose(0, 3, 1, 2)))
    assert_close(ours, np.asarray(theirs.detach()), "torch", 400)
