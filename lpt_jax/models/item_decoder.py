"""A decoder-only language model that names items: a Decoder with code words, and what search and text tasks ask of a model.

As for a T5, texts are padded on the right, and an answer begins with the id 0, which here marks where the text has ended.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.array_types import Mask, Tokens
from lpt_jax.errors import InputError
from lpt_jax.models import layers, weights
from lpt_jax.models.code_words import CodeWords, dropped
from lpt_jax.models.decoder import Decoder, decode_step, run


@dataclasses.dataclass(frozen=True)
class ItemDecoderSpec:
    """What of a model's shape concerns codes."""

    vocab: int
    width: int
    levels: int = 0  # digits of an item's code
    digits: int = 0  # words of each


class ItemDecoder(CodeWords):
    """A Decoder, and code words of so many levels and digits, which begin as large as its own words' vectors.

    size: how large they begin instead, relative to 0.02, where the model holds no arrays to measure.
    """

    packs = False  # several texts to a line

    def __init__(self, lm: Decoder, levels: int, digits: int, rngs: nnx.Rngs, remat: bool = False, size=None):
        self.lm, self.spec, self.source = lm, ItemDecoderSpec(lm.spec.vocab, lm.spec.width), lm.source
        self.codes, self.code_head, self.personal = (nnx.data(None) for _ in range(3))
        self.remat, self.mesh = remat, None
        if size is None:
            size = float(np.std(np.asarray(lm.embed.table[...], np.float32))) * lm.spec.embed_scale / 0.02
        self.add_codes(levels, digits, rngs, size)

    @classmethod
    def load(cls, folder: str, levels: int, digits: int, dtype: str = "float32") -> "ItemDecoder":
        """Reads what --mode=export wrote: a decoder's folder with the code words beside; their number as in codes.json."""
        table, head = weights.load_code_words(folder)
        if len(table) != levels * digits:
            raise InputError(f"{folder} has {len(table)} code words, not {levels} times {digits}: see its codes.json.")
        lm = cls(Decoder.load(folder, dtype), levels, digits, nnx.Rngs(0))
        lm.codes.table.set_value(table)
        lm.code_head.kernel.set_value(head)
        lm.set_attributes(dtype=dtype)
        return lm

    def save(self, folder) -> None:
        """Writes it, all arrays on the host and no LoRA left, as `load` reads it; transformers reads the decoder."""
        weights.save_decoder(folder, self.lm)
        weights.save_code_words(folder, self.codes.table[...], self.code_head.kernel[...])

    def of_words(self, tokens: Tokens) -> jax.Array:
        """The vectors of words, [..., D]."""
        return self.lm.embed_tokens(tokens)

    def encode(self, tokens: Tokens, mask: Mask, dropout=0.0, key=None, who: dict | None = None) -> jax.Array:
        """What is read of texts, Float[B, S, D]: the layers come when it is known what follows (decode, begin).

        key: of dropout; who: of a personal prompt.
        """
        return devices.spread(dropped(self.embed_texts(tokens, mask, who), dropout, key, 0), self.mesh)

    def stacks(self) -> list[tuple]:
        """The layers, as (stack, number of its first)."""
        return ([] if self.lm.lower is None else [(self.lm.lower, 0)]) + [(self.lm.upper, self.lm.start)]

    def decode(self, text: jax.Array, mask: Mask, written: jax.Array, dropout=0.0, key=None) -> jax.Array:
        """The states Float[B, G, T, D] of G continuations [B, G, T] of each text [B, S, D]."""
        (batch, samples, length), mask = written.shape, mask > 0
        x = jnp.concatenate([text, self.embed_tokens(written).reshape(batch, -1, text.shape[-1])], 1)
        for stack, start in self.stacks():
            x, _ = run(stack, x, mask, samples, start=start, remat=self.remat, last=stack is self.lm.upper)
        return self.lm.final_norm(x).reshape(batch, samples, length, -1)

    def begin(self, text: jax.Array, mask: Mask, samples: int, most: int) -> dict:
        """What step() needs of texts [B, S, D]: each layer's keys and values of them, and room for `most` positions of G each."""
        x, of_text = text, []
        for stack, start in self.stacks():
            x, kept = run(stack, x, mask > 0, start=start)
            of_text += kept
        batch, kv, _, size = of_text[0][0].shape
        room = jnp.zeros((batch, kv, samples, most, size), of_text[0][0].dtype)
        return {"text": of_text, "own": [(room, room)] * len(of_text)}

    def step(self, caches: dict, mask: Mask, tokens: jax.Array, t) -> tuple[jax.Array, dict]:
        """The states [B, G, D] of position t (a scalar) of all continuations, whose tokens [B, G] are; and the new caches."""
        x, own = self.embed_tokens(tokens), []
        for stack, start in self.stacks():
            graph, trees = nnx.split(stack)
            trees = layers.plain(trees)
            blocks = [nnx.merge(graph, layers.layer_of(trees, i)) for i in range(layers.size_of(trees))]
            of_stack = [caches[name][start : start + len(blocks)] for name in ("text", "own")]
            x, kept = decode_step(blocks, x, t, of_stack[0], mask > 0, of_stack[1], start, self.mesh)
            own += kept
        return self.lm.final_norm(x), caches | {"own": own}

    def of_parents(self, caches: dict, parent: jax.Array) -> dict:
        """The caches of the continuations that each of [B, G] goes on from."""
        index = parent[:, None, :, None, None]
        own = jax.tree.map(lambda cache: jnp.take_along_axis(cache, index, 2), caches["own"])
        return caches | {"own": own}

    def logits(self, x: jax.Array) -> jax.Array:
        """The states [..., D] to logits of the vocabulary [..., V], float32."""
        return self.lm.words(x)
