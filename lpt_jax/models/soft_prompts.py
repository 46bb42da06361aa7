"""Soft prompts (prompt tuning, arXiv 2104.08691): trained vectors before a prompt's tokens, of a model that stays as it is."""

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.errors import InputError
from lpt_jax.models.layers import parameter


class SoftPromptParam(nnx.Param):
    """What nnx.split selects of a model with a soft prompt."""


class SoftPrompt(nnx.Module):
    """M vectors [M, D] in the place, and of the size, of token embeddings."""

    def __init__(self, table: jax.Array):
        self.table = parameter(table, (), SoftPromptParam)

    def before(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """A left-padded context's hidden states [B, P, D] with the vectors between padding and tokens, [B, M + P, D]."""
        count, padding = self.table.shape[0], jnp.sum(~mask, 1, keepdims=True)
        table = jnp.broadcast_to(self.table[...].astype(x.dtype), (x.shape[0], count, x.shape[2]))
        at = jnp.arange(count + x.shape[1])[None]
        place = jnp.where(at < padding, at + count, jnp.where(at < padding + count, at - padding, at))
        return jnp.take_along_axis(jnp.concatenate([table, x], 1), place[..., None], 1)

    def before_mask(self, mask: jax.Array) -> jax.Array:
        """A left-padded context's mask [B, P] with the vectors', [B, M + P]."""
        return jnp.concatenate([mask, jnp.ones((mask.shape[0], self.table.shape[0]), bool)], 1)


def attach(lm, count: int, text: str) -> None:
    """Gives a Decoder a soft prompt of `count` vectors, which begin as the embeddings of the text's tokens, over and over.

    `SoftPromptParam` is the filter that selects it. InputError for a text without tokens.
    """
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise InputError(
            f"A soft prompt begins as the tokens of soft_prompt.start, and {text!r} has none: give it some words."
        )
    rows = jnp.asarray((ids * count)[:count])
    lm.soft_prompt = SoftPrompt(jnp.asarray(lm.embed.table[...])[rows].astype(jnp.float32) * lm.spec.embed_scale)
