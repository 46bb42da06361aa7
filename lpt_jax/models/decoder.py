"""Llama, SmolLM2, Qwen and Gemma as one transformer; a small spec says what differs between families.

Weights are a plain dict of arrays; layers are stacked on their first axis and scanned, or a list. One pass works on *packed* rows:
P context positions (the prompt without its last token, left-padded) followed by G continuations of T
positions each, which all see the context but not each other. So a prompt is computed once for its G
profiles, in prefill, scoring and training alike; G = 0 is an ordinary causal pass.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.errors import InputError
from lpt_jax.models.products import UNROLLED, product

MASKED = -1e30  # finite: a fully masked row gives a mean, not NaN
CHUNK = 128  # queries per block of chunked attention


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Shapes and family differences of a decoder; hashable, so that it can be a static argument."""

    family: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int  # of the gated MLP
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tied: bool = False  # the head is the embedding, transposed
    norm_plus_one: bool = False  # Gemma: norms multiply by 1 + w
    embed_scale: float = 1.0  # Gemma: sqrt(width)
    activation: str = "silu"  # or gelu_tanh
    qk_norm: bool = False  # Qwen 3, Gemma 3
    qkv_bias: bool = False  # Qwen 2.5
    post_norms: bool = False  # Gemma 2, 3: norms after attention and after the MLP too
    query_scale: float | None = None  # None: head_dim ** -0.5
    attn_softcap: float | None = None  # Gemma 2
    final_softcap: float | None = None  # Gemma 2
    windows: tuple[int, ...] = ()  # per layer: 0 = global, else a sliding window; () = all global
    local_rope_theta: float | None = None  # Gemma 3: theta of the windowed layers
    rope_scaling: tuple[tuple[str, object], ...] | None = None  # llama3 or linear, global layers only
    dtype: str = "float32"  # of matrix products' inputs; they accumulate in float32
    attention: str = "chunked"  # chunked | xla (the tests' oracle): the context's own attention
    lora_scale: float = 0.0  # alpha / rank, where LoRA matrices are present
    mesh: jax.sharding.Mesh | None = None  # over which activations are spread


# ---- specs and weights


def spec_from_hf(config: dict) -> DecoderSpec:
    """The spec of a Hugging Face config.json (transformers 4 and 5 styles); InputError if unsupported."""
    config = config.get("text_config") or config
    family = config.get("model_type", "").removesuffix("_text")
    if family not in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"):
        raise InputError(
            f"model_type {family!r} is not supported as profile encoder: use a llama (SmolLM2), qwen2, "
            "qwen3, gemma, gemma2 or gemma3 model."
        )
    if config.get("attention_bias") and family != "qwen2" or config.get("mlp_bias"):
        raise InputError(f"this {family} model has biases (attention_bias, mlp_bias), which are not supported.")
    gemma = family.startswith("gemma")
    heads, width, layers = (config[k] for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    head_dim = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
    scaling = config.get("rope_scaling") or {k: v for k, v in rope.items() if k != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "llama3", "linear"):
        raise InputError(f"rope scaling {kind!r} is not supported: use a model with default, linear or llama3.")
    return DecoderSpec(
        family=family,
        vocab=config["vocab_size"], width=width, layers=layers, heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads, head_dim=head_dim,
        hidden=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        tied=config.get("tie_word_embeddings", gemma),
        norm_plus_one=gemma,
        embed_scale=math.sqrt(width) if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
        qk_norm=family in ("qwen3", "gemma3"),
        qkv_bias=family == "qwen2",
        post_norms=family in ("gemma2", "gemma3"),
        query_scale=config["query_pre_attn_scalar"] ** -0.5 if family in ("gemma2", "gemma3") else None,
        attn_softcap=config.get("attn_logit_softcapping") if family == "gemma2" else None,
        final_softcap=config.get("final_logit_softcapping") if family == "gemma2" else None,
        windows=_windows(config, family, layers),
        local_rope_theta=(local or config.get("rope_local_base_freq") or 10000.0) if family == "gemma3" else None,
        rope_scaling=None if kind == "default" else tuple(sorted(scaling.items())),
    )  # fmt: skip


def _windows(config: dict, family: str, layers: int) -> tuple[int, ...]:
    size = config.get("sliding_window")
    types = config.get("layer_types")
    if not size or (family.startswith("qwen") and not config.get("use_sliding_window")):
        return ()
    if types is None and family == "gemma2":
        types = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    if types is None and family == "gemma3":
        every = config.get("sliding_window_pattern") or 6
        types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if types is None:
        return ()
    return tuple(size if t == "sliding_attention" else 0 for t in types)


def shapes(spec: DecoderSpec) -> dict:
    """The shape of every weight, as the weights' own nested dict."""
    s, heads, kv = spec, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = {
        "attn_norm": (s.width,), "q": (s.width, heads), "k": (s.width, kv), "v": (s.width, kv),
        "o": (heads, s.width), "mlp_norm": (s.width,), "gate": (s.width, s.hidden),
        "up": (s.width, s.hidden), "down": (s.hidden, s.width),
    }  # fmt: skip
    if s.qkv_bias:
        layer |= {"q_bias": (heads,), "k_bias": (kv,), "v_bias": (kv,)}
    if s.qk_norm:
        layer |= {"q_norm": (s.head_dim,), "k_norm": (s.head_dim,)}
    if s.post_norms:
        layer |= {"post_attn_norm": (s.width,), "post_mlp_norm": (s.width,)}
    top = {"embed": (s.vocab, s.width), "final_norm": (s.width,)}
    if not s.tied:
        top["head"] = (s.width, s.vocab)
    return top | {"layers": {name: (s.layers, *shape) for name, shape in layer.items()}}


def init_weights(spec: DecoderSpec, key: jax.Array) -> dict:
    """Random weights: normal(0, 0.02) matrices, identity norms, zero biases (float32)."""

    def make(path, shape):
        name = path[-1].key
        if name.endswith("norm"):
            return jnp.full(shape, 0.0 if spec.norm_plus_one else 1.0)
        if name.endswith("bias"):
            return jnp.zeros(shape)
        return 0.02 * jax.random.normal(jax.random.fold_in(key, hash_name(name)), shape)

    return jax.tree_util.tree_map_with_path(make, shapes(spec), is_leaf=lambda x: isinstance(x, tuple))


def hash_name(name: str) -> int:
    """A small number from a weight's name, the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % (2**31)


# ---- parts


def norm(x: jax.Array, scale: jax.Array, spec: DecoderSpec) -> jax.Array:
    """RMS norm over the last axis, in float32."""
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + spec.norm_eps)
    scale = scale.astype(jnp.float32)
    return x * (1.0 + scale if spec.norm_plus_one else scale)


def dense(x: jax.Array, w: dict, name: str, spec: DecoderSpec) -> jax.Array:
    """x @ w[name] (+ LoRA, + bias) in spec.dtype, accumulated and returned in float32."""
    y = product(x, w[name], spec.dtype)
    if f"{name}_lora_a" in w:
        y += spec.lora_scale * product(product(x, w[f"{name}_lora_a"], spec.dtype), w[f"{name}_lora_b"], spec.dtype)
    if f"{name}_bias" in w:
        y += w[f"{name}_bias"].astype(jnp.float32)
    return devices.spread(y, spec.mesh, devices.PARTITION[name][1])


def _frequencies(spec: DecoderSpec, local: bool) -> np.ndarray:
    theta = spec.local_rope_theta if local and spec.local_rope_theta else spec.rope_theta
    inverse = theta ** -(np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim)
    scaling = dict(spec.rope_scaling or ())
    kind = scaling.get("rope_type", scaling.get("type"))
    if local and spec.local_rope_theta or kind is None:
        return inverse
    if kind == "linear":
        return inverse / scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * np.pi / inverse
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 - smooth) * inverse / scaling["factor"] + smooth * inverse


def rope_tables(spec: DecoderSpec, positions: jax.Array) -> jax.Array:
    """cos and sin of every position: [2 (global, local), 2 (cos, sin), ..., head_dim / 2], float32."""
    tables = []
    for local in (False, True) if spec.local_rope_theta else (False,):
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(_frequencies(spec, local), jnp.float32)
        tables.append(jnp.stack([jnp.cos(angles), jnp.sin(angles)]))
    return jnp.stack(tables)


def _rotate(x, table):
    """x [..., heads, hd] by the angles of table [2, ..., hd / 2]."""
    cos, sin = table[0][..., None, :], table[1][..., None, :]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _qkv(spec, w, x, table):
    """Projected, normed and rotated q [..., kv, rep, hd], k and v [..., kv, hd]."""
    if "qkv" in w:  # generation.unstack joined them
        ends = np.cumsum([spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim])
        q, k, v = jnp.split(dense(x, w, "qkv", spec), ends, -1)
    else:
        q, k, v = (dense(x, w, name, spec) for name in "qkv")
    q, k, v = (a.reshape(*x.shape[:-1], -1, spec.head_dim) for a in (q, k, v))
    if spec.qk_norm:
        q, k = norm(q, w["q_norm"], spec), norm(k, w["k_norm"], spec)
    q, k = _rotate(q, table), _rotate(k, table)
    scale = spec.query_scale or spec.head_dim**-0.5
    q = (q * scale).reshape(*x.shape[:-1], spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim)
    return q.astype(spec.dtype), k.astype(spec.dtype), v.astype(spec.dtype)


def _scores(spec, q, k, allowed):
    """Masked, soft-capped attention scores of q [..., Q, hd] on k [..., S, hd], float32."""
    scores = jnp.einsum("...qd,...sd->...qs", q, k, preferred_element_type=jnp.float32)
    if spec.attn_softcap:
        scores = spec.attn_softcap * jnp.tanh(scores / spec.attn_softcap)
    return jnp.where(allowed, scores, MASKED)


def _near(query_index, key_index, window):
    """True where a key is not after its query and within the sliding window (0 = no limit)."""
    distance = query_index[:, None] - key_index[None, :]
    return (distance >= 0) & ((window == 0) | (distance < window))


def context_attention(spec, q, k, v, mask, window) -> jax.Array:
    """Causal attention of a context with itself.

    Shapes: q [B, P, kv, rep, hd], k and v [B, kv, P, hd], mask [B, P], window a scalar; returns
    [B, P, heads * hd]. "xla" is the oracle; "chunked" walks over blocks of queries and never looks
    at keys after the block.
    """
    batch, length, kv, rep, hd = q.shape
    q = q.transpose(0, 2, 1, 3, 4)  # [B, kv, P, rep, hd]
    step, blocks = CHUNK if spec.attention == "chunked" else length, []
    for start in range(0, length, step):
        stop = min(start + step, length)
        allowed = _near(jnp.arange(start, stop), jnp.arange(stop), window)[None] & mask[:, None, :stop]
        allowed = jnp.repeat(allowed, rep, 1)[:, None]  # [B, 1, Q * rep, S]
        block = q[:, :, start:stop].reshape(batch, kv, -1, hd)
        weights = jax.nn.softmax(_scores(spec, block, k[:, :, :stop], allowed), -1).astype(spec.dtype)
        out = jnp.einsum("...qs,...sd->...qd", weights, v[:, :, :stop], preferred_element_type=jnp.float32)
        blocks.append(out.reshape(batch, kv, stop - start, rep, hd))
    out = jnp.concatenate(blocks, 2) if len(blocks) > 1 else blocks[0]
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, -1)


def continuation_attention(spec, q, context, context_mask, own, own_index, window) -> jax.Array:
    """Attention of G continuations with their shared context and, causally, with themselves.

    Shapes: q [B, kv, G, Q, rep, hd]; context: k, v [B, kv, P, hd]; context_mask [B, P]; own: k, v
    [B, kv, G, S, hd]; own_index [Q], the positions of the queries among the S. Returns [B, G, Q, heads * hd].
    """
    batch, kv, samples, queries, rep, hd = q.shape
    length, size = context[0].shape[2], own[0].shape[3]
    near = _near(length + own_index, jnp.arange(length + size), window)  # [Q, P + S]
    seen = (near[None, :, :length] & context_mask[:, None, :])[:, None, None, :, None]  # [B,1,1,Q,1,P]
    seen = jnp.broadcast_to(seen, (batch, 1, samples, queries, rep, length)).reshape(batch, 1, -1, length)
    scores = _scores(spec, q.reshape(batch, kv, -1, hd), context[0], seen)
    scores_own = _scores(spec, q.reshape(batch, kv, samples, -1, hd), own[0], jnp.repeat(near[:, length:], rep, 0))
    top = jnp.maximum(scores.max(-1), scores_own.max(-1).reshape(batch, kv, -1))
    top = jax.lax.stop_gradient(top)[..., None]
    weights = jnp.exp(scores - top)
    weights_own = jnp.exp(scores_own - top.reshape(batch, kv, samples, -1, 1))
    total = weights.sum(-1).reshape(weights_own.shape[:-1]) + weights_own.sum(-1)
    mix = "...qs,...sd->...qd"
    out = jnp.einsum(mix, weights.astype(spec.dtype), context[1], preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv, samples, -1, hd) + jnp.einsum(
        mix, weights_own.astype(spec.dtype), own[1], preferred_element_type=jnp.float32
    )
    out = (out / total[..., None]).reshape(batch, kv, samples, queries, rep, hd)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(batch, samples, queries, -1)


def _after_attention(spec, w, x, attended):
    """The rest of a layer: output projection, residuals and the gated MLP."""
    out = dense(attended, w, "o", spec)
    x = x + (norm(out, w["post_attn_norm"], spec) if spec.post_norms else out)
    h = norm(x, w["mlp_norm"], spec)
    gate = dense(h, w, "gate", spec)
    gate = jax.nn.silu(gate) if spec.activation == "silu" else jax.nn.gelu(gate, approximate=True)
    out = dense(gate * dense(h, w, "up", spec), w, "down", spec)
    return x + (norm(out, w["post_mlp_norm"], spec) if spec.post_norms else out)


# ---- passes


def embed_tokens(spec: DecoderSpec, weights: dict, tokens: jax.Array) -> jax.Array:
    """Token ids [...] to hidden states [..., D] in float32."""
    return devices.spread(weights["embed"][tokens].astype(jnp.float32) * spec.embed_scale, spec.mesh)


def positions_of(mask: jax.Array, samples: int = 0, length: int = 0) -> jax.Array:
    """Rope positions [B, P + G·T] of packed rows whose context has this mask [B, P]."""
    context = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    own = jnp.sum(mask, 1, keepdims=True) + jnp.tile(jnp.arange(length), samples)[None]
    return jnp.concatenate([context, own.astype(context.dtype)], 1)


def layer_windows(spec: DecoderSpec, start: int, count: int) -> jax.Array:
    """Sliding windows [count] of the layers from start, 0 = global."""
    return jnp.asarray((spec.windows or (0,) * spec.layers)[start : start + count], jnp.int32)


def run(spec: DecoderSpec, layers: dict | list[dict], x: jax.Array, mask: jax.Array, samples: int = 0, *,
        start: int = 0, remat: bool = False, last: bool = False) -> tuple[jax.Array, list]:  # fmt: skip
    """Runs layers over packed rows.

    Args:
      layers: a dict of arrays [K, ...] or a list of K dicts: layers start … start + K - 1 of the model.
      x: hidden states [B, P + G·T, D]: context, then G continuations of T positions.
      mask: [B, P], True where the context is real (left-padded).
      samples: G; 0 where there is no continuation.
      last: these are the last layers, and only the continuations' outputs are wanted: the context's own
        output, which nobody reads, isn't computed in the last of them.

    Returns:
      the hidden states [B, P + G·T, D] (with last: [B, G·T, D]), and per layer the context's (keys, values),
      each [B, kv, P, hd].
    """
    batch, context = mask.shape
    length = (x.shape[1] - context) // samples if samples else 0
    tables = rope_tables(spec, positions_of(mask, samples, length))
    listed = isinstance(layers, list)
    count = len(layers) if listed else next(iter(layers.values())).shape[0]

    def layer(x, scanned, drop_context=False):
        w, window = scanned
        table = jnp.where(window > 0, tables[1], tables[0]) if spec.local_rope_theta else tables[0]
        q, k, v = _qkv(spec, w, norm(x, w["attn_norm"], spec), table)
        head_major = tuple(a[:, :context].swapaxes(1, 2) for a in (k, v))  # [B, kv, P, hd]
        out = []
        if context and not drop_context:
            out.append(context_attention(spec, q[:, :context], *head_major, mask, window))
        if samples:
            own = [a[:, context:].reshape(batch, samples, length, spec.kv_heads, spec.head_dim)
                   .transpose(0, 3, 1, 2, 4) for a in (k, v)]  # fmt: skip
            rows = q[:, context:].reshape(batch, samples, length, *q.shape[2:]).transpose(0, 3, 1, 2, 4, 5)
            mixed = continuation_attention(spec, rows, head_major, mask, own, jnp.arange(length), window)
            out.append(mixed.reshape(batch, samples * length, -1))
        if drop_context:
            x = x[:, context:]
        return _after_attention(spec, w, x, jnp.concatenate(out, 1) if len(out) > 1 else out[0]), head_major

    step = jax.checkpoint(layer, static_argnums=2) if remat else layer
    last = bool(last and samples)
    windows = layer_windows(spec, start, count)
    if listed:
        kept = []
        for i, w in enumerate(layers):
            x, pair = step(x, (w, windows[i]), last and i == count - 1)
            kept.append(pair)
        return x, kept
    stack = layers, windows
    below = jax.tree.map(lambda a: a[: count - last], stack)
    unroll = count if count <= UNROLLED else 1
    x, (keys, values) = jax.lax.scan(lambda x, s: step(x, s, False), x, below, unroll=unroll)
    kept = [(keys[i], values[i]) for i in range(count - last)]
    if last:
        x, top = step(x, jax.tree.map(lambda a: a[-1], stack), True)
        kept.append(top)
    return x, kept


def decode_step(spec: DecoderSpec, layers: list[dict], x: jax.Array, t: jax.Array, context: list,
                context_mask: jax.Array, own: list, start: int = 0) -> tuple[jax.Array, list]:  # fmt: skip
    """One position of all continuations through a *list* of layers, with caches updated in place.

    Args:
      x: hidden states [B, G, D] of position t (a scalar, counted from the continuations' first).
      context: per layer (keys, values), each [B, kv, P, hd]; context_mask [B, P].
      own: per layer (keys, values), each [B, kv, G, T, hd].

    Returns:
      the hidden states [B, G, D] after the layers, and the new own caches.
    """
    position = jnp.sum(context_mask, 1)[:, None] + t  # [B, 1]
    tables = rope_tables(spec, position)
    # few rows: they move to the weights, not these to them
    mesh, spec = spec.mesh, dataclasses.replace(spec, mesh=None)
    windows = spec.windows or (0,) * spec.layers
    kept = []
    for i, (w, (ck, cv), (ok, ov)) in enumerate(zip(layers, context, own, strict=True)):
        table = tables[1 if windows[start + i] and spec.local_rope_theta else 0]
        q, k, v = _qkv(spec, w, norm(devices.gathered(x, mesh), w["attn_norm"], spec), table)
        q, k, v = (devices.spread(a, mesh) for a in (q, k, v))
        k, v = (a.swapaxes(1, 2)[:, :, :, None] for a in (k, v))  # [B, kv, G, 1, hd]
        ok = jax.lax.dynamic_update_slice_in_dim(ok, k.astype(ok.dtype), t, 3)
        ov = jax.lax.dynamic_update_slice_in_dim(ov, v.astype(ov.dtype), t, 3)
        rows = q.swapaxes(1, 2)[:, :, :, None]  # [B, kv, G, 1, rep, hd]
        mixed = continuation_attention(spec, rows, (ck, cv), context_mask, (ok, ov), t[None], windows[start + i])
        x = _after_attention(spec, w, devices.gathered(x, mesh), devices.gathered(mixed[:, :, 0], mesh))
        kept.append((ok, ov))
    return devices.spread(x, mesh), kept


def logits(spec: DecoderSpec, weights: dict, x: jax.Array) -> jax.Array:
    """Hidden states [..., D] after the last layer to logits [..., V], float32."""
    return _words(spec, weights, norm(x, weights["final_norm"], spec))


def _words(spec, weights, x):
    """Normed hidden states to logits."""
    if "head" in weights:
        out = dense(x, weights, "head", spec)
    else:
        head = {k: v for k, v in weights.items() if k.startswith("head_")} | {"head": weights["embed"].T}
        out = dense(x, head, "head", spec)
    if spec.final_softcap:
        out = spec.final_softcap * jnp.tanh(out / spec.final_softcap)
    return out


def log_probs(spec: DecoderSpec, weights: dict, x: jax.Array, tokens: jax.Array, temperature: float,
              chunk: int, frozen_head: bool = False) -> jax.Array:  # fmt: skip
    """log π(token) at every profile position, with at most about `chunk` positions' logits alive at once.

    Shapes: x [B, G, T, D], tokens [B, G, T]; returns [B, G, T]. π = softmax(logits / temperature).
    frozen_head: no derivative is asked of the head (the final norm's always can be). A position's derivative
    then is formed while its logits are there, and the backward pass computes no logits again.
    """
    batch, samples, length, _ = x.shape
    step = max(1, min(length, chunk // max(1, batch * samples)))
    padded = -length % step
    x = jnp.pad(norm(x, weights["final_norm"], spec), ((0, 0), (0, 0), (0, padded), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, padded)))

    head = {name: w for name, w in weights.items() if name == "embed" or name.startswith("head")}

    def part(head, h, ids):
        scores = _words(spec, head, h) / temperature
        chosen = jnp.take_along_axis(scores, ids[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(scores, -1)

    def forward(head, h, ids):
        found, pull = jax.vjp(lambda h: part(head, h, ids), h)
        return found, pull(jnp.ones_like(found))[0]

    if frozen_head:
        block = jax.custom_vjp(part)
        block.defvjp(forward, lambda slope, cotangent: (None, slope * cotangent[..., None], None))
    else:
        block = jax.checkpoint(part)

    def blocks(a):
        return jnp.moveaxis(a.reshape(batch, samples, -1, step, *a.shape[3:]), 2, 0)

    out = jax.lax.map(lambda b: block(head, *b), (blocks(x), blocks(tokens)))  # [blocks, B, G, step]
    return jnp.moveaxis(out, 0, 2).reshape(batch, samples, -1)[:, :, :length]


class Decoder(nnx.Module):
    """The language model as an NNX module: nnx.Param leaves with the names of the weights dict."""

    def __init__(self, spec: DecoderSpec, weights: dict):
        self.spec = spec
        top = {k: v for k, v in weights.items() if k != "layers"}
        self.params = nnx.Dict({k: nnx.Param(jnp.asarray(v)) for k, v in top.items()})
        self.layers = nnx.Dict({k: nnx.Param(jnp.asarray(v)) for k, v in weights["layers"].items()})

    def weights(self) -> dict:
        """The plain dict of arrays that the functions of this file take."""
        top = {k: p[...] for k, p in self.params.items()}
        return top | {"layers": {k: p[...] for k, p in self.layers.items()}}

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Next-token logits [B, T, V] of a left-padded batch: tokens, mask [B, T]."""
        weights = self.weights()
        x, _ = run(self.spec, weights["layers"], embed_tokens(self.spec, weights, tokens), mask)
        return logits(self.spec, weights, x)
