"""Training: the loop, its checkpoints and its run folders."""

from __future__ import annotations

from gpucnn.training.build import load_model, resume, start, write_examples
from gpucnn.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gpucnn.training.evaluation import (
    EVALUATION_BATCH,
    Evaluation,
    Evaluator,
    evaluate,
    predict,
    scores,
)
from gpucnn.training.run import Config, RunFolder
from gpucnn.training.state import Diverged, Interrupted
from gpucnn.training.step import TrainingStep
from gpucnn.training.trainer import Trainer

__all__ = [
    "EVALUATION_BATCH",
    "Checkpoint",
    "Config",
    "Diverged",
    "Evaluation",
    "Evaluator",
    "Interrupted",
    "RunFolder",
    "Trainer",
    "TrainingStep",
    "evaluate",
    "load_checkpoint",
    "load_model",
    "predict",
    "resume",
    "save_checkpoint",
    "scores",
    "start",
    "write_examples",
]
