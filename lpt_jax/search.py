"""Which items a language model names next: a beam over the trie of their codes, and the likelihood of given candidates.

A model is what models/t5.py and models/item_decoder.py have: encode, decode, begin, step, of_parents, and its logits. The probability of a code is the product of its digits', each a softmax over that digit's words.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.array_types import HiddenItems, Mask, Tokens


@functools.partial(jax.jit, static_argnames=("graph", "beams"))
def beam(graph, weights: dict, tokens: Tokens, mask: Mask, next_of: tuple, hidden: HiddenItems, beams: int, who=None):
    """The `beams` likeliest items of each text, best first: ids Int32[B, beams] and log-probabilities; -1, -inf for none.

    Args:
      graph, weights: of the model, split.
      tokens, mask: the texts [B, S].
      next_of: of codes.Trie, as arrays.
      hidden: items [B, H] that are not to be found, -1 for none.
      who: of a personal prompt (CodeWords.embed_texts).
    """
    lm = nnx.merge(graph, weights)
    text = lm.encode(tokens, mask, who=who)
    levels, batch = len(next_of), len(text)
    caches = lm.begin(text, mask, 1, levels)  # one beam at first
    node, total = jnp.zeros((batch, 1), jnp.int32), jnp.zeros((batch, 1))
    token = jnp.zeros((batch, 1), jnp.int32)  # the decoder's start
    for level, table in enumerate(next_of):
        state, caches = lm.step(caches, mask, token, jnp.int32(level))
        after = table[node]  # [B, beams, width]
        chances = jax.nn.log_softmax(lm.digit_logits(state, level))
        there = after >= 0
        if level == levels - 1:
            there &= ~jnp.any(after[..., None] == hidden[:, None, None, :], -1)
        chances = jnp.where(there, chances, -jnp.inf) + total[..., None]
        chances = chances.reshape(batch, -1)
        total, at = jax.lax.top_k(chances, min(beams, chances.shape[1]))
        width = table.shape[1]
        parent, digit = at // width, at % width
        node = jnp.maximum(jnp.take_along_axis(after.reshape(batch, -1), at, 1), 0)
        caches = lm.of_parents(caches, parent)
        token = lm.spec.vocab + level * width + digit
    ids, left = jnp.where(jnp.isfinite(total), node, -1), ((0, 0), (0, beams - node.shape[1]))
    return jnp.pad(ids, left, constant_values=-1), jnp.pad(total, left, constant_values=-jnp.inf)


@functools.partial(jax.jit, static_argnames="graph")
def likelihoods(graph, weights: dict, tokens: Tokens, mask: Mask, digits: jax.Array, who=None) -> jax.Array:
    """log p(code) Float[B, G] of G candidates' digits Int[B, G, levels] for each text [B, S], in one pass."""
    lm = nnx.merge(graph, weights)
    return jnp.sum(chances(lm, states(lm, lm.encode(tokens, mask, who=who), mask, digits), digits), -1)


def states(lm, text, mask, digits, dropout: float = 0.0, key=None) -> jax.Array:
    """The model's states Float[B, G, T, D] before each digit [B, G, T] of one or more codes, one after the other."""
    start = jnp.zeros_like(digits[..., :1])
    words = lm.spec.vocab + jnp.arange(digits.shape[-1]) % lm.spec.levels * lm.spec.digits + digits
    return lm.decode(text, mask, jnp.concatenate([start, words[..., :-1]], -1), dropout, key)


def chances(lm, states, digits) -> jax.Array:
    """log p of each digit [..., T] of whole codes, given the states [..., T, D] before them."""
    scores = lm.code_logits(states)
    chosen = jnp.take_along_axis(scores, digits[..., None], -1)[..., 0]
    return chosen - jax.nn.logsumexp(scores, -1)


@functools.partial(jax.jit, static_argnames="graph")
def first_words(graph, weights: dict, tokens: Tokens, mask: Mask, words: jax.Array, who=None) -> jax.Array:
    """p Float[B, n] of each of n words Int[n] to be the first that answers a text [B, S], among these words."""
    lm = nnx.merge(graph, weights)
    start = jnp.zeros((len(tokens), 1, 1), jnp.int32)
    scores = lm.logits(lm.decode(lm.encode(tokens, mask, who=who), mask, start))[:, 0, 0]
    return jax.nn.softmax(scores[:, words])


@functools.partial(jax.jit, static_argnames=("graph", "most", "end"))
def greedy(graph, weights: dict, tokens: Tokens, mask: Mask, most: int, end: int, who=None) -> jax.Array:
    """The likeliest word after the likeliest word, Int32[B, most], until the end's id; -1 after it."""
    lm = nnx.merge(graph, weights)
    text = lm.encode(tokens, mask, who=who)

    def step(state, t):
        caches, word, ended = state
        states, caches = lm.step(caches, mask, jnp.maximum(word, 0), t)
        word = jnp.where(ended, -1, jnp.argmax(lm.logits(states), -1).astype(jnp.int32))
        return (caches, word, ended | (word == end)), word[:, 0]

    nothing = jnp.zeros((len(text), 1), jnp.int32)
    _, words = jax.lax.scan(step, (lm.begin(text, mask, 1, most), nothing, nothing > 0), jnp.arange(most))
    return words.T
