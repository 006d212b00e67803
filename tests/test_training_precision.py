"""The precision of a training run: where it is in force, what is kept of it, how it is resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import gpucnn
from gpucnn import Tensor, optim
from gpucnn import functional as F
from gpucnn.cli import cli
from gpucnn.precision import chosen_precision
from gpucnn.storage import as_input
from gpucnn.training import RunFolder, Trainer, load_checkpoint
from gpucnn.training.build import resume, start
from tests.test_training import CONFIG, quiet, toy_dataset, toy_model


def make_trainer(precision: str | None, graph: bool = False, **arguments: Any) -> Trainer:
    gpucnn.seed(5)
    model = toy_model()
    return Trainer(
        model,
        optim.Adam(model.parameters(), lr=0.01),
        toy_dataset(90, 1),
        toy_dataset(30, 2),
        epochs=3,
        batch_size=8,
        seed=5,
        device="cpu",
        graph=graph,
        precision=precision,
        **arguments,
    )


def test_training_and_evaluation_are_in_it() -> None:
    trainer = make_trainer("bf16")
    seen: list[Any] = []
    forward = trainer.model.forward

    def watched(x: Tensor) -> Tensor:
        logits: Tensor = forward(x)
        seen.append((chosen_precision(), trainer.model.training, logits.dtype))
        return logits

    trainer.model.forward = watched  # type: ignore[method-assign]
    accuracy = trainer.fit(quiet(trainer))
    assert set(seen) == {("bf16", mode, gpucnn.bfloat16) for mode in (True, False)}
    assert chosen_precision() == "fp32"
    assert accuracy > 0.9
    assert trainer.progress.step == 33


def test_it_changes_numbers_and_none_of_their_storage_on_disk() -> None:
    states = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(precision)
        trainer.fit(quiet(trainer))
        states[precision] = trainer.state()
        assert states[precision].state["precision"] == precision
    assert {t.dtype for t in states["bf16"].tensors.values()} == {
        t.dtype for t in states["fp32"].tensors.values()
    }
    name = "model.0.weight"
    assert (states["bf16"].tensors[name] != states["fp32"].tensors[name]).any()


def test_a_graph_and_a_second_run_have_the_same_bits() -> None:
    found = []
    for graph in (False, True, False):
        trainer = make_trainer("bf16", graph)
        trainer.fit(quiet(trainer))
        found.append({name: a.tobytes() for name, a in trainer.state().tensors.items()})
    assert found[0] == found[1] == found[2]


def test_batches_are_gathered_rounded(device: str) -> None:
    """The network's first layer finds them as it would narrow them."""
    batches = toy_dataset(90, 1).to(device).batches(8, seed=3)
    (exact, labels), _ = batches.take(), batches.seek(0, 0)
    assert exact.dtype == np.float32
    with gpucnn.precision("bf16"):
        images, same = batches.take()
        np.testing.assert_array_equal(images.numpy(), F.to_bfloat16(exact).numpy())
        np.testing.assert_array_equal(same.numpy(), labels.numpy())
        assert images.dtype is gpucnn.bfloat16
        assert as_input(exact).dtype is gpucnn.bfloat16
        assert as_input(images) is images
    assert as_input(exact) is exact


def test_a_checkpoint_of_another_precision_does_not_fit() -> None:
    checkpoint = make_trainer("bf16").state()
    make_trainer("bf16").restore(checkpoint)
    with pytest.raises(ValueError, match="its precision is bf16, the run's is fp32"):
        make_trainer("fp32").restore(checkpoint)
    older = make_trainer(None).state()
    del older.state["precision"]  # as those written before there was one
    make_trainer(None).restore(older)


def test_a_precision_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision is one of fp32, tf32, bf16, fp16"):
        make_trainer("half")
    with pytest.raises(ValueError, match="precision is one of"):
        start("shapes", images=64, precision="half", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = RunFolder.create(tmp_path / "other", replace(CONFIG, precision="half"))
    with pytest.raises(ValueError, match=r"config\.json: not the config of a run \(precision"):
        run.read_config()


def test_a_run_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--images", "128", "--batch-size", "64", "--epochs", "1", "--device", "cpu"]
    command = ["train", "shapes", *arguments, "--precision", "bf16", "--out", str(folder)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    config = json.loads((folder / "config.json").read_text())
    assert config["precision"] == "bf16"
    run = RunFolder.open(folder)
    path = run.latest_checkpoint()
    assert path is not None
    checkpoint = load_checkpoint(path)
    assert checkpoint.state["precision"] == "bf16"
    assert all(t.dtype != np.uint16 for t in checkpoint.tensors.values())
    trainer = resume(folder)
    assert trainer.precision == "bf16"
    refused = CliRunner().invoke(cli, ["train", "--resume", str(folder), "--precision", "fp32"])
    assert refused.exit_code == 2
    assert "--precision cannot stand beside --resume" in refused.output


def test_runs_from_before_have_none(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    values = json.loads((run.path / "config.json").read_text())
    del values["precision"]
    (run.path / "config.json").write_text(json.dumps(values))
    assert run.read_config().precision is None
