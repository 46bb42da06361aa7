"""A PersonalWriter whose people are profiles in plain language, P(E(profile)): written by rules, or by the person who reads them."""

import functools

import numpy as np

from lpt_jax import audit
from lpt_jax.data import prompts
from lpt_jax.data.sessions import Session
from lpt_jax.data.tasks import TASKS
from lpt_jax.personal_writer import PersonalWriter

PROFILES, ATTRIBUTES = 40, 20  # of the audit


class ProfilePrompts(PersonalWriter):
    """A run and its language model with a soft prompt made of a profile's embedding. The embedder stays as it is."""

    reads_profiles = True
    prompt_kind = "own"  # a linear map of the person's vector

    @property
    def size(self) -> int:
        """Of a profile's vector."""
        return self.embedder.encoder.spec.width

    @functools.cached_property
    def _embedder_weights(self) -> dict:
        return self.embedder.fresh()

    @functools.cached_property
    def _vectors(self) -> dict[str, np.ndarray]:
        return {}  # of profiles that were read

    @functools.cached_property
    def _stars(self) -> dict[tuple, float]:
        rows = self.data.rows
        if rows.rating is None:
            return {}
        users = (rows.user_ids[user] for user in rows.user)
        return dict(zip(zip(users, rows.item.tolist()), rows.rating))

    def profile(self, name: str, items) -> str:
        """What rules say of the latest of a person's items, with their stars where they are known (prompts.summary)."""
        ratings = tuple(self._stars.get((name, item)) for item in items) if self._stars else None
        session = Session(name, tuple(items), ratings, None, (), float("nan"))
        return prompts.summary(session, self.data.catalogue, self.config.data, self.config.personal.latest)

    def fits(self, profile: str) -> bool:
        """Whether the embedder reads all of a profile."""
        return self.embedder.length(profile) <= self.embedder.profile_limit

    def text_of(self, name: str, items, given: str = "") -> str:
        """The profile of a person with these items: the one that is given, else by rules.

        Of a training user's first items it is as old as a profile that is written anew after every personal.rewritten items.
        """
        every, number = self.config.personal.rewritten, self.numbers.get(name, -1)
        if number >= 0 and every < len(items) < len(self.users[number].items):
            items = items[: len(items) - len(items) % every]
        return given or self.profile(name, items)

    def who(self, people: list[tuple], task: str) -> dict:
        """Of (user's id, items, and perhaps a profile) each: the task, and the profile's vector."""
        texts = [self.text_of(*of_one) for of_one in people]
        if new := list(dict.fromkeys(text for text in texts if text not in self._vectors)):
            found, _ = self.embedder.embed_profiles(self._embedder_weights, new)
            self._vectors.update(zip(new, found.astype(np.float32)))
        user = np.stack([self._vectors[text] for text in texts])
        return {"task": np.full(len(people), TASKS.index(task), np.int32), "user": user}

    def more_rows(self, weights: dict) -> dict[str, np.ndarray]:
        """Ranks of the test's targets by the profile without the items, and by the items beside another user's profile."""
        sessions = self.sessions["test"]
        own = [self.profile(session.user, session.history) for session in sessions]
        order = np.random.default_rng((self.config.seed, 48)).permutation(len(own))
        others = [own[place] for place in np.roll(order, 1)[np.argsort(order)]]  # nobody keeps his own
        return super().more_rows(weights) | {
            "profile_alone": self.ranks(weights, sessions, own, alone=True),
            "shuffled_profiles": self.ranks(weights, sessions, others),
        }

    def audit(self, weights: dict) -> dict[str, dict]:
        """What edits of profiles do to the list (audit.audit), with the items read beside them and without; {} without attributes."""
        attributes, sessions = self.data.catalogue.attributes, self.sessions["test"]
        count, found = min(ATTRIBUTES, len(attributes.names)), {}
        if not count:
            return {}
        rows = np.linspace(0, len(sessions) - 1, min(PROFILES, len(sessions)), dtype=int)
        chosen = [sessions[row] for row in rows] + [Session("", (), None, None, (), float("nan"))]
        kind, settings = self.config.data.kind, (self.config.seed, self.config.evaluation.bootstrap)
        texts = [self.profile(session.user, session.history) for session in chosen[:-1]]
        texts.append(prompts.NEUTRAL["audit"][0].format(kind=kind))
        made = audit.pairs(texts, attributes, count, kind)
        for name, alone in (("tasks", False), ("profile_alone", True)):  # the rows' names

            def lists(texts, of, alone=alone):
                items, _ = self.found(weights, [chosen[row] for row in of], audit.TOP, texts, alone)
                return audit.lists_of(items, attributes), np.array([self.fits(text) for text in texts])

            found[name] = audit.of_edits(made, texts, lists, attributes, settings)
        return found
