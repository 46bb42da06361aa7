"""An ItemWriter whose texts have a personal prompt before them: people's vectors, their neighbours, and who is asked for whom."""

import functools
import zlib

import numpy as np
from flax import nnx

from lpt_jax import ranking
from lpt_jax.baselines import counts
from lpt_jax.data.tasks import TASKS
from lpt_jax.item_writer import ItemWriter
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.models.personal_prompts import PersonalPrompt, PersonalSpec
from lpt_jax.models.t5 import T5


def personal_prompt(settings, kind: str, size: int, width: int, seed: int) -> PersonalPrompt:
    """A new prompt as config.personal says, for a model of this width; size: of a person's vector."""
    shape = {name: settings[name] for name in ("task_tokens", "tokens", "heads", "pool")}
    return PersonalPrompt(PersonalSpec(kind=kind, tasks=len(TASKS), size=size, **shape), width, nnx.Rngs(seed))


class PersonalWriter(ItemWriter):
    """A run and its language model with a personal prompt."""

    @property
    def prompt_kind(self) -> str:
        """What the prompt is made of (personal_prompts.KINDS)."""
        return self.config.personal.kind

    @property
    def size(self) -> int:
        """Of a person's vector."""
        return self.people.items.shape[1]

    @property
    def penalty(self) -> float:
        """× how far a pool is from orthogonal."""
        return self.config.personal.penalty if self.config.personal.kind == "pool" else 0.0

    def load(self) -> T5 | ItemDecoder:
        """The model with a new personal prompt."""
        lm, settings = super().load(), self.config.personal
        if settings.kind != "none":
            lm.personal = personal_prompt(settings, self.prompt_kind, self.size, lm.spec.width, self.config.seed)
        return lm

    @functools.cached_property
    def people(self) -> counts.People:
        """The training users as vectors."""
        sequences = [user.items for user in self.users]
        return counts.People(sequences, self.run.count, self.config.personal.size)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Who of the people a training user is."""
        return {user.id: number for number, user in enumerate(self.users)}

    def own(self, names: list[str]) -> np.ndarray:
        """Who of the people each is, -1 for nobody."""
        return np.array([self.numbers.get(name, -1) for name in names])

    def who(self, people: list[tuple], task: str) -> dict | None:
        """Of (user's id, items) each: the task, the vector of these items, and those of the nearest training users.

        The vector is made of the items before what is asked for, in training too: what is asked for would be in it else.
        """
        settings = self.config.personal
        if settings.kind == "none":
            return None
        found = {"task": np.full(len(people), TASKS.index(task), np.int32)}
        if settings.kind == "task":
            return found
        found["user"] = self.people.of([items for _, items in people]).astype(np.float32)
        if settings.kind == "neighbours":
            vectors, own = found["user"], self.own([name for name, _ in people])
            if settings.neighbours_of == "others":  # the control: of somebody else, always the same
                own = np.array([zlib.crc32(name.encode()) % len(self.people.all) for name, _ in people])
                vectors = self.people.all[own]
            nearest, _ = self.people.nearest(vectors, own, settings.neighbours)
            found["neighbours"] = self.people.all[nearest].astype(np.float32)
        return found

    def more_rows(self, weights: dict) -> dict[str, np.ndarray]:
        """Ranks of the test's targets by the neighbours alone."""
        sessions = self.sessions["test"]
        own = self.own([session.user for session in sessions])
        scored = counts.user_knn(sessions, self.people, own, self.data.popularity, self.config.personal.neighbours)
        return {"user_knn": ranking.session_ranks(*scored, sessions, self.run.count)}
