"""T5 and FLAN-T5 as a Flax NNX module: the encoder reads a text, the decoder writes G continuations of it.

`T5.load(source)` reads one, `lm(tokens, mask, written)` gives its logits. Beside its vocabulary a model may have *code words*:
rows of their own for the digits of items' codes, and a head that scores one digit's words alone.
Attention is not scaled, positions are buckets of distances, learned once for each stack (arXiv 1910.10683).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.array_types import Mask, Tokens
from lpt_jax.errors import InputError
from lpt_jax.models import layers, weights
from lpt_jax.models.code_words import CodeWords, dropped
from lpt_jax.models.layers import COLUMNS, ROWS, Embed, Linear, RMSNorm
from lpt_jax.models.products import UNROLLED


@dataclasses.dataclass(frozen=True)
class T5Spec:
    """Shape and habits of a T5."""

    vocab: int
    width: int
    layers: int  # of the encoder
    decoder_layers: int
    heads: int
    head_dim: int
    hidden: int
    gated: bool = True  # v1.1 and FLAN: gelu(gate) · up; else relu(up)
    tied: bool = False  # the head is the embeddings' table
    scaled: bool = False  # v1.0: the head reads states × width^-½
    buckets: int = 32
    distance: int = 128  # from which on all distances share the last bucket
    norm_eps: float = 1e-6
    levels: int = 0  # digits of an item's code; 0: there are none
    digits: int = 0  # words of each


def spec_from_hf(config: dict, tied: bool, levels: int = 0, digits: int = 0) -> T5Spec:
    """Spec from a config.json; InputError on what is unsupported. tied: the files have no head of its own."""
    if config.get("model_type") != "t5":
        raise InputError(
            f"config.json: model_type {config.get('model_type')!r} is no T5, which is what is asked for (others: --config.lm.kind=decoder)"
        )
    projection = config.get("feed_forward_proj", "relu")
    if projection not in ("relu", "gated-gelu"):
        raise InputError(f"config.json: feed_forward_proj {projection!r} is not supported, only relu and gated-gelu")
    own = {ours: config[theirs] for ours, theirs in weights.T5_SETTINGS.items()}
    own["decoder_layers"] = config.get("num_decoder_layers") or own["layers"]
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return T5Spec(**own, gated=projection != "relu", tied=tied, scaled=scaled, levels=levels, digits=digits)


def buckets_of(distances: jax.Array, spec: T5Spec, both_ways: bool) -> jax.Array:
    """Each distance's bucket (key's place − query's): half of them for single distances, the others in logarithmic steps.

    >>> spec = T5Spec(1, 1, 1, 1, 1, 1, 1, buckets=8, distance=16)
    >>> buckets_of(jnp.array([-20, -3, -1, 0, 1, 3, 20]), spec, True).tolist()
    [3, 2, 1, 0, 5, 6, 7]
    >>> buckets_of(jnp.array([-20, -5, -3, 0, 2]), spec, False).tolist()
    [7, 4, 3, 0, 0]
    """
    count = spec.buckets // 2 if both_ways else spec.buckets
    ahead = count * (distances > 0) if both_ways else 0
    far = jnp.abs(distances) if both_ways else jnp.maximum(-distances, 0)
    single = count // 2
    steps = jnp.log(jnp.maximum(far, 1) / single) / jnp.log(spec.distance / single) * (count - single)
    large = jnp.minimum(single + steps.astype(jnp.int32), count - 1)
    return ahead + jnp.where(far < single, far, large)


class Attention(nnx.Module):
    """Attention of heads that may together be wider than the model, without scale and biases of its own."""

    def __init__(self, spec: T5Spec, rngs: nnx.Rngs, stack=(), name: str = ""):
        inner = spec.heads * spec.head_dim
        self.q, self.k, self.v = (Linear(name + n, spec.width, inner, COLUMNS, rngs, stack) for n in "qkv")
        self.o = Linear(name + "o", inner, spec.width, ROWS, rngs, stack)
        self.head_dim, self.dtype = spec.head_dim, "float32"

    def of_heads(self, linear: Linear, x: jax.Array) -> jax.Array:
        """x [..., T, D] by one of q, k, v: [..., T, heads, head_dim]."""
        return linear(x).reshape(*x.shape[:-1], -1, self.head_dim).astype(self.dtype)

    def __call__(self, q, k, v, bias) -> jax.Array:
        """q [..., T, heads, hd] over k, v [..., S, heads, hd], with what bias [..., heads, T, S] adds to the scores."""
        mix = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        q, k, v = (a.swapaxes(-2, -3) for a in (q, k, v))  # heads first: twice as fast on a CPU
        shares = jax.nn.softmax(mix("...qd,...kd->...qk", q, k) + bias)
        mixed = mix("...qk,...kd->...qd", shares.astype(self.dtype), v).swapaxes(-2, -3)
        return self.o(mixed.reshape(*mixed.shape[:-2], -1))


class MLP(nnx.Module):
    """down(relu(up(x))), or gated: down(gelu(gate(x)) · up(x))."""

    def __init__(self, spec: T5Spec, rngs: nnx.Rngs, stack=()):
        self.gate = nnx.data(Linear("gate", spec.width, spec.hidden, COLUMNS, rngs, stack) if spec.gated else None)
        self.up = Linear("up", spec.width, spec.hidden, COLUMNS, rngs, stack)
        self.down = Linear("down", spec.hidden, spec.width, ROWS, rngs, stack)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.gate is None:
            return self.down(jax.nn.relu(self.up(x)))
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


class EncoderBlock(nnx.Module):
    """One layer of the encoder, or with stack=(K,) the parameters of K of them."""

    def __init__(self, spec: T5Spec, rngs: nnx.Rngs, stack=()):
        norm = functools.partial(RMSNorm, spec.width, spec.norm_eps, stack=stack)
        self.attn_norm, self.mlp_norm = norm(), norm()
        self.attention, self.mlp = Attention(spec, rngs, stack), MLP(spec, rngs, stack)

    def __call__(self, x, bias, drop) -> jax.Array:
        """x [B, S, D]; drop(values, number): dropout."""
        h, attention = self.attn_norm(x), self.attention
        q, k, v = (attention.of_heads(linear, h) for linear in (attention.q, attention.k, attention.v))
        x = x + drop(attention(q, k, v, bias), 0)
        return x + drop(self.mlp(self.mlp_norm(x)), 1)


class DecoderBlock(nnx.Module):
    """One layer of the decoder, or with stack=(K,) the parameters of K of them."""

    def __init__(self, spec: T5Spec, rngs: nnx.Rngs, stack=()):
        norm = functools.partial(RMSNorm, spec.width, spec.norm_eps, stack=stack)
        self.attn_norm, self.cross_norm, self.mlp_norm = norm(), norm(), norm()
        self.attention, self.mlp = Attention(spec, rngs, stack, "own_"), MLP(spec, rngs, stack)
        self.cross = Attention(spec, rngs, stack, "cross_")

    def of_text(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the encoder's text [B, S, D], [B, S, heads, hd] both."""
        return tuple(self.cross.of_heads(linear, text) for linear in (self.cross.k, self.cross.v))

    def __call__(self, x, of_text, text_bias, bias, drop, own=None, t=0):
        """G continuations x [B, G, T, D] of each text: their new states, and the caches.

        of_text: the text's keys and values; text_bias [B, 1, 1, S] hides its padding. own: caches [B, G, most, heads, hd] of
        keys and values, in which these positions are written from t on; None: x is all that there is.
        """
        h, attention, (batch, samples, length, _) = self.attn_norm(x), self.attention, x.shape
        q, *new = (attention.of_heads(linear, h) for linear in (attention.q, attention.k, attention.v))
        if own is not None:
            new = [jax.lax.dynamic_update_slice_in_dim(cache, one, t, 2) for cache, one in zip(own, new, strict=True)]
        x = x + drop(attention(q, *new, bias), 0)
        q = self.cross.of_heads(self.cross.q, self.cross_norm(x)).reshape(
            batch, samples * length, -1, attention.head_dim
        )
        x = x + drop(self.cross(q, *of_text, text_bias).reshape(x.shape), 1)
        return x + drop(self.mlp(self.mlp_norm(x)), 2), tuple(new)


class T5(CodeWords):
    """An encoder-decoder language model. `spec` has its shapes, `source` its tokenizer and end tokens (None: made by hand)."""

    packs = True  # several texts to a line

    def __init__(self, spec: T5Spec, rngs: nnx.Rngs):
        self.embed = Embed("embed", spec.vocab, spec.width, ROWS, rngs)
        self.encoder_bias = Embed("encoder_bias", spec.buckets, spec.heads, (), rngs)
        self.decoder_bias = Embed("decoder_bias", spec.buckets, spec.heads, (), rngs)
        self.encoder = EncoderBlock(spec, rngs, (spec.layers,))
        self.decoder = DecoderBlock(spec, rngs, (spec.decoder_layers,))
        self.encoder_norm, self.decoder_norm = (RMSNorm(spec.width, spec.norm_eps) for _ in range(2))
        self.head = Linear("head", spec.width, spec.vocab, COLUMNS, rngs, tied=spec.tied)
        self.codes, self.code_head = nnx.data(None), nnx.data(None)
        self.personal = nnx.data(None)
        self.spec, self.source = spec, None
        self.dtype, self.mesh, self.remat = "float32", None, False
        if spec.levels:
            self.add_codes(spec.levels, spec.digits, rngs)

    @classmethod
    def load(cls, source: str, dtype: str = "float32", levels: int = 0, digits: int = 0) -> "T5":
        """Reads a T5: a folder or "org/name[@revision]"; parameters are numpy arrays of `dtype`.

        levels, digits: of items' codes. Where the folder has no words for them they begin at random, as large as others.
        """
        files = weights.decoder_files(str(source))
        there, tied = "codes.weight" in files.tensors, "lm_head.weight" not in files.tensors
        spec = spec_from_hf(files.config, tied, levels if there else 0, digits if there else 0)
        lm = nnx.eval_shape(lambda: cls(spec, nnx.Rngs(0)))
        lm = weights.filled_in(lm, weights.t5_keys(spec.gated), files, dtype)
        if levels and not there:
            size = float(np.std(np.asarray(lm.embed.table[...], np.float32))) / 0.02
            lm.add_codes(levels, digits, nnx.Rngs(0), size)
        lm.set_attributes(dtype=dtype)
        lm.source = files.source()
        return lm

    def __call__(self, tokens: Tokens, mask: Mask, written: jax.Array) -> jax.Array:
        """Logits [B, G, T, V], float32, of G continuations `written` [B, G, T] (each begins with the padding id) of texts.

        tokens, mask [B, S]: the texts, padded on the right.
        """
        text = self.encode(tokens, mask)
        return self.logits(self.decode(text, mask, written))

    def of_words(self, tokens: Tokens) -> jax.Array:
        """The vectors of words, [..., D]."""
        return self.embed(tokens)

    def encode(self, tokens: Tokens, mask: Mask, dropout=0.0, key=None, who: dict | None = None) -> jax.Array:
        """The encoder's states of texts, Float[B, S, D]; mask [B, S], or segments: a row may hold several texts, 1, 2, ….

        key: of dropout; who: of a personal prompt, for each of a row's texts (personal_prompts), whose places are the tokens from
        `slot` on.
        """
        x, places = devices.spread(self.embed_texts(tokens, mask, who), self.mesh), jnp.arange(tokens.shape[1])
        bias = self.encoder_bias(buckets_of(places[None] - places[:, None], self.spec, True)).transpose(2, 0, 1)
        bias = bias + only((mask[:, :, None] == mask[:, None]) & (mask[:, None] > 0))

        def layer(block, x, drop):
            return block(x, bias, drop), None

        x, _ = through(self.encoder, layer, dropped(x, dropout, key, 0), dropout, key, self.remat)
        return self.encoder_norm(x)

    def decode(self, text: jax.Array, mask: Mask, written: jax.Array, dropout=0.0, key=None) -> jax.Array:
        """The decoder's states Float[B, G, T, D] of G continuations [B, G, T] of each text [B, S, D].

        Where mask is segments, the g-th continuation is of the g-th text of its row.
        """
        (_, samples, length), places = written.shape, jnp.arange(written.shape[2])
        x, bias = self.embed_tokens(written), self._own_bias(places[:, None], places[None])
        texts = jnp.repeat(jnp.arange(samples), length)[:, None] + 1
        text_bias = only(mask[:, None] if mask.dtype == bool else mask[:, None] == texts)

        def layer(block, x, drop):
            return block(x, block.of_text(text), text_bias, bias, drop)[0], None

        key = key if key is None else jax.random.fold_in(key, 1 << 20)
        x, _ = through(self.decoder, layer, dropped(x, dropout, key, 0), dropout, key, self.remat)
        return self.decoder_norm(x)

    def begin(self, text: jax.Array, mask: Mask, samples: int, most: int) -> dict:
        """What step() needs of texts [B, S, D]: each layer's keys and values of them, and room for `most` positions of G each.

        mask [B, S] of the texts, which a T5 reads in step().
        """
        graph, stack = nnx.split(self.decoder)
        of_text = jax.lax.map(lambda tree: nnx.merge(graph, tree).of_text(text), layers.plain(stack))
        shape = (self.spec.decoder_layers, len(text), samples, most, self.spec.heads, self.spec.head_dim)
        room = jnp.zeros(shape, self.decoder.attention.dtype)
        return {"text": of_text, "own": (room, room)}

    def step(self, caches: dict, mask: Mask, tokens: jax.Array, t) -> tuple[jax.Array, dict]:
        """The states [B, G, D] of position t (a scalar) of all continuations, whose tokens [B, G] are; and the new caches."""
        graph, stack = nnx.split(self.decoder)
        bias = self._own_bias(t[None, None], jnp.arange(caches["own"][0].shape[3])[None])
        text_bias = only(mask[:, None])

        def layer(x, of_layer):
            tree, of_text, own = of_layer
            return nnx.merge(graph, tree)(x, of_text, text_bias, bias, lambda x, _: x, own, t)

        x = self.embed_tokens(tokens)[:, :, None]
        x, own = jax.lax.scan(layer, x, (layers.plain(stack), caches["text"], caches["own"]))
        return self.decoder_norm(x)[:, :, 0], caches | {"own": own}

    def of_parents(self, caches: dict, parent: jax.Array) -> dict:
        """The caches of the continuations that each of [B, G] goes on from."""
        index = parent[None, :, :, None, None, None]
        return caches | {"own": tuple(jnp.take_along_axis(cache, index, 2) for cache in caches["own"])}

    def _own_bias(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Of a continuation's positions to those before them: [heads, T, S]; later ones are hidden."""
        bias = self.decoder_bias(buckets_of(keys - queries, self.spec, False)).transpose(2, 0, 1)
        return jnp.where(keys > queries, -1e9, bias)

    def logits(self, x: jax.Array) -> jax.Array:
        """The decoder's states [..., D] to logits of the vocabulary [..., V], float32."""
        x = x * self.spec.width**-0.5 if self.spec.scaled else x
        return self.head(x, self.embed.table[...].T if self.spec.tied else None)


def only(seen: jax.Array) -> jax.Array:
    """What hides all but what is to be seen [B, T or 1, S] from attention, for all heads: [B, 1, T or 1, S]."""
    return jnp.where(seen, 0.0, jnp.float32(-1e9))[:, None]


def through(stack: nnx.Module, layer, x: jax.Array, rate: float, key, remat: bool) -> tuple[jax.Array, object]:
    """x through a stack's layers, layer(block, x, drop) each; remat: the backward pass computes them once more."""
    graph, trees = nnx.split(stack)
    trees = layers.plain(trees)
    count = layers.size_of(trees)

    def one(x, numbered):
        tree, number = numbered
        return layer(
            nnx.merge(graph, tree), x, lambda values, place: dropped(values, rate, key, 4 * number + place + 1)
        )

    one = jax.checkpoint(one) if remat else one
    return jax.lax.scan(
        one, x, (trees, jnp.arange(count)), unroll=count if count <= UNROLLED // 2 else 1
    )  # there are two stacks
