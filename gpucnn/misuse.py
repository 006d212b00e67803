"""Warnings of what runs, but is hardly meant: one sentence each, once per process."""

from __future__ import annotations

import sys
import warnings

from gpucnn.device import Array, module_of, to_host

SUBJECTS = ("softmax before cross-entropy", "zero edge of a maximum", "step without labels")
_LOOKS = 4  # forward passes in which the winners at a zero edge are read

_said: set[str] = set()
_looks = 0


class MisuseWarning(UserWarning):
    """A combination that computes what it says, and rarely what is wanted."""


def warn_once(subject: str, sentence: str) -> None:
    """Warn where the library was called; the first time for each of ``SUBJECTS``."""
    if subject in _said:
        return
    _said.add(subject)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] == "gpucnn":
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, MisuseWarning, stacklevel=level)


def look_for_zeros_that_won(*indices: Array) -> None:
    """Warn if an index of the windows past the edge says that a zero there was the maximum.

    Only the first few calls of a process look, so that a GPU has to be waited for in these alone,
    and none that is being captured in a graph.
    """
    global _looks
    subject = "zero edge of a maximum"
    if _looks == _LOOKS or subject in _said:
        return
    xp = module_of(indices[0])
    if hasattr(xp, "cuda") and xp.cuda.get_current_stream().is_capturing():
        return
    _looks += 1
    if any((to_host(part) < 0).any() for part in indices):
        warn_once(
            subject,
            'max pooling with edge="zero" found windows whose values are all negative, so that the '
            "zeros past the edge became their maxima; pool after a ReLU, or use "
            'edge="ceil", where absent cells do not compete',
        )
