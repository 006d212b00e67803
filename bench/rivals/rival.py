"""What a rival hands to a run: a contender with its results, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..harness.timing import Contender


@dataclass(frozen=True)
class Rival:
    """A contender, and the results of a call on fresh inputs as host arrays of the primitive."""

    contender: Contender
    results: Callable[[], list[Any]]


@dataclass(frozen=True)
class Gap:
    """A rival that does not take part, and why."""

    name: str
    reason: str
