"""One RLSO update: G profiles for each of 16 users, reward, old and reference log-probabilities, 4 epochs of updates.

Ours is the policy phase's own step (lpt_jax/learning/policy.py), as it is trained. The peer is the same mathematics
in PyTorch: transformers' generate with whichever cache is fastest here, plain forward passes, AdamW on the last 4
layers, the loss over all pairs of a user's profiles. Prompts, sizes, temperature and reward are alike; texts differ,
as they are drawn.
"""

import copy
import functools
import time

import numpy as np

from benchmarks import harness, inputs
from lpt_jax.data import batches

RATE, ETA = 1e-4, 1.0
PARTS = ("generation", "reward", "scoring", "updates")


def ours(options):
    """The policy phase's step; its own laps are the parts."""
    import jax

    from lpt_jax import train
    from lpt_jax.systems import profiles

    r = inputs.recommender(options)
    (phase,) = (phase for phase in profiles.schedule(r) if phase.name == "policy")
    state, step = train.initial_state(r, [phase]), 0
    phase.begin(state)

    def run():
        nonlocal state, step
        state, report = phase.step(state, step)
        step += 1
        jax.block_until_ready((state, r.lm.prepared(state["lm"].weights)))
        return {"parts": {name: report.metrics[f"seconds/{name}"] for name in PARTS}}

    for _ in range(2):  # compiles, the second time for what an update hands on
        run()
    return run


class Peer:
    """The same step in PyTorch; at_once users go through a forward and backward pass of the updates together."""

    def __init__(self, options, dtype: str, at_once: int):
        import torch
        from transformers import AutoTokenizer

        from benchmarks import torch_device, torch_peers

        self.torch, self.peers, self.wait = torch, torch_peers, torch_device.wait
        torch_device.use(options)
        self.given, self.config = inputs.read(options.folder), inputs.config(options)
        self.at_once, self.step = at_once, 0
        self.tokenizer = AutoTokenizer.from_pretrained(options.folder / "decoder")
        self.model = torch_peers.decoder(options.folder, dtype)
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.model.requires_grad_(False)
        body = self.model.model
        self.trained = [*body.layers[-self.config.policy.last_layers :].parameters(), *body.norm.parameters()]
        for weight in self.trained:
            weight.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(self.trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.encoder = torch_peers.Encoder(options.folder)
        self.items = self.encoder.embed_texts(self.given["items"], self.config.embedder.max_item_tokens)
        self.cache = torch_peers.best_cache(self.model, *self.prompts()[1:], *self.how())
        self.note = f"generate: {self.cache}"

    def prompts(self):
        """The step's users, the same as ours, and their prompts and mask."""
        users, seed = self.config.policy.users, self.config.seed * 1000 + 3
        rows = batches.indices(len(self.given["prompts"]), users, seed, self.step)
        chosen = [self.given["prompts"][i] for i in rows]
        return rows, *self.peers.left_padded(chosen, self.given["length"], self.given["pad"])

    def how(self):
        """generate's last arguments."""
        policy = self.config.policy
        return policy.samples, self.config.profile.max_tokens, policy.temperature, self.given["eos"], self.given["pad"]

    def log_probs(self, model, tokens, mask, length: int):
        """log π of the last `length` tokens of each row, from a pass over the whole row."""
        torch = self.torch
        out = model(input_ids=tokens, attention_mask=mask, position_ids=self.peers.positions(mask), use_cache=False,
                    logits_to_keep=length + 1).logits[:, :-1]  # fmt: skip
        scores = (out.float() / self.config.policy.temperature).flatten(0, 1)
        found = torch.nn.functional.cross_entropy(scores, tokens[:, -length:].flatten(), reduction="none")
        return -found.view(-1, length)

    def rewards(self, texts: list[str], rows):
        """NDCG of each profile [B * G]: the catalogue ranked by its embedding, without history and other targets."""
        torch, samples = self.torch, self.config.policy.samples
        scores = self.encoder.embed_texts(texts, self.config.embedder.max_profile_tokens) @ self.items.T
        found = torch.zeros(len(texts), device=scores.device)
        for at, text in enumerate(texts):
            history, targets = (self.given[name][rows[at // samples]] for name in ("histories", "targets"))
            wanted = scores[at, targets]
            scores[at, history + targets] = -torch.inf
            ranks = 1 + (scores[at][None] > wanted[:, None]).sum(1)
            found[at] = (1 / torch.log2(1 + ranks.float())).mean() * bool(text.strip())
        return found

    def __call__(self):
        torch, policy, seconds, clock = self.torch, self.config.policy, {}, time.perf_counter()

        def lap(name):
            nonlocal clock
            self.wait()
            seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

        rows, prompts, mask = self.prompts()
        own = self.peers.generate(self.model, prompts, mask, self.cache, *self.how())
        ends = torch.isin(own, torch.tensor(self.given["eos"], device=own.device)).long()
        kept = (ends.cumsum(1) - ends == 0).long()  # up to and including the first end
        texts = self.tokenizer.batch_decode(
            [row[k.bool()].tolist() for row, k in zip(own, kept)], skip_special_tokens=True
        )
        lap("generation")
        metric = self.rewards(texts, rows)
        lap("reward")
        samples, length = policy.samples, own.shape[1]
        tokens = torch.cat([prompts.repeat_interleave(samples, 0), own], 1)
        mask = torch.cat([mask.repeat_interleave(samples, 0), kept], 1)
        with torch.no_grad():
            old = self.log_probs(self.model, tokens, mask, length) * kept
            ratio = (old - self.log_probs(self.reference, tokens, mask, length) * kept).sum(1)
        lap("scoring")
        rewards = metric - policy.kl_coef * ratio
        rewards = ((rewards - rewards.mean()) / (rewards.var(correction=0) + 1e-8).sqrt()).view(-1, samples)
        for _ in range(policy.epochs):
            self.optimiser.zero_grad()
            for at in range(0, len(rewards), self.at_once):
                part = slice(at * samples, (at + self.at_once) * samples)
                new = self.log_probs(self.model, tokens[part], mask[part], length) * kept[part]
                gain = (new - old[part]).sum(1).view(-1, samples) - ETA * rewards[at : at + self.at_once]
                pairs = (gain[:, :, None] - gain[:, None, :]).square().sum((1, 2)) / (samples * (samples - 1))
                (pairs.sum() / len(rewards)).backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimiser.step()
        lap("updates")
        self.step += 1
        return {"parts": seconds}


def needs(options) -> dict:
    """Floors of the parts, of real prompt lengths and full profiles."""
    from benchmarks import floors
    from lpt_jax import devices

    c, given = inputs.config(options), inputs.read(options.folder)
    dtype = devices.product_type(c.lm.dtype)
    spec, ranker = inputs.specs(options.folder)
    prompt = float(np.mean([len(row) for row in given["prompts"]])) - 1
    users, length, depth = c.policy.users, c.profile.max_tokens, c.policy.last_layers
    shape = (spec, dtype, users, prompt, users * c.policy.samples, length)
    return {
        "generation": [floors.prefill(spec, dtype, users, prompt), floors.decode(*shape)],
        "reward": [
            floors.embedding(ranker, [length] * shape[4], dtype),
            floors.ranking(shape[4], len(given["items"]), ranker.width),
        ],
        "scoring": [floors.scoring(*shape, depth)] * 2,
        "updates": [floors.update(*shape, depth)] * c.policy.epochs,
    }


def cases(options) -> list[harness.Case]:
    """One case; of the peers the best counts."""
    users = inputs.config(options).policy.users
    peers = {"bfloat16": functools.partial(Peer, options, "bfloat16", users)}
    if options.device == "cpu":
        peers["bfloat16, 4 users at once"] = functools.partial(Peer, options, "bfloat16", 4)
        peers["float32"] = functools.partial(Peer, options, "float32", users)
    return [harness.Case("rlso", "auto", functools.partial(ours, options), peers, needs, rounds=3, warm_up=0)]
