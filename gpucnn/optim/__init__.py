"""Gradient-descent methods, learning-rate schedules, clipping and weight averages."""

from gpucnn.optim.adam import Adam, Adamax, AdamW, AMSGrad, Nadam
from gpucnn.optim.adaptive import Adadelta, Adagrad, RMSprop
from gpucnn.optim.clip import clip_grad_norm_, clip_grad_value_
from gpucnn.optim.ema import EMA
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
    "EMA",
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
    "clip_grad_norm_",
    "clip_grad_value_",
    "weight_decay_groups",
]
