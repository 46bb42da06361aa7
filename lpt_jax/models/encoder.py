"""The recommender decoder: a BERT text encoder (MiniLM, BGE, mxbai) as pure functions over stacked layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lpt_jax.array_types import Array, Embeddings, Float, Mask, Tokens
from lpt_jax.errors import InputError


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


def spec_from_hf(configs: dict[str, dict | list]) -> EncoderSpec:
    """Spec from a sentence-transformers folder's JSON files, by name; only config.json is needed.

    Without modules.json the pooling is the mean, as sentence-transformers does; InputError on what is unsupported.
    """
    config = configs["config.json"]
    settings = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, wanted in settings.items():
        if config.get(key, wanted) != wanted:
            raise InputError(f"config.json: {key} is {config[key]!r}; encoders here must have {key}={wanted!r}")
    for module in configs.get("modules.json", []):
        if module["type"].split(".")[-1] not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(
                f"modules.json: module {module['path']!r} ({module['type']}) is not supported;"
                " use an encoder of Transformer, Pooling and Normalize only"
            )
    pooling = configs.get("1_Pooling/config.json", {"pooling_mode": "mean"})
    modes = {key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for key, on in pooling.items() if key.startswith("pooling_mode_") and on}  # fmt: skip
    modes = modes or {pooling.get("pooling_mode", "mean")}
    if not (modes <= {"cls", "mean"} and len(modes) == 1 and pooling.get("include_prompt", True)):
        raise InputError(f"1_Pooling/config.json: only cls or mean pooling is supported, not {sorted(modes)}")
    texts = configs.get("config_sentence_transformers.json", {})
    prompts = texts.get("prompts") or {}
    limit = configs.get("sentence_bert_config.json", {}).get("max_seq_length") or config["max_position_embeddings"]
    return EncoderSpec(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        norm_eps=config.get("layer_norm_eps", 1e-12),
        pooling=modes.pop(),
        query_prefix=prompts.get("query") or prompts.get(texts.get("default_prompt_name"), ""),
        max_tokens=min(limit, config["max_position_embeddings"]),
        types=config.get("type_vocab_size", 2),
    )


def init_weights(spec: EncoderSpec, key: Array, scale: float = 0.02) -> dict:
    """Random float32 weights: matrices and embeddings normal with standard deviation `scale`; layers stacked."""
    L, D, F = spec.layers, spec.width, spec.hidden
    shapes = {name: (L, D, D) for name in "qkvo"} | {"up": (L, D, F), "down": (L, F, D)}
    vectors = {f"{name}_bias": (L, shape[-1]) for name, shape in shapes.items()}
    vectors |= {f"{name}_norm_{part}": (L, D) for name in ("attn", "mlp") for part in ("scale", "bias")}
    tables = {"word": (spec.vocab, D), "position": (spec.positions, D), "type": (spec.types, D)}
    keys = iter(jax.random.split(key, len(shapes) + len(tables)))
    ones = lambda name, shape: jnp.full(shape, float(name.endswith("scale")), jnp.float32)  # noqa: E731
    weights = {name: scale * jax.random.normal(next(keys), shape) for name, shape in tables.items()}
    weights["layers"] = {name: scale * jax.random.normal(next(keys), s) for name, s in shapes.items()}
    weights["layers"] |= {name: ones(name, shape) for name, shape in vectors.items()}
    return weights | {name: ones(name, (D,)) for name in ("embed_norm_scale", "embed_norm_bias")}


def _norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """LayerNorm over the last axis in float32."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps) * scale + bias


def hidden_states(
    spec: EncoderSpec, weights: dict, tokens: Tokens, mask: Mask, dtype=jnp.float32, remat: bool = False
) -> Float[Array, "B T D"]:
    """Last hidden states in float32; padding may stand on either side: positions count real tokens only.

    Matrix products read `dtype` and accumulate in float32; norms and softmax are float32.
    `remat` recomputes each layer in the backward pass.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    bias = jnp.where(mask, 0.0, -1e9)[:, None, None, :].astype(jnp.float32)  # finite: an empty row stays finite
    tables = [weights["word"][tokens], weights["position"][positions], weights["type"][:1]]
    x = sum(table.astype(jnp.float32) for table in tables)
    x = _norm(x, weights["embed_norm_scale"], weights["embed_norm_bias"], spec.norm_eps)
    heads = (*tokens.shape, spec.heads, spec.width // spec.heads)

    def layer(x, w):
        dense = lambda x, name: (  # noqa: E731
            product("btd,df->btf", x.astype(dtype), w[name].astype(dtype)) + w[f"{name}_bias"]
        )
        q, k, v = (dense(x, name).reshape(heads).astype(dtype) for name in "qkv")
        scores = product("bqhd,bkhd->bhqk", q, k) * (heads[-1] ** -0.5) + bias
        mixed = product("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(dtype), v).reshape(x.shape)
        x = _norm(x + dense(mixed, "o"), w["attn_norm_scale"], w["attn_norm_bias"], spec.norm_eps)
        mlp = dense(jax.nn.gelu(dense(x, "up"), approximate=False), "down")
        return _norm(x + mlp, w["mlp_norm_scale"], w["mlp_norm_bias"], spec.norm_eps), None

    return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, weights["layers"])[0]


def embed(
    spec: EncoderSpec, weights: dict, tokens: Tokens, mask: Mask, dtype=jnp.float32, remat: bool = False
) -> Embeddings:
    """Unit-length text embeddings: hidden states pooled over the real tokens (mean) or at the first one (cls)."""
    x = hidden_states(spec, weights, tokens, mask, dtype, remat)
    if spec.pooling == "cls":
        pooled = jnp.take_along_axis(x, jnp.argmax(mask, axis=1)[:, None, None], axis=1)[:, 0]
    else:
        pooled = jnp.where(mask[..., None], x, 0.0).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return pooled * jax.lax.rsqrt(jnp.maximum(jnp.square(pooled).sum(-1, keepdims=True), 1e-24))


class Encoder(nnx.Module):
    """A spec and its weights as one NNX module: `Encoder(spec, weights)(tokens, mask)` gives embeddings."""

    def __init__(self, spec: EncoderSpec, weights: dict):
        self.spec = spec
        self.weights = nnx.data(jax.tree.map(nnx.Param, weights))

    def __call__(self, tokens: Tokens, mask: Mask, dtype=jnp.float32) -> Embeddings:
        weights = jax.tree.map(lambda p: p[...], self.weights, is_leaf=lambda p: isinstance(p, nnx.Param))
        return embed(self.spec, weights, tokens, mask, dtype)
