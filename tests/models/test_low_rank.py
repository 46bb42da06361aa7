"""LoRA starts as the identity, and merged weights compute what unmerged ones do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpt_jax.errors import InputError
from lpt_jax.models import decoder, low_rank

SPEC = decoder.DecoderSpec("llama", vocab=30, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24)
TOKENS = jnp.arange(12).reshape(2, 6)
MASK = jnp.ones((2, 6), bool)


@functools.partial(jax.jit, static_argnums=0)
def logits(spec, weights):
    x = decoder.embed_tokens(spec, weights, TOKENS)
    return decoder.logits(spec, weights, decoder.run(spec, weights["layers"], x, MASK)[0])


def together(weights, lora):
    return weights | lora | {"layers": weights["layers"] | lora["layers"]}


@pytest.mark.parametrize("tied", [False, True])
def test_identity_at_the_start_and_merge_equals_unmerged(tied):
    spec = dataclasses.replace(SPEC, tied=tied, lora_scale=8 / 4)
    weights = jax.tree.map(lambda a: 5 * a, decoder.init_weights(spec, jax.random.key(0)))
    lora = low_rank.attach(spec, weights, "q|v|down|head", 4, jax.random.key(1))
    assert sorted(lora["layers"]) == [f"{n}_lora_{x}" for n in ("down", "q", "v") for x in "ab"]
    assert lora["layers"]["down_lora_a"].shape == (2, 24, 4) and lora["head_lora_b"].shape == (4, 30)
    np.testing.assert_array_equal(logits(spec, together(weights, lora)), logits(spec, weights))
    trained = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), lora)
    merged = low_rank.merge(spec, weights, trained, scale=2.0)
    assert set(merged) == {"embed", "final_norm", "head", "layers"} and set(merged["layers"]) == set(weights["layers"])
    unmerged = logits(spec, together(weights, trained))
    assert float(jnp.abs(unmerged - logits(spec, weights)).max()) > 0.1
    np.testing.assert_allclose(logits(spec, merged), unmerged, rtol=1e-5, atol=1e-5)


def test_names_match_whole_and_keys_do_not_depend_on_the_others():
    weights = decoder.init_weights(SPEC, jax.random.key(0))
    one = low_rank.attach(SPEC, weights, "up", 2, jax.random.key(1))
    all_ = low_rank.attach(SPEC, weights, ".*", 2, jax.random.key(1))
    assert list(one["layers"]) == ["up_lora_a", "up_lora_b"] and len(all_["layers"]) == 14 and "head_lora_a" in all_
    np.testing.assert_array_equal(one["layers"]["up_lora_a"], all_["layers"]["up_lora_a"])


def test_nothing_matched_lists_the_names():
    weights = decoder.init_weights(SPEC, jax.random.key(0))
    with pytest.raises(InputError, match="q_proj.*q, k, v, o, gate, up, down, head"):
        low_rank.attach(SPEC, weights, "q_proj", 2, jax.random.key(1))
