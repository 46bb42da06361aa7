"""AdamW's warm-up, clipping and weight decay, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lpt_jax.learning import optimisers


def moves(optimiser, gradients, weight=0.0):
    """How a single weight would move at every step (the weight itself stays)."""
    weights, found = {"w": jnp.array([weight])}, []
    state = optimiser.init(weights)
    for gradient in gradients:
        step, state = optimiser.update({"w": jnp.array([gradient])}, state, weights)
        found.append(float(step["w"][0]))
    return found


@pytest.mark.parametrize(
    "warmup, shares", [(4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]), (2, [1 / 2, 1, 1]), (1, [1, 1]), (0, [1, 1])]
)
def test_rate_by_step(warmup, shares):
    """A constant gradient moves a weight by just the rate."""
    found = moves(optimisers.adamw(0.01, warmup, 0.0, 1.0), [0.5] * len(shares))
    np.testing.assert_allclose(found, -0.01 * np.array(shares), rtol=1e-5)


def test_gradients_are_clipped():
    """100 counts as 1, 0.1 stays: m = .09 + .01 over 1 − .81, v = .0475 + .0005 over 1 − .9025."""
    found = moves(optimisers.adamw(1.0, 0, 0.0, 1.0), [100.0, 0.1])
    np.testing.assert_allclose(found, [-1, -(0.1 / 0.19) / np.sqrt(0.048 / 0.0975)], rtol=1e-5)


def test_weight_decay_is_decoupled_and_settings_are_read():
    settings = ConfigDict({"learning_rate": 0.1, "warmup": 2, "weight_decay": 0.5, "clip": 1.0})
    found = moves(optimisers.of(settings), [0.5, 0.5], weight=2.0)
    np.testing.assert_allclose(found, [-0.05 * (1 + 0.5 * 2), -0.1 * (1 + 0.5 * 2)], rtol=1e-5)
