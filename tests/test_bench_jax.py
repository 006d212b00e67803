"""JAX's training steps of the bench compute what ours do."""

from __future__ import annotations

import importlib.util

import pytest

from bench.harness.verify import compare
from bench.rivals.rival import Gap, Rival
from bench.steps import Step, expected_losses

pytestmark = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")


@pytest.mark.parametrize("model", ["lenet5", "shapenet", "resnet20", "unet_small", "segnet_small"])
def test_jax_takes_the_same_steps(model: str) -> None:
    from bench.rivals.jax_rival import Jax

    library, step = Jax("cpu"), Step(model, 2, "typical")
    library.use_precision("fp32")
    (rival,) = library.step_rivals(step)
    assert isinstance(rival, Rival)
    assert compare(rival.results(), [expected_losses(step)], 1, "training").trouble == ""
    rival.contender.call(0)
    assert rival.contender.wait is not None
    rival.contender.wait()


def test_jax_leaves_the_rest_out() -> None:
    from bench.goals.parts import UPDATES
    from bench.rivals.jax_rival import Jax

    library = Jax("cpu")
    assert all(isinstance(gap, Gap) for gap in library.step_rivals(UPDATES[0]))
    assert isinstance(library.rivals("relu_forward", (), 1)[0], Gap)
