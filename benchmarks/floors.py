"""What each part needs at least: operations of its matrix products, and bytes to and from memory.

No machine does a part faster than its operations at the matmul rate, nor than its bytes at the copy rate: the part's
floor is the longer of the two times, and the floors of stages that follow one another add up. Operations are counted
as in operations.py; only real tokens count, and what two sides share counts once.
"""

import dataclasses

import jax
from flax import nnx

from benchmarks.operations import embedding_operations, pass_operations
from lpt_jax.models import layers
from lpt_jax.models.encoder import TextEncoder

BYTES = {"float32": 4, "bfloat16": 2}
ADAMW = 8 * 4  # bytes a trained weight: it, its gradient and two moments, each float32, read and written once


@dataclasses.dataclass(frozen=True)
class Need:
    """One stage: operations, bytes, and a line that says how they are counted."""

    operations: float
    bytes: float
    why: str


def layer_weights(spec) -> float:
    """Weights in the matrices of one decoder layer: q and o, k and v, and the MLP's three."""
    return 2 * spec.width * (spec.heads + spec.kv_heads) * spec.head_dim + 3 * spec.width * spec.hidden


def cache_bytes(spec, dtype: str, tokens: float) -> float:
    """Bytes of the keys and values of so many tokens in all layers."""
    return tokens * 2 * spec.layers * spec.kv_heads * spec.head_dim * BYTES[dtype]


def encoder_weights(spec) -> float:
    """All weights of an encoder, its word table included."""
    encoder = nnx.eval_shape(lambda: TextEncoder(spec, nnx.Rngs(0)))
    return sum(shape.size for shape in jax.tree.leaves(layers.plain(nnx.state(encoder))))


def prefill(spec, dtype: str, users: int, prompt: float) -> Need:
    """The prompts' keys and values in every layer."""
    return Need(
        pass_operations(spec, users, prompt, 0, 0, spec.layers, top=True),
        spec.layers * layer_weights(spec) * BYTES[dtype] + cache_bytes(spec, dtype, users * prompt),
        "each prompt once through the layers (of the last only its keys and values); weights read, cache written once",
    )


def decode(spec, dtype: str, users: int, prompt: float, rows: int, length: int) -> Need:
    """`rows` profiles of `length` tokens in all, one token of each a step."""
    head = spec.width * spec.vocab
    step = (spec.layers * layer_weights(spec) + head) * BYTES[dtype]
    step += cache_bytes(spec, dtype, users * prompt + rows * (length + 1) / 2)
    return Need(
        pass_operations(spec, 0, prompt, rows, length, spec.layers) + 2 * rows * length * head,
        length * step,
        "each step reads all weights, each prompt's cache once, and on average half of the profiles' own",
    )


def scoring(spec, dtype: str, users: int, prompt: float, rows: int, length: int, depth: int) -> Need:
    """Log-probabilities of the profiles by the top `depth` layers, from the hidden states below them."""
    tokens, head = users * prompt + rows * length, spec.width * spec.vocab
    return Need(
        pass_operations(spec, users, prompt, rows, length, depth, top=True) + 2 * rows * length * head,
        (depth * layer_weights(spec) + head) * BYTES[dtype] + tokens * spec.width * 4,
        f"the top {depth} layers over prompts and profiles once, the head over profiles; weights and states read",
    )


def update(spec, dtype: str, users: int, prompt: float, rows: int, length: int, depth: int) -> Need:
    """One step on the top `depth` layers: forward, both derivatives, AdamW; the head is frozen."""
    head, once = spec.width * spec.vocab, scoring(spec, dtype, users, prompt, rows, length, depth)
    passed = once.operations - 2 * rows * length * head
    return Need(
        3 * passed + 2 * 2 * rows * length * head,
        2 * once.bytes + depth * layer_weights(spec) * ADAMW,
        "three passes over the trained layers, two over the frozen head; states read twice, 32 bytes a trained weight",
    )


def training(spec, dtype: str, rows: int, length: int) -> Need:
    """A next-token step over all layers and the tied head."""
    passed = pass_operations(spec, rows, length, 0, 0, spec.layers)
    head = spec.width * spec.vocab
    return Need(
        3 * (passed + 2 * rows * length * head),
        (spec.layers * layer_weights(spec) + head) * (2 * BYTES[dtype] + ADAMW),
        "three passes over layers and head; weights read twice, and 32 bytes each for AdamW",
    )


def embedding(spec, lengths, dtype: str) -> Need:
    """Embedding texts of these lengths in tokens."""
    return Need(
        sum(embedding_operations(spec, 1, n) for n in lengths),
        spec.layers * (4 * spec.width**2 + 2 * spec.width * spec.hidden) * BYTES[dtype],
        "each text's real tokens once through the layers; the layers' weights read once",
    )


def contrastive(spec, lengths, dtype: str) -> Need:
    """One step of in-batch InfoNCE on texts of these lengths."""
    once = embedding(spec, lengths, dtype)
    return Need(
        3 * once.operations,
        2 * once.bytes + encoder_weights(spec) * ADAMW,
        "three passes over both sides' real tokens; 32 bytes a weight for AdamW",
    )


def ranking(profiles: int, items: int, width: int) -> Need:
    """Scores of all items for each profile; counting and hiding are left out."""
    return Need(
        2.0 * profiles * items * width,
        4.0 * width * (items + profiles),
        "a product of profiles and items, each read once in float32; no score written",
    )


def metrics(ranks: int, names: int) -> Need:
    """Metrics of so many ranks."""
    return Need(0.0, 8.0 * ranks * names, "each rank read once for each metric")
