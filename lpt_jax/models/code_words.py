"""Words for items' codes beside a language model's own: rows that it reads, and a head that scores one digit's words alone."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.array_types import Mask, Tokens
from lpt_jax.models.layers import Embed, Linear


class CodeWords(nnx.Module):
    """What the models that name items have in common, T5 and ItemDecoder.

    Such a module has of_words(tokens), the vectors of its own words; a spec with vocab, width, levels (digits of a code) and digits (words of
    each); and codes, code_head and personal (a personal_prompts.PersonalPrompt), None at first.
    """

    def add_codes(self, levels: int, digits: int, rngs: nnx.Rngs, size: float = 1.0) -> None:
        """Gives it random words for items' codes of so many digits; size: of their rows, relative to 0.02."""
        self.spec = dataclasses.replace(self.spec, levels=levels, digits=digits)
        self.codes = Embed("codes", levels * digits, self.spec.width, (), rngs)
        self.codes.table.set_value(self.codes.table[...] * size)
        self.code_head = Linear("code_head", self.spec.width, levels * digits, ("fsdp", None), rngs)

    @property
    def slot(self) -> int:
        """The id of a personal prompt's first place; the others follow."""
        return self.spec.vocab + self.spec.levels * self.spec.digits

    @property
    def tokenizer(self):
        """The transformers tokenizer it was loaded with."""
        return self.source.tokenizer

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Ids [...] to [..., D]; from spec.vocab on they are code words, and then places of a personal prompt, which mean nothing yet."""
        spec = self.spec
        words = self.of_words(jnp.minimum(tokens, spec.vocab - 1))
        if self.codes is None:
            return words
        digits = self.codes(jnp.clip(tokens - spec.vocab, 0, spec.levels * spec.digits - 1))
        return jnp.where((tokens >= spec.vocab)[..., None], digits, words)

    def embed_texts(self, tokens: Tokens, mask: Mask, who: dict | None) -> jax.Array:
        """Texts' tokens [B, S] to [B, S, D], the places of a personal prompt with its vectors.

        mask [B, S], or segments: a row may hold several texts, 1, 2, …; who: of a personal prompt, for each of a row's texts.
        """
        x = self.embed_tokens(tokens)
        if self.personal is None:
            return x
        soft, texts = self.personal(who), jnp.maximum(mask.astype(jnp.int32) - 1, 0)
        at = jnp.clip(tokens - self.slot, 0, soft.shape[2] - 1)
        mine = soft[jnp.arange(len(x))[:, None], texts, at]
        return jnp.where((tokens >= self.slot)[..., None], mine.astype(x.dtype), x)

    def digit_logits(self, x: jax.Array, level: int) -> jax.Array:
        """The states [..., D] before a code's digit to logits of its words, [..., digits]."""
        words = slice(level * self.spec.digits, (level + 1) * self.spec.digits)
        return self.code_head(x, self.code_head.kernel[...][:, words])

    def code_logits(self, x: jax.Array) -> jax.Array:
        """The states [..., T, D] before each digit of one or more codes to logits of its words, [..., T, digits]."""
        of_items = x.reshape(*x.shape[:-2], -1, self.spec.levels, x.shape[-1])
        scores = [self.digit_logits(of_items[..., level, :], level) for level in range(self.spec.levels)]
        return jnp.stack(scores, -2).reshape(*x.shape[:-1], -1)


def dropped(x: jax.Array, rate: float, key, number) -> jax.Array:
    """x with a share `rate` of it at 0 and the rest larger; as it is without a key."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
