"""Contrastive learning: the embedder learns to put a profile next to the items chosen next."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpt_jax import devices, similarity
from lpt_jax.data import batches
from lpt_jax.data.edits import DRAWN, TURN, Edit, Edits
from lpt_jax.errors import InputError
from lpt_jax.learning.loop import Part, Phase, Report
from lpt_jax.recommender import ProfileRecommender

PHRASE = 32  # tokens that an edit may add to a profile


def info_nce(profiles, items, correction, excluded, temperature: float) -> tuple[jax.Array, jax.Array]:
    """InfoNCE of B profiles to C ≥ B candidate items, the i-th item being the i-th profile's positive.

    loss = −mean log softmax_j(cos(p_i, e_j) / temperature − correction_j)[i], over the candidates that
    aren't excluded. Shapes: profiles [B, D], items [C, D] (unit length), correction [C] or [B, C], excluded [B, C]
    (the positive never is). Returns the loss and the share of profiles whose positive comes first.
    """
    scores = jnp.einsum("bd,cd->bc", profiles, items, preferred_element_type=jnp.float32)
    scores = jnp.where(excluded, -jnp.inf, scores / temperature - correction)
    positive = jnp.diagonal(scores)
    loss = jnp.mean(jax.nn.logsumexp(scores, 1) - positive)
    return loss, jnp.mean(positive >= scores.max(1))


def exclusions(positives: np.ndarray, candidates: np.ndarray, seen: list) -> np.ndarray:
    """Which candidates are no negatives, Bool [B, C]: equal positives, and the user's own history and targets.

    positives [B] and candidates [C ≥ B] are catalogue indices, the first B candidates being the positives;
    seen: per profile, the catalogue indices of that user's history and other targets.
    """
    excluded = candidates[None, :] == positives[:, None]
    for row, items in zip(excluded, seen, strict=True):
        row |= np.isin(candidates, np.asarray(items, np.int64))
    np.fill_diagonal(excluded, False)
    return excluded


def log_sampling(frequency: np.ndarray, batch: int, extra: int) -> np.ndarray:
    """log of how often an item is expected among the candidates, Float [N] (Yi et al. 2019; mixed: Yang et al. 2020).

    frequency [N] is the share of training pairs with this item as positive: batch · frequency + extra / N.
    """
    expected = batch * frequency + extra / len(frequency)
    return np.log(np.maximum(expected, 1e-9)).astype(np.float32)


def count_of_edits(settings) -> int:
    """How many of a batch's rows are edits."""
    return round(settings.edits * settings.batch)


def drawn_for_edits(settings) -> int:
    """How many items are drawn for a batch's edits, beside their positives."""
    return DRAWN * sum(TURN[number % len(TURN)] == "dislike" for number in range(count_of_edits(settings)))


def with_edits(edits: list[Edit], candidates, excluded, correction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch's candidates [C], excluded and correction [P, C] of its P pairs, with E edits' rows and items drawn for them.

    The edits' positives are candidates P … P + E already. Drawn items are negatives of edits only.
    """
    pairs = len(excluded)
    candidates = np.concatenate([candidates, *(edit.drawn for edit in edits)])
    more = len(candidates) - excluded.shape[1]
    of_edits = np.stack([~edit.allowed[candidates] for edit in edits])
    of_edits[np.arange(len(edits)), pairs + np.arange(len(edits))] = False
    excluded = np.concatenate([np.pad(excluded, ((0, 0), (0, more)), constant_values=True), of_edits])
    correction = np.pad(correction, ((0, len(edits)), (0, more)))
    return candidates, excluded, correction


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an update does, apart from its arrays: a static argument."""

    graph: nnx.GraphDef  # of the DualEncoder
    optimiser: optax.GradientTransformation
    temperature: float  # of InfoNCE
    most: int  # texts in a line
    remat: bool


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="part")
def update(plan: Plan, part: Part, batch: dict) -> tuple[Part, dict]:
    """One step of InfoNCE: the new part, and metrics.

    batch: "tokens" and "texts" [R, T] hold both sides' texts, several to a row; "profiles" [B] and "items" [C] say where,
    as row * most + number; "correction" and "excluded" [B, C].
    The batch is global: on a mesh, every device's items are negatives of every profile.
    """

    def objective(weights):
        encoder = nnx.merge(plan.graph, weights).encoder
        embedded = encoder.packed(batch["tokens"], batch["texts"], plan.most, plan.remat)
        embedded = embedded.reshape(-1, encoder.spec.width)
        profiles, items = embedded[batch["profiles"]], embedded[batch["items"]]
        return info_nce(profiles, items, batch["correction"], batch["excluded"], plan.temperature)

    (loss, accuracy), gradients = jax.value_and_grad(objective, has_aux=True)(part.weights)
    changes, optimiser = plan.optimiser.update(gradients, part.optimiser, part.weights)
    part = Part(optax.apply_updates(part.weights, changes), optimiser)
    return part, {"loss": loss, "accuracy": accuracy, "grad_norm": optax.tree.norm(gradients)}


class ContrastivePhase(Phase):
    """CL: texts of all training sessions (fresh profiles or, for the control, raw histories) ↔ their next items.

    texts(phase, state) gives the training sessions' texts (a whole number of rounds of them), the validation sessions', and texts
    of the training sessions, in rounds too, that edits are written into ([]: none are); `cut`: over-long ones are cut and count.
    """

    def __init__(self, r: ProfileRecommender, name: str, part: str, optimiser, texts: Callable, cut: bool = False):
        self.r, self.name, self.part, self.optimiser = r, name, part, optimiser
        self.settings, self.texts, self.cut = r.config.contrastive, texts, cut
        self.seed = r.config.seed * 1000 + (1 if part == "control" else 2)

    def at(self, iteration: int, place: int) -> "ContrastivePhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def begin(self, state):
        r, settings, train = self.r, self.settings, self.r.sessions["train"]
        texts, self.validation_texts, self.edited = self.texts(self, state)
        prefix = r.embedder.spec.query_prefix
        self.rows, _ = batches.tokenise(r.embedder.tokenizer, [prefix + t for t in texts], r.embedder.profile_limit)
        self.pairs = [
            (row, target)
            for row, text in enumerate(texts)
            if text.strip()
            for target in train[row % len(train)].targets
        ]
        if not self.pairs:
            raise InputError("Every training profile is empty: raise --config.profile.max_tokens.")
        frequency = np.bincount([t for _, t in self.pairs], minlength=r.run.count) / len(self.pairs)
        self.correction = log_sampling(frequency, settings.batch, settings.hard_negatives)
        self.edits = self.found_edits() if count_of_edits(settings) and self.edited else None
        self._choose_lines()
        self.plan = plan_of(r, self.optimiser, self.most)

    def found_edits(self) -> Edits | None:
        """What draws edits; None, which is told, where items have nothing in common to name."""
        if self.r.data.catalogue.attributes.names:
            return Edits(self.r.data, self.r.config.data.kind)
        if devices.first():
            fewest = self.r.config.data.attribute_items
            print(
                f"lpt_jax: warning: no genre, category, brand, decade or word of titles is shared by {fewest} items: no edits "
                "are trained on; lower --config.data.attribute_items.",
                flush=True,
            )
        return None

    def _choose_lines(self):
        """Room and texts of a line, and the static numbers of lines that a batch can have; nearly always the first."""
        settings, item_rows = self.settings, self.r.item_rows
        lengths = [np.array([len(row) for row in rows]) for rows in (self.rows, item_rows)]
        longest, extra, more = max(side.max() for side in lengths), settings.hard_negatives, 0.0
        if self.edits:
            self.edit_limit = min(self.r.embedder.profile_limit, int(lengths[0].max()) + PHRASE)
            longest, more = max(longest, self.edit_limit), count_of_edits(settings) * PHRASE
            extra += drawn_for_edits(settings)
        self.room, self.most = similarity.line_of(longest)
        tokens = settings.batch * np.mean([lengths[0][row] + lengths[1][target] for row, target in self.pairs])
        tokens += extra * lengths[1].mean() + more
        texts, ways = 2 * settings.batch + extra, devices.ways(self.r.run.mesh)
        sizes = {min(texts, math.ceil(slack * tokens / self.room)) for slack in (1.1, 1.4)} | {texts}
        self.sizes = sorted({-(-size // ways) * ways for size in sizes})

    def batch(self, number: int) -> dict:
        """The arrays of global step `number`: pairs of a profile and a next item, then edits."""
        r, settings, train = self.r, self.settings, self.r.sessions["train"]
        count = count_of_edits(settings) if self.edits else 0
        pairs = [self.pairs[i] for i in batches.indices(len(self.pairs), settings.batch - count, self.seed, number)]
        rng = np.random.default_rng((self.seed, number))
        drawn = self.drawn(rng, count)
        positives = np.array([target for _, target in pairs] + [edit.positive for edit in drawn])
        candidates = np.concatenate([positives, rng.integers(0, r.run.count, settings.hard_negatives)])
        users = [train[row % len(train)] for row, _ in pairs]
        excluded = exclusions(positives[: len(pairs)], candidates, [s.hidden + s.targets for s in users])
        correction = np.broadcast_to(self.correction[candidates] * settings.popularity_correction, excluded.shape)
        rows = [self.rows[row] for row, _ in pairs]
        if drawn:
            rows += self.rows_of(drawn)
            candidates, excluded, correction = with_edits(drawn, candidates, excluded, correction)
        rows += [r.item_rows[i] for i in candidates]
        size = lambda lines, _: batches.bucket(lines, self.sizes)  # noqa: E731
        (packed,) = batches.packs(rows, self.room, self.most, r.embedder.encoder.source.pad_id, size)
        where = packed.places_of_rows()
        return {
            "tokens": packed.tokens,
            "texts": packed.texts,
            "profiles": where[: settings.batch],
            "items": where[settings.batch :],
            "correction": correction,
            "excluded": excluded,
        }

    def drawn(self, rng, count: int) -> list[Edit]:
        """Edits of randomly chosen sessions' profiles."""
        train, rows = self.r.sessions["train"], rng.integers(0, len(self.edited), count)
        of_rows = [(self.edited[row], train[row % len(train)]) for row in rows]
        return [self.edits.draw(rng, number, *of_row) for number, of_row in enumerate(of_rows)]

    def rows_of(self, drawn: list[Edit]) -> list[list[int]]:
        """Edits' texts as the embedder's tokens."""
        embedder = self.r.embedder
        texts = [embedder.spec.query_prefix + edit.text for edit in drawn]
        return batches.tokenise(embedder.tokenizer, texts, self.edit_limit)[0]

    def step(self, state, step):
        batch = self.batch(self.iteration * self.settings.steps + step)
        part, metrics = update(self.plan, state[self.part], devices.split_batch(batch, self.r.run.mesh))
        return state | {self.part: part}, Report(metrics)

    def validate(self, state):
        scored = self.r.scored(state[self.part].weights, self.validation_texts, cut=self.cut)
        return self.r.validation(self.r.rank("validation", *scored))


def plan_of(r, optimiser: optax.GradientTransformation, most: int) -> Plan:
    """The Plan of a run's config."""
    return Plan(r.embedder.graph, optimiser, r.config.contrastive.temperature, most, r.config.lm.remat)
