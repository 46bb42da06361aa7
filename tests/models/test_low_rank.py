"""LoRA starts as the identity, and merged weights compute what unmerged ones do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpt_jax.errors import InputError
from lpt_jax.models import decoder, layers, low_rank
from tests.tiny_models import changed

SPEC = decoder.DecoderSpec("llama", vocab=30, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24)
TOKENS = jnp.arange(12).reshape(2, 6)
MASK = jnp.ones((2, 6), bool)


def made(spec=SPEC):
    return decoder.Decoder(spec, nnx.Rngs(params=jax.random.key(0)))


def lora_of(lm) -> dict:
    """The LoRA matrices by their paths, as in "upper.attention.q.lora.a"."""
    state = nnx.to_flat_state(nnx.state(lm, nnx.LoRAParam))
    return {".".join(map(str, path)): variable.get_value() for path, variable in state}


@pytest.mark.parametrize("tied", [False, True])
def test_identity_at_the_start_and_merge_equals_unmerged(tied):
    lm = changed(made(dataclasses.replace(SPEC, tied=tied)), lambda a: 5 * a)
    before, parts = lm(TOKENS, MASK), set(layers.plain(nnx.state(lm))) | {"head"}
    low_rank.attach(lm, "q|v|down|head", 4, 8.0, jax.random.key(1))
    names = ("upper.attention.q", "upper.attention.v", "upper.mlp.down", "head")
    lora = lora_of(lm)
    assert sorted(lora) == sorted(f"{name}.lora.{x}" for name in names for x in "ab")
    assert lora["upper.mlp.down.lora.a"].shape == (2, 24, 4) and lora["head.lora.b"].shape == (4, 30)
    np.testing.assert_array_equal(lm(TOKENS, MASK), before)
    graph, trained, frozen = nnx.split(lm, nnx.LoRAParam, ...)
    moved = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), layers.plain(trained))
    lm = nnx.merge(graph, moved, layers.plain(frozen))
    unmerged = lm(TOKENS, MASK)
    low_rank.merge(lm)
    assert set(layers.plain(nnx.state(lm))) == parts and not lora_of(lm)
    assert float(jnp.abs(unmerged - before).max()) > 0.1
    np.testing.assert_allclose(lm(TOKENS, MASK), unmerged, rtol=1e-5, atol=1e-5)


def test_names_match_whole_and_keys_do_not_depend_on_the_others():
    one, every = made(), made()
    low_rank.attach(one, "up", 2, 4.0, jax.random.key(1))
    low_rank.attach(every, ".*", 2, 4.0, jax.random.key(1))
    one, every = lora_of(one), lora_of(every)
    assert sorted(one) == ["upper.mlp.up.lora.a", "upper.mlp.up.lora.b"]
    assert len([name for name in every if name.startswith("upper")]) == 14 and "head.lora.a" in every
    np.testing.assert_array_equal(one["upper.mlp.up.lora.a"], every["upper.mlp.up.lora.a"])


def test_nothing_matched_lists_the_names():
    with pytest.raises(InputError, match="q_proj.*q, k, v, o, gate, up, down, head"):
        low_rank.attach(made(), "q_proj", 2, 4.0, jax.random.key(1))
