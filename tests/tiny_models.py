"""Tiny random decoders, windowed, soft-capped and with two ropes, and their plain full pass."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax.models import layers
from lpt_jax.models.decoder import Decoder, DecoderSpec

SHAPE = dict(vocab=97, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, hidden=48)
GEMMA = dict(SHAPE, tied=True, norm_plus_one=True, embed_scale=math.sqrt(32),
             activation="gelu_tanh", post_norms=True, query_scale=24**-0.5,
             windows=(5, 0, 5))  # fmt: skip
SPECS = {
    "llama": DecoderSpec("llama", **SHAPE),
    "gemma2": DecoderSpec("gemma2", **GEMMA, attn_softcap=5.0, final_softcap=3.0),
    "gemma3": DecoderSpec("gemma3", **GEMMA, qk_norm=True, rope_theta=1e6, local_rope_theta=1e4),
}


def random_decoder(spec: DecoderSpec, seed: int = 0) -> Decoder:
    """Weights large enough that all parts matter; norms are around their identity."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(spec, nnx.Rngs(0))))

    def make(path, leaf):
        middle = float(path[-1].key == "scale" and not spec.norm_plus_one)
        return jnp.asarray(middle + 0.2 * rng.standard_normal(leaf.shape), jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(make, layers.plain(state)))


def changed(lm: Decoder, change) -> Decoder:
    """The decoder with every array as change(array) has it."""
    graph, state = nnx.split(lm)
    return nnx.merge(graph, jax.tree.map(change, layers.plain(state)))


def divided(lm: Decoder, start: int) -> Decoder:
    """A copy whose first `start` layers are `lower`."""
    copy = changed(lm, jnp.asarray)
    copy.divide(start)
    return copy


def left_padded(batch: int, length: int, vocab: int = 97, seed: int = 0):
    """Random tokens [B, P] and a mask whose i-th row has 2 · i padding positions on the left."""
    tokens = np.random.default_rng(seed).integers(3, vocab, (batch, length)).astype(np.int32)
    mask = np.arange(length)[None, :] >= 2 * np.arange(batch)[:, None]
    return tokens, mask


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph, weights, tokens, mask):
    return nnx.merge(graph, weights)(tokens, mask)


def full_logits(lm: Decoder, tokens, mask):
    """Logits [B, T, V] by one causal pass over everything."""
    graph, state = nnx.split(lm)
    return _logits(graph, layers.plain(state), tokens, mask)


def joined(context, context_mask, own):
    """Each continuation behind its context: tokens and mask [B · G, P + T] of own [B, G, T]."""
    batch, samples, length = own.shape
    context, context_mask = (jnp.repeat(a, samples, 0) for a in (context, context_mask))
    own = own.reshape(batch * samples, length)
    tokens = jnp.concatenate([context, own], 1)
    return tokens, jnp.concatenate([context_mask, jnp.ones_like(own, bool)], 1)
