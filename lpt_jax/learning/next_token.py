"""Imitation: the language model learns to write given profiles, token by token, before or after it is rewarded."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpt_jax import devices
from lpt_jax.config import listed
from lpt_jax.data import batches
from lpt_jax.data.prompts import SUMMARIES
from lpt_jax.errors import InputError
from lpt_jax.generation import Profiles
from lpt_jax.learning.loop import Part, Phase, Report
from lpt_jax.learning.policy import Plan, log_probs
from lpt_jax.models.decoder import run
from lpt_jax.recommender import ProfileRecommender


def given(graph, frozen: dict, weights: dict, prompts, mask, tokens, counts) -> Profiles:
    """Profiles [B, G, T] of texts that are given, with their states after the frozen layers: what sampling them would keep.

    prompts, mask [B, P + 1]: token ids, left-padded; tokens [B, G, T]: G texts' ids, of which counts [B, G] are real.
    A prompt goes through the layers once, whatever G is.
    """
    lm = nnx.merge(graph, weights, frozen)
    batch, samples, length = tokens.shape
    context = prompts.shape[1] - 1
    last = jnp.broadcast_to(prompts[:, None, -1:], (batch, samples, 1))
    read = jnp.concatenate([last, tokens[..., :-1]], 2)  # what each token is foretold by
    x = lm.embed_tokens(jnp.concatenate([prompts[:, :-1], read.reshape(batch, -1)], 1))
    if lm.lower is not None:
        x, _ = run(lm.lower, x, mask[:, :-1], samples)
    real = jnp.arange(length) < counts[..., None]
    hidden = x[:, context:].reshape(batch, samples, length, -1)
    return Profiles(tokens, real, jnp.zeros(tokens.shape), x[:, :context], hidden)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="part")
def update(plan: Plan, frozen: dict, part: Part, prompts, mask, tokens, counts) -> tuple[Part, dict]:
    """One step of cross-entropy: −mean log π(token) over the texts' tokens; the new part, and metrics.

    prompts, mask, tokens, counts: as in `given`.
    """
    profiles = given(plan.graph, frozen, part.weights, prompts, mask, tokens, counts)

    def objective(weights):
        found = log_probs(plan, frozen, weights, profiles, mask[:, :-1], training=True)
        return -jnp.sum(found) / jnp.maximum(profiles.mask.sum(), 1)

    value, gradients = jax.value_and_grad(objective)(part.weights)
    changes, optimiser = plan.optimiser.update(gradients, part.optimiser, part.weights)
    part = Part(optax.apply_updates(part.weights, changes), optimiser)
    return part, {"loss": value, "grad_norm": optax.tree.norm(gradients)}


def texts_of_session(settings) -> int:
    """How many texts a training session has at most, by imitation.texts."""
    return sum(len(SUMMARIES) if kind == "summaries" else 1 for kind in listed(settings.texts))


def plan_of(r, optimiser: optax.GradientTransformation) -> Plan:
    """The Plan of a run's config: the model's own probabilities, at temperature 1."""
    chunk = r.config.policy.logits_chunk
    return Plan(graph=r.lm.graph, optimiser=optimiser, below=r.lm.below, chunk=chunk, remat=r.config.lm.remat)


class ImitationPhase(Phase):
    """Supervised fine-tuning of the language model on one or more texts of each training session.

    texts(phase, state) gives (row of the training session, text) pairs; a session's texts share one pass over its prompt.
    """

    def __init__(self, r: ProfileRecommender, optimiser: optax.GradientTransformation, texts: Callable):
        self.r, self.name, self.part, self.optimiser = r, "imitation", "lm", optimiser
        self.settings, self.texts, self.plan = r.config.imitation, texts, plan_of(r, optimiser)

    def at(self, iteration: int, place: int) -> "ImitationPhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def begin(self, state):
        asked = self.texts(self, state)
        ids = self.tokens_of([text for _, text in asked])
        of_rows = {}  # the texts' token ids of each training session
        for (row, _), of_text in zip(asked, ids, strict=True):
            if of_text:
                of_rows.setdefault(row, []).append(of_text)
        self.rows, left_out = sorted(of_rows.items()), ids.count([])
        self.left_out = left_out / len(ids)
        if not self.rows:
            raise InputError(
                f"None of the {len(asked)} texts to imitate has words and fits --config.profile.max_tokens="
                f"{self.r.config.profile.max_tokens}: raise it, or give shorter texts."
            )
        if 10 * left_out > len(asked) and devices.first():
            print(
                f"lpt_jax: warning: {left_out} of {len(asked)} texts to imitate are left out, as they have more than "
                f"--config.profile.max_tokens={self.r.config.profile.max_tokens} tokens (or none).",
                flush=True,
            )

    def tokens_of(self, texts: list[str]) -> list[list[int]]:
        """The token ids that the model is to write for each text, with the end; none where they are too many, or none."""
        lm, start = self.r.lm, self.r.lm.start
        if start and (wrong := next((text for text in texts if text and not text.startswith(start)), None)):
            raise InputError(
                f"A text to imitate does not begin with --config.prompt.start={start!r}: {wrong[:60]!r}; give other texts, "
                "or --config.prompt.start= (empty)."
            )
        own, most = lm.source.tokenizer.eos_token_id, self.r.config.profile.max_tokens
        end = own if own in lm.ends else lm.ends[0]
        rows = lm.source.tokenizer([text[len(start) :] for text in texts], add_special_tokens=False, verbose=False)
        return [ids + [end] if 0 < len(ids) < most else [] for ids in rows["input_ids"]]

    def step(self, state, step):
        r, s, number = self.r, self.settings, self.iteration * self.settings.steps + step
        chosen = [self.rows[i] for i in batches.indices(len(self.rows), s.batch, r.config.seed * 1000 + 7, number)]
        prompts, mask = r.lm.pad_prompts([r.prompts["train"][row] for row, _ in chosen])
        shape = s.batch, texts_of_session(s), r.config.profile.max_tokens
        tokens, counts = np.full(shape, r.lm.pad, np.int32), np.zeros(shape[:2], np.int32)
        for i, (_, texts) in enumerate(chosen):
            for j, ids in enumerate(texts):
                tokens[i, j, : len(ids)], counts[i, j] = ids, len(ids)
        put = devices.split_batch((tokens, counts), r.run.mesh)
        part, metrics = update(self.plan, r.lm.frozen, state["lm"], prompts, mask, *put)
        return state | {"lm": part}, Report(metrics | {"left_out": self.left_out})

    def validate(self, state):
        r, embedder = self.r, self.r.weights(state, "embedder")
        texts = r.write(state["lm"].weights, "validation")
        return r.validation(r.rank("validation", *r.scored(embedder, texts)))
