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
from lpt_jax.data import batches, questions
from lpt_jax.data.prompts import SUMMARIES
from lpt_jax.errors import InputError
from lpt_jax.generation import LanguageModel, Profiles
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


def plan_of(lm: LanguageModel, optimiser: optax.GradientTransformation, chunk: int, remat: bool) -> Plan:
    """The Plan of a language model's own probabilities, at temperature 1."""
    return Plan(graph=lm.graph, optimiser=optimiser, below=lm.below, chunk=chunk, remat=remat)


class NextTokenPhase(Phase):
    """Supervised fine-tuning of a language model on texts that it is to write, one or more for each prompt.

    A subclass has prompts(), token ids by row, examples(state), (row, text) pairs, and validate(state); `shared` is how many
    texts a prompt has at most, which share one pass over it. limit: the name of the setting that lm.settings.max_tokens is.
    """

    shared, limit = 1, "profile.max_tokens"

    @property
    def start(self) -> str:
        """The words that every text begins with, which the prompts end with."""
        return self.lm.start

    def __init__(self, r, lm: LanguageModel, name: str, part: str, optimiser: optax.GradientTransformation, chunk: int):
        self.r, self.lm, self.name, self.part, self.optimiser = r, lm, name, part, optimiser
        self.settings, self.plan = r.config[name], plan_of(lm, optimiser, chunk, r.config.lm.remat)

    def at(self, iteration: int, place: int) -> "NextTokenPhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def prompts(self) -> list[list[int]]:
        """The token ids of the prompts."""
        raise NotImplementedError

    def examples(self, state: dict[str, Part]) -> list[tuple[int, str]]:
        """What is to be written: (row of the prompt, text)."""
        raise NotImplementedError

    def begin(self, state):
        asked = self.examples(state)
        ids = self.tokens_of([text for _, text in asked])
        of_rows = {}  # the texts' token ids of each prompt
        for (row, _), of_text in zip(asked, ids, strict=True):
            if of_text:
                of_rows.setdefault(row, []).append(of_text)
        self.rows, left_out = sorted(of_rows.items()), ids.count([])
        self.left_out, most = left_out / len(ids), f"--config.{self.limit}={self.lm.settings.max_tokens}"
        if not self.rows:
            raise InputError(
                f"None of the {len(asked)} texts to imitate has words and fits {most}: raise it, or give shorter texts."
            )
        if 10 * left_out > len(asked) and devices.first():
            print(
                f"lpt_jax: warning: {left_out} of {len(asked)} texts to imitate are left out, as they have more than "
                f"{most} tokens (or none).",
                flush=True,
            )

    def tokens_of(self, texts: list[str]) -> list[list[int]]:
        """The token ids that the model is to write for each text, with the end; none where they are too many, or none."""
        lm, start = self.lm, self.start
        if start and (wrong := next((text for text in texts if text and not text.startswith(start)), None)):
            raise InputError(
                f"A text to imitate does not begin with --config.prompt.start={start!r}: {wrong[:60]!r}; give other texts, "
                "or --config.prompt.start= (empty)."
            )
        own, most = lm.source.tokenizer.eos_token_id, lm.settings.max_tokens
        end = own if own in lm.ends else lm.ends[0]
        rows = lm.source.tokenizer([text[len(start) :] for text in texts], add_special_tokens=False, verbose=False)
        return [ids + [end] if 0 < len(ids) < most else [] for ids in rows["input_ids"]]

    def step(self, state, step):
        r, lm, s, number = self.r, self.lm, self.settings, self.iteration * self.settings.steps + step
        chosen = [self.rows[i] for i in batches.indices(len(self.rows), s.batch, r.config.seed * 1000 + 7, number)]
        of_rows = self.prompts()
        prompts, mask = lm.pad_prompts([of_rows[row] for row, _ in chosen])
        shape = s.batch, self.shared, lm.settings.max_tokens
        tokens, counts = np.full(shape, lm.pad, np.int32), np.zeros(shape[:2], np.int32)
        for i, (_, texts) in enumerate(chosen):
            for j, ids in enumerate(texts):
                tokens[i, j, : len(ids)], counts[i, j] = ids, len(ids)
        put = devices.split_batch((tokens, counts), r.run.mesh)
        part, metrics = update(self.plan, lm.frozen, state[self.part], prompts, mask, *put)
        return state | {self.part: part}, Report(metrics | {"left_out": self.left_out})


class ImitationPhase(NextTokenPhase):
    """Profiles are what is imitated: one or more of each training session, judged by how well they rank.

    texts(phase, state) gives (row of the training session, text) pairs.
    """

    def __init__(self, r: ProfileRecommender, optimiser: optax.GradientTransformation, texts: Callable):
        super().__init__(r, r.lm, "imitation", "lm", optimiser, r.config.policy.logits_chunk)
        self.texts, self.shared = texts, texts_of_session(r.config.imitation)

    def prompts(self):
        return self.r.prompts["train"]

    def examples(self, state):
        return self.texts(self, state)

    def validate(self, state):
        return profiles_rank(self.r, state)


class KnowledgePhase(NextTokenPhase):
    """Questions about items by their titles are what is answered (data/questions.py); judged by how well profiles rank."""

    start = ""

    def __init__(self, r: ProfileRecommender, optimiser: optax.GradientTransformation):
        super().__init__(r, r.lm, "knowledge", "lm", optimiser, r.config.policy.logits_chunk)

    @functools.cached_property
    def questions(self) -> list[questions.Question]:
        """One for each place in all updates."""
        r, count = self.r, self.r.config.iterations * self.settings.steps * self.settings.batch
        known = r.sessions["train"], r.data.catalogue, r.config, self.lm.source.tokenizer
        found = questions.drawn(listed(self.settings.tasks), max(count, 1), *known, r.config.seed)
        longest = max(len(question.ids) for question in found)
        if r.prompts and longest > max(self.lm.lengths):  # the model's static lengths are those of profiles' prompts
            self.lm.lengths = (*self.lm.lengths, longest)
        return found

    def prompts(self):
        return [question.ids for question in self.questions]

    def examples(self, state):
        return list(enumerate(question.answer for question in self.questions))

    def validate(self, state):
        return profiles_rank(self.r, state)


def profiles_rank(r: ProfileRecommender, state: dict[str, Part]) -> dict[str, float]:
    """Validation's metrics of the profiles that the language model now writes."""
    texts = r.write(state["lm"].weights, "validation")
    return r.validation(r.rank("validation", *r.scored(r.weights(state, "embedder"), texts)))
