"""Gradient-descent methods and learning-rate schedules."""

from gpucnn.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from gpucnn.optim.optimizer import SGD, Adam, AdamW, Optimizer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LRScheduler",
    "OneCycleLR",
    "Optimizer",
]
