"""gather_batch: loops -> definition -> kernel, to the bit; what is drawn and how often."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cases import BATCH, BatchCase
from bench.problems.batch import arguments
from gpucnn import kernel, random
from gpucnn.device import to_host
from gpucnn.ops.augmentation import Augmentation, draw, shares
from gpucnn.ops.batch import BatchPlan, gather_batch
from gpucnn.xray import sass
from gpucnn.xray.compiled import compiled
from tests.support import assert_close, on

cases = pytest.mark.parametrize("case", BATCH, ids=str)


def reflected(at: int, n: int) -> int:
    return -at if at < 0 else 2 * (n - 1) - at if at >= n else at


def changed(
    image: np.ndarray, i: int, epoch: int, plan: BatchPlan, outside: int
) -> tuple[np.ndarray, float, float, Any, float]:
    """(moved image, factor, added, which pixels are cut, share's word) of image i, by its words."""
    o, (H, W) = plan.options, image.shape[:2]
    first = int(random.bits(plan.seed, (3 << 32) + epoch, 1, i)[0])
    a, b, c, d = (int(v) for v in random.bits(plan.seed, (9 << 32) + epoch, 4, 4 * i))
    moved = np.full_like(image, outside)
    for h in range(H):
        for w in range(W):
            y = H - 1 - h if o.vertical_flip and first & 2 else h
            x = W - 1 - w if o.flip and first & 1 else w
            y += (a >> 16) * (2 * o.crop + 1) // 2**16 - o.crop
            x += (a & 0xFFFF) * (2 * o.crop + 1) // 2**16 - o.crop
            if o.padding == "reflect":
                y, x = reflected(y, H), reflected(x, W)
            if not (0 <= y < H and 0 <= x < W):
                continue
            y += (first >> 20) * (2 * o.shift + 1) // 2**12 - o.shift
            x += (first >> 8 & 0xFFF) * (2 * o.shift + 1) // 2**12 - o.shift
            moved[h, w] = image[min(max(y, 0), H - 1), min(max(x, 0), W - 1)]
    factor = 1 + o.contrast * (2 * (b >> 16) + 1 - 2**16) / 2**16
    added = 255 * o.brightness * (2 * (b & 0xFFFF) + 1 - 2**16) / 2**16
    top = (c >> 16) * H // 2**16 - o.cutout // 2
    left = (c & 0xFFFF) * W // 2**16 - o.cutout // 2
    cut = np.zeros((H, W), bool)
    cut[max(top, 0) : max(top + o.cutout, 0), max(left, 0) : max(left + o.cutout, 0)] = True
    return moved, factor, added, cut, d


def loops(
    images: Any, labels: Any, order: Any, position: Any, scale: Any, offset: Any, blend: Any,
    plan: BatchPlan,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """One image and one pixel at a time."""
    epoch, batch = (int(v) for v in position)
    row = order[epoch % len(order)]
    found, rows, lambdas = [], [], []
    for n in range(plan.N):
        i = int(row[(batch * plan.N + n) % len(row)])
        levels, factor, added, cut, word = changed(images[i], i, epoch, plan, 0)
        x = (levels * scale - offset) * factor + added * scale
        x[cut] = 0
        found.append(x)
        rows.append(i)
        lambdas.append(1.0 if blend is None else float(blend[word >> 20]))
    if labels.ndim > 1:
        maps = [changed(labels[i], i, epoch, plan, -100)[0] for i in rows]
        return np.stack(found), np.stack(maps)
    if blend is None:
        return np.stack(found), labels[rows]
    mixed, targets = [], np.zeros((plan.N, plan.classes))
    for n, share in enumerate(lambdas):
        m = (n + 1) % plan.N
        mixed.append(share * found[n] + (1 - share) * found[m])
        targets[n, labels[rows[n]]] += share
        targets[n, labels[rows[m]]] += 1 - share
    return np.stack(mixed), targets


def wide(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for v in values
    )


@cases
def test_definition_is_the_formula(case: BatchCase) -> None:
    """In float64, but for the draws of levels, which are float32 everywhere."""
    given_ = arguments(case, 3)
    x, target = gather_batch(*wide(given_))
    want_x, want_target = loops(*wide(given_))
    assert_close(x, want_x, "float32")
    assert_close(target, want_target, "float64" if target.dtype.kind == "f" else "exact")


@cases
def test_kernels_give_the_same_bits(case: BatchCase, kernel_device: str) -> None:
    for seed, stored in ((0, False), (2**64 - 1, False), (1, True)):
        given_ = arguments(case, 5)
        given_ = (*given_[:-1], dataclasses.replace(given_[-1], seed=seed, stored=stored))
        *arrays, plan = given_
        results = gather_batch.on(kernel_device)(*on(kernel_device, *arrays), plan)
        for actual, expected in zip(map(to_host, results), gather_batch(*given_), strict=True):
            assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
            assert expected.flags.c_contiguous
            assert actual.tobytes() == expected.tobytes()


@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(1, 5)),
    numbers=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**64)),
    options=st.builds(
        Augmentation,
        flip=st.booleans(),
        vertical_flip=st.booleans(),
        shift=st.integers(0, 2047),
        crop=st.integers(0, 2),
        padding=st.sampled_from(["zero", "reflect"]),
        brightness=st.floats(0, 1, width=16),
        contrast=st.floats(0, 1, width=16),
        cutout=st.integers(0, 12),
        mixup=st.sampled_from([0.0, 0.2, 1.0]),
    ),
    per_pixel=st.booleans(),
)
def test_any_options(size: Any, numbers: Any, options: Augmentation, per_pixel: bool) -> None:
    """Of any epoch and batch, the definition and the emulated kernel agree to the bit."""
    per_pixel &= not options.mixup
    case = BatchCase((5, *size), 3, str(options), per_pixel)
    images, labels, order, _, *constants, plan = arguments(case, 1)
    epoch, batch, seed = numbers
    plan = dataclasses.replace(plan, seed=seed % 2**64)
    position = np.array([epoch, batch], np.int32)
    given_ = (images, labels, order, position, *constants, plan)
    for actual, expected in zip(
        gather_batch.on("emulated")(*given_), gather_batch(*given_), strict=True
    ):
        assert actual.tobytes() == expected.tobytes()


def test_arrays_that_are_not_aligned(kernel_device: str) -> None:
    images, labels, *rest, plan = arguments(BatchCase((6, 5, 7, 1), 3, "flip,shift=1", True), 2)
    buffer = np.zeros(images.size + 1, np.uint8)
    shifted = buffer[1:].reshape(images.shape)
    shifted[...] = images
    results = gather_batch.on(kernel_device)(*on(kernel_device, shifted, labels, *rest), plan)
    for actual, expected in zip(results, gather_batch(images, labels, *rest, plan), strict=True):
        assert to_host(actual).tobytes() == expected.tobytes()


def test_position_and_order_choose_the_images(device: str) -> None:
    """Even epochs take the first row, odd ones the second; past the end it begins again."""
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    labels = np.arange(7, dtype=np.int32)
    order = np.array([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]], np.int32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    for position, expected in (
        ((0, 0), [0, 1, 2]),
        ((0, 1), [3, 4, 5]),
        ((0, 2), [6, 0, 1]),
        ((3, 0), [6, 5, 4]),
        ((4, 7), [0, 1, 2]),
    ):
        given_ = on(device, images, labels, order, np.array(position, np.int32), one, zero, None)
        x, y = gather_batch.on(device)(*given_, BatchPlan(3, 7))
        assert to_host(y).tolist() == expected
        assert to_host(x).reshape(-1).tolist() == expected


def drawn(options: str, n: int = 40_000, size: tuple[int, int] = (30, 50)) -> Any:
    return draw(np.arange(n), 4, 9, Augmentation.parse(options), *size)


def assert_uniform(values: np.ndarray, n: int) -> None:
    """Each of 0 … n − 1 as often as chance allows: six standard deviations."""
    counts = np.bincount(values, minlength=n)
    assert len(counts) == n
    mean = len(values) / n
    assert (np.abs(counts - mean) < 6 * np.sqrt(mean)).all()


def test_places_are_uniform() -> None:
    d = drawn("flip,vertical-flip,shift=3,crop=5,cutout=8")
    for values, n in (
        (d.down, 7),
        (d.across, 7),
        (d.crop_down, 11),
        (d.crop_across, 11),
        (d.top + 4, 30),
        (d.left + 4, 50),
        (d.flip.astype(int), 2),
        (d.vertical_flip.astype(int), 2),
        (d.blend // 256, 16),
    ):
        assert_uniform(values, n)
    columns = np.stack([v.astype(float) for v in vars(d).values()])
    columns = columns[columns.std(axis=1) > 0]
    off = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(off).max() < 6 / np.sqrt(40_000), "what is drawn for one change tells of another"


def test_levels_are_uniform() -> None:
    d = drawn("brightness=0.5,contrast=0.25")
    assert (np.abs(d.added) < 127.5).all()
    assert (np.abs(d.factor - 1) < 0.25).all()
    for values in (d.added / 255 + 0.5, (d.factor - 1) * 2 + 0.5):
        assert_uniform((values * 20).astype(int), 20)


def test_nothing_is_drawn_for_changes_left_out() -> None:
    d = drawn("shift=2")
    assert not d.flip.any()
    assert not d.vertical_flip.any()
    assert (d.factor == 1).all()
    assert not d.added.any()


def test_draws_depend_on_seed_epoch_and_image_alone() -> None:
    o = Augmentation.parse("flip,vertical-flip,shift=3,crop=5,brightness=0.1,cutout=3,mixup=0.2")
    whole = vars(draw(np.arange(50), 2, 7, o, 20, 20))
    some = vars(draw(np.array([31, 4, 31]), 2, 7, o, 20, 20))
    for name, values in some.items():
        np.testing.assert_array_equal(values, whole[name][[31, 4, 31]])
    for epoch, seed in ((3, 7), (2, 8)):
        other = vars(draw(np.arange(50), epoch, seed, o, 20, 20))
        assert (other["across"] != whole["across"]).any()
        assert (other["crop_across"] != whole["crop_across"]).any()


@pytest.mark.parametrize(
    ("mixup", "quantile"),
    [
        (1.0, lambda u: u),  # uniform
        (0.5, lambda u: np.sin(np.pi * u / 2) ** 2),  # the arcsine distribution
        (2.0, lambda u: 0.5 - np.sin(np.arcsin(1 - 2 * u) / 3)),  # 3x² − 2x³ = u
    ],
)
def test_shares_are_quantiles_of_the_beta_distribution(mixup: float, quantile: Any) -> None:
    u = 0.5 + (np.arange(4096) + 0.5) / 8192
    np.testing.assert_allclose(shares(mixup), quantile(u), atol=1.5e-7)


@pytest.mark.parametrize("mixup", [0.05, 0.2, 7.0, 100.0])
def test_shares_are_distributed_as_draws(mixup: float) -> None:
    """The larger of λ and 1 − λ of NumPy's generator: Kolmogorov's distance."""
    own = shares(mixup)
    assert (np.diff(own) >= 0).all()
    assert (own > 0.5).all()
    assert (own <= 1).all()
    draws = np.random.default_rng(0).beta(mixup, mixup, 200_000)
    draws = np.maximum(draws, 1 - draws)
    # Rounded, because for a small mixup most of them are 1 to the last decimal.
    at = np.unique(np.round(own, 6))[:-1]
    below = [np.searchsorted(np.sort(a), at, "right") / len(a) for a in (own, draws)]
    assert np.abs(below[0] - below[1]).max() < 0.005


def test_targets_of_mixup_add_up_to_one(device: str) -> None:
    images, labels, *rest, plan = arguments(BatchCase((9, 2, 2, 1), 6, "mixup=0.7"), 4)
    labels[:] = [1, 1, 1, 2, 2, 2, 3, 3, 3]
    _, target = gather_batch.on(device)(*on(device, images, labels, *rest), plan)
    target = to_host(target)
    assert (target.sum(axis=1) == 1).all()
    rows = rest[0][1, (6 + np.arange(6)) % 9]
    assert (target.argmax(axis=1) == labels[rows]).all(), "an image is mostly its own"


OPTIONS = [
    "none",
    "flip",
    "flip,shift=2",
    "vertical-flip,crop=4,padding=reflect",
    "flip,crop=4,brightness=0.2,contrast=0.2,cutout=8,mixup=0.2",
]


@pytest.mark.parametrize("text", OPTIONS)
def test_text_and_back(text: str) -> None:
    options = Augmentation.parse(text)
    assert Augmentation.parse(str(options)) == options
    assert bool(options) is (text != "none")


def test_text_of_all_options() -> None:
    options = Augmentation.parse(
        " flip, vertical_flip,shift=1,crop = 2,padding=reflect,brightness=.5,contrast=1,"
        "cutout=3,mixup=1e-1"
    )
    assert options == Augmentation(
        True, 1, vertical_flip=True, crop=2, padding="reflect", brightness=0.5, contrast=1.0,
        cutout=3, mixup=0.1,
    )  # fmt: skip
    assert len(inspect.signature(Augmentation).parameters) == 9
    assert not Augmentation(padding="reflect")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("flop", "must be made of flip, shift, .*, got 'flop'"),
        ("", "got ''"),
        ("flip,,crop=1", "got ''"),
        ("none,flip", "got 'none'"),
        ("flip=1", "flip takes no value, got flip=1"),
        ("crop", "crop needs a value"),
        ("crop=", "crop must be an integer, got ''"),
        ("crop=2.5", "crop must be an integer, got '2.5'"),
        ("mixup=x", "mixup must be a number, got 'x'"),
        ("shift=1,shift=2", "shift must be given once"),
        ("vertical-flip,vertical_flip", "vertical_flip must be given once"),
        ("shift=-1", "shift must be >= 0"),
        ("shift=2048", "shift must be at most 2047"),
        ("padding=edge", "padding must be one of zero, reflect, got 'edge'"),
        ("brightness=1.5", "brightness must lie between 0 and 1, got 1.5"),
        ("contrast=nan", "contrast must lie between 0 and 1, got nan"),
        ("cutout=-3", "cutout must be >= 0"),
        ("mixup=-0.1", "mixup must lie between 0 and 100, got -0.1"),
        ("mixup=inf", "mixup must lie between 0 and 100, got inf"),
    ],
)
def test_bad_text(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Augmentation.parse(text)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"flip": 1}, "flip must be True or False, got 1"),
        ({"vertical_flip": "yes"}, "vertical_flip must be True or False"),
        ({"shift": True}, "shift must be an integer, got True"),
        ({"crop": 2.0}, "crop must be an integer"),
        ({"cutout": None}, "cutout must be an integer"),
        ({"mixup": True}, "mixup must be a number, got True"),
        ({"brightness": "0.5"}, "brightness must be a number"),
    ],
)
def test_options_of_a_wrong_type(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        Augmentation(**options)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4)])
def test_a_crop_must_fit_the_images(height: int, width: int) -> None:
    Augmentation(crop=3).check_images(height, width)
    with pytest.raises(ValueError, match=f"crop must be less .* {height} x {width}, got 4"):
        Augmentation(crop=4).check_images(height, width)


def test_cutout_draws_from_so_many_pixels() -> None:
    Augmentation(cutout=1).check_images(1 << 16, 1)
    with pytest.raises(ValueError, match="cutout needs images of at most 65536 pixels"):
        Augmentation(cutout=1).check_images(1, (1 << 16) + 1)


@pytest.mark.skipif(kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC")
@pytest.mark.skipif(sass.disassembler() is None, reason=sass.HINT)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_product_is_fused_with_a_sum(arch: str) -> None:
    """Which NumPy does not do either: on a GPU the bits depend on it."""
    for spec in kernel.FILES["batch"].specialisations:
        mix = sass.instruction_mix(compiled(spec, arch).cubin)["gather_batch"].all
        assert mix["FMUL"] > 0 < mix["FADD"]
        assert "FFMA" not in mix


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_the_cuda_path_computes_with_kernels_alone() -> None:
    for case in BATCH[-4:]:
        *arrays, plan = arguments(case, 1)
        results = (gather_batch.on(d)(*on(d, *arrays), plan) for d in ("cuda", "emulated"))
        for cuda, emulated in zip(*results, strict=True):
            assert to_host(cuda).tobytes() == emulated.tobytes()
