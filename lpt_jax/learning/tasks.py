"""Text tasks' learning: a language model is asked for items' codes and for words, one task in each batch, drawn by weight.

loss = −mean log p(a digit of the code | text, the digits before it)      # a softmax over that digit's words alone
     or −mean log p(a word | text, the words before it)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lpt_jax import devices, search
from lpt_jax.data import batches
from lpt_jax.data.tasks import Example
from lpt_jax.learning.loop import Part, Phase, Report
from lpt_jax.models import layers

STEP = 32  # texts' lengths are multiples of this where each has a line: few shapes compile
LINES = 8  # and so are a batch's lines of this, where several texts share one
MOST = 8  # texts in a line
SCORED = 128  # a batch's answers are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an update does, apart from its arrays: a static argument."""

    graph: nnx.GraphDef  # of the model, split into what trains and what is frozen
    optimiser: optax.GradientTransformation
    dropout: float
    penalty: float = 0.0  # × a personal prompt's


def loss(lm, batch: dict, dropout: float = 0.0, key=None) -> jax.Array:
    """The mean loss of a batch.

    tokens, texts [B, S]: G texts at most in a row; "digits" [B, G, T] of one or more codes or "words" [B, G, T], -1: none;
    "there" [K]: which codes, or words, there are, counted through (-1: none); "who" where there is a personal prompt. Only what is
    there is scored: most answers are shorter than the longest.
    """
    tokens, texts = batch["tokens"], batch["texts"]
    text = lm.encode(tokens, texts, dropout, key, batch.get("who"))
    if "words" in batch:
        words = jnp.maximum(batch["words"], 0)
        written = jnp.concatenate([jnp.zeros_like(words[..., :1]), words[..., :-1]], -1)
        states, answers = _there(batch, lm.decode(text, texts, written, dropout, key), words, 1)
        losses = optax.softmax_cross_entropy_with_integer_labels(lm.logits(states), answers)
    else:
        digits = jnp.maximum(batch["digits"], 0)
        states = search.states(lm, text, texts, digits, dropout, key)
        losses = -search.chances(lm, *_there(batch, states, digits, lm.spec.levels))
    real = batch["there"][:, None] >= 0
    return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.maximum(losses.shape[1] * real.sum(), 1)


def _there(batch: dict, states: jax.Array, answers: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The states [K, size, D] and answers [K, size] that are there, of states [B, G, T, D] in groups of `size`."""
    at = jnp.maximum(batch["there"], 0)
    return states.reshape(-1, size, states.shape[-1])[at], answers.reshape(-1, size)[at]


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="part")
def update(plan: Plan, frozen: dict, part: Part, batch: dict, key: jax.Array) -> tuple[Part, dict]:
    """One step: the new part, and metrics."""

    def objective(weights):
        lm = nnx.merge(plan.graph, layers.joined(weights, frozen))
        penalty = plan.penalty * lm.personal.penalty() if plan.penalty else 0.0
        return loss(lm, batch, plan.dropout, key) + penalty

    value, gradients = jax.value_and_grad(objective)(part.weights)
    changes, optimiser = plan.optimiser.update(gradients, part.optimiser, part.weights)
    part = Part(optax.apply_updates(part.weights, changes), optimiser)
    return part, {"loss": value, "grad_norm": optax.tree.norm(gradients)}


def arrays(
    examples: list[Example], room: int, length: int, levels: int, who: dict | None = None, most: int = MOST
) -> dict[str, np.ndarray]:
    """A batch of examples of one task, `most` texts at most to a line of `room` tokens; length: of answers, in digits or words.

    levels: digits of a code. Where each text has a line, lines are no longer than the texts. who: of a personal prompt, arrays with a row for each example.
    """
    texts = [example.tokens for example in examples]
    room = room if most > 1 else min(room, rounded(max(map(len, texts))))
    (packed,) = batches.packs(texts, room, most, 0, lambda lines, _: -(-lines // LINES) * LINES)
    found = {"tokens": packed.tokens, "texts": packed.texts}
    name = "digits" if examples[0].digits else "words"
    shape, places = (len(packed.tokens), most), packed.places_of_rows()
    if who is not None:
        found["who"] = {}
        for what, values in who.items():
            flat = np.zeros((shape[0] * most, *values.shape[1:]), values.dtype)
            flat[places] = values
            found["who"][what] = flat.reshape(*shape, *values.shape[1:])
    answers = np.full((len(packed.tokens) * most, length), -1, np.int32)
    for example, place in zip(examples, places.tolist(), strict=True):
        answer = example.digits or example.words
        answers[place, : len(answer)] = answer
    size = levels if name == "digits" else 1
    return found | {name: answers.reshape(-1, most, length), "there": there(answers.reshape(-1, size)[:, 0] >= 0)}


def there(real: np.ndarray) -> np.ndarray:
    """Where something is, -1 at the end: few lengths compile.

    >>> there(np.array([True, False, True]))[:3].tolist(), len(there(np.ones(300, bool)))
    ([0, 2, -1], 384)
    """
    at = np.flatnonzero(real)
    return np.pad(at, (0, -len(at) % SCORED), constant_values=-1).astype(np.int32)


def rounded(length: int) -> int:
    """The static length of texts of at most so many tokens."""
    return -(-length // STEP) * STEP


def read_and_written(batch: dict) -> int:
    """The tokens of a batch, those of the answers too."""
    answers = batch["digits"] if "digits" in batch else batch["words"]
    return int((batch["texts"] > 0).sum() + (answers >= 0).sum())


class TasksPhase(Phase):
    """Learns a mix of tasks; judged by how well the next item is found."""

    def __init__(self, r, optimiser: optax.GradientTransformation):
        self.r, self.name, self.part, self.optimiser = r, "tasks", "lm", optimiser
        self.settings, self.plan = r.config.tasks, Plan(r.graph, optimiser, r.config.lm.dropout, r.penalty)

    def at(self, iteration: int, place: int) -> "TasksPhase":
        """This phase in an iteration and a place of the schedule."""
        self.iteration, self.place = iteration, place
        return self

    def begin(self, state):
        weights = self.r.tasks.weights()
        self.names, self.shares = list(weights), np.array(list(weights.values()))

    def batch(self, number: int) -> tuple[str, dict]:
        """The task of a step, and its arrays."""
        rng = np.random.default_rng((self.r.config.seed, 51, number))
        task = self.names[rng.choice(len(self.names), p=self.shares)]
        examples = self.examples(task, rng)
        who = self.r.who([example.about for example in examples], task)
        most = MOST if self.r.lm.packs else 1
        longest, (levels, _) = self.r.tasks.longest(task), self.r.code_shape
        return task, arrays(examples, self.settings.max_tokens, longest, levels, who, most)

    def examples(self, task: str, rng: np.random.Generator) -> list[Example]:
        """Those of an update: tasks.batch of them, or as many as tasks.tokens, read and written, make up."""
        examples, left = [], self.settings.tokens
        while left > 0 if self.settings.tokens else len(examples) < self.settings.batch:
            examples.append(self.r.tasks.draw(task, rng))
            left -= sum(map(len, examples[-1][:3]))  # what is read, digits, words
        return examples

    def step(self, state, step):
        number = self.iteration * self.settings.steps + step
        task, batch = self.batch(number)
        tokens, key = read_and_written(batch), jax.random.fold_in(self.r.run.key, number)
        put = devices.split_batch(batch, self.r.run.mesh)
        part, metrics = update(self.plan, self.r.frozen, state["lm"], put, key)
        return state | {"lm": part}, Report(metrics | {"tokens": tokens, f"loss/{task}": metrics["loss"]})

    def validate(self, state):
        r = self.r
        ranks = r.ranks(state["lm"].weights, r.sessions["validation"])
        return r.validation(ranks)
