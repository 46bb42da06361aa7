"""Edits of profiles as training examples, made of metadata alone: what is said -> an item that follows it, and what does not.

"… Likes horror movies."       ↔ an item with it; negatives: the batch's items without it
"… No more horror movies."     ↔ a next item, or a popular one, without it; negatives: only items that have it
"More like Fargo (1996)."      ↔ an item that shares most with it
"""

from typing import NamedTuple

import numpy as np

from lpt_jax.data import prompts
from lpt_jax.data.sessions import Dataset, Session

TURN = ("like", "dislike", "dislike")  # every third edit is a like
DRAWN = 3  # items with what is disliked, drawn for its row
NEAREST = 20  # items that share most with a title, of which one is the positive
WORDS = ("profile", "profile", "neutral", "alone")  # what a phrase is appended to


class Edit(NamedTuple):
    """One example: its text, the item that follows it, which items may be its negatives Bool[N], and some drawn for it."""

    text: str
    positive: int
    allowed: np.ndarray
    drawn: np.ndarray


class Edits:
    """Draws edits on a catalogue."""

    def __init__(self, data: Dataset, kind: str):
        self.catalogue, self.attributes, self.kind = data.catalogue, data.catalogue.attributes, kind
        self.weights = np.sqrt(np.maximum(data.popularity, 1).astype(np.float64))

    def draw(self, rng, number: int, profile: str, session: Session) -> Edit:
        """The number-th edit, of a session's profile or of a neutral one."""
        has = self.attributes.has
        if TURN[number % len(TURN)] == "like":
            if rng.random() < 0.25:
                return self.title(rng, profile)
            liked = int(rng.integers(len(has)))
            return self.example(rng, profile, self.said(rng, prompts.LIKES, liked), has[liked], ~has[liked])
        disliked = self.disliked(rng, session)
        if rng.random() < 0.25 and (others := np.flatnonzero((has & ~has[disliked]).any(1))).size:
            liked = int(rng.choice(others))
            phrase = self.said(rng, prompts.BOTH, liked, prompts.called(*self.named(disliked), self.kind))
            fits = has[liked] & ~has[disliked]
        else:
            phrase, fits = self.said(rng, prompts.DISLIKES, disliked), ~has[disliked]
            nexts = [t for t in session.targets if fits[t]]
            if nexts:
                fits = np.isin(np.arange(len(fits)), nexts)
        return self.example(rng, profile, phrase, fits, has[disliked], DRAWN)

    def disliked(self, rng, session: Session) -> int:
        """An attribute to dislike: half the time one of an item that the user has, as that is what people complain of."""
        of_item = self.attributes.of(session.history[rng.integers(len(session.history))])
        return (
            int(rng.choice(of_item)) if of_item and rng.random() < 0.5 else int(rng.integers(len(self.attributes.has)))
        )

    def named(self, attribute: int) -> tuple[str, str]:
        return self.attributes.names[attribute], self.attributes.fields[attribute]

    def said(self, rng, phrases: dict, attribute: int, other: str = "") -> str:
        """A sentence about an attribute, in one of the training phrases."""
        return prompts.said(str(rng.choice(phrases["train"])), *self.named(attribute), self.kind, other)

    def title(self, rng, profile: str) -> Edit:
        """ "More like …" of an item, and one that shares most with it."""
        item = int(self.item(rng, np.ones(len(self.weights), bool)))
        has = self.attributes.has
        shared = (has & has[:, [item]]).sum(0) / np.maximum((has | has[:, [item]]).sum(0), 1)
        shared[item] = -1
        nearest = np.argsort(-shared, kind="stable")[:NEAREST]
        near = np.isin(np.arange(len(shared)), nearest)
        phrase = str(rng.choice(prompts.TITLES)).format(t=self.catalogue.titles[item])
        return self.example(rng, profile, phrase, near, ~near)

    def example(self, rng, profile: str, phrase: str, fits: np.ndarray, allowed: np.ndarray, drawn: int = 0) -> Edit:
        """The phrase behind a profile, a neutral sentence, or alone."""
        before = {
            "profile": profile,
            "alone": "",
            "neutral": str(rng.choice(prompts.NEUTRAL["train"])).format(kind=self.kind),
        }
        text = f"{before[WORDS[rng.integers(len(WORDS))]]} {phrase}".strip()
        return Edit(
            text, self.item(rng, fits), allowed, np.array([self.item(rng, allowed) for _ in range(drawn)], np.int64)
        )

    def item(self, rng, among: np.ndarray) -> int:
        """One of the items Bool[N], drawn by the root of their popularity."""
        items = np.flatnonzero(among)
        shares = np.cumsum(self.weights[items])
        return int(items[np.searchsorted(shares, rng.random() * shares[-1])])
