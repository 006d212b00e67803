"""Whether neighbouring operations are computed in one pass: ``gpucnn.fusion(False)``."""

from __future__ import annotations

import threading


class _Mode(threading.local):
    on = True


_mode = _Mode()


class fusion:
    """``with fusion(False):`` computes each operation on its own, forward and backward.

    What is recorded inside the block is not fused in its backward pass either. Results differ by
    rounding alone. Fusion is on by default.
    """

    def __init__(self, on: bool) -> None:
        if not isinstance(on, bool):
            raise TypeError(f"fusion takes True or False, got {on!r}")
        self._previous = _mode.on
        _mode.on = on

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _mode.on = self._previous


def fuses() -> bool:
    """Whether operations of this thread are fused."""
    return _mode.on
