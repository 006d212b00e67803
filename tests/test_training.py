"""The training loop: exact resume, signals, divergence, evaluation, what is logged and kept."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import gpucnn
from gpucnn import data, nn, optim, random
from gpucnn.training import (
    Config,
    Diverged,
    Interrupted,
    RunFolder,
    Trainer,
    evaluate,
    load_checkpoint,
)
from gpucnn.training.build import make_optimizer, resume, start
from gpucnn.training.progress import Reporter
from gpucnn.training.recipes import OPTIMIZERS, optimizer_options
from gpucnn.training.run import make_default_folder

CONFIG = Config(
    dataset="toy",
    data_dir=None,
    images=90,
    model="toy",
    device="cpu",
    seed=5,
    epochs=3,
    batch_size=8,
    optimizer="adam",
    optimizer_options={"eps": 1e-8},
    lr=0.01,
    classes=("a", "b", "c"),
    image_shape=(8, 9, 1),
    mean=0.5,
    std=0.29,
)


def toy_dataset(n: int, stream: int) -> data.Dataset:
    """Images whose label is the third of the picture that is bright."""
    images = random.bits(0, stream, n * 18).view(np.uint8).reshape(n, 8, 9, 1) // 2
    labels = (random.bits(1, stream, n) % 3).astype(np.int32)
    for i, label in enumerate(labels):
        images[i, :, 3 * label : 3 * label + 3] += 60
    return data.Dataset(
        "toy", images, labels, ("a", "b", "c"), 0.5, 0.29, data.Augmentation(shift=1)
    )


def toy_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 3),
    )


def make_trainer(run: RunFolder | None, optimizer: str = "adam", epochs: int = 3) -> Trainer:
    """Eleven steps an epoch: 90 images in batches of 8, two left over."""
    gpucnn.seed(5)
    model = toy_model()
    chosen = make_optimizer(optimizer, model, 0.01)
    trainer = Trainer(
        model,
        chosen,
        toy_dataset(90, 1),
        toy_dataset(30, 2),
        epochs=epochs,
        batch_size=8,
        seed=5,
        run=run,
        device="cpu",
    )
    trainer.scheduler = optim.OneCycleLR(chosen, 0.01, trainer.total_steps)
    return trainer


def quiet(trainer: Trainer) -> Reporter:
    return Reporter(trainer.total_steps, Console(file=io.StringIO()))


def fit_with_signals(trainer: Trainer, at_step: int, *signals: int) -> float:
    """Send the signals to this process while the step after ``at_step`` is computed."""
    step = trainer._step

    def interrupted_step() -> None:
        if trainer.progress.step == at_step:
            for number in signals:
                os.kill(os.getpid(), number)
        step()

    trainer._step = interrupted_step
    return trainer.fit(quiet(trainer))


def rows_without_times(run: RunFolder) -> list[dict]:
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in run.read_metrics()]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


@pytest.mark.parametrize(
    ("optimizer", "stop_at"),
    [*((name, 4) for name in OPTIMIZERS), ("adam", 10), ("adam", 11), ("adam", 27)],
)
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(
    tmp_path: Path, optimizer: str, stop_at: int
) -> None:
    """Stops in the middle of an epoch, at its last step, after it, and between two log rows."""
    whole_run = RunFolder.create(tmp_path / "whole", CONFIG)
    whole = make_trainer(whole_run, optimizer)
    accuracy = whole.fit(quiet(whole))

    broken_run = RunFolder.create(tmp_path / "broken", CONFIG)
    with pytest.raises(Interrupted) as stop:
        fit_with_signals(make_trainer(broken_run, optimizer), stop_at, signal.SIGINT)
    assert stop.value.checkpoint == broken_run.latest_checkpoint()
    gpucnn.seed(99)
    resumed = make_trainer(broken_run, optimizer)
    gpucnn.seed(98)
    latest = broken_run.latest_checkpoint()
    assert latest is not None
    resumed.restore(latest)
    assert resumed.progress.step == stop_at + 1
    assert resumed.fit(quiet(resumed)) == accuracy

    expected, got = whole.state(), resumed.state()
    assert got.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert got.tensors[name].tobytes() == value.tobytes(), name
    assert any(name.endswith("running_mean") for name in got.tensors)
    for state in (expected.state, got.state):
        del state["progress"]["seconds"]
    assert got.state == expected.state
    assert rows_without_times(broken_run) == rows_without_times(whole_run)


def test_the_options_of_an_optimizer_are_recorded_and_resumed(tmp_path: Path) -> None:
    made = start(
        "shapes",
        images=16,
        device="cpu",
        batch_size=8,
        optimizer="rmsprop",
        momentum=0.25,
        weight_decay=1e-3,
        clip_norm=0.5,
        out=tmp_path / "run",
    )
    made.save()
    assert made.run is not None
    assert made.run.read_config().clip_norm == 0.5
    options = made.run.read_config().optimizer_options
    assert options["momentum"] == 0.25
    assert options["weight_decay"] == 1e-3
    again = resume(tmp_path / "run")
    assert (made.clip_norm, again.clip_norm) == (0.5, 0.5)
    for optimizer in (made.optimizer, again.optimizer):
        assert isinstance(optimizer, optim.RMSprop)
        group = dict(optimizer.param_groups[0])
        del group["params"], group["lr"]
        assert group == options


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_survive_json(name: str) -> None:
    """As they are kept in config.json."""
    options = json.loads(json.dumps(optimizer_options(name)))
    group = make_optimizer(name, toy_model(), 0.1, options).param_groups[0]
    assert {key: group[key] for key in options if key != "initial_accumulator_value"} == {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in options.items()
        if key != "initial_accumulator_value"
    }


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="optimizer must be one of sgd, momentum, nesterov, adag"):
        make_optimizer("sdg", toy_model(), 0.1)


def test_a_signal_during_the_evaluation_stops_it_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 10)
    whole = RunFolder.create(tmp_path / "whole", CONFIG)
    trainer = make_trainer(whole)
    trainer.fit(quiet(trainer))

    honest, sent = data.Dataset.batch, []

    def batch(self, rows):
        if not sent and trainer.progress.epoch == 1:
            sent.append(rows)
            os.kill(os.getpid(), signal.SIGINT)
        return honest(self, rows)

    monkeypatch.setattr(data.Dataset, "batch", batch)
    run = RunFolder.create(tmp_path / "broken", CONFIG)
    trainer = make_trainer(run)
    with pytest.raises(Interrupted, match=r"after step 22$"):
        trainer.fit(quiet(trainer))
    assert trainer.model.training
    assert [row["epoch"] for row in run.read_metrics() if "test_loss" in row] == [1]
    trainer = make_trainer(run)
    trainer.restore(run.checkpoint_path(22))
    text = io.StringIO()
    trainer.fit(Reporter(trainer.total_steps, Console(file=text, width=200)))
    assert rows_without_times(run) == rows_without_times(whole)
    only_evaluated, trained = text.getvalue().splitlines()
    assert "images/s" not in only_evaluated
    assert "images/s" in trained
    speeds = [row["images_per_second"] for row in run.read_metrics() if "test_loss" in row]
    assert [speed is None for speed in speeds] == [False, True, False]


def test_a_checkpoint_is_all_that_resuming_needs(run: RunFolder) -> None:
    """The generators of initial weights and of dropout continue too."""
    trainer = make_trainer(run)
    random.default_generator().uniform(10)
    with pytest.raises(Interrupted):
        fit_with_signals(trainer, 3, signal.SIGTERM)
    generators = random.default_generator(), random.dropout_generator()
    positions = [g.position for g in generators]
    assert min(positions) > 0
    gpucnn.seed(1)
    make_trainer(run).restore(run.checkpoint_path(4))
    assert [g.seed for g in generators] == [5, 5]
    assert [g.position for g in generators] == positions


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(run: RunFolder, number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 6") as stop:
        fit_with_signals(make_trainer(run), 5, number)
    assert stop.value.exit_code == code
    assert load_checkpoint(run.checkpoint_path(6)).state["progress"]["step"] == 6
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_with_signals(make_trainer(run), 5, signal.SIGINT, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.latest_checkpoint() == run.checkpoint_path(0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    trainer = make_trainer(run)
    honest = data.Batches.take

    def take(self):
        images, labels = honest(self)
        if trainer.progress.step == 14:
            images.data[0, 2, 2, 0] = poison
        return images, labels

    monkeypatch.setattr(data.Batches, "take", take)
    with (
        np.errstate(invalid="ignore", over="ignore"),
        pytest.raises(Diverged, match=r"at step 15$"),
    ):
        trainer.fit(quiet(trainer))
    kept = run.latest_checkpoint()
    assert kept == run.checkpoint_path(11)
    assert all(np.isfinite(v).all() for v in load_checkpoint(kept).group("model").values())


def test_weights_that_are_not_finite_are_never_saved(run: RunFolder) -> None:
    trainer = make_trainer(run)
    state = trainer.model.state_dict()
    state["6.weight"][0, 0] = np.nan
    trainer.model.load_state_dict(state)
    with pytest.raises(Diverged, match=r"model\.6\.weight holds NaN or infinity after step 0"):
        trainer.save()
    assert run.latest_checkpoint() is None


def test_each_epoch_visits_every_image_at_most_once_in_its_own_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(None)
    visited: list[tuple[int, list[int]]] = []
    honest = data.Batches.take

    def take(self):
        visited.append((self.epoch, self.rows().tolist()))
        return honest(self)

    monkeypatch.setattr(data.Batches, "take", take)
    trainer.fit(quiet(trainer))
    assert len(visited) == trainer.total_steps == 33
    orders = []
    for epoch in range(3):
        rows = [row for e, part in visited if e == epoch for row in part]
        assert len(rows) == len(set(rows)) == 88
        orders.append(tuple(rows))
    assert len(set(orders)) == 3
    assert set().union(*orders) == set(range(90))


def test_training_learns() -> None:
    trainer = make_trainer(None, epochs=8)
    loss_before, *_ = evaluate(trainer.model, trainer.test)
    accuracy = trainer.fit(quiet(trainer))
    loss, again, _ = evaluate(trainer.model, trainer.test)
    assert again == accuracy == 1.0
    assert loss < 0.3 < loss_before


def test_evaluation_changes_nothing_and_restores_the_mode() -> None:
    trainer = make_trainer(None)
    trainer.fit(quiet(trainer))
    before = trainer.model.state_dict()
    for training in (True, False):
        trainer.model.train(training)
        evaluate(trainer.model, trainer.test)
        assert all(m.training is training for _, m in trainer.model.named_modules())
    for name, value in trainer.model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_evaluation_is_a_mean_over_images_not_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(None)
    trainer.fit(quiet(trainer))
    loss, accuracy, _ = evaluate(trainer.model, trainer.test)
    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 7)
    in_pieces = evaluate(trainer.model, trainer.test)
    assert in_pieces[:2] == (pytest.approx(loss, rel=1e-5), accuracy)


def test_what_is_logged_and_kept(run: RunFolder) -> None:
    trainer = make_trainer(run)
    accuracy = trainer.fit(quiet(trainer))
    rows = run.read_metrics()
    assert [r["step"] for r in rows if "loss" in r] == [10, 20, 30]
    epochs = [r for r in rows if "test_loss" in r]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 11), (2, 22), (3, 33)]
    assert epochs[-1]["test_accuracy"] == accuracy
    assert epochs[0]["seconds"] < epochs[1]["seconds"] < epochs[2]["seconds"]
    assert all(r["lr"] == pytest.approx(trainer.scheduler.lr_at(r["step"] - 1)) for r in rows[:1])
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["step-00000022.safetensors", "step-00000033.safetensors"]
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["numpy"] == np.__version__
    assert run.read_config() == CONFIG


def test_resuming_after_a_kill_rewrites_the_rows_after_the_checkpoint(run: RunFolder) -> None:
    trainer = make_trainer(run)
    trainer.fit(quiet(trainer))
    complete = rows_without_times(run)
    run.checkpoint_path(33).unlink()
    with run.metrics.open("a") as file:
        file.write('{"step": 34, "ep')
    (run.checkpoints / ".step-00000033.safetensors.0a1b.tmp").write_bytes(b"half")
    resumed = make_trainer(run)
    resumed.restore(run.latest_checkpoint())
    resumed.fit(quiet(resumed))
    assert rows_without_times(run) == complete
    assert len(run.metrics.read_text().splitlines()) == len(complete)
    assert not list(run.checkpoints.glob(".*"))


def test_the_newest_checkpoint_is_that_of_the_highest_step(run: RunFolder) -> None:
    for step in (5, 99_999_999, 100_000_000):
        run.checkpoint_path(step).write_bytes(b"")
    (run.checkpoints / "notes.txt").write_text("")
    assert run.latest_checkpoint() == run.checkpoint_path(100_000_000)
    run.prune()
    assert not run.checkpoint_path(5).exists()
    assert run.checkpoint_path(99_999_999).exists()


def test_restoring_what_does_not_fit_is_one_sentence(run: RunFolder) -> None:
    trainer = make_trainer(run)
    saved = trainer.save()
    assert saved is not None
    with pytest.raises(ValueError, match=r"step-00000000\.safetensors: does not fit this run"):
        make_trainer(run, "sgd").restore(saved)
    trainer.seed = 6
    with pytest.raises(ValueError, match="its seed is 5, the run's is 6"):
        trainer.restore(saved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0, "batch_size": 8}, "epochs must be >= 1, got 0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        (
            {"epochs": 1, "batch_size": 8, "clip_norm": -1.0},
            "clip_norm must be a finite number >= 0, got -1.0",
        ),
        ({"epochs": 1, "batch_size": 91}, "at most the 90 training images, got 91"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    model = toy_model()
    with pytest.raises(ValueError, match=message):
        Trainer(
            model,
            make_optimizer("adam", model, 0.1),
            toy_dataset(90, 1),
            toy_dataset(3, 2),
            **arguments,
        )


def test_one_plain_line_per_epoch_where_there_is_no_terminal() -> None:
    trainer = make_trainer(None)
    console = Console(file=io.StringIO())
    trainer.fit(Reporter(trainer.total_steps, console))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", f"{n}/3"] for n in (1, 2, 3)]
    assert all("test accuracy" in line and "images/s" in line for line in lines)


def test_a_bar_on_a_terminal_without_colour_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    trainer = make_trainer(None)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    trainer.fit(Reporter(trainer.total_steps, console))
    shown = console.file.getvalue()
    for part in ("epoch 3/3", "100 %", "loss", "accuracy", "images/s", "━"):
        assert part in shown
    assert "\x1b[3" not in shown


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", '{"dataset": "toy"}', "\x00"],
)
def test_a_damaged_config_is_one_sentence(run: RunFolder, text: str) -> None:
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: not the config of a run"):
        run.read_config()


def test_a_run_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", CONFIG)
    with pytest.raises(ValueError, match="must be new or empty"):
        RunFolder.create(tmp_path / "empty", CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder, it is a file"):
        RunFolder.create(tmp_path / "file", CONFIG)
    with pytest.raises(ValueError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_runs_that_begin_at_once_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: make_default_folder("toy", "net"), range(16)))
    names = ["toy-net-now", *(f"toy-net-now-{i}" for i in range(2, 17))]
    assert sorted(paths) == sorted(Path("runs") / name for name in names)
    (tmp_path / "file").mkdir()
    monkeypatch.chdir(tmp_path / "file")
    Path("runs").write_text("no folder")
    with pytest.raises(ValueError, match="run folder runs/toy-net-now cannot be written"):
        make_default_folder("toy", "net")


def test_a_folder_taken_a_moment_ago_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.create(tmp_path / "run", CONFIG)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    with pytest.raises(ValueError, match="must be new or empty, it is not empty"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_two_processes_cannot_train_in_one_folder(run: RunFolder) -> None:
    trainer = make_trainer(run)
    with run.locked(), pytest.raises(ValueError, match="another process is training in"):
        trainer.fit(quiet(trainer))
    trainer.fit(quiet(trainer))


def test_a_resume_is_recorded_with_its_environment(run: RunFolder) -> None:
    run.record_resume(7)
    run.record_resume(9)
    environment = json.loads((run.path / "environment.json").read_text())
    assert [entry["step"] for entry in environment["resumed"]] == [7, 9]
