"""The one table of tolerances: how far two computations of the same thing may be apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """|actual − expected| <= atol·√terms + rtol·|expected|, and why these numbers."""

    rtol: float
    atol: float
    reason: str


# ``terms`` is the length of the sum behind one output element: rounding errors of n additions grow
# like √n.
BARS = {
    "exact": Bar(0, 0, "selections and integers: nothing is rounded"),
    "float64": Bar(1e-12, 1e-12, "two float64 computations that add in different orders"),
    "float32": Bar(1e-5, 1e-6, "float32 kernel against a float64 reference of inputs near 1"),
    "long sum": Bar(
        1e-4, 1e-5, "as float32, over hundreds of terms and more: a running sum errs by up to n"
    ),
    "tensor core": Bar(
        1e-4, 1e-5, "sums cut off toward zero every few terms: errors of one sign, up to n of them"
    ),
    "tf32": Bar(
        1e-3,
        2e-3,
        "operands of each product rounded to 10 bits of mantissa; cutting sums off adds at most "
        "3e-4 to 20 000 terms of one sign",
    ),
    "bf16": Bar(8e-3, 1.6e-2, "as tf32 with 7 bits of mantissa: eight times as coarse"),
    "bfloat16 storage": Bar(
        2**-8 + 1e-4, 1e-5, "half a step of bfloat16, 8 bits of mantissa, beside 'long sum'"
    ),
    "fp16": Bar(1e-3, 2e-3, "as tf32: 10 bits of mantissa"),
    "torch": Bar(1e-4, 1e-5, "two float32 computations, each with its own order of additions"),
    "training": Bar(0, 1e-4, "losses of the same steps on two devices, the bar of the design"),
}

_LONG = 128  # terms


def float32_bar(terms: int) -> str:
    """The bar of a float32 kernel whose outputs are sums of this many terms."""
    return "long sum" if terms > _LONG else "float32"
