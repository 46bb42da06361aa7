"""Llama, SmolLM2, Qwen and Gemma as one Flax NNX module; a small spec says what differs between families.

`Decoder.load(source)` reads one, `lm(tokens, mask)` gives its logits. Layers are stacks (see layers.py): `lower` runs
frozen, once per rollout, `upper` is the rest (at first: all).

One pass works on *packed* rows: P context positions (the prompt without its last token, left-padded) followed by G
continuations of T positions each, which all see the context but not each other. So a prompt is computed once for its G
profiles, in prefill, scoring and training alike; G = 0 is an ordinary causal pass.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.errors import InputError
from lpt_jax.models import gguf, layers, weights
from lpt_jax.models.layers import COLUMNS, ROWS, Embed, Linear, RMSNorm
from lpt_jax.models.products import UNROLLED

MASKED = -1e30  # finite: a fully masked row gives a mean, not NaN
CHUNK = 128  # queries per block of a context's attention


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Shapes and family differences of a decoder."""

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


def spec_from_hf(config: dict) -> DecoderSpec:
    """The spec of a Hugging Face config.json (transformers 4 and 5 styles); InputError if unsupported."""
    config = config.get("text_config") or config
    family = config.get("model_type", "").removesuffix("_text")
    if family not in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"):
        raise InputError(
            f"model_type {family!r} is not supported as language model: use a llama (SmolLM2), qwen2, "
            "qwen3, gemma, gemma2 or gemma3 model."
        )
    if config.get("attention_bias") and family != "qwen2" or config.get("mlp_bias"):
        raise InputError(f"this {family} model has biases (attention_bias, mlp_bias), which are not supported.")
    gemma = family.startswith("gemma")
    late_gemma = family in ("gemma2", "gemma3")
    heads, width, depth = (config[k] for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
    scaling = config.get("rope_scaling") or {k: v for k, v in rope.items() if k != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "llama3", "linear"):
        raise InputError(f"rope scaling {kind!r} is not supported: use a model with default, linear or llama3.")
    return DecoderSpec(
        family=family,
        vocab=config["vocab_size"],
        width=width,
        layers=depth,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or width // heads,
        hidden=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        tied=config.get("tie_word_embeddings", gemma),
        norm_plus_one=gemma,
        embed_scale=math.sqrt(width) if gemma else 1.0,
        activation="gelu_tanh" if gemma else "silu",
        qk_norm=family in ("qwen3", "gemma3"),
        qkv_bias=family == "qwen2",
        post_norms=late_gemma,
        query_scale=config["query_pre_attn_scalar"] ** -0.5 if late_gemma else None,
        attn_softcap=config.get("attn_logit_softcapping") if family == "gemma2" else None,
        final_softcap=config.get("final_logit_softcapping") if family == "gemma2" else None,
        windows=_windows(config, family, depth),
        local_rope_theta=(local or config.get("rope_local_base_freq") or 10000.0) if family == "gemma3" else None,
        rope_scaling=None if kind == "default" else tuple(sorted(scaling.items())),
    )


def _windows(config: dict, family: str, depth: int) -> tuple[int, ...]:
    size = config.get("sliding_window")
    types = config.get("layer_types")
    if not size or (family.startswith("qwen") and not config.get("use_sliding_window")):
        return ()
    if types is None and family == "gemma2":
        types = ["full_attention" if i % 2 else "sliding_attention" for i in range(depth)]
    if types is None and family == "gemma3":
        every = config.get("sliding_window_pattern") or 6
        types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(depth)]
    if types is None:
        return ()
    return tuple(size if t == "sliding_attention" else 0 for t in types)


# ---- positions


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


def positions_of(mask: jax.Array, samples: int = 0, length: int = 0) -> jax.Array:
    """Rope positions [B, P + G·T] of packed rows whose context has this mask [B, P]."""
    context = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    own = jnp.sum(mask, 1, keepdims=True) + jnp.tile(jnp.arange(length), samples)[None]
    return jnp.concatenate([context, own.astype(context.dtype)], 1)


def _rotate(x, table):
    """x [..., heads, hd] by the angles of table [2, ..., hd / 2]."""
    cos, sin = table[0][..., None, :], table[1][..., None, :]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# ---- attention kernels


def _scores(q, k, allowed, softcap):
    """Masked, soft-capped attention scores of q [..., Q, hd] on k [..., S, hd], float32."""
    scores = jnp.einsum("...qd,...sd->...qs", q, k, preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(allowed, scores, MASKED)


def _near(query_index, key_index, window):
    """True where a key is not after its query and within the sliding window (0 = no limit)."""
    distance = query_index[:, None] - key_index[None, :]
    return (distance >= 0) & ((window == 0) | (distance < window))


def context_attention(q, k, v, mask, window, softcap=None, chunk: int = CHUNK) -> jax.Array:
    """Causal attention of a context with itself.

    Shapes: q [B, P, kv, rep, hd], k and v [B, kv, P, hd], mask [B, P], window a scalar; returns
    [B, P, heads * hd]. It walks over blocks of `chunk` queries and never looks at keys after the block.
    """
    batch, length, kv, rep, hd = q.shape
    q = q.transpose(0, 2, 1, 3, 4)  # [B, kv, P, rep, hd]
    blocks = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        allowed = _near(jnp.arange(start, stop), jnp.arange(stop), window)[None] & mask[:, None, :stop]
        allowed = jnp.repeat(allowed, rep, 1)[:, None]  # [B, 1, Q * rep, S]
        block = q[:, :, start:stop].reshape(batch, kv, -1, hd)
        shares = jax.nn.softmax(_scores(block, k[:, :, :stop], allowed, softcap), -1).astype(v.dtype)
        out = jnp.einsum("...qs,...sd->...qd", shares, v[:, :, :stop], preferred_element_type=jnp.float32)
        blocks.append(out.reshape(batch, kv, stop - start, rep, hd))
    out = jnp.concatenate(blocks, 2) if len(blocks) > 1 else blocks[0]
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, -1)


def continuation_attention(q, context, context_mask, own, own_index, window, softcap=None) -> jax.Array:
    """Attention of G continuations with their shared context and, causally, with themselves.

    Shapes: q [B, kv, G, Q, rep, hd]; context: k, v [B, kv, P, hd]; context_mask [B, P]; own: k, v
    [B, kv, G, S, hd]; own_index [Q], the positions of the queries among the S. Returns [B, G, Q, heads * hd].
    """
    batch, kv, samples, queries, rep, hd = q.shape
    length, size = context[0].shape[2], own[0].shape[3]
    near = _near(length + own_index, jnp.arange(length + size), window)  # [Q, P + S]
    seen = (near[None, :, :length] & context_mask[:, None, :])[:, None, None, :, None]  # [B,1,1,Q,1,P]
    seen = jnp.broadcast_to(seen, (batch, 1, samples, queries, rep, length)).reshape(batch, 1, -1, length)
    scores = _scores(q.reshape(batch, kv, -1, hd), context[0], seen, softcap)
    near_own = jnp.repeat(near[:, length:], rep, 0)
    scores_own = _scores(q.reshape(batch, kv, samples, -1, hd), own[0], near_own, softcap)
    top = jnp.maximum(scores.max(-1), scores_own.max(-1).reshape(batch, kv, -1))
    top = jax.lax.stop_gradient(top)[..., None]
    shares = jnp.exp(scores - top)
    shares_own = jnp.exp(scores_own - top.reshape(batch, kv, samples, -1, 1))
    total = shares.sum(-1).reshape(shares_own.shape[:-1]) + shares_own.sum(-1)
    mix = functools.partial(jnp.einsum, "...qs,...sd->...qd", preferred_element_type=jnp.float32)
    out = mix(shares.astype(context[1].dtype), context[1]).reshape(batch, kv, samples, -1, hd)
    out = out + mix(shares_own.astype(own[1].dtype), own[1])
    out = (out / total[..., None]).reshape(batch, kv, samples, queries, rep, hd)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(batch, samples, queries, -1)


# ---- modules


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions: projections q, k, v (or, for decoding, all three in one) and o."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs, stack=()):
        heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear("q", spec.width, heads, COLUMNS, rngs, stack, spec.qkv_bias)
        self.k = Linear("k", spec.width, kv, COLUMNS, rngs, stack, spec.qkv_bias)
        self.v = Linear("v", spec.width, kv, COLUMNS, rngs, stack, spec.qkv_bias)
        self.o = Linear("o", heads, spec.width, ROWS, rngs, stack)
        self.q_norm = nnx.data(
            RMSNorm(spec.head_dim, spec.norm_eps, spec.norm_plus_one, stack) if spec.qk_norm else None
        )
        self.k_norm = nnx.data(
            RMSNorm(spec.head_dim, spec.norm_eps, spec.norm_plus_one, stack) if spec.qk_norm else None
        )
        self.qkv = nnx.data(None)
        self.spec, self.dtype = spec, "float32"

    def join(self) -> None:
        """Makes one matrix of q, k and v, unless they have LoRA: a step's small products cost more to start than to compute."""
        if any(linear.lora is not None for linear in (self.q, self.k, self.v)):
            return
        joined, others = self.q, (self.k, self.v)
        for name in ("kernel", "bias", "rest"):
            if getattr(joined, name) is None:
                continue
            parts = [getattr(one, name)[...] for one in (joined, *others)]
            getattr(joined, name).set_value(jnp.concatenate(parts, -1))
        self.qkv, self.q, self.k, self.v = joined, None, None, None

    def project(self, x: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Projected, normed and rotated q [..., kv, rep, hd], k and v [..., kv, hd], by angles table [2, ..., hd / 2]."""
        spec = self.spec
        if self.qkv is not None:
            ends = np.cumsum([spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim])
            q, k, v = jnp.split(self.qkv(x), ends, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (a.reshape(*x.shape[:-1], -1, spec.head_dim) for a in (q, k, v))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _rotate(q, table), _rotate(k, table)
        scale = spec.query_scale or spec.head_dim**-0.5
        q = (q * scale).reshape(*x.shape[:-1], spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim)
        return q.astype(self.dtype), k.astype(self.dtype), v.astype(self.dtype)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x))."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs, stack=()):
        self.gate = Linear("gate", spec.width, spec.hidden, COLUMNS, rngs, stack)
        self.up = Linear("up", spec.width, spec.hidden, COLUMNS, rngs, stack)
        self.down = Linear("down", spec.hidden, spec.width, ROWS, rngs, stack)
        self.activation = spec.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.gate(x)
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        return self.down(gate * self.up(x))


class Block(nnx.Module):
    """One layer, or with stack=(K,) the parameters of K of them, for `run`."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs, stack=()):
        norm = functools.partial(RMSNorm, spec.width, spec.norm_eps, spec.norm_plus_one, stack)
        self.attn_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(spec, rngs, stack)
        self.mlp = GatedMLP(spec, rngs, stack)
        self.post_attn_norm = nnx.data(norm() if spec.post_norms else None)
        self.post_mlp_norm = nnx.data(norm() if spec.post_norms else None)
        self.spec = spec

    def linears(self) -> dict[str, Linear]:
        """The layer's matrices by their names."""
        attention, mlp = self.attention, self.mlp
        of_attention = {name: getattr(attention, name) for name in "qkvo"}
        return of_attention | {name: getattr(mlp, name) for name in ("gate", "up", "down")}

    def __call__(self, x, mask, tables, window, samples: int = 0, drop_context: bool = False):
        """A pass over packed rows x [B, P + G·T, D]: their new states, and the context's (keys, values) [B, kv, P, hd].

        mask [B, P]; tables: rope_tables; window: a scalar, 0 = global; drop_context: only the continuations' outputs
        [B, G·T, D] are wanted.
        """
        spec, (batch, context) = self.spec, mask.shape
        table = jnp.where(window > 0, tables[1], tables[0]) if spec.local_rope_theta else tables[0]
        q, k, v = self.attention.project(self.attn_norm(x), table)
        head_major = tuple(a[:, :context].swapaxes(1, 2) for a in (k, v))  # [B, kv, P, hd]
        out = []
        if context and not drop_context:
            out.append(context_attention(q[:, :context], *head_major, mask, window, spec.attn_softcap))
        if samples:
            rows = q[:, context:].reshape(batch, samples, -1, *q.shape[2:]).transpose(0, 3, 1, 2, 4, 5)
            own = [a[:, context:].reshape(batch, samples, -1, *a.shape[2:]).transpose(0, 3, 1, 2, 4) for a in (k, v)]
            index = jnp.arange(rows.shape[3])
            mixed = continuation_attention(rows, head_major, mask, own, index, window, spec.attn_softcap)
            out.append(mixed.reshape(batch, -1, mixed.shape[-1]))
        if drop_context:
            x = x[:, context:]
        return self._after_attention(x, jnp.concatenate(out, 1) if len(out) > 1 else out[0]), head_major

    def decode(self, x, t, tables, window: int, context, context_mask, own, mesh):
        """One position of all continuations, x [B, G, D], with their own caches [B, kv, G, T, hd] updated at t."""
        table = tables[1 if window and self.spec.local_rope_theta else 0]
        q, k, v = self.attention.project(self.attn_norm(devices.gathered(x, mesh)), table)
        q, k, v = (devices.spread(a, mesh) for a in (q, k, v))
        k, v = (a.swapaxes(1, 2)[:, :, :, None] for a in (k, v))  # [B, kv, G, 1, hd]
        own = tuple(
            jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), t, 3)
            for cache, new in zip(own, (k, v), strict=True)
        )
        rows = q.swapaxes(1, 2)[:, :, :, None]  # [B, kv, G, 1, rep, hd]
        mixed = continuation_attention(rows, context, context_mask, own, t[None], window, self.spec.attn_softcap)
        return self._after_attention(devices.gathered(x, mesh), devices.gathered(mixed[:, :, 0], mesh)), own

    def _after_attention(self, x, attended):
        """The rest of the layer: output projection, residuals and the gated MLP."""
        out = self.attention.o(attended)
        x = x + (out if self.post_attn_norm is None else self.post_attn_norm(out))
        out = self.mlp(self.mlp_norm(x))
        return x + (out if self.post_mlp_norm is None else self.post_mlp_norm(out))


class Decoder(nnx.Module):
    """A causal language model. `spec` has its shapes, `source` its tokenizer and end tokens (None: made by hand)."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs):
        self.embed = Embed("embed", spec.vocab, spec.width, ROWS, rngs)
        self.soft_prompt = nnx.data(None)  # a soft_prompts.SoftPrompt
        self.lower = nnx.data(None)
        self.upper = Block(spec, rngs, stack=(spec.layers,))
        self.final_norm = RMSNorm(spec.width, spec.norm_eps, spec.norm_plus_one)
        self.head = Linear("head", spec.width, spec.vocab, COLUMNS, rngs, tied=spec.tied)
        self.spec, self.source = spec, None
        self.dtype, self.mesh = "float32", None

    @classmethod
    def load(cls, source: str, dtype: str = "float32") -> "Decoder":
        """Reads a language model: a folder, a .gguf file, "org/name[@revision]" or "carrier:<name>".

        Its parameters are numpy arrays of `dtype`, which its products read as well.
        """
        files = weights.decoder_files(str(source))
        spec = spec_from_hf(files.config)
        lm = nnx.eval_shape(lambda: cls(spec, nnx.Rngs(0)))
        lm = weights.filled_in(lm, gguf.KEYS if files.gguf else weights.decoder_keys(spec.post_norms), files, dtype)
        lm.set_attributes(dtype=dtype)
        lm.source = files.source()
        return lm

    @property
    def tokenizer(self):
        """The transformers tokenizer it was loaded with."""
        return self.source.tokenizer

    @property
    def start(self) -> int:
        """The number of layers in `lower`."""
        return self.spec.layers - layers.size_of(layers.plain(nnx.state(self.upper)))

    def divide(self, start: int) -> None:
        """Makes the first `start` layers `lower` and the others `upper` (once, as both are new stacks)."""
        graph, state = nnx.split(self.upper)
        lower, upper = (
            jax.tree.map(lambda a, part=part: a[part], layers.plain(state))
            for part in (slice(start), slice(start, None))
        )
        if start:
            self.lower = nnx.merge(graph, lower)
        self.upper = nnx.merge(graph, upper)

    def keep_steps(self) -> None:
        """Lets the matrices of the upper layers, and a head of its own, be read as the float32 masters that they are."""
        for linear in self.linears().values():
            linear.whole = linear.kernel is not None

    def linears(self) -> dict[str, Linear]:
        """The matrices of the upper layers and the head by their names."""
        return self.upper.linears() | {"head": self.head}

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Next-token logits [B, T, V], float32, of a left-padded batch: tokens and mask [B, T]."""
        length, x = tokens.shape[1], self.preceded(self.embed_tokens(tokens), mask)
        mask = self.context_mask(mask)
        if self.lower is not None:
            x, _ = run(self.lower, x, mask)
        x, _ = run(self.upper, x, mask, start=self.start)
        return self.logits(x[:, -length:])

    def preceded(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """A context's hidden states [B, P, D] below the first layer, with the soft prompt before its tokens where there is one."""
        return x if self.soft_prompt is None else self.soft_prompt.before(x, mask)

    def context_mask(self, mask: jax.Array) -> jax.Array:
        """The mask [B, P] of a context, with the soft prompt's where there is one."""
        return mask if self.soft_prompt is None else self.soft_prompt.before_mask(mask)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Token ids [...] to hidden states [..., D] in float32."""
        return devices.spread(self.embed(tokens) * self.spec.embed_scale, self.mesh)

    def logits(self, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] after the last layer to logits [..., V], float32."""
        return self.words(self.final_norm(x))

    def words(self, normed: jax.Array) -> jax.Array:
        """Hidden states [..., D] after the final norm to logits [..., V], float32."""
        return _words(self.head, self._table(), self.spec.final_softcap, normed)

    def _table(self):
        return self.embed.table[...] if self.head.kernel is None else None

    def log_probs(self, x, tokens, temperature: float, chunk: int, frozen_head: bool = False) -> jax.Array:
        """log π(token) at every profile position, with at most about `chunk` positions' logits alive at once.

        Shapes: x [B, G, T, D], tokens [B, G, T]; returns [B, G, T]. π = softmax(logits / temperature).
        frozen_head: no derivative is asked of the head (the final norm's always can be). A position's derivative
        then is formed while its logits are there, and the backward pass computes no logits again.
        """
        batch, samples, length, _ = x.shape
        step = max(1, min(length, chunk // max(1, batch * samples)))
        padded = -length % step
        x = jnp.pad(self.final_norm(x), ((0, 0), (0, 0), (0, padded), (0, 0)))
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, padded)))
        graph, head = nnx.split(self.head)
        head = layers.plain(head), self._table()

        def part(head, h, ids):
            linear = nnx.merge(graph, head[0])
            scores = _words(linear, head[1], self.spec.final_softcap, h) / temperature
            chosen = jnp.take_along_axis(scores, ids[..., None], -1)[..., 0]
            return chosen - jax.nn.logsumexp(scores, -1)

        def forward(head, h, ids):
            value, pull = jax.vjp(lambda h: part(head, h, ids), h)
            return value, pull(jnp.ones_like(value))[0]

        if frozen_head:
            block = jax.custom_vjp(part)
            block.defvjp(forward, lambda slope, cotangent: (None, slope * cotangent[..., None], None))
        else:
            block = jax.checkpoint(part)

        def blocks(a):
            return jnp.moveaxis(a.reshape(batch, samples, -1, step, *a.shape[3:]), 2, 0)

        out = jax.lax.map(lambda b: block(head, *b), (blocks(x), blocks(tokens)))  # [blocks, B, G, step]
        return jnp.moveaxis(out, 0, 2).reshape(batch, samples, -1)[:, :, :length]


def _words(head: Linear, table, softcap, x) -> jax.Array:
    """Normed hidden states to logits; table [V, D]: a tied head's, else None."""
    out = head(x, None if table is None else table.T)
    return softcap * jnp.tanh(out / softcap) if softcap else out


# ---- what trains: filters of nnx.split


def top_layers(path: tuple, value) -> bool:
    """The layers of `upper` (see Decoder.divide), the final norm, and a head of its own."""
    return path[0] in ("upper", "final_norm", "head")


# ---- passes over stacks


def layer_windows(spec: DecoderSpec, start: int, count: int) -> jax.Array:
    """Sliding windows [count] of the layers from start, 0 = global."""
    return jnp.asarray((spec.windows or (0,) * spec.layers)[start : start + count], jnp.int32)


def run(stack: Block, x: jax.Array, mask: jax.Array, samples: int = 0, *, start=0, remat=False, last=False):
    """Runs a stack of layers over packed rows.

    Args:
      stack: layers start … start + K - 1 of the model.
      x: hidden states [B, P + G·T, D]: context, then G continuations of T positions.
      mask: [B, P], True where the context is real (left-padded).
      samples: G; 0 where there is no continuation.
      last: these are the last layers, and only the continuations' outputs are wanted: the context's own
        output, which nobody reads, isn't computed in the last of them.

    Returns:
      the hidden states [B, P + G·T, D] (with last: [B, G·T, D]), and per layer the context's (keys, values),
      each [B, kv, P, hd].
    """
    spec, last = stack.spec, bool(last and samples)
    graph, weights_of = nnx.split(stack)
    weights_of = layers.plain(weights_of)
    count = layers.size_of(weights_of)
    length = (x.shape[1] - mask.shape[1]) // samples if samples else 0
    tables = rope_tables(spec, positions_of(mask, samples, length))
    windows = layer_windows(spec, start, count)

    def layer(x, weights_and_window, drop_context=False):
        of_layer, window = weights_and_window
        return nnx.merge(graph, of_layer)(x, mask, tables, window, samples, drop_context)

    step = jax.checkpoint(layer, static_argnums=2) if remat else layer
    if any(map(layers.is_listed, jax.tree.leaves(weights_of, is_leaf=layers.is_listed))):
        kept = []
        for i in range(count):
            x, pair = step(x, (layers.layer_of(weights_of, i), windows[i]), last and i == count - 1)
            kept.append(pair)
        return x, kept
    below = jax.tree.map(lambda a: a[: count - last], (weights_of, windows))
    unroll = count if count <= UNROLLED else 1
    x, (keys, values) = jax.lax.scan(lambda x, s: step(x, s, False), x, below, unroll=unroll)
    kept = [(keys[i], values[i]) for i in range(count - last)]
    if last:
        x, top = step(x, jax.tree.map(lambda a: a[-1], (weights_of, windows)), True)
        kept.append(top)
    return x, kept


def decoding_layers(graph, stack: dict, dtype: str, joined: bool = False) -> tuple[object, list[dict]]:
    """A stack as (a layer's graph, the layers' trees), matrices in dtype: decoding reads each where it lies.

    joined: q, k and v become one matrix (not on a mesh, which spreads each of them). Listed arrays stay as they are, and
    where they are: a compiled function would hand on copies.
    """
    leaves, structure = jax.tree.flatten(stack, is_leaf=layers.is_listed)
    if not any(map(layers.is_listed, leaves)):
        return _decoding_layers(graph, stack, dtype, joined)
    lists = structure.unflatten([leaf if layers.is_listed(leaf) else _layers_of(leaf, dtype) for leaf in leaves])
    trees = [layers.layer_of(lists, i) for i in range(layers.size_of(lists))]
    block = nnx.merge(graph, trees[0])
    block.set_attributes(mesh=None)  # few rows: they move to the weights, not these to them
    return nnx.split(block)[0], trees


@functools.partial(jax.jit, static_argnames="dtype")
def _layers_of(stacked: jax.Array, dtype: str) -> tuple[jax.Array, ...]:
    return tuple(stacked if stacked.ndim < 3 else stacked.astype(dtype))


@functools.partial(jax.jit, static_argnames=("graph", "dtype", "joined"))
def _decoding_layers(graph, stack: dict, dtype: str, joined: bool) -> tuple[object, list[dict]]:
    trees, block = [], None
    for i in range(layers.size_of(stack)):
        block = nnx.merge(graph, layers.layer_of(stack, i))
        block.set_attributes(mesh=None)
        for linear in block.linears().values():
            linear.halve()
        state = jax.tree.map(lambda a: a if a.ndim < 2 else a.astype(dtype), nnx.state(block))
        nnx.update(block, state)
        if joined:
            block.attention.join()
        block, state = nnx.split(block)
        trees.append(layers.plain(state))
    return block, trees


def decode_step(blocks: list[Block], x, t, context: list, context_mask, own: list, start: int = 0, mesh=None):
    """One position of all continuations through a *list* of layers, with caches updated in place.

    Args:
      blocks: layers start … of the model, as decoding_layers has them.
      x: hidden states [B, G, D] of position t (a scalar, counted from the continuations' first).
      context: per layer (keys, values), each [B, kv, P, hd]; context_mask [B, P].
      own: per layer (keys, values), each [B, kv, G, T, hd].

    Returns:
      the hidden states [B, G, D] after the layers, and the new own caches.
    """
    if not blocks:
        return devices.spread(x, mesh), []
    spec = blocks[0].spec
    tables = rope_tables(spec, jnp.sum(context_mask, 1)[:, None] + t)
    windows, kept = (spec.windows or (0,) * spec.layers)[start:], []
    for block, window, of_context, cache in zip(blocks, windows, context, own, strict=False):
        x, cache = block.decode(x, t, tables, window, of_context, context_mask, cache, mesh)
        kept.append(cache)
    return devices.spread(x, mesh), kept
