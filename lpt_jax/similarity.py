"""Texts to unit-length embeddings, whose dot products are cosines."""

from collections.abc import Sequence

import jax
import numpy as np

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.models import encoder

ROOM = 128  # tokens of a line, where no text is longer
FEWEST = 16  # texts that a line can have, or a 16th of its tokens

embed_batch = jax.jit(encoder.embed_packed, static_argnames=("spec", "most", "dtype"))


def line_of(longest: int) -> tuple[int, int]:
    """Tokens of a line that holds texts of up to so many, and how many texts it can have."""
    room = max(ROOM, -(-longest // 16) * 16)
    return room, max(FEWEST, room // 16)


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
    """Embeds texts, several to a line, `batch` lines at once (the last ones: fewer, of at most eight static sizes).

    Args:
      max_tokens: longer texts are cut, as at spec.max_tokens.
      prefix: put before every text: spec.query_prefix for profiles, "" for items.
      mesh: where given, the batches are spread over its devices.

    Returns:
      Embeddings [n, D] in the texts' order (float32, unit length), and Bool [n]: the text was cut.
    """
    limit = min(max_tokens or spec.max_tokens, spec.max_tokens)
    rows, cut = batches.tokenise(tokenizer, [prefix + text for text in texts], limit)
    room, most = line_of(limit)
    lines = batches.packed([len(row) for row in rows], room, most)
    weights = weights if mesh else jax.device_put(weights)  # once, not once per batch
    step, parts, places = max(-(-batch // 8), 1), [], []
    for start in range(0, len(lines), batch):
        chosen = lines[start : start + batch]
        size = 1 if len(lines) == 1 else -(-len(chosen) // step) * step
        tokens, segments, where = batches.pack(rows, chosen, size, room, most, tokenizer.pad_token_id or 0)
        put = devices.split_batch((tokens, segments), mesh) if mesh else (tokens, segments)
        parts.append(embed_batch(spec, weights, *put, most=most, dtype=dtype))  # runs while the next batch is packed
        places.append((sum(chosen, []), where))
    found = np.zeros((len(rows), spec.width), np.float32)
    for part, (texts, where) in zip(parts, places):
        found[texts] = devices.fetch(part).reshape(-1, spec.width)[where]
    return found, cut
