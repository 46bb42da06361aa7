"""Texts to unit-length embeddings, whose dot products are cosines."""

from collections.abc import Sequence

import jax
import numpy as np

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.models import encoder

# The static lengths, so that few programs are compiled and little is padding.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

embed_batch = jax.jit(encoder.embed, static_argnames=("spec", "dtype"))


def embed_texts(
    spec: encoder.EncoderSpec,
    weights: dict,
    tokenizer,
    texts: Sequence[str],
    batch: int = 64,
    max_tokens: int | None = None,
    prefix: str = "",
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds texts in batches of equal length, compiled once per length and batch size.

    Args:
      max_tokens: longer texts are cut, as at spec.max_tokens.
      prefix: put before every text: spec.query_prefix for profiles, "" for items.
      mesh: where given, the batches are spread over its devices.

    Returns:
      Embeddings [n, D] in the texts' order (float32, unit length), and Bool [n]: the text was cut.
    """
    limit = min(max_tokens or spec.max_tokens, spec.max_tokens)
    rows, cut = batches.tokenise(tokenizer, [prefix + text for text in texts], limit)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths go together
    size = min(batch, 1 << max(len(rows) - 1, 0).bit_length())
    weights = weights if mesh else jax.device_put(weights)  # once, not once per batch
    parts = []
    for start in range(0, len(rows), size):
        chosen = [rows[i] for i in order[start : start + size]]
        length = batches.bucket(len(chosen[-1]), (*(n for n in LENGTHS if n < limit), limit))
        chosen += [[tokenizer.pad_token_id or 0]] * (size - len(chosen))
        tokens = batches.pad_right(chosen, length, tokenizer.pad_token_id or 0)
        tokens = devices.split_batch(tokens, mesh) if mesh else tokens
        parts.append(embed_batch(spec, weights, *tokens, dtype=dtype))  # runs while the next batch is padded
    found = np.zeros((len(rows), spec.width), np.float32)
    if parts:
        found[order] = np.concatenate(devices.fetch(parts))[: len(rows)]
    return found, cut
