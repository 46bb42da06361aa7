"""BERT text encoders (MiniLM, BGE, mxbai) as a Flax NNX module: token rows -> unit-length embeddings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax import devices
from lpt_jax.array_types import Embeddings, Float, Mask, Segments, Tokens
from lpt_jax.errors import InputError
from lpt_jax.models import layers, weights
from lpt_jax.models.layers import COLUMNS, ROWS, Embed, LayerNorm, Linear
from lpt_jax.models.products import UNROLLED


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Shape and habits of a BERT text encoder."""

    vocab: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    norm_eps: float = 1e-12
    pooling: str = "mean"  # "mean" over the real tokens, or "cls": the first real token
    query_prefix: str = ""  # put before profiles, never before items
    max_tokens: int = 512  # longer texts are cut
    types: int = 2


def spec_from_hf(configs: dict[str, dict | list]) -> EncoderSpec:
    """Spec from a sentence-transformers folder's JSON files, by name; only config.json is needed.

    Without modules.json the pooling is the mean, as in sentence-transformers; InputError on what is unsupported.
    """
    config, texts = configs["config.json"], configs.get("config_sentence_transformers.json", {})
    for key, wanted in weights.BERT.items():
        if config.get(key, wanted) != wanted:
            raise InputError(f"config.json: {key} {config[key]!r} is not supported, only {wanted!r}")
    for module in configs.get("modules.json", []):
        if module["type"].split(".")[-1] not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(
                f"modules.json: the module {module['path']!r} ({module['type']}) is not supported;"
                " use an encoder that has only Transformer, Pooling and Normalize"
            )
    pooling = configs.get("1_Pooling/config.json", {"pooling_mode": "mean"})
    modes = [k.split("_")[2] for k, on in pooling.items() if k.startswith("pooling_mode_") and on]
    modes = modes or [pooling.get("pooling_mode")]
    if modes not in (["cls"], ["mean"]) or not pooling.get("include_prompt", True):
        raise InputError(f"1_Pooling/config.json: only cls or mean pooling is supported: {pooling}")
    prompts = texts.get("prompts") or {}
    limit = configs.get("sentence_bert_config.json", {}).get("max_seq_length")
    return EncoderSpec(
        **{ours: config[theirs] for ours, theirs in weights.ENCODER_SETTINGS.items()},
        pooling=modes[0],
        query_prefix=prompts.get("query") or prompts.get(texts.get("default_prompt_name"), ""),
        max_tokens=min(limit or 512, config["max_position_embeddings"]),
    )


class Attention(nnx.Module):
    """Self-attention of texts that share a row: bias [B, 1, T, T] keeps them apart."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs, stack=()):
        dense = functools.partial(Linear, inward=spec.width, outward=spec.width, rngs=rngs, stack=stack, bias=True)
        self.q, self.k, self.v = (dense(name, axes=COLUMNS) for name in "qkv")
        self.o = dense("o", axes=ROWS)
        self.heads, self.dtype = spec.heads, "float32"

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        mix = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        heads = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        q, k, v = (part(x).reshape(heads).astype(self.dtype).swapaxes(1, 2) for part in (self.q, self.k, self.v))
        scores = mix("bhqd,bhkd->bhqk", q, k) * (heads[-1] ** -0.5) + bias
        # a softmax that divides after the mixing, where there is less to divide: half the time on CPU
        shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = mix("bhqk,bhkd->bhqd", shares.astype(self.dtype), v) / shares.sum(-1, keepdims=True)
        return self.o(mixed.swapaxes(1, 2).reshape(x.shape))


class Block(nnx.Module):
    """One layer, or with stack=(K,) the parameters of K of them."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs, stack=()):
        self.attention = Attention(spec, rngs, stack)
        self.attn_norm = LayerNorm(spec.width, spec.norm_eps, stack)
        self.up = Linear("up", spec.width, spec.hidden, COLUMNS, rngs, stack, bias=True)
        self.down = Linear("down", spec.hidden, spec.width, ROWS, rngs, stack, bias=True)
        self.mlp_norm = LayerNorm(spec.width, spec.norm_eps, stack)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        x = self.attn_norm(x + self.attention(x, bias))
        h = self.up(x)
        h = self.down(h * (0.5 + 0.5 * jax.lax.erf(h * 0.5**0.5)))  # gelu; by erfc, as in jax.nn, it is slower
        return self.mlp_norm(x + h)


class TextEncoder(nnx.Module):
    """A BERT encoder: `encoder(tokens, mask)` gives unit-length embeddings; `source` has its tokenizer."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.word = Embed("word", spec.vocab, spec.width, ROWS, rngs)
        self.position = Embed("position", spec.positions, spec.width, (), rngs)
        self.type = Embed("type", spec.types, spec.width, (), rngs)
        self.embed_norm = LayerNorm(spec.width, spec.norm_eps)
        self.layers = Block(spec, rngs, stack=(spec.layers,))
        self.spec, self.source, self.mesh = spec, None, None

    @classmethod
    def load(cls, source: str, dtype: str = "float32") -> "TextEncoder":
        """Reads a BERT text encoder: a folder, "org/name[@revision]" or "carrier:<name>"; parameters are numpy arrays."""
        files = weights.encoder_files(str(source))
        spec = spec_from_hf(files.config)
        encoder = nnx.eval_shape(lambda: cls(spec, nnx.Rngs(0)))
        encoder = weights.filled_in(encoder, weights.ENCODER_KEYS, files, dtype)
        encoder.source = files.source()
        return encoder

    def hidden_states(self, tokens: Tokens, texts: Mask | Segments, remat: bool = False) -> Float[jax.Array, "B T D"]:
        """Last hidden states in float32. A row holds one text (texts: its mask) or several, 1, 2, …; 0 is padding.

        A text sees itself alone, wherever it stands: positions count its own tokens. `remat` recomputes each layer in
        the backward pass.
        """
        same = texts[:, :, None] == texts[:, None, :]
        positions = jnp.tril(same, -1).sum(-1)
        bias = jnp.where(same & (texts[:, None, :] > 0), 0.0, jnp.float32(-1e9))[:, None]  # finite: so is padding
        x = self.word(tokens) + self.position(positions) + self.type.table[...][:1].astype(jnp.float32)
        x = self.embed_norm(devices.spread(x, self.mesh))
        graph, stack = nnx.split(self.layers)

        def layer(x, of_layer):
            return nnx.merge(graph, of_layer)(x, bias), None

        layer = jax.checkpoint(layer) if remat else layer
        unroll = self.spec.layers if self.spec.layers <= UNROLLED else 1
        return jax.lax.scan(layer, x, layers.plain(stack), unroll=unroll)[0]

    def packed(self, tokens: Tokens, texts: Segments, most: int, remat: bool = False) -> Float[jax.Array, "B S D"]:
        """Unit-length embeddings of the texts 1 … `most` of each row: pooled by mean or at the first token (cls).

        What a row has no text for gets zeros.
        """
        x = self.hidden_states(tokens, texts, remat)
        own = texts[:, None, :] == jnp.arange(1, most + 1)[:, None]
        own = own & (jnp.cumsum(own, -1) == 1) if self.spec.pooling == "cls" else own
        pooled = jnp.einsum("bst,btd->bsd", own.astype(x.dtype), x, precision="highest")
        pooled /= jnp.maximum(own.sum(-1, keepdims=True), 1)
        return pooled * jax.lax.rsqrt(jnp.maximum(jnp.square(pooled).sum(-1, keepdims=True), 1e-24))

    def __call__(self, tokens: Tokens, mask: Mask) -> Embeddings:
        """Unit-length embeddings of one text a row."""
        return self.packed(tokens, mask, 1)[:, 0]
