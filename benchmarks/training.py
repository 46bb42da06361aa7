"""A next-token training step over all layers, 4 rows of 640 tokens, AdamW: nothing is shared, no layer is frozen.

Ours is decoder.run and Decoder.log_probs under jax.grad with float32 weights, products in one type, nothing
recomputed; the peer is the model's own loss in PyTorch, all of it in one type. Each type of ours is timed against
both of the peer's.
"""

import functools

import numpy as np

from benchmarks import harness, inputs

RATE, CHUNK = 1e-5, 1024


def shape(options) -> tuple[int, int]:
    """Rows and their length."""
    return (2, 16) if options.tiny else (4, 640)


def drawn(options) -> np.ndarray:
    """Random token ids for both sides, one more than are predicted."""
    rows, length = shape(options)
    vocab = inputs.vocabulary(options.folder)
    return np.random.default_rng(0).integers(inputs.FIRST_WORD, vocab, (rows, length + 1))


def ours(options, dtype: str):
    """One jitted step; returns the loss."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from lpt_jax.models import decoder, layers

    lm = decoder.Decoder.load(str(options.folder / "decoder"))
    lm.set_attributes(dtype=dtype)
    graph, weights = nnx.split(lm)
    optimiser = optax.adamw(RATE, b2=0.95, weight_decay=0.0)
    tokens = jnp.asarray(drawn(options), jnp.int32)
    held = {"weights": jax.tree.map(jnp.array, layers.plain(weights))}
    held["state"] = optimiser.init(held["weights"])
    del lm, weights

    @functools.partial(jax.jit, donate_argnames=("weights", "state"))
    def step(weights, state, tokens):
        def objective(weights):
            lm, before, after = nnx.merge(graph, weights), tokens[:, :-1], tokens[:, None, 1:]
            x, _ = decoder.run(lm.upper, lm.embed_tokens(before), jnp.ones(before.shape, bool))
            if lm.spec.tied:  # apart from its transpose: XLA's CPU compiler has no bfloat16 product of the two in one
                lm.head.kernel = layers.parameter(jax.lax.optimization_barrier(lm.embed.table[...].T))
            return -jnp.mean(lm.log_probs(x[:, None], after, 1.0, CHUNK))

        loss, slopes = jax.value_and_grad(objective)(weights)
        updates, state = optimiser.update(slopes, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    def run():
        held["weights"], held["state"], loss = step(held["weights"], held["state"], tokens)
        jax.block_until_ready(held)
        return float(loss)

    return run


def peer(options, dtype: str):
    """The same step in PyTorch; returns the loss."""
    import torch

    from benchmarks import torch_device, torch_peers

    torch_device.use(options)
    model, tokens = torch_peers.decoder(options.folder, dtype).train(), torch_device.tensor(drawn(options))
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def run():
        optimiser.zero_grad()
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        return loss.item()  # waits for a GPU

    return run


def needs(options, dtype: str) -> dict:
    """Floor of the step."""
    from benchmarks import floors

    return {"whole": [floors.training(inputs.specs(options.folder)[0], dtype, *shape(options))]}


def cases(options) -> list[harness.Case]:
    """Each type of ours against both of the peer's."""
    peers = {dtype: functools.partial(peer, options, dtype) for dtype in ("float32", "bfloat16")}
    return [
        harness.Case(f"training-{dtype}", dtype, functools.partial(ours, options, dtype), peers,
                     functools.partial(needs, dtype=dtype), rounds=3, repeats=2, alike=0.02)
        for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
