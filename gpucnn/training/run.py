"""Run folders: what a training run was asked to do, where it ran, how it went, and what it learned.

::

    runs/<name>/config.json                          the arguments, enough to repeat the run
                environment.json                     versions, device, machine
                metrics.jsonl                        one JSON object per logged step and per epoch
                checkpoints/step-00000390.safetensors   the last two; the highest step is the newest
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpucnn.device import default_device, why_cpu
from gpucnn.ops.augmentation import Augmentation
from gpucnn.precision import check_precision
from gpucnn.training.checkpoint import write_atomically

KEPT_CHECKPOINTS: Final = 2
_CHECKPOINT_NAME: Final = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Config:
    """The arguments of a run, as ``config.json`` holds them.

    Attributes:
        dataset, data_dir: as in ``gpucnn.data.load``.
        images: number of training images.
        model: a name that ``gpucnn.models.create`` knows.
        device: "cpu", "cuda" or "emulated".
        seed: of data, initial weights, shuffles and augmentation.
        epochs, batch_size: at least 1.
        optimizer: one of ``gpucnn.training.recipes.OPTIMIZERS``.
        optimizer_options: its arguments besides the learning rate.
        lr: the highest learning rate of the one-cycle schedule.
        classes, image_shape, mean, std: of the dataset, which ``gpucnn predict`` needs; mean and
            std are one number, or one for each channel.
        augmentation: as ``Augmentation.parse`` reads it, or None: the dataset's own.
        size, gray, skip_unreadable: of a folder of pictures, as in ``gpucnn.data.load``.
        precision: one of ``gpucnn.precision.modes``, or None: the device's own.
        clip_norm: the largest norm of the gradients, None for any.
    """

    dataset: str
    data_dir: str | None
    images: int
    model: str
    device: str
    seed: int
    epochs: int
    batch_size: int
    optimizer: str
    optimizer_options: dict[str, Any]
    lr: float
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    augmentation: str | None = None
    precision: str | None = None
    clip_norm: float | None = None
    size: tuple[int, int] | None = None
    gray: bool = False
    skip_unreadable: bool = False


class RunFolder:
    """One run folder. Construction touches nothing; ``create`` and ``open`` do."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Config) -> RunFolder:
        """Make the folder and write its config and environment.

        Raises:
            ValueError: the path is a file, a folder that is not empty, or cannot be made.
        """
        run = cls(path)
        try:
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise ValueError(f"run folder {run.path} must be a folder, it is a file") from None
            try:
                if any(run.path.iterdir()):
                    raise FileExistsError
                run.checkpoints.mkdir()  # one of two processes that find the folder empty does
            except FileExistsError:
                raise ValueError(
                    f"run folder {run.path} must be new or empty, it is not empty"
                ) from None
            run._write_json("config.json", asdict(config))
            run._write_json("environment.json", environment())
        except OSError as error:
            raise ValueError(
                f"run folder {run.path} cannot be written ({error.strerror})"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """An existing run folder.

        Raises:
            ValueError: there is no run at that path.
        """
        run = cls(path)
        if not (run.path / "config.json").is_file():
            raise ValueError(f"{run.path} is not a run folder: it holds no config.json")
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / name, text.encode())

    def read_config(self) -> Config:
        """The arguments of the run.

        Raises:
            ValueError: ``config.json`` is damaged.
        """
        path = self.path / "config.json"
        try:
            values = json.loads(path.read_text("utf-8"))
            known = {field.name for field in fields(Config)}
            for field in fields(Config):  # older runs do not have all
                if field.default is not MISSING:
                    values.setdefault(field.name, field.default)
            if values["size"] is not None:
                high, wide = map(int, values["size"])
                values["size"] = high, wide
            for name in ("gray", "skip_unreadable"):
                values[name] = bool(values[name])
            if values.keys() != known:
                differing = ", ".join(sorted(values.keys() ^ known))
                raise ValueError(f"missing or unknown: {differing}")
            values["classes"] = tuple(map(str, values["classes"]))
            height, width, channels = map(int, values["image_shape"])
            values["image_shape"] = (height, width, channels)
            for name in ("images", "seed", "epochs", "batch_size"):
                values[name] = int(values[name])
            values["lr"] = float(values["lr"])
            for name in ("mean", "std"):
                several = isinstance(values[name], list)
                values[name] = tuple(map(float, values[name])) if several else float(values[name])
            if values["augmentation"] is not None:
                values["augmentation"] = str(Augmentation.parse(values["augmentation"]))
            check_precision(values["precision"])
            values["optimizer_options"] = dict(values["optimizer_options"])
            return Config(**values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not the config of a run ({error})") from None

    def read_environment(self) -> dict[str, Any]:
        """Where the run was started; {} where that is not known."""
        try:
            found = json.loads((self.path / "environment.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def record_resume(self, step: int) -> None:
        """Add to ``environment.json`` where the run continues from ``step``."""
        path = self.path / "environment.json"
        try:
            first = json.loads(path.read_text("utf-8"))
            resumed = [*first.get("resumed", []), {"step": step, **environment()}]
        except (OSError, ValueError, AttributeError, TypeError):
            first, resumed = environment(), []
        self._write_json("environment.json", {**first, "resumed": resumed})

    def checkpoint_path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def _by_step(self) -> list[Path]:
        if not self.checkpoints.is_dir():
            return []
        steps = {
            int(match[1]): path
            for path in self.checkpoints.iterdir()
            if (match := _CHECKPOINT_NAME.fullmatch(path.name))
        }
        return [steps[step] for step in sorted(steps)]

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None before the first."""
        paths = self._by_step()
        return paths[-1] if paths else None

    def prune(self) -> None:
        """Remove all but the newest checkpoints, and what an interrupted write left behind."""
        for path in self._by_step()[:-KEPT_CHECKPOINTS]:
            path.unlink(missing_ok=True)
        for path in self.checkpoints.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock goes with the process.

        Raises:
            ValueError: another process holds it.
        """
        with (self.path / "config.json").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is training in {self.path}") from None
            except OSError:
                pass  # a file system without locks
            yield

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole rows of ``metrics.jsonl``; a last line cut short is left out."""
        rows: list[dict[str, Any]] = []
        if self.metrics.is_file():
            for line in self.metrics.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
        return rows

    def rewind_metrics(self, step: int, epochs_done: int) -> None:
        """Drop the rows that a run continued from ``step`` will write again."""
        rows = [
            row
            for row in self.read_metrics()
            if row["step"] <= step and ("test_loss" not in row or row["epoch"] <= epochs_done)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics, text.encode())


def make_default_folder(dataset: str, model: str) -> Path:
    """Make ``runs/<dataset>-<model>-<local time>``, with a number added where that exists.

    Raises:
        ValueError: it cannot be made.
    """
    stem = f"{dataset}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # of a run that began in the same second, maybe a moment ago
            continue
        except OSError as error:
            raise ValueError(f"run folder {path} cannot be written ({error.strerror})") from None
        return path
    raise AssertionError("the numbers do not end")


def environment() -> dict[str, Any]:
    """What a run's speed and bits depend on besides its arguments."""
    from gpucnn import __version__

    found: dict[str, Any] = {
        "gpucnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "device": default_device(),
        "device_reason": why_cpu(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if found["device"] == "cuda":
        cupy = sys.modules["cupy"]
        found["cupy"] = cupy.__version__
        found["gpu"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return found
