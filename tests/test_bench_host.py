"""``python -m bench.host``: the table has its rows, no kernel runs, both sides do the same."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import gpucnn
from bench import host
from gpucnn import emulator
from gpucnn import functional as F
from tests.support import assert_close, needs_torch, torch


@needs_torch
@pytest.mark.emulated
def test_the_table_has_a_row_for_each_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "CALLS", 2)
    path = tmp_path / "host.csv"
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    done = CliRunner().invoke(host.main, ["--turns", "1", "--csv", str(path)])
    assert done.exit_code == 0, done.output
    for op in host.operators():
        assert f"{op.name}, forward" in done.output
        assert f"{op.name}, backward" in done.output
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 1 + 2 * len(host.operators()) + 3
    assert all(abs(float(a) / float(b) - float(ratio)) < 1 for _, a, b, ratio in rows[1:])
    assert torch.get_num_threads() == threads
    assert torch.backends.mkldnn.enabled == onednn


def test_the_aims() -> None:
    rows = [("a", 10.0, 20.0), ("b", 11.0, 12.0), ("c", 6.0, 10.0)]
    assert host.within(rows) == "2 of 3 within 10 µs, 2 within 0.6 × PyTorch's time"


@needs_torch
@pytest.mark.emulated
def test_both_sides_are_the_same_operator() -> None:
    rng = np.random.default_rng(0)
    for op in host.operators():
        arrays = [rng.standard_normal(shape, np.float32) for shape in op.shapes]
        ours = op.ours(*(gpucnn.Tensor(a, device=host.DEVICE) for a in arrays)).numpy()
        tensors = [torch.from_numpy(host.channels_first(a)) for a in arrays]
        theirs = op.pytorch(torch.nn.functional, *tensors).numpy()
        assert ours.size == theirs.size
        if op.name not in ("dropout", "reshape"):  # random; in the order of each side's memory
            assert_close(host.channels_first(ours), theirs, "torch", 72)


@pytest.mark.emulated
def test_launches_are_cut_off_after_the_arguments_are_checked() -> None:
    launch = emulator.RawKernel.__call__
    x = gpucnn.Tensor(np.ones((2, 3), np.float32), device=host.DEVICE)
    with host.launches_cut_off():
        unwritten = F.relu(x).numpy()
        with pytest.raises(TypeError, match="x must be float32"):
            F.relu(gpucnn.Tensor([1, 2], device=host.DEVICE))
    assert np.isnan(unwritten).all()  # what the emulator fills fresh memory with
    assert emulator.RawKernel.__call__ is launch
    assert (F.relu(x).numpy() == 1).all()
