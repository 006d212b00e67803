"""CuPy as people write it who do not write kernels: unfold the windows, multiply matrices."""

from __future__ import annotations

from typing import Any

from ..harness.cuda_timer import Workspace
from ..harness.timing import Contender
from .rival import Gap, Rival

_PASSES = ("conv2d_forward", "conv2d_data_gradient", "conv2d_weight_gradient")


class Cupy:
    """im2col and ``cupy.matmul``, which is cuBLAS."""

    def __init__(self, timer: Any) -> None:
        import cupy
        from cupy.cuda import cublas  # noqa: F401  raises ImportError where cuBLAS is missing

        self.cupy, self._timer = cupy, timer

    def rivals(self, primitive: str, arguments: tuple[Any, ...], sets: int) -> list[Rival | Gap]:
        """The contender for a pass of a 2-D convolution without groups."""
        if primitive not in _PASSES:
            return [Gap("cupy", "only convolutions are written with im2col and matmul")]
        s = arguments[-1]
        if s.dims != 2 or s.G != 1:
            return [Gap("cupy", "only 2-D convolutions without groups are written this way")]
        with self._timer.stream:
            inputs = [
                [None if a is None else self.cupy.asarray(a) for a in arguments[:-1]]
                for _ in range(sets)
            ]
        passes: dict[str, Any] = dict(
            zip(_PASSES, (forward, data_gradient, weight_gradient), strict=True)
        )
        run = passes[primitive]

        def call(i: int) -> Any:
            return run(self.cupy, *inputs[i], s)

        def results() -> list[Any]:
            with self._timer.stream:
                return [self.cupy.asnumpy(call(0))]

        contender = Contender("cupy", call, sets, outputs=Workspace(self.cupy))
        return [Rival(contender, results)]


def _windows(xp: Any, x: Any, s: Any) -> Any:
    """The zero-padded windows as a matrix (pixels, KH·KW·C)."""
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    padded = xp.zeros((s.N, high, wide, s.C), x.dtype)
    padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W] = x
    n, h, w, c = padded.strides
    view = xp.lib.stride_tricks.as_strided(
        padded,
        (s.N, s.OH, s.OW, s.KH, s.KW, s.C),
        (n, h * s.SH, w * s.SW, h * s.DH, w * s.DW, c),
    )
    return xp.ascontiguousarray(view).reshape(s.outputs, s.K)


def forward(xp: Any, x: Any, w: Any, b: Any, s: Any) -> Any:
    """y of ``conv2d_forward``; ``xp`` is cupy, or numpy in tests."""
    y = xp.matmul(_windows(xp, x, s), w.reshape(s.OC, s.K).T).reshape(s.y_shape)
    return y if b is None else y + b


def data_gradient(xp: Any, dy: Any, w: Any, s: Any) -> Any:
    """dx of ``conv2d_data_gradient``: one product, then the windows added back tap by tap."""
    columns = xp.matmul(dy.reshape(s.outputs, s.OC), w.reshape(s.OC, s.K))
    columns = columns.reshape(s.N, s.OH, s.OW, s.KH, s.KW, s.C)
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    padded = xp.zeros((s.N, high, wide, s.C), dy.dtype)
    for kh in range(s.KH):
        for kw in range(s.KW):
            top, left = kh * s.DH, kw * s.DW
            rows = slice(top, top + (s.OH - 1) * s.SH + 1, s.SH)
            padded[:, rows, left : left + (s.OW - 1) * s.SW + 1 : s.SW] += columns[:, :, :, kh, kw]
    return xp.ascontiguousarray(padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W])


def weight_gradient(xp: Any, dy: Any, x: Any, s: Any) -> Any:
    """dw of ``conv2d_weight_gradient``."""
    return xp.matmul(dy.reshape(s.outputs, s.OC).T, _windows(xp, x, s)).reshape(s.w_shape)
