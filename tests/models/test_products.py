"""Products in two halves: nothing of a float32 master is rounded away, in training, scoring and sampling alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lpt_jax import devices, generation
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.learning import policy
from lpt_jax.models.decoder import DecoderSpec, top_layers
from lpt_jax.models.products import halves, product
from lpt_jax.models.weights import Source
from tests.tiny_models import changed, random_decoder

SHIFT = 2.0**-11  # of a weight: a quarter of what bfloat16 rounds away


def on_the_grid(a):
    """An array of values that bfloat16 holds, as a checkpoint's are."""
    return jnp.asarray(a).astype(jnp.bfloat16).astype(jnp.float32)


def test_two_halves_hold_sixteen_digits_and_a_step_below_half_an_ulp():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((64, 48)), jnp.float32)
    near, rest = jax.jit(functools.partial(halves, dtype="bfloat16"))(w)
    assert near.dtype == rest.dtype == jnp.bfloat16
    both = np.asarray(near, np.float64) + np.asarray(rest, np.float64)
    assert np.abs(both / np.asarray(w, np.float64) - 1).max() < 2.0**-17
    x, w = on_the_grid(rng.standard_normal((5, 64))), on_the_grid(w)
    moved = w * (1 + SHIFT)
    exact = np.asarray(x, np.float64) @ np.asarray(moved, np.float64)
    apart, rounded = (jax.jit(functools.partial(product, dtype="bfloat16", whole=how)) for how in (True, False))
    np.testing.assert_allclose(apart(x, moved), exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rounded(x, moved), rounded(x, w))  # what was lost


def test_the_derivative_is_the_rounded_products():
    rng = np.random.default_rng(1)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((5, 64), (64, 48)))
    both = [
        jax.grad(lambda x, w, how=how: jnp.sum(product(x, w, "bfloat16", how) ** 2), (0, 1)) for how in (True, False)
    ]
    for ours, theirs in zip(both[0](x, w), both[1](x, w)):
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.05 * float(jnp.abs(theirs).max()))


class Written:
    """A tiny language model with weights on bfloat16's grid, profiles that it sampled, and how it scores them."""

    def __init__(self, dtype: str, whole: bool):
        tokenizer = tiny_tokenizer()
        spec = DecoderSpec("llama", len(tokenizer), 64, 2, heads=4, kv_heads=2, head_dim=16, hidden=96)
        lm = changed(random_decoder(spec), lambda a: 0.5 * on_the_grid(a))
        lm.divide(1)
        lm.set_attributes(dtype=dtype)
        if whole:
            lm.keep_steps()
        lm.source = Source(tokenizer, 0, frozenset({5}))
        mesh = devices.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
        self.lm = generation.LanguageModel(lm, top_layers, mesh, nnx.Dict(max_tokens=12, batch=8))
        self.lm.lengths = (9,)
        self.plan = policy.Plan(self.lm.graph, optax.sgd(1.0), self.lm.below)
        self.profiles, self.mask = self.sampled(self.lm.fresh())

    def sampled(self, weights):
        how = generation.Sampling(12, (5,), 0, samples=2, keep_hidden=True)
        prompts = [np.random.default_rng(i).integers(6, self.lm.spec.vocab, 9).tolist() for i in range(8)]
        return self.lm.sample(weights, prompts, range(8), jax.random.key(0), how)

    def scores(self, weights):
        return policy.log_probs(self.plan, self.lm.frozen, weights, self.profiles, self.mask[:, :-1])


@pytest.mark.parametrize("whole", [True, False])
def test_a_small_step_of_the_policy_moves_scores_and_samples(whole):
    """Each trained weight moves by a quarter of what bfloat16 rounds away, uphill: the log-probabilities rise as in float32."""
    exact, ours = Written("float32", False), Written("bfloat16", whole)
    before = exact.lm.fresh()
    uphill = jax.grad(lambda weights: exact.scores(weights).sum())(before)
    moved = jax.tree.map(lambda w, g: w + jnp.sign(g) * jnp.abs(w) * SHIFT, before, uphill)
    wanted, gained = (float(jnp.sum(one.scores(moved) - one.scores(before))) for one in (exact, ours))
    assert gained == pytest.approx(wanted, rel=0.25) if whole else gained < 0.5 * wanted
    drawn = ours.sampled(moved)[0].log_probs[:, :, 0]  # of the first tokens, which are the same
    np.testing.assert_allclose(drawn, ours.scores(moved)[:, :, 0], atol=2e-2)
