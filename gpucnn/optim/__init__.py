"""Gradient-descent methods and learning-rate schedules."""

from gpucnn.optim.adam import Adam, Adamax, AdamW, AMSGrad, Nadam
from gpucnn.optim.adaptive import Adadelta, Adagrad, RMSprop
from gpucnn.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
    WarmupLR,
)
from gpucnn.optim.optimizer import Optimizer, weight_decay_groups
from gpucnn.optim.sgd import SGD, Lion

__all__ = [
    "SGD",
    "AMSGrad",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "Lion",
    "MultiStepLR",
    "Nadam",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "StepLR",
    "WarmupLR",
    "weight_decay_groups",
]
