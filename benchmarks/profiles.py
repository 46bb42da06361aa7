"""Writing profiles for many users, greedily, and a prefill alone.

Ours is generation.LanguageModel.sample, as a run writes its profiles; the peer is transformers' generate in bfloat16 with each
of its caches, and in float32 with the one that is fastest there. Prefill and decode are told apart by writing one token and then all of them: the first call
is a prefill (and one step), the difference of the two is the other steps. The prefill alone is 16 prompts of 512
tokens in one type, until the last position's logits.
"""

import dataclasses
import functools
import time

import numpy as np

from benchmarks import harness, inputs


def users(options) -> int:
    """How many users' profiles are written at once."""
    return 4 if options.tiny else 32 if options.device == "cpu" else 256


def in_two(write, length: int) -> dict:
    """Times write(1) and write(length): prefill, decode (the other length - 1 steps), and all, the second call."""
    started = time.perf_counter()
    write(1)
    between = time.perf_counter()
    write(length)
    first, whole = between - started, time.perf_counter() - between
    return {"seconds": whole, "parts": {"prefill": first, "decode": whole - first}}


def ours(options):
    """generation.LanguageModel.sample."""
    import jax

    r = inputs.recommender(options)
    weights, prompts, key = r.fresh("lm"), r.prompts["train"][: users(options)], jax.random.key(0)

    def write(length):
        how = dataclasses.replace(r.lm.how(), max_tokens=length)
        found, _ = r.lm.sample(weights, prompts, range(len(prompts)), key, how)
        jax.block_until_ready(found.tokens)

    return lambda: in_two(write, r.config.profile.max_tokens)


def peer(options, dtype: str, cache: str):
    """transformers' generate."""
    from benchmarks import torch_device, torch_peers

    torch_device.use(options)
    given, length = inputs.read(options.folder), inputs.config(options).profile.max_tokens
    model = torch_peers.decoder(options.folder, dtype)
    rows = given["prompts"][: users(options)]
    prompts, mask = torch_peers.left_padded(rows, max(map(len, rows)), given["pad"])

    def write(length):
        torch_peers.generate(model, prompts, mask, cache, 1, length, 0.0, given["eos"], given["pad"])
        torch_device.wait()

    return lambda: in_two(write, length)


def needs(options) -> dict:
    """Floors of prefill and decode, of real prompt lengths and full profiles."""
    from benchmarks import floors
    from lpt_jax import devices

    c, rows = inputs.config(options), inputs.read(options.folder)["prompts"][: users(options)]
    shape = inputs.specs(options.folder)[0], devices.product_type(c.lm.dtype), len(rows)
    prompt, length = float(np.mean([len(row) for row in rows])) - 1, c.profile.max_tokens
    return {
        "prefill": [floors.prefill(*shape, prompt), floors.decode(*shape, prompt, len(rows), 1)],
        "decode": [floors.decode(*shape, prompt + 1, len(rows), length - 1)],
    }


# ---- a prefill alone


def shape(options) -> tuple[int, int]:
    """Prompts and their length."""
    return (2, 16) if options.tiny else (16, 512)


def drawn(options) -> np.ndarray:
    """Random token ids for both sides."""
    vocab = inputs.vocabulary(options.folder)
    return np.random.default_rng(0).integers(inputs.FIRST_WORD, vocab, shape(options))


def our_prefill(options, dtype: str):
    """As generation.sample begins: frozen layers, then the trained ones, keeping every layer's keys and values."""
    import jax

    from lpt_jax.models import decoder

    r = inputs.recommender(options, {"lm.dtype": dtype})
    weights, tokens = r.lm.prepared(r.fresh("lm")), drawn(options).astype(np.int32)
    mask = np.ones(tokens.shape, bool)

    @jax.jit
    def prefill(weights, tokens, mask):
        lm = weights.decoder()
        x, low = decoder.run(lm.lower, lm.embed_tokens(tokens), mask)
        x, high = decoder.run(lm.upper, x, mask, start=len(low))
        return lm.logits(x[:, -1]), low + high

    def run():
        scores, _ = jax.block_until_ready(prefill(weights, tokens, mask))
        return np.asarray(scores)

    return run


def peer_prefill(options, dtype: str):
    """A forward pass with use_cache, the head at the last position only."""
    import torch

    from benchmarks import torch_device, torch_peers

    torch_device.use(options)
    model, tokens = torch_peers.decoder(options.folder, dtype), torch_device.tensor(drawn(options))

    @torch.no_grad()
    def run():
        return model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits[:, 0].float().cpu().numpy()

    return run


def prefill_needs(options, dtype: str) -> dict:
    """Floor of the prefill; all layers' outputs at the last position are left out."""
    from benchmarks import floors

    return {"whole": [floors.prefill(inputs.specs(options.folder)[0], dtype, *shape(options))]}


def cases(options) -> list[harness.Case]:
    """Writing in our own type against all settings of the peer, and the prefill in each type against both."""
    settings = ["bfloat16, dynamic cache", "bfloat16, static cache"]
    if options.device == "cpu":  # a GPU's generate compiles a static cache's step by itself
        settings += ["bfloat16, static cache, compiled", "float32, dynamic cache"]
    peers = {name: functools.partial(peer, options, *name.split(", ", 1)) for name in settings}
    found = [harness.Case("profiles-write", "auto", functools.partial(ours, options), peers, needs, rounds=3)]
    for dtype in ("float32", "bfloat16"):
        peers = {name: functools.partial(peer_prefill, options, name) for name in ("float32", "bfloat16")}
        mine, least = functools.partial(our_prefill, options, dtype), functools.partial(prefill_needs, dtype=dtype)
        found.append(harness.Case(f"profiles-prefill-{dtype}", dtype, mine, peers, least, alike=0.1))
    return found
