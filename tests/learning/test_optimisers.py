"""Warm-up, fall, clipping, weight decay and unit steps, by hand."""

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


def settings(**changes):
    return ConfigDict({"learning_rate": 0.1, "warmup": 2, "weight_decay": 0.5, "clip": 1.0} | changes)


@pytest.mark.parametrize(
    "warmup, shares", [(4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]), (2, [1 / 2, 1, 1]), (1, [1, 1]), (0, [1, 1])]
)
def test_rate_by_step(warmup, shares):
    """A constant gradient moves a weight by just the rate."""
    found = moves(optimisers.adamw(optimisers.rate(0.01, warmup), 0.0, 1.0), [0.5] * len(shares))
    np.testing.assert_allclose(found, -0.01 * np.array(shares), rtol=1e-5)


def test_gradients_are_clipped():
    """100 counts as 1, 0.1 stays: m = .09 + .01 over 1 − .81, v = .0475 + .0005 over 1 − .9025."""
    found = moves(optimisers.adamw(optimisers.rate(1.0, 0), 0.0, 1.0), [100.0, 0.1])
    np.testing.assert_allclose(found, [-1, -(0.1 / 0.19) / np.sqrt(0.048 / 0.0975)], rtol=1e-5)


def test_weight_decay_is_decoupled_and_settings_are_read():
    found = moves(optimisers.of(settings(optimiser="adamw", schedule="constant"), 9), [0.5, 0.5], weight=2.0)
    np.testing.assert_allclose(found, [-0.05 * (1 + 0.5 * 2), -0.1 * (1 + 0.5 * 2)], rtol=1e-5)


@pytest.mark.parametrize(
    "warmup, updates, shares",
    [(2, 6, [1 / 2, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5, 0]), (1, 4, [1, 3 / 4, 2 / 4, 1 / 4, 0]), (0, 2, [1, 1 / 2, 0])],
)
def test_a_linear_schedule_falls_to_0_at_its_last_update(warmup, updates, shares):
    rate = optimisers.rate(0.1, warmup, updates)
    np.testing.assert_allclose([rate(i) for i in range(len(shares))], 0.1 * np.array(shares), atol=1e-7)


def test_unit_sgd_moves_by_the_rate_along_the_gradient():
    """Over all weights together: (3, 4) / 5 × .1; decay is added after."""
    weights = {"a": jnp.array([2.0]), "b": jnp.array([0.0])}
    optimiser = optimisers.of(settings(optimiser="unit_sgd", schedule="linear", warmup=1), 2)
    state = optimiser.init(weights)
    for share in (1, 1 / 2):
        step, state = optimiser.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, state, weights)
        np.testing.assert_allclose(
            [step["a"][0], step["b"][0]], [-0.1 * share * (0.6 + 1), -0.1 * share * 0.8], rtol=1e-5
        )
