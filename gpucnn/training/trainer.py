"""The training loop.

Everything random in a step (shuffle, augmentation) is computed from (seed, epoch, image), so the
state of a run is small: weights, optimizer, a few counters. A run of 100 steps equals 50 steps,
save, load and 50 more, to the bit, on the same device and machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from gpucnn import random
from gpucnn.data.batches import Batches, home
from gpucnn.data.dataset import Dataset
from gpucnn.device import Array, default_device, to_host
from gpucnn.graph import cuda_graph
from gpucnn.misuse import warn_once
from gpucnn.nn import Module
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.optim import LRScheduler, Optimizer
from gpucnn.optim.optimizer import check_number
from gpucnn.precision import check_precision
from gpucnn.precision import precision as choose_precision
from gpucnn.storage import as_input
from gpucnn.tensor import Tensor
from gpucnn.threads import single_threaded_blas
from gpucnn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gpucnn.training.evaluation import Evaluator
from gpucnn.training.interrupt import StopRequest
from gpucnn.training.progress import Reporter
from gpucnn.training.run import RunFolder
from gpucnn.training.state import Diverged, Interrupted, Progress
from gpucnn.training.step import TrainingStep

EVALUATION_BATCH: Final = 250
LOG_EVERY: Final = 10
SAVE_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 0.2


def _generators() -> dict[str, random.Generator]:
    """The streams that a model draws from, by their names in a checkpoint."""
    return {"generator": random.default_generator(), "dropout": random.dropout_generator()}


class _StepResult(NamedTuple):
    step: int
    loss: Array
    logits: Array
    labels: Array
    lr: float


class Trainer:
    """Trains a classifier with cross-entropy and keeps its run folder.

    Each epoch visits the training images once in an order drawn from (seed, epoch), in batches of
    ``batch_size``; images left over at the end of an epoch, fewer than a batch, wait for the next.
    A batch without any label is skipped: it moves the schedule, and neither weights nor optimizer.
    The training images live on the device, where batches are gathered and augmented, unless they
    are larger than half of a GPU's free memory: then on the host, with the same numbers.

    Args:
        model: takes normalized images (N, H, W, C), returns logits (N, classes).
        optimizer: over the model's parameters.
        train, test: the datasets; the test set is evaluated after each epoch.
        epochs, batch_size: at least 1.
        seed: of shuffles and augmentation.
        scheduler: stepped after each optimizer step, or None.
        run: where to log and save, or None to keep nothing.
        device: where the model is; the default device if None.
        graph: whether a step is recorded once and replayed (:func:`gpucnn.cuda_graph`), which
            changes no bit of it; None for yes on ``cuda`` and no elsewhere.
        precision: of training and evaluation, as :class:`gpucnn.precision` takes it, and kept in
            checkpoints; None for what is chosen where ``fit`` is called.
        clip_norm: the largest Euclidean norm of all gradients together, to which a step scales
            them (:func:`gpucnn.optim.clip_grad_norm_`); None to leave them.

    Attributes:
        batches: the training batches; ``batches.data`` tells where the images are.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        train: Dataset,
        test: Dataset,
        *,
        epochs: int,
        batch_size: int,
        seed: int = 0,
        scheduler: LRScheduler | None = None,
        run: RunFolder | None = None,
        device: str | None = None,
        graph: bool | None = None,
        precision: str | None = None,
        clip_norm: float | None = None,
    ) -> None:
        check_precision(precision)
        if clip_norm is not None:
            clip_norm = check_number("clip_norm", clip_norm, 0.0)
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if batch_size > len(train):
            raise ValueError(
                f"batch_size must be at most the {len(train)} training images, got {batch_size}"
            )
        if not (test.labels != IGNORE_INDEX).any():
            raise ValueError(f"test must hold a label to evaluate by, {test.name} has none")
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.train = train
        self.test = test
        self.epochs = epochs
        self.batch_size = batch_size
        self.clip_norm = clip_norm
        self.seed = seed
        self.run = run
        self.device = device
        self.precision = precision
        self.graph = (device or default_device()) == "cuda" if graph is None else graph
        self._train_on_batch: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._batch_step
        if self.graph:
            self._train_on_batch = cuda_graph(self._batch_step, device=device)
        self._training_step = TrainingStep(model, optimizer, clip_norm)
        self.progress = Progress()
        self.test_accuracy = self.test_mean_iou = math.nan
        self.batches = Batches(train.to(home(train, device)), batch_size, seed)
        self._has_label = (train.labels != IGNORE_INDEX).reshape(len(train), -1).any(axis=1)
        self._evaluate = Evaluator(model, test, device=device, graph=self.graph)
        self._pending: list[_StepResult] = []
        self._settled_at = self._saved_at = time.monotonic()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.train) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.progress.epoch >= self.epochs

    def state(self) -> Checkpoint:
        """Everything that ``restore`` needs.

        Raises:
            Diverged: a loss since the last call, or a weight, is NaN or infinite.
        """
        self._settle()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in tensors.items():
            if not np.isfinite(value).all():
                raise Diverged(f"{name} holds NaN or infinity after step {self.progress.step}")
        for name, value in self.optimizer.state_dict().items():
            tensors[f"optimizer.{name}"] = value
        state = {
            "progress": asdict(self.progress),
            "seed": self.seed,
            "precision": self.precision,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            **{
                name: {"seed": generator.seed, "position": generator.position}
                for name, generator in _generators().items()
            },
            "test_accuracy": None if math.isnan(self.test_accuracy) else self.test_accuracy,
            "test_mean_iou": None if math.isnan(self.test_mean_iou) else self.test_mean_iou,
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint | Path) -> None:
        """Continue from a checkpoint of a trainer with the same arguments.

        Raises:
            ValueError: the file cannot be read, or is of another model, optimizer or seed.
        """
        name = "checkpoint"
        if isinstance(checkpoint, Path):
            name, checkpoint = str(checkpoint), load_checkpoint(checkpoint)
        state = checkpoint.state
        try:
            if state["seed"] != self.seed:
                raise ValueError(f"its seed is {state['seed']}, the run's is {self.seed}")
            if (kept := state.get("precision")) != self.precision:
                raise ValueError(f"its precision is {kept}, the run's is {self.precision}")
            self.model.load_state_dict(checkpoint.group("model"))
            self.optimizer.load_state_dict(checkpoint.group("optimizer"))
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            for key, generator in _generators().items():
                generator.seed = int(state[key]["seed"])
                generator.position = int(state[key]["position"])
            self.progress = Progress(**state["progress"])
            accuracy, iou = state["test_accuracy"], state["test_mean_iou"]
            self.test_accuracy = math.nan if accuracy is None else float(accuracy)
            self.test_mean_iou = math.nan if iou is None else float(iou)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: does not fit this run ({error})") from None

    def save(self) -> Path | None:
        """Write a checkpoint of this step to the run folder and drop all but the newest two."""
        if self.run is None:
            return None
        checkpoint = self.state()
        path = self.run.checkpoint_path(self.progress.step)
        save_checkpoint(path, checkpoint.tensors, checkpoint.state)
        self.run.prune()
        self._saved_at = time.monotonic()
        return path

    def fit(self, reporter: Reporter | None = None) -> float:
        """Train to the last epoch and return the accuracy on the test set, 0 to 1.

        Raises:
            ValueError: another process is training in the run folder.
            Interrupted: SIGINT or SIGTERM came; the step was finished and saved first.
            KeyboardInterrupt: a second signal came; nothing was saved since the first.
            Diverged: the loss is NaN or infinite; the last checkpoint is from before that.
        """
        reporter = reporter or Reporter(self.total_steps)
        self.model.train()
        lock = nullcontext() if self.run is None else self.run.locked()
        # Switched once here: to switch BLAS at each operation costs more than many operations do.
        with lock, StopRequest() as stop, reporter, single_threaded_blas(), self._in_precision():
            if self.run is not None:
                self.run.rewind_metrics(self.progress.step, self.progress.epoch)
            if self.run is not None and self.progress.step > 0:
                self.run.record_resume(self.progress.step)
            else:
                self.save()
            while not self.finished:
                started = time.perf_counter()
                if self.progress.step == (self.progress.epoch + 1) * self.steps_per_epoch:
                    self._end_epoch(reporter, stop, started)
                else:
                    self._step()
                    reporter.add_images(self.batch_size)
                    if self._settling_is_due():
                        self._settle()
                        self._report(reporter)
                    self.progress.seconds += time.perf_counter() - started
                    if time.monotonic() - self._saved_at > SAVE_SECONDS:
                        self.save()
                    self._stop_if_asked(stop)
        return self.test_accuracy

    def _in_precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self.precision is None else choose_precision(self.precision)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        if stop.signal is not None:
            raise Interrupted(stop.signal, self.progress.step, self.save())

    def _step(self) -> None:
        progress = self.progress
        step = progress.step + 1
        self.batches.seek(*divmod(progress.step, self.steps_per_epoch))
        rows = self.batches.rows()
        if not self._has_label[rows].any():
            warn_once(
                "step without labels",
                f"the batch of step {step} holds no label, so that its mean loss would be "
                "NaN: steps like that are skipped",
            )
        else:
            lr = self.optimizer.lr
            given: tuple[Tensor, ...] = ()  # gathered within the step, and its graph
            if self.batches.data.device != (self.device or default_device()):
                given = tuple(Tensor(t, device=self.device) for t in self.batches.take())
            loss, logits, target = (t.data for t in self._train_on_batch(*given))
            # Label maps are changed with their images; one label each needs no device.
            labels = target if self.train.per_pixel else self.train.labels[rows]
            if self.graph:  # the next replay writes into the same memory
                loss, logits, labels = loss.copy(), logits.copy(), labels.copy()
            self._pending.append(_StepResult(step, loss, logits, labels, lr))
        progress.step = step
        if self.scheduler is not None and progress.step < self.total_steps:
            self.scheduler.step()

    def _batch_step(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Forward, backward, clipping and update -> loss, logits, target.

        With the batch given, else the next. The target is labels, or probabilities.
        """
        images, target = given or self.batches.take()
        loss, logits = self._training_step(as_input(images), target)
        return loss, logits, target

    def _settle(self) -> None:
        """Count and log the steps since the last call: this is what waits for the GPU.

        Raises:
            Diverged: the loss of one of them is NaN or infinite.
        """
        progress = self.progress
        pending, self._pending = self._pending, []
        for result in pending:
            loss, labels = float(to_host(result.loss)), to_host(result.labels)
            n = int((labels != IGNORE_INDEX).sum())
            if not n:  # padding came to lie where the labels were
                continue
            if not math.isfinite(loss):
                raise Diverged(f"the loss became {loss} at step {result.step}")
            predicted = Tensor._wrap(result.logits, "").numpy().argmax(axis=-1)
            correct = int((predicted == labels).sum())
            progress.loss_sum += loss * n
            progress.correct += correct
            progress.seen += n
            if self.run is not None and result.step % LOG_EVERY == 0:
                self.run.log(
                    {
                        "step": result.step,
                        "epoch": progress.epoch + 1,
                        "loss": loss,
                        "accuracy": correct / n,
                        "lr": result.lr,
                    }
                )
        self._settled_at = time.monotonic()

    def _report(self, reporter: Reporter) -> None:
        progress = self.progress
        reporter.step(
            progress.step,
            f"{progress.epoch + 1}/{self.epochs}",
            progress.loss,
            progress.accuracy,
        )

    def _settling_is_due(self) -> bool:
        return (
            self.progress.step % LOG_EVERY == 0
            or time.monotonic() - self._settled_at > SETTLE_SECONDS
        )

    def _end_epoch(self, reporter: Reporter, stop: StopRequest, started: float) -> None:
        progress = self.progress
        self._settle()
        self._report(reporter)
        reporter.pause_clock()
        evaluation = self._evaluate(lambda: self._stop_if_asked(stop))
        test_loss, self.test_accuracy, self.test_mean_iou = evaluation
        if not math.isfinite(test_loss):
            raise Diverged(f"the test loss became {test_loss} after step {progress.step}")
        row = {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss if progress.seen else None,
            "train_accuracy": progress.accuracy if progress.seen else None,
            "test_loss": test_loss,
            "test_accuracy": self.test_accuracy,
            "test_mean_iou": self.test_mean_iou,
        }
        learned = f"loss {progress.loss:.4f}  accuracy {progress.accuracy:.2%}"
        progress.epoch += 1
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        progress.seconds += time.perf_counter() - started
        speed = reporter.images_per_second
        if self.run is not None:
            # Null where a resumed run had only the evaluation of this epoch left.
            shown = round(speed, 1) if speed else None
            self.run.log({**row, "seconds": progress.seconds, "images_per_second": shown})
        self.save()
        score = f"accuracy {self.test_accuracy:.2%}"
        if self.test.per_pixel:
            score = f"mean IoU {self.test_mean_iou:.4f}"
        reporter.line(
            f"epoch {progress.epoch}/{self.epochs}  {learned}  test {score}  "
            + (f"{speed:,.0f} images/s  " if speed else "")
            + f"{progress.seconds:.1f} s"
        )
        reporter.resume_clock()
