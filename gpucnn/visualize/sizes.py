"""Output sizes of a chain of layers, with the formulas that they follow, number by number.

A chain is text such as ``conv c16 k5 s2 p2 | relu | pool 2 edge=zero | tconv k4 s2 p1``. A layer is
a word and its options: k (kernel), s (stride), p (padding, also ``psame``), d (dilation), c (output
channels), g (groups), o (output_padding); kernels and the like may differ in height and width
(``k3x5``). A bare number is the kernel of a pool and the features of ``linear``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from gpucnn.ops.geometry import Pair, pair, resolve_padding

_POOLS: Final = {"pool": "max", "maxpool": "max", "avgpool": "average", "sumpool": "sum"}
_ELEMENTWISE: Final = (
    "relu", "leakyrelu", "elu", "selu", "prelu", "sigmoid", "tanh", "softplus", "gelu", "silu",
    "softmax", "bn", "batchnorm", "lrn", "dropout",
)  # fmt: skip
_EDGES: Final = ("drop", "ceil", "zero")
_OPTIONS: Final = {
    "conv": "kspdcg",
    "tconv": "kspdcgo",
    "pool": "kspd",
    "unpool": "ksp",
    "global": "",
    "flatten": "",
    "linear": "c",
    "same": "",
}
LAYERS: Final = (
    "conv",
    "tconv",
    *_POOLS,
    "unpool",
    "globalpool",
    "flatten",
    "linear",
    "relu",
    "bn",
)
_MOST: Final = 2**31 - 1


@dataclass(frozen=True)
class Step:
    """Attributes:
    layer: as it was written.
    shape: (H, W, C) behind it, or (features,).
    formulas: how the sizes come about, in lines.
    field, jump: (rows, columns) of the input that an output sees if no border cuts them, and input
        cells from what one output sees to what the next does; None behind what sees all of it.
    """

    layer: str
    shape: tuple[int, ...]
    formulas: tuple[str, ...]
    field: tuple[int, int] | None
    jump: tuple[float, float] | None


@dataclass(frozen=True)
class _Layer:
    text: str
    kind: str  # a key of _OPTIONS
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Any = 0
    dilation: Pair = (1, 1)
    extra: Pair = (0, 0)  # output_padding
    channels: int | None = None
    groups: int = 1
    edge: str = "drop"


def parse_shape(text: str) -> tuple[int, int, int]:
    """``72x72x1``, or ``72x72`` for one channel, as (H, W, C); ValueError otherwise."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", text.strip())
    if match is None:
        raise ValueError(f"a shape must look like 72x72x1 (H x W x C), got {text!r}")
    h, w, c = (int(n) for n in (match[1], match[2], match[3] or "1"))
    if not all(1 <= n <= _MOST for n in (h, w, c)):
        raise ValueError(f"sizes must be 1 to {_MOST:,}, got {text!r}")
    return h, w, c


def _parse_layer(text: str) -> _Layer:
    words = text.split()
    if not words:
        raise ValueError("between two | must stand a layer")
    name = words[0].lower()
    if name in _POOLS:
        kind = "pool"
    elif name in _ELEMENTWISE:
        kind = "same"
    elif name == "globalpool":
        kind = "global"
    elif name in _OPTIONS and name != "same":
        kind = name
    else:
        raise ValueError(f"{name!r} is no layer, which are {', '.join(LAYERS)} and the like")
    values: dict[str, Any] = {}
    for word in words[1:]:
        _parse_option(text, kind, word, values)
    if kind in ("conv", "tconv", "pool", "unpool") and "kernel" not in values:
        raise ValueError(f"{text!r}: needs a kernel, such as k3")
    if kind == "linear" and "channels" not in values:
        raise ValueError(f"{text!r}: needs its number of features, such as linear 10")
    if kind in ("pool", "unpool"):
        values.setdefault("stride", values["kernel"])
    return _Layer(text.strip(), kind, **values)


_NAMES: Final = {
    "k": "kernel", "s": "stride", "p": "padding", "d": "dilation", "c": "channels", "g": "groups",
    "o": "extra",
}  # fmt: skip


def _parse_option(text: str, kind: str, word: str, values: dict[str, Any]) -> None:
    allowed = _OPTIONS[kind]
    if kind == "pool" and word.startswith("edge="):
        if word[5:] not in _EDGES:
            raise ValueError(f"{text!r}: edge is one of {', '.join(_EDGES)}, got {word[5:]!r}")
        values["edge"] = word[5:]
        return
    bare = {"pool": "k", "unpool": "k", "linear": "c"}.get(kind, "")
    match = re.fullmatch(r"([a-z]?)=?(\d+)(?:x(\d+))?", word)
    letter = (match[1] or bare) if match else word[:1]
    if letter == "p" and "p" in allowed and word in ("psame", "pvalid", "p=same", "p=valid"):
        values["padding"] = word.removeprefix("p").removeprefix("=")
        return
    if match is None or not letter or letter not in allowed:
        options = ", ".join(allowed) or "none"
        raise ValueError(f"{text!r}: {word!r} is no option of it, which are {options}")
    first, second = int(match[2]), int(match[3] or match[2])
    if letter in "cg":
        if match[3]:
            raise ValueError(f"{text!r}: {word!r} must be one number")
        if not 1 <= first <= _MOST:
            raise ValueError(f"{text!r}: {word!r} must be 1 or more")
        values[_NAMES[letter]] = first
    elif letter in "po":
        values[_NAMES[letter]] = (first, second)
    else:
        values[_NAMES[letter]] = pair(f"{text!r}: {word!r}", (first, second))


def steps(chain: str, shape: tuple[int, int, int]) -> list[Step]:
    """The sizes behind each layer of a chain.

    Args:
        chain: as above.
        shape: (H, W, C) of the images.

    Raises:
        ValueError: the chain cannot be read, or a layer does not fit what comes before it.
    """
    made: list[Step] = []
    current: tuple[int, ...] = shape
    field: tuple[int, int] | None = (1, 1)
    jump: tuple[float, float] | None = (1.0, 1.0)
    for part in chain.split("|"):
        layer = _parse_layer(part)
        try:
            step = _behind(layer, current, field, jump)
        except ValueError as error:
            raise ValueError(f"{layer.text!r} behind {_sizes(current)}: {error}") from None
        made.append(step)
        current, field, jump = step.shape, step.field, step.jump
    return made


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _behind(
    layer: _Layer,
    shape: tuple[int, ...],
    field: tuple[int, int] | None,
    jump: tuple[float, float] | None,
) -> Step:
    if layer.kind == "same":
        return Step(layer.text, shape, (), field, jump)
    if layer.kind == "flatten":
        count = math.prod(shape)
        text = f"{'·'.join(map(str, shape))} = {count}"
        return Step(layer.text, (count,), (text,), None, None)
    if layer.kind == "linear":
        if len(shape) != 1:
            raise ValueError("linear takes a vector: put flatten or globalpool before it")
        assert layer.channels is not None
        return Step(layer.text, (layer.channels,), (), None, None)
    if len(shape) != 3:
        raise ValueError("takes images, and these were flattened")
    h, w, channels = shape
    if layer.kind == "global":
        return Step(layer.text, (channels,), (), None, None)
    out = channels if layer.channels is None else layer.channels
    if channels % layer.groups or out % layer.groups:
        raise ValueError(f"groups must divide the channels {channels} and {out}")
    back = layer.kind in ("tconv", "unpool")
    if back and isinstance(layer.padding, str):
        raise ValueError("padding must be numbers")
    windows = layer.kernel, layer.stride, layer.dilation
    pads = resolve_padding(layer.padding, (h, w), *windows)
    axes = [_axis(layer, axis, size, pads[axis]) for axis, size in enumerate((h, w))]
    (oh, high), (ow, wide) = axes
    alike = high == wide
    lines = [f"H and W: {high}"] if alike else [f"H: {high}", f"W: {wide}"]
    if field is not None and jump is not None:
        field, jump, seen = _sees(layer, field, jump, back)
        lines += seen
    return Step(layer.text, (oh, ow, out), tuple(lines), field, jump)


def _axis(layer: _Layer, axis: int, n: int, pads: Pair) -> tuple[int, str]:
    """(outputs along one axis, how they come about)."""
    k, s, d = layer.kernel[axis], layer.stride[axis], layer.dilation[axis]
    low, high = pads
    reach = d * (k - 1) + 1
    if layer.kind in ("pool", "unpool") and max(low, high) >= reach:
        raise ValueError(f"padding must be smaller than the window of {reach}, got {pads}")
    if layer.kind in ("tconv", "unpool"):
        extra = layer.extra[axis]
        if extra and extra >= max(s, d):
            raise ValueError(f"output_padding must be smaller than {max(s, d)}, got {extra}")
        out = (n - 1) * s - low - high + d * (k - 1) + extra + 1
        text = f"({n} − 1)·{s} − {low} − {high} + {d}·({k} − 1) + {extra} + 1 = {out}"
        if out < 1:
            raise ValueError(f"nothing is left: {text}")
        return out, text
    room = n + low + high - d * (k - 1) - 1
    up = layer.kind == "pool" and layer.edge != "drop"
    whole = -(-room // s) if up else room // s
    left, right = ("⌈", "⌉") if up else ("⌊", "⌋")
    out = whole + 1
    text = f"{left}({n} + {low} + {high} − {d}·({k} − 1) − 1) / {s}{right} + 1 = "
    text += f"{left}{room} / {s}{right} + 1 = {out}"
    if up and (out - 1) * s >= n + low:
        out -= 1
        text += f", less the last window, which would begin behind the image: {out}"
    if out < 1 or (room < 0 and not up):
        raise ValueError(f"the window is larger than the padded image: {text}")
    return out, text


def _sees(
    layer: _Layer, field: tuple[int, int], jump: tuple[float, float], back: bool
) -> tuple[tuple[int, int], tuple[float, float], list[str]]:
    """Receptive field and jump behind a layer of windows, and how they come about."""
    texts, fields, jumps = [], [], []
    for k, s, d, r, j in zip(layer.kernel, layer.stride, layer.dilation, field, jump, strict=True):
        if back:  # an output sees as many inputs as windows that lie ``stride`` apart cover it
            windows = -(-(d * (k - 1) + 1) // s)
            grown, hop = round(r + (windows - 1) * j), j / s
            texts.append(f"{r} + (⌈({d}·({k} − 1) + 1) / {s}⌉ − 1)·{j:g} = {grown}, jump {hop:g}")
        else:
            grown, hop = round(r + d * (k - 1) * j), j * s
            texts.append(f"{r} + {d}·({k} − 1)·{j:g} = {grown}, jump {hop:g}")
        fields.append(grown)
        jumps.append(hop)
    lines = [f"receptive field: {texts[0]}"]
    if texts[0] != texts[1]:
        lines = [f"receptive field H: {texts[0]}", f"receptive field W: {texts[1]}"]
    return (fields[0], fields[1]), (jumps[0], jumps[1]), lines
