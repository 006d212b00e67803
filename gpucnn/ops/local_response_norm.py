"""Local response normalisation: ``kernels/local_response_norm.cu``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import MAX_SIZE, choice, image_shape, integer, same_float_dtype
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


@dataclass(frozen=True)
class Convention:
    """What a library means by the arguments of local response normalisation.

    Attributes:
        alpha, beta, k: its defaults.
        divides: whether alpha is divided by the size of the window.
        lean: which neighbours the window of channel c holds: "before" c − n//2 … c + (n − 1)//2,
            "after" c − (n − 1)//2 … c + n//2, "both" c − n//2 … c + n//2, "odd" takes odd n only,
            "radius" c − n … c + n.
    """

    alpha: float
    beta: float
    k: float
    divides: bool
    lean: str


CONVENTIONS = {
    "torch": Convention(1e-4, 0.75, 1.0, True, "before"),
    "onnx": Convention(1e-4, 0.75, 1.0, True, "after"),
    "caffe": Convention(1.0, 0.75, 1.0, True, "odd"),
    "alexnet": Convention(1e-4, 0.75, 2.0, False, "both"),
    "chainer": Convention(1e-4, 0.75, 2.0, False, "both"),
    "matconvnet": Convention(1e-4, 0.75, 1.0, False, "after"),
    "tf": Convention(1.0, 0.5, 1.0, False, "radius"),
}
_WITHIN = ("torch", "caffe")
_REGIONS = ("across", "within")


@dataclass(frozen=True)
class Window:
    """The neighbours of i along an axis, i − before … i + after, and the numbers of the formula."""

    region: str
    before: int
    after: int
    a: float
    beta: float
    k: float


def _number(name: str, value: Any, default: float, low: float, strict: bool = False) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value > low if strict else value >= low) or value > sys.float_info.max:
        raise ValueError(
            f"{name} must be finite and {'>' if strict else '>='} {low:g}, got {value}"
        )
    return float(value)


def local_response_norm_window(
    size: Any, alpha: Any, beta: Any, k: Any, region: Any, convention: Any
) -> Window:
    """The window and the numbers that the arguments of :func:`local_response_norm` mean."""
    choice("region", region, _REGIONS)
    choice("convention", convention, CONVENTIONS)
    if region == "within" and convention not in _WITHIN:
        raise ValueError(
            f'convention must be one of {", ".join(_WITHIN)} for region="within", '
            f"got {convention!r}"
        )
    meaning = CONVENTIONS[convention]
    n = integer("size", size, 0 if meaning.lean == "radius" else 1, MAX_SIZE)
    if meaning.lean == "odd" and n % 2 == 0:
        raise ValueError(f"size must be odd in the convention {convention!r}, got {n}")
    before = {"after": (n - 1) // 2, "radius": n}.get(meaning.lean, n // 2)
    after = {"before": (n - 1) // 2, "radius": n}.get(meaning.lean, n // 2)
    cells = n**2 if region == "within" else n
    alpha = _number("alpha", alpha, meaning.alpha, 0.0)
    return Window(
        region,
        before,
        after,
        alpha / cells if meaning.divides else alpha,
        _number("beta", beta, meaning.beta, 0.0),
        _number("k", k, meaning.k, 0.0, strict=True),
    )


def _check(x: Any, window: Window) -> None:
    if window.region == "within":
        image_shape("x", x)
    elif x.ndim < 1 or x.size == 0:
        raise ValueError(f"x must have shape (…, C) and not be empty, got {tuple(x.shape)}")
    same_float_dtype(x=x)


# primitives

_CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


def _as_pieces(x: NDArray[Any], window: Window) -> NDArray[Any]:
    """x with the pieces that windows do not cross on its first axis: pixels, or images."""
    return x if window.region == "within" else x.reshape(-1, x.shape[-1])


def _add_neighbours(
    sums: NDArray[Any], v: NDArray[Any], axis: int, before: int, after: int
) -> None:
    """sums[i] = Σ v[j] for j from i − before to i + after, ends cut off, along an axis."""
    np.copyto(sums, v)
    v, s = np.moveaxis(v, axis, 0), np.moveaxis(sums, axis, 0)
    for o in range(1, min(before, len(v) - 1) + 1):
        np.add(s[o:], v[:-o], out=s[o:])
    for o in range(1, min(after, len(v) - 1) + 1):
        np.add(s[:-o], v[o:], out=s[:-o])


def _window_sums(v: NDArray[Any], window: Window, before: int, after: int) -> NDArray[Any]:
    """The sums of v over windows; overwrites v where they have two axes."""
    sums = scratch("local_response_norm sums", v.shape, v.dtype)
    _add_neighbours(sums, v, 1, before, after)
    if window.region == "across":
        return sums
    _add_neighbours(v, sums, 2, before, after)
    return v


def _power(s: NDArray[Any], beta: float) -> NDArray[Any]:
    """s^beta; 0.75, which is what networks use, by two square roots."""
    out = scratch("local_response_norm power", s.shape, s.dtype)
    if beta != 0.75:
        return cast("NDArray[Any]", np.power(s, s.dtype.type(beta), out=out))
    root = np.sqrt(s, out=scratch("local_response_norm root", s.shape, s.dtype))
    return cast("NDArray[Any]", np.multiply(np.sqrt(root, out=out), root, out=out))


def _pieces_per_chunk(pieces: NDArray[Any]) -> int:
    return max(1, _CHUNK * len(pieces) // pieces.size)


@storing_primitive(0)
def local_response_norm_forward(x: Array, window: Window) -> tuple[Array, Array]:
    """y_i = x_i·s_i^−beta, s_i = k + a·Σ x_j² over the window of i: x (…, C) -> y, s like x.

    region "across": the window of channel c is c − before … c + after; "within": x (N,H,W,C), the
    rows h − before … h + after and the columns likewise, in one channel. Both end at the border.
    """
    pieces = _as_pieces(x, window)
    y, s = buffers.empty_like(x), buffers.empty_like(x)
    responses, brackets = y.reshape(pieces.shape), s.reshape(pieces.shape)

    def part(start: int, stop: int) -> None:
        values, bracket = pieces[start:stop], brackets[start:stop]
        squares = scratch("local_response_norm terms", values.shape, x.dtype)
        with np.errstate(over="ignore"):  # an infinite bracket is a response of 0
            np.multiply(values, x.dtype.type(window.a), out=squares)
            np.multiply(squares, values, out=squares)
            sums = _window_sums(squares, window, window.before, window.after)
            np.add(sums, x.dtype.type(window.k), out=bracket)
            power = _power(bracket, window.beta)
        with np.errstate(invalid="ignore"):  # inf / inf is NaN
            np.divide(values, power, out=responses[start:stop])

    map_chunks(part, len(pieces), _pieces_per_chunk(pieces))
    return y, s


@storing_primitive(0)
def local_response_norm_backward(dy: Array, x: Array, y: Array, s: Array, window: Window) -> Array:
    """dx_j = dy_j·s_j^−beta − 2·a·beta·x_j·Σ dy_i·y_i/s_i over the i whose window holds j

    dy, x, y, s, dx (…, C). Those i are the mirrored window: i − after … i + before of j.
    """
    pieces = _as_pieces(x, window)
    dx = buffers.empty_like(x)
    out, gradients, responses, brackets = (a.reshape(pieces.shape) for a in (dx, dy, y, s))

    def part(start: int, stop: int) -> None:
        slope, bracket = out[start:stop], brackets[start:stop]
        terms = scratch("local_response_norm terms", slope.shape, x.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            np.divide(responses[start:stop], bracket, out=terms)
            np.multiply(terms, gradients[start:stop], out=terms)
            sums = _window_sums(terms, window, window.after, window.before)
            np.multiply(pieces[start:stop], x.dtype.type(2 * window.a * window.beta), out=slope)
            np.multiply(slope, sums, out=slope)
            power = _power(bracket, window.beta)
            np.divide(gradients[start:stop], power, out=power)
            np.subtract(power, slope, out=slope)

    map_chunks(part, len(pieces), _pieces_per_chunk(pieces))
    return dx


_THREADS = 256

_kernels = KernelFile("local_response_norm", storage=True)


def _launch(name: str, window: Window, arrays: list[Array], *numbers: float) -> None:
    shape = arrays[0].shape
    C = shape[-1]
    sizes = shape if window.region == "within" else (arrays[0].size // C, C)
    most = max(sizes) - 1  # a longer reach ends at the border all the same, and fits int32
    if window.region == "across":
        arrays = [a.reshape(sizes) for a in arrays]
    each = 4 if C % 4 == 0 else 1
    grid = (-(-arrays[0].size // (each * _THREADS)),)
    reach = min(window.before, most), min(window.after, most)
    launch = _kernels.storing(arrays[0], f"local_response_norm_{window.region}_{name}")
    launch(grid, (_THREADS,), *arrays, *sizes, *reach, window.a, window.beta, *numbers)


@local_response_norm_forward.kernel(native=True)
def _launch_forward(x: Array, window: Window) -> tuple[Array, Array]:
    y, s = empty(x, x.shape, x.dtype), empty(x, x.shape)
    _launch("forward", window, [y, s, x], window.k)
    return y, s


@local_response_norm_backward.kernel(native=True)
def _launch_backward(dy: Array, x: Array, y: Array, s: Array, window: Window) -> Array:
    dx = empty(dy, dy.shape, dy.dtype)
    _launch("backward", window, [dx, dy, x, y, s])
    return dx


# tape


class LocalResponseNorm(Function):
    """local_response_norm and its gradient."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, *, window: Window) -> Array:
        _check(x, window)
        self.window = window
        y, s = self.run(local_response_norm_forward, x, window)
        if self.recording:
            self.x, self.y, self.s = x, y, s
        return y

    def backward(self, dy: Array) -> tuple[Array]:
        saved = (self.x, self.y, self.s)
        return (self.run(local_response_norm_backward, dy, *saved, self.window),)


# public


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float | None = None,
    beta: float | None = None,
    k: float | None = None,
    *,
    region: str = "across",
    convention: str = "torch",
) -> Tensor:
    """Divides each response by a power of the energy around it.

    ``y_i = x_i / (k + a·Σ_j x_j²)^beta``, the sum over a window around i that ends at the border.
    region "across": neighbouring channels of a pixel. "within": a square of n × n cells of one
    channel, with a = alpha/n² (n² also at the border); n even leans as in "torch" on both axes.

    Libraries mean different things by these numbers; convention names whose (n = size):

    ============= ======= ================================= ============================
    convention    a       window of channel c               alpha, beta, k where None
    ============= ======= ================================= ============================
    "torch"       alpha/n c − n//2 … c + (n−1)//2           1e-4, 0.75, 1
    "onnx"        alpha/n c − (n−1)//2 … c + n//2           1e-4, 0.75, 1
    "caffe"       alpha/n centred, odd n only               1, 0.75, 1
    "alexnet"     alpha   c − n//2 … c + n//2               1e-4, 0.75, 2
    "chainer"     alpha   the same                          1e-4, 0.75, 2
    "matconvnet"  alpha   c − (n−1)//2 … c + n//2           1e-4, 0.75, 1 (it has none)
    "tf"          alpha   c − n … c + n: n is depth_radius  1, 0.5, 1
    ============= ======= ================================= ============================

    "within" takes "torch" or "caffe", and equals Caffe's WITHIN_CHANNEL at k = 1, which Caffe
    always uses. AlexNet's own layer is size 5 in "alexnet", or alpha=5e-4, k=2 in "torch".

    x: (…, C), for "within" (N, H, W, C), float32 (float64 on cpu). size: >= 1 ("tf": >= 0).
    alpha, beta: >= 0. k: > 0. Returns a tensor of the shape of x. Squares that overflow give 0.

    Raises ValueError or TypeError naming the argument if a shape, dtype, name or number does not
    fit, and for empty rows.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
    neural networks", 2012, section 3.3; torch.nn.LocalResponseNorm; Caffe's LRNParameter.
    """
    window = local_response_norm_window(size, alpha, beta, k, region, convention)
    return cast("Tensor", LocalResponseNorm.apply(x, window=window))
