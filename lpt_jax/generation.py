"""Prompts to profiles: one shared prefill per prompt, a static KV cache in place, one uniform per token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.models import decoder
from lpt_jax.models.decoder import DecoderSpec

BLOCK = 128  # vocabulary words per block of the two-level inverse CDF


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Profiles:
    """Sampled profiles as arrays; G profiles for each of B prompts.

    tokens: ProfileTokens [B, G, T], pad_id after the end.
    mask: ProfileMask [B, G, T], True up to and including the end-of-sequence token.
    log_probs: LogProbs [B, G, T] under the sampling policy (softmax of logits / temperature), 0 where masked.
    context: hidden states [B, P, D] of the prompt (without its last token) after the frozen layers, or None.
    hidden: hidden states [B, G, T, D] of the continuation's inputs (the prompt's last token, then the
      profile's own) after the frozen layers, or None.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    context: jax.Array | None
    hidden: jax.Array | None


@functools.partial(jax.jit, static_argnames=("dtype", "joined"))
def unstack(layers: dict, dtype: str, joined: bool = False) -> list[dict]:
    """Stacked layers to a list of single ones, matrices in dtype: decoding reads each where it lies.

    joined: q, k and v become one matrix, as a step's small products cost more to start than to compute (not on a mesh,
    which spreads each of them; LoRA keeps them apart).
    """
    layers = {name: w.astype(dtype) if w.ndim > 2 else w for name, w in layers.items()}
    if joined and layers and not any(f"{name}_lora_a" in layers for name in "qkv"):
        for end in ("", "_bias") if "q_bias" in layers else ("",):
            layers["qkv" + end] = jnp.concatenate([layers.pop(name + end) for name in "qkv"], -1)
    count = next(iter(layers.values())).shape[0] if layers else 0
    return [{name: w[i] for name, w in layers.items()} for i in range(count)]


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


@functools.partial(
    jax.jit, static_argnames=("spec", "samples", "max_tokens", "temperature", "eos", "pad", "keep_hidden")
)
def sample(spec: DecoderSpec, trunk: dict, trunk_list: list | None, upper: dict, upper_list: list | None,
           prompts: jax.Array, mask: jax.Array, keys: jax.Array, *, samples: int, max_tokens: int, temperature: float,
           eos: tuple[int, ...], pad: int, keep_hidden: bool = False) -> Profiles:  # fmt: skip
    """Samples G profiles per prompt until every row has ended.

    Args:
      trunk: {"embed", "layers"} of the lower layers; trunk_list the same layers unstacked, None if they are a list.
      upper: the other layers, with final_norm and head (without: the embedding's is used); upper_list as trunk_list.
      prompts, mask: [B, P + 1] token ids, left-padded.
      keys: one random key's data per prompt [B, 2]: a prompt's profiles don't depend on its batch.
      temperature: 0 is greedy (log-probabilities are then those of temperature 1).
      eos: the ids that end a profile.
    """
    weights = spec, trunk, trunk_list, upper, upper_list
    context, cached, state = begin(*weights, prompts, mask, samples=samples, max_tokens=max_tokens, pad=pad,
                                   keep_hidden=keep_hidden)  # fmt: skip
    end = go_on(*weights, mask, keys, cached, state, max_tokens, temperature=temperature, eos=eos, pad=pad)
    return Profiles(end["tokens"], end["mask"], end["log_probs"], context if keep_hidden else None, end.get("hidden"))


def begin(spec, trunk, trunk_list, upper, upper_list, prompts, mask, *, samples: int, max_tokens: int, pad: int,
          keep_hidden: bool = False):  # fmt: skip
    """sample()'s prefill: the context's hidden states after the trunk, its caches, and the state before the first token."""
    batch, context_mask = prompts.shape[0], mask[:, :-1]
    context = decoder.embed_tokens(spec, trunk, prompts[:, :-1])
    count, cached = len(trunk["layers"] if trunk_list is None else trunk_list), []
    if count:
        context, cached = decoder.run(spec, trunk["layers"], context, context_mask)
    cached = cached + decoder.run(spec, upper["layers"], context, context_mask, start=count)[1]
    own_shape = (batch, spec.kv_heads, samples, max_tokens, spec.head_dim)
    state = {
        "t": jnp.int32(0),
        "token": jnp.broadcast_to(prompts[:, -1:], (batch, samples)),
        "ended": jnp.zeros((batch, samples), bool),
        "tokens": jnp.full((batch, samples, max_tokens), pad, jnp.int32),
        "mask": jnp.zeros((batch, samples, max_tokens), bool),
        "log_probs": jnp.zeros((batch, samples, max_tokens), jnp.float32),
        "caches": [(jnp.zeros(own_shape, spec.dtype), jnp.zeros(own_shape, spec.dtype)) for _ in cached],
    }
    if keep_hidden:
        state["hidden"] = jnp.zeros((batch, samples, max_tokens, spec.width), jnp.float32)
    return context, cached, state


def go_on(spec, trunk, trunk_list, upper, upper_list, mask, keys, cached, state, until, *, temperature: float,
          eos: tuple[int, ...], pad: int):  # fmt: skip
    """sample()'s tokens from a state on, until `until` of them (at most max_tokens) are there or every row has ended."""
    context_mask, keys = mask[:, :-1], jax.random.wrap_key_data(keys)
    samples = state["token"].shape[1]
    upper = {"embed": trunk["embed"]} | upper
    trunk_list = trunk["layers"] if trunk_list is None else trunk_list
    upper_list = upper["layers"] if upper_list is None else upper_list
    count = len(trunk_list)

    def put(buffer, value, t):
        return jax.lax.dynamic_update_slice_in_dim(buffer, value[:, :, None].astype(buffer.dtype), t, 2)

    def step(s):
        t = s["t"]
        x = decoder.embed_tokens(spec, trunk, s["token"])
        x, lower = decoder.decode_step(spec, trunk_list, x, t, cached[:count], context_mask, s["caches"][:count])
        new = dict(s, hidden=put(s["hidden"], x, t)) if "hidden" in s else dict(s)
        x, higher = decoder.decode_step(
            spec, upper_list, x, t, cached[count:], context_mask, s["caches"][count:], start=count
        )
        scores = decoder.logits(spec, upper, x) / (temperature or 1.0)
        if temperature:
            uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t), (samples,)))(keys)
            token = draw(scores, uniform)
        else:
            token = jnp.argmax(scores, -1).astype(jnp.int32)
        chosen = jnp.take_along_axis(scores, token[..., None], -1)[..., 0] - jax.nn.logsumexp(scores, -1)
        token = jnp.where(s["ended"], pad, token)
        return new | {
            "t": t + 1,
            "token": token,
            "ended": s["ended"] | jnp.isin(token, jnp.asarray(eos, jnp.int32)),
            "tokens": put(s["tokens"], token, t),
            "mask": put(s["mask"], ~s["ended"], t),
            "log_probs": put(s["log_probs"], jnp.where(s["ended"], 0.0, chosen), t),
            "caches": lower + higher,
        }

    return jax.lax.while_loop(lambda s: (s["t"] < until) & ~jnp.all(s["ended"]), step, state)


_begin = jax.jit(begin, static_argnames=("spec", "samples", "max_tokens", "pad"))
_go_on = jax.jit(go_on, static_argnames=("spec", "temperature", "eos", "pad"), donate_argnames="state")


def texts_of(
    profiles: Profiles, tokenizer, eos: tuple[int, ...], start: str = ""
) -> tuple[list[list[str]], np.ndarray]:
    """The profiles' texts [B][G] without special tokens, and which of them never ended (Bool [B, G]).

    start: config.prompt.start, the words before the sampled ones; a profile without any of its own stays empty.
    """
    tokens, mask = devices.fetch((profiles.tokens, profiles.mask))
    rows = [row[m].tolist() for row, m in zip(tokens.reshape(-1, tokens.shape[-1]),
                                              mask.reshape(-1, mask.shape[-1]), strict=True)]  # fmt: skip
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    texts = [(start + t if t.strip() else "").strip() for t in texts]
    samples = tokens.shape[1]
    unended = ~np.isin(np.where(mask, tokens, -1), list(eos)).any(-1)
    return [texts[i : i + samples] for i in range(0, len(texts), samples)], unended


class Writer:
    """Writes profiles with the current policy: holds both forms of its weights, pads and spreads prompts."""

    def __init__(self, loaded, spec: DecoderSpec, trunk: dict, lengths: tuple[int, ...], mesh, settings,
                 start: str = ""):  # fmt: skip
        """loaded: the decoder's tokenizer and ids; lengths: static prompt lengths; settings: config.profile."""
        self.start = start
        self.tokenizer, self.eos, self.pad = (loaded.tokenizer, tuple(sorted(loaded.eos_ids)), loaded.pad_id)
        self.spec, self.trunk, self.lengths, self.mesh, self.settings = (spec, trunk, lengths, mesh, settings)
        self.trunk_list = self._listed(trunk["layers"])

    def _listed(self, layers):
        return None if isinstance(layers, list) else unstack(layers, self.spec.dtype, self.mesh.size == 1)

    def use(self, upper: dict) -> None:
        """Takes the upper model's weights (LoRA beside its matrices): the step from the trainer to the sampler."""
        self.upper = {name: w for name, w in upper.items() if name != "embed"}
        self.upper_list = self._listed(upper["layers"])

    def pad_prompts(self, prompts: list[list[int]]):
        """Prompts and PromptMask [B, P], left-padded to the smallest static length that holds all."""
        length = batches.bucket(max(map(len, prompts)), self.lengths)
        return devices.split_batch(batches.pad_left(prompts, length, self.pad), self.mesh)

    def sample(self, prompts: list[list[int]], numbers, key, samples: int, temperature: float,
               keep_hidden: bool = False):  # fmt: skip
        """One batch: (Profiles, PromptMask); numbers name the prompts, so that a draw doesn't depend on the batch."""
        tokens, mask = self.pad_prompts(prompts)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.asarray(numbers, jnp.uint32))
        keys = np.asarray(jax.random.key_data(keys))
        profiles = sample(
            self.spec, self.trunk, self.trunk_list, self.upper, self.upper_list, tokens, mask,
            devices.split_batch(keys, self.mesh), samples=samples, max_tokens=self.settings.max_tokens,
            temperature=float(temperature), eos=self.eos, pad=self.pad, keep_hidden=keep_hidden,
        )  # fmt: skip
        return profiles, mask

    def grow(self, prompt: list[int], key, size: int = 4):
        """One greedy profile while it is written: its text after every `size` tokens; the last is what write() gives."""
        tokens, mask = self.pad_prompts([prompt])
        weights, keys = (self.spec, self.trunk, self.trunk_list, self.upper, self.upper_list), jax.random.key_data(key)
        most = self.settings.max_tokens
        _, cached, state = _begin(*weights, tokens, mask, samples=1, max_tokens=most, pad=self.pad)
        while int(state["t"]) < most and not state["ended"].all():
            until = min(int(state["t"]) + size, most)
            state = _go_on(
                *weights, mask, keys[None], cached, state, until, temperature=0.0, eos=self.eos, pad=self.pad
            )
            ((text,),), _ = self.texts(Profiles(state["tokens"], state["mask"], None, None, None))
            yield text.rstrip("\ufffd")  # a letter whose last bytes are still to come

    def texts(self, profiles: Profiles) -> tuple[list[list[str]], np.ndarray]:
        """The profiles' texts [B][G], and which never ended, Bool [B, G]."""
        return texts_of(profiles, self.tokenizer, self.eos, self.start)

    def write(self, prompts: list[list[int]], numbers, key, temperature: float = 0.0, what: str = "", known=None,
              keep=None) -> list[str]:  # fmt: skip
        """One profile per prompt, in the prompts' order.

        known: texts by row that an earlier, interrupted call has written; only batches with others are written, and
        the batches are always the same ones. keep(rows, texts, tokens, ended) is called after each.
        """
        size, texts = self.settings.batch, dict(known or {})
        order = np.argsort([len(p) for p in prompts], kind="stable")
        there = sum(row in texts for row in range(len(prompts)))  # no part of the rate and of the time left
        with tqdm(total=len(prompts), desc=what or "profiles", unit="profile", initial=there,
                  disable=not (what and devices.first())) as bar:  # fmt: skip
            for start in range(0, len(prompts), size):
                rows = order[start : start + size]
                if missing := [i for i in rows if i not in texts]:
                    full = np.resize(rows, size)  # the last batch repeats rows: one shape compiles
                    profiles, _ = self.sample(
                        [prompts[i] for i in full], np.asarray(numbers)[full], key, 1, temperature
                    )
                    written, unended = self.texts(profiles)
                    counts = devices.fetch(profiles.mask).sum(-1)[:, 0]
                    found = zip(rows, written, counts, ~unended[:, 0])
                    new = {i: (row[0], n, ended) for i, row, n, ended in found if i in missing}
                    texts |= {i: text for i, (text, *_) in new.items()}
                    if keep:
                        keep(list(new), *zip(*new.values(), strict=True))
                    bar.update(len(new))
        return [texts[i] for i in range(len(prompts))]
