"""The recommender decoder: a BERT text encoder (MiniLM, BGE, mxbai) as pure functions over stacked layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax import devices
from lpt_jax.array_types import Array, Embeddings, Float, Mask, Segments, Tokens
from lpt_jax.errors import InputError
from lpt_jax.models.decoder import hash_name
from lpt_jax.models.products import UNROLLED, product


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Shape and habits of a BERT text encoder; hashable, so that jit can take it as static."""

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
    mesh: jax.sharding.Mesh | None = None  # over which activations are spread


CONFIG = {  # spec field: config.json key
    "vocab": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "hidden": "intermediate_size",
    "positions": "max_position_embeddings", "norm_eps": "layer_norm_eps", "types": "type_vocab_size",
}  # fmt: skip
WANTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def spec_from_hf(configs: dict[str, dict | list]) -> EncoderSpec:
    """Spec from a sentence-transformers folder's JSON files, by name; only config.json is needed.

    Without modules.json the pooling is the mean, as in sentence-transformers; InputError on what is unsupported.
    """
    config, texts = configs["config.json"], configs.get("config_sentence_transformers.json", {})
    for key, wanted in WANTED.items():
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
        **{ours: config[theirs] for ours, theirs in CONFIG.items()},
        pooling=modes[0],
        query_prefix=prompts.get("query") or prompts.get(texts.get("default_prompt_name"), ""),
        max_tokens=min(limit or 512, config["max_position_embeddings"]),
    )


def shapes(spec: EncoderSpec) -> dict:
    """The shape of every weight, as the weights' own nested dict; layers are stacked on their first axis."""
    L, D, F = spec.layers, spec.width, spec.hidden
    layer = {f"{norm}_{part}": (L, D) for norm in ("attn_norm", "mlp_norm") for part in ("scale", "bias")}
    for name, inward, outward in (*((n, D, D) for n in "qkvo"), ("up", D, F), ("down", F, D)):
        layer |= {name: (L, inward, outward), f"{name}_bias": (L, outward)}
    top = {"word": (spec.vocab, D), "position": (spec.positions, D), "type": (spec.types, D)}
    return top | {"embed_norm_scale": (D,), "embed_norm_bias": (D,), "layers": layer}


def init_weights(spec: EncoderSpec, key: Array) -> dict:
    """Random float32 weights: normal(0, 0.02) matrices and embeddings, identity norms, zero biases."""

    def make(path, shape):
        name = path[-1].key
        if name.endswith(("scale", "bias")):
            return jnp.full(shape, float(name.endswith("scale")), jnp.float32)
        return 0.02 * jax.random.normal(jax.random.fold_in(key, hash_name(name)), shape)

    return jax.tree.map_with_path(make, shapes(spec), is_leaf=lambda x: isinstance(x, tuple))


def _norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """LayerNorm over the last axis in float32."""
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + eps)
    return x * scale + bias


def hidden_states(spec: EncoderSpec, weights: dict, tokens: Tokens, texts: Mask | Segments, dtype="float32",
                  remat: bool = False) -> Float[Array, "B T D"]:  # fmt: skip
    """Last hidden states in float32. A row holds one text (texts: its mask) or several, 1, 2, …; 0 is padding.

    A text sees itself alone, wherever it stands: positions count its own tokens. Matrix products read `dtype` and
    accumulate in float32; norms and softmax are float32. `remat` recomputes each layer in the backward pass.
    """
    mix = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    same = texts[:, :, None] == texts[:, None, :]
    positions = jnp.tril(same, -1).sum(-1)
    bias = jnp.where(same & (texts[:, None, :] > 0), 0.0, jnp.float32(-1e9))[:, None]  # finite: so is padding
    tables = [weights["word"][tokens], weights["position"][positions], weights["type"][:1]]
    x = devices.spread(sum(table.astype(jnp.float32) for table in tables), spec.mesh)
    x = _norm(x, weights["embed_norm_scale"], weights["embed_norm_bias"], spec.norm_eps)
    heads = (*tokens.shape, spec.heads, spec.width // spec.heads)

    def layer(x, w):
        def dense(x, name):
            return devices.spread(product(x, w[name], dtype) + w[f"{name}_bias"], spec.mesh, devices.PARTITION[name][1])

        q, k, v = (dense(x, name).reshape(heads).astype(dtype).swapaxes(1, 2) for name in "qkv")
        scores = mix("bhqd,bhkd->bhqk", q, k) * (heads[-1] ** -0.5) + bias
        # a softmax that divides after the mixing, where there is less to divide: half the time on CPU
        weight = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = mix("bhqk,bhkd->bhqd", weight.astype(dtype), v) / weight.sum(-1, keepdims=True)
        mixed = mixed.swapaxes(1, 2).reshape(x.shape)
        x = _norm(x + dense(mixed, "o"), w["attn_norm_scale"], w["attn_norm_bias"], spec.norm_eps)
        h = dense(x, "up")
        mlp = dense(h * (0.5 + 0.5 * jax.lax.erf(h * 0.5**0.5)), "down")  # gelu; by erfc, as in jax.nn, it is slower
        return _norm(x + mlp, w["mlp_norm_scale"], w["mlp_norm_bias"], spec.norm_eps), None

    unroll = spec.layers if spec.layers <= UNROLLED else 1
    return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, weights["layers"], unroll=unroll)[0]


def embed_packed(spec: EncoderSpec, weights: dict, tokens: Tokens, texts: Segments, most: int, dtype="float32",
                 remat: bool = False) -> Float[Array, "B S D"]:  # fmt: skip
    """Unit-length embeddings of the texts 1 … `most` of each row: hidden states pooled by mean or at the first token (cls).

    What a row has no text for gets zeros.
    """
    x = hidden_states(spec, weights, tokens, texts, dtype, remat)
    own = texts[:, None, :] == jnp.arange(1, most + 1)[:, None]
    own = own & (jnp.cumsum(own, -1) == 1) if spec.pooling == "cls" else own
    pooled = jnp.einsum("bst,btd->bsd", own.astype(x.dtype), x, precision="highest")
    pooled /= jnp.maximum(own.sum(-1, keepdims=True), 1)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.square(pooled).sum(-1, keepdims=True), 1e-24))


def embed(spec: EncoderSpec, weights: dict, tokens: Tokens, mask: Mask, dtype="float32",
          remat: bool = False) -> Embeddings:  # fmt: skip
    """Unit-length embeddings of one text a row."""
    return embed_packed(spec, weights, tokens, mask, 1, dtype, remat)[:, 0]


class Encoder(nnx.Module):
    """A spec and its weights as one NNX module: `Encoder(spec, weights)(tokens, mask)` gives embeddings."""

    def __init__(self, spec: EncoderSpec, weights: dict):
        self.spec = spec
        self.weights = nnx.data(jax.tree.map(nnx.Param, weights))

    def __call__(self, tokens: Tokens, mask: Mask, dtype="float32") -> Embeddings:
        return embed(self.spec, nnx.as_pure(self.weights), tokens, mask, dtype)
