"""Prompts to profiles: one shared prefill per prompt, a static KV cache in place, one uniform per token."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.models import layers
from lpt_jax.models.decoder import Decoder, decode_step, decoding_layers, run

BLOCK = 128  # vocabulary words per block of the two-level inverse CDF


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Profiles:
    """Sampled profiles as arrays; G profiles for each of B prompts.

    tokens: ProfileTokens [B, G, T], pad_id after the end.
    mask: ProfileMask [B, G, T], True up to and including the end-of-sequence token.
    log_probs: LogProbs [B, G, T] under the sampling policy (softmax of logits / temperature), 0 where masked.
    context: hidden states [B, P, D] of the prompt (without its last token, or a soft prompt) after the frozen layers, or None.
    hidden: hidden states [B, G, T, D] of the continuation's inputs (the prompt's last token, then the
      profile's own) after the frozen layers, or None.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    context: jax.Array | None = None
    hidden: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How profiles are sampled."""

    max_tokens: int  # T
    ends: tuple[int, ...]  # the ids that end a profile
    pad: int
    samples: int = 1  # G, profiles per prompt
    temperature: float = 0.0  # 0 is greedy (log-probabilities are then those of temperature 1)
    keep_hidden: bool = False  # for learning: the states after the frozen layers


class Draws(NamedTuple):
    """How many texts are drawn for a prompt, at which temperature (0: greedy), and which of them is kept.

    choose(rows, texts [B][G], ended Bool[B, G]) gives Int[B], for the prompts `rows`. at_once: prompts, 0: config.profile.batch.
    """

    temperature: float = 0.0
    samples: int = 1
    choose: Callable = lambda rows, texts, ended: np.zeros(len(rows), int)
    at_once: int = 0


GREEDY = Draws()

# ---- one token


def _pick(weights: jax.Array, threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index whose cumulative weight exceeds the threshold, and what is left of the threshold there.

    Never an index of weight 0, however sums round; the last other one if the threshold is beyond all.
    """
    ends, possible = jnp.cumsum(weights, -1), weights > 0
    beyond = possible & (ends > threshold[..., None])
    last = weights.shape[-1] - 1 - jnp.argmax(possible[..., ::-1], -1)
    index = jnp.where(beyond.any(-1), jnp.argmax(beyond, -1), last)
    before = jnp.take_along_axis(ends - weights, index[..., None], -1)[..., 0]
    return index, threshold - before


def draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token whose cumulative softmax probability first exceeds one uniform number per row.

    Shapes: logits [..., V], uniform [...] in [0, 1); returns int32 [...]. Two levels (blocks of words, then
    words) need one pass over the vocabulary; tokens of probability 0 are never drawn.
    """
    vocab = logits.shape[-1]
    p = jnp.exp(logits - logits.max(-1, keepdims=True))
    p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -vocab % BLOCK)])
    p = p.reshape(*p.shape[:-1], -1, BLOCK)
    blocks = p.sum(-1)
    block, rest = _pick(blocks, uniform * blocks.sum(-1))
    word, _ = _pick(jnp.take_along_axis(p, block[..., None, None], -2)[..., 0, :], rest)
    return (block * BLOCK + word).astype(jnp.int32)


# ---- the loop


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    """A decoder as generation reads it: stacked for the prefill, layer by layer for decoding.

    graph: the Decoder's; parts: its trees, what trains and what is frozen; blocks: the graphs of a layer of `lower` and of
    `upper`; layers: their trees (decoder.decoding_layers).
    """

    parts: tuple[dict, ...]
    layers: tuple[list[dict], list[dict]]
    graph: object = dataclasses.field(metadata={"static": True})
    blocks: tuple = dataclasses.field(metadata={"static": True})

    def decoder(self) -> Decoder:
        return nnx.merge(self.graph, *self.parts)

    def decoding(self) -> tuple[list, list]:
        """The layers of `lower` and of `upper` as lists of Blocks."""
        return tuple([nnx.merge(graph, tree) for tree in trees] for graph, trees in zip(self.blocks, self.layers))


@functools.partial(jax.jit, static_argnames="how")
def sample(weights: Weights, prompts: jax.Array, mask: jax.Array, keys: jax.Array, how: Sampling) -> Profiles:
    """Samples G profiles per prompt until every row has ended.

    Args:
      prompts, mask: [B, P + 1] token ids, left-padded.
      keys: one random key's data per prompt [B, 2]: a prompt's profiles don't depend on its batch.
    """
    context, cached, state = begin(weights, prompts, mask, how)
    end = go_on(weights, mask, keys, cached, state, how.max_tokens, how)
    context = context if how.keep_hidden else None
    return Profiles(end["tokens"], end["mask"], end["log_probs"], context, end.get("hidden"))


def begin(weights: Weights, prompts: jax.Array, mask: jax.Array, how: Sampling):
    """sample()'s prefill: the context's hidden states after `lower`, its caches, and the state before the first token."""
    lm = weights.decoder()
    spec, batch, context_mask = lm.spec, prompts.shape[0], lm.context_mask(mask[:, :-1])
    context, cached = lm.embed_tokens(prompts[:, :-1]), []
    if lm.lower is not None:
        context, cached = run(lm.lower, context, context_mask)
    cached = cached + run(lm.upper, lm.preceded(context, mask[:, :-1]), context_mask, start=len(cached))[1]
    shape = (batch, how.samples, how.max_tokens)
    cache_shape = (batch, spec.kv_heads, how.samples, how.max_tokens, spec.head_dim)
    state = {
        "t": jnp.int32(0),
        "token": jnp.broadcast_to(prompts[:, -1:], shape[:2]),
        "ended": jnp.zeros(shape[:2], bool),
        "tokens": jnp.full(shape, how.pad, jnp.int32),
        "mask": jnp.zeros(shape, bool),
        "log_probs": jnp.zeros(shape, jnp.float32),
        "caches": [(jnp.zeros(cache_shape, lm.dtype), jnp.zeros(cache_shape, lm.dtype)) for _ in cached],
    }
    if how.keep_hidden:
        state["hidden"] = jnp.zeros((*shape, spec.width), jnp.float32)
    return context, cached, state


def go_on(weights: Weights, mask: jax.Array, keys: jax.Array, cached: list, state: dict, until, how: Sampling) -> dict:
    """sample()'s tokens from a state on, until `until` of them (at most max_tokens) are there or every row has ended."""
    lm, (lower, upper) = weights.decoder(), weights.decoding()
    context_mask, keys, count = lm.context_mask(mask[:, :-1]), jax.random.wrap_key_data(keys), len(lower)

    def put(buffer, value, t):
        return jax.lax.dynamic_update_slice_in_dim(buffer, value[:, :, None].astype(buffer.dtype), t, 2)

    def step(s):
        t, caches = s["t"], s["caches"]
        x = lm.embed_tokens(s["token"])
        x, own_lower = decode_step(lower, x, t, cached[:count], context_mask, caches[:count], 0, lm.mesh)
        new = dict(s, hidden=put(s["hidden"], x, t)) if how.keep_hidden else dict(s)
        x, own_upper = decode_step(upper, x, t, cached[count:], context_mask, caches[count:], count, lm.mesh)
        scores = lm.logits(x) / (how.temperature or 1.0)
        if how.temperature:
            uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t), (how.samples,)))(keys)
            token = draw(scores, uniform)
        else:
            token = jnp.argmax(scores, -1).astype(jnp.int32)
        chosen = jnp.take_along_axis(scores, token[..., None], -1)[..., 0] - jax.nn.logsumexp(scores, -1)
        token = jnp.where(s["ended"], how.pad, token)
        return new | {
            "t": t + 1,
            "token": token,
            "ended": s["ended"] | jnp.isin(token, jnp.asarray(how.ends, jnp.int32)),
            "tokens": put(s["tokens"], token, t),
            "mask": put(s["mask"], ~s["ended"], t),
            "log_probs": put(s["log_probs"], jnp.where(s["ended"], 0.0, chosen), t),
            "caches": own_lower + own_upper,
        }

    return jax.lax.while_loop(lambda s: (s["t"] < until) & ~jnp.all(s["ended"]), step, state)


_begin = jax.jit(begin, static_argnames="how")
_go_on = jax.jit(go_on, static_argnames="how", donate_argnames="state")


# ---- the language model of a run


class LanguageModel:
    """A Decoder in two parts, what trains and what is frozen, that samples and writes profiles.

    `graph` and `frozen` are what learning needs besides the trained weights; `reference` is (graph, weights) of the policy
    that the run begins with.
    """

    def __init__(self, lm: Decoder, trains, mesh, settings, base=None, listed: bool = False, start: str = ""):
        """Args:
        lm: with numpy or no arrays (nnx.eval_shape), divided or with LoRA attached.
        trains: the nnx filter of what trains.
        settings: config.profile.
        base: the graph of lm before LoRA was attached: the reference policy.
        listed: frozen layers lie in lists.
        start: the words that every profile begins with.
        """
        lm.set_attributes(mesh=mesh)
        self.spec, self.source, self.mesh, self.settings, self.start = lm.spec, lm.source, mesh, settings, start
        self.axes, self.below = layers.axes_of(lm), lm.start
        self.graph, trained, frozen = nnx.split(lm, trains, ...)
        trained, frozen = layers.plain(trained), layers.plain(frozen)
        if listed:
            stacks = {name: frozen[name] for name in ("lower", "upper") if name in frozen}
            frozen |= {name: layers.of_arrays(layers.list_layers, stack) for name, stack in stacks.items()}
        self.begin_with = layers.masters(trained)
        self.frozen = self.place(frozen)  # from numpy: no device ever holds a whole model
        self.reference = (base, {}) if base else (self.graph, self.place(trained))
        self.ends, self.pad = tuple(sorted(lm.source.end_ids)), lm.source.pad_id
        self.lengths: tuple[int, ...] = ()  # static prompt lengths
        self._lower = self._decoding("lower")
        self._upper = (
            None if "upper" in trained else self._decoding("upper")
        )  # a soft prompt leaves all layers as they are
        self._for, self._weights = None, None

    def place(self, tree):
        """A tree of its weights, or of an optimiser's state, on the mesh."""
        return devices.place(tree, self.mesh, self.axes)

    def fresh(self) -> dict:
        """What trains as the run begins with it, on the mesh, as float32 masters."""
        return self.place(layers.masters(self.begin_with))

    def merged(self, weights: dict) -> Decoder:
        """The Decoder with these weights for what trains."""
        return nnx.merge(self.graph, weights, self.frozen)

    def _decoding(self, name: str, weights: dict | None = None):
        """(graph, trees) of decoder.decoding_layers of `lower` or `upper`."""
        stack = getattr(nnx.merge(self.graph, weights or self.begin_with, self.frozen), name)
        if stack is None:
            return None, []
        graph, tree = nnx.split(stack)
        decoding = functools.partial(decoding_layers, graph, dtype=stack.attention.dtype, joined=self.mesh.size == 1)
        return layers.of_arrays(decoding, layers.plain(tree))

    def prepared(self, weights: dict) -> Weights:
        """Weights of the policy, as they were or anew: the step from the trainer to the sampler.

        LoRA stays beside its matrices: merged, bfloat16 would round small steps away.
        """
        if self._for is not weights:
            blocks, trees = zip(self._lower, self._upper or self._decoding("upper", weights))
            self._for, self._weights = weights, Weights((weights, self.frozen), trees, self.graph, blocks)
        return self._weights

    def how(self, samples: int = 1, temperature: float = 0.0, keep_hidden: bool = False) -> Sampling:
        """The Sampling of this model and config.profile."""
        return Sampling(self.settings.max_tokens, self.ends, self.pad, samples, float(temperature), keep_hidden)

    def pad_prompts(self, prompts: list[list[int]]):
        """Prompts and PromptMask [B, P], left-padded to the smallest static length that holds all."""
        length = batches.bucket(max(map(len, prompts)), self.lengths)
        return devices.split_batch(batches.pad_left(prompts, length, self.pad), self.mesh)

    def sample(
        self, weights: dict, prompts: list[list[int]], numbers, key, how: Sampling
    ) -> tuple[Profiles, jax.Array]:
        """One batch: (Profiles, PromptMask); numbers name the prompts, so that a draw doesn't depend on the batch."""
        tokens, mask = self.pad_prompts(prompts)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(numbers, jnp.uint32))
        keys = devices.split_batch(np.asarray(jax.random.key_data(keys)), self.mesh)
        return sample(self.prepared(weights), tokens, mask, keys, how), mask

    def texts(self, profiles: Profiles) -> tuple[list[list[str]], np.ndarray]:
        """The profiles' texts [B][G] without special tokens, and which of them never ended (Bool [B, G]).

        They begin with `start`; a profile without any words of its own stays empty.
        """
        tokens, mask = devices.fetch((profiles.tokens, profiles.mask))
        samples, length = tokens.shape[1:]
        rows = [row[m].tolist() for row, m in zip(tokens.reshape(-1, length), mask.reshape(-1, length), strict=True)]
        texts = self.source.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts = [(self.start + t if t.strip() else "").strip() for t in texts]
        unended = ~np.isin(np.where(mask, tokens, -1), list(self.ends)).any(-1)
        return [texts[i : i + samples] for i in range(0, len(texts), samples)], unended

    def grow(self, weights: dict, prompt: list[int], key, size: int = 4):
        """One greedy profile while it is written: its text after every `size` tokens; the last is what write() gives."""
        (tokens, mask), how = self.pad_prompts([prompt]), self.how()
        prepared, keys = self.prepared(weights), jax.random.key_data(key)[None]
        _, cached, state = _begin(prepared, tokens, mask, how)
        while int(state["t"]) < how.max_tokens and not state["ended"].all():
            until = min(int(state["t"]) + size, how.max_tokens)
            state = _go_on(prepared, mask, keys, cached, state, until, how)
            ((text,),), _ = self.texts(Profiles(state["tokens"], state["mask"], state["log_probs"]))
            yield text.rstrip("\ufffd")  # a letter whose last bytes are still to come

    def write(self, weights, prompts, numbers, key, draws=GREEDY, what="", known=None, keep=None) -> list[str]:
        """One profile per prompt, in the prompts' order.

        numbers, key: as in sample; draws: Draws; what: the progress bar's name ("": none).
        known: texts by row that an earlier, interrupted call has written; only batches with others are written, and
        the batches are always the same ones. keep(rows, texts, tokens, ended) is called after each.
        """
        texts, how = dict(known or {}), self.how(draws.samples, draws.temperature)
        there = sum(row in texts for row in range(len(prompts)))  # no part of the rate and of the time left
        bar = tqdm(total=len(prompts), desc=what, unit="text", initial=there, disable=not (what and devices.first()))
        with bar:
            for rows in self._batches(prompts, draws.at_once or self.settings.batch):
                missing = [row for row in dict.fromkeys(rows.tolist()) if row not in texts]
                if not missing:
                    continue
                profiles, _ = self.sample(weights, [prompts[i] for i in rows], np.asarray(numbers)[rows], key, how)
                written, unended = self.texts(profiles)
                counts, best = devices.fetch(profiles.mask).sum(-1), draws.choose(rows, written, ~unended)
                at = [rows.tolist().index(row) for row in missing]
                texts |= {row: written[place][best[place]] for row, place in zip(missing, at)}
                if keep:
                    keep(missing, [texts[row] for row in missing], counts[at, best[at]], ~unended[at, best[at]])
                bar.update(len(missing))
        return [texts[i] for i in range(len(prompts))]

    def _batches(self, prompts, size: int):
        """Rows Int[size] of prompts of like lengths; the last batch repeats rows: one shape compiles."""
        order = np.argsort([len(p) for p in prompts], kind="stable")
        for start in range(0, len(prompts), size):
            yield np.resize(order[start : start + size], size)
