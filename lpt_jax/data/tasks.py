"""Training interactions as text tasks: what the encoder reads, and the code or the words that it is asked for.

retrieval     what was chosen, oldest first            → the next item's code, and those of the items after it
ranking       the same, and candidates                 → the next item's code
rating        what was chosen with stars, and an item  → its stars
hidden_item   a stretch with one item hidden (MIM)     → its code
hidden_words  titles with words hidden in spans (MLM)  → these words
preference    what was chosen, and two items (BPR)     → A or B
explanation   an item                                  → how this person's review of it begins

After "Aligning Large Language Models with Recommendation Knowledge" (arXiv 2404.00245), and PeaPOD (arXiv 2407.05033) for the last one; the
sentences are ours (prompts.KNOWLEDGE). An item reads as the words of its code, and then of its title if settings.title_words asks
for some. Before a sentence stand the places of a personal prompt, where there is one.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpt_jax.data import prompts
from lpt_jax.data.codes import Codes
from lpt_jax.data.sessions import Dataset
from lpt_jax.errors import InputError

TASKS = tuple(prompts.KNOWLEDGE)
CODED = ("retrieval", "ranking", "hidden_item")  # answered by items' codes, the others in words
STARS, EITHER = ("1", "2", "3", "4", "5"), ("A", "B")
SPAN = 3.0  # mean words of a hidden span
TRIES = 100  # users that are drawn for a task before it is given up


class Example(NamedTuple):
    """What is read and what is asked for: the digits of items' codes, or words' token ids with the end."""

    tokens: list[int]
    digits: tuple[int, ...] = ()
    words: list[int] = []
    about: tuple = ("", ())  # whom: a user's id, and the items before what is asked for


class User(NamedTuple):
    """A training user: id, items, oldest first, and their stars and reviews, if they are known."""

    id: str
    items: list[int]
    stars: list[float | None] | None
    reviews: list[str] | None


def users_of(data: Dataset, reviews: bool = False) -> list[User]:
    """The training interactions of every user who has two or more; reviews: they are read too. InputError if there is nobody."""
    known, rows = data.rows, np.flatnonzero(data.part == 0)
    starts = np.flatnonzero(np.r_[True, np.diff(known.user[rows]) != 0][: len(rows)])
    said = known.review(rows) if reviews and known.review else None
    said = None if said is None or not any(said) else said
    found = []
    for places in filter(len, np.split(np.arange(len(rows)), starts[1:])):
        of_user = rows[places]
        stars = None if known.rating is None else [none_or_float(known.rating[row]) for row in of_user]
        texts = None if said is None else [text or "" for text in said[places]]
        found.append(User(known.user_ids[known.user[of_user[0]]], known.item[of_user].tolist(), stars, texts))
    found = [user for user in found if len(user.items) > 1]
    if not found:
        raise InputError("No user has two training interactions, of which one is to follow the other: give more data.")
    return found


def none_or_float(value) -> float | None:
    """A rating; None where there is none."""
    return None if value is None or value != value else float(value)


def stars_of(rating: float, best: float) -> int:
    """A rating, of a scale that ends at `best`, as one of five stars.

    >>> stars_of(4.6, 5.0), stars_of(7.0, 10.0), stars_of(0.5, 5.0)
    (5, 4, 1)
    """
    return int(np.clip(np.floor(rating * len(STARS) / best + 0.5), 1, len(STARS)))


def others(known: set, count: int, items: int, rng) -> list[int]:
    """So many of the items, as far as there are, that a user does not have."""
    found = []
    while len(found) < count and len(known) + len(found) < items:
        item = int(rng.integers(items))
        if item not in known and item not in found:
            found.append(item)
    return found


def longest(settings, task: str, levels: int) -> int:
    """How long an answer to a task may be, in digits or words; settings: config.tasks, levels: digits of a code."""
    if task in CODED:
        return levels * (settings.next_items if task == "retrieval" else 1)
    return settings.max_words if task in ("hidden_words", "explanation") else 2


class Tasks:
    """Makes examples of a catalogue's items, with the words of a tokenizer and codes beside them."""

    def __init__(
        self, users: list[User], codes: Codes, tokenizer, vocab: int, config, titles: list[str], places: int = 0
    ):
        """users: who trains; vocab: ids from there on are code words; titles: the items', as they are read; places: of a personal
        prompt, whose ids follow the code words'."""
        self.users, self.codes, self.tokenizer, self.settings = users, codes, tokenizer, config.tasks
        self.scale, settings = config.data.best_rating / len(STARS), config.tasks
        levels = codes.digits.shape[1]
        self.code_words = (vocab + np.arange(levels) * codes.width + codes.digits).tolist()
        first = vocab + levels * codes.width
        self.places = list(range(first, first + places))
        self.count, self.known = len(codes.digits), [set(user.items) for user in self.users]
        self.titles = [self.words(" ".join(t.split()[: settings.title_words])) for t in titles]
        if not settings.title_words:
            self.titles = [[] for _ in self.titles]
        self.end = tokenizer.eos_token_id
        self.sentinels = sentinels(tokenizer)
        self.stars, self.either = (self._answers(answers) for answers in (STARS, EITHER))
        self.pieces = {
            task: [
                piece if number % 2 else self.words(piece)
                for number, piece in enumerate(re.split(r"\{(\w+)\}", sentence))
            ]
            for task, sentence in prompts.KNOWLEDGE.items()
        }

    def words(self, text: str) -> list[int]:
        """A text's token ids."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answers(self, answers: Sequence[str]) -> list[int]:
        ids = [self.words(answer) for answer in answers]
        if any(len(of_one) != 1 for of_one in ids) or len({of_one[0] for of_one in ids}) < len(ids):
            raise InputError(
                f"The tokenizer of --config.lm.source has no single word for each of {', '.join(answers)}: use another."
            )
        return [of_one[0] for of_one in ids]

    def weights(self) -> dict[str, float]:
        """How often each task is drawn: settings.weights, those that lack their data left out, the rest scaled to 1."""
        lacking = {task for task in ("rating", "explanation") if not self.eligible[task]}
        lacking |= set() if self.settings.title_words and self.settings.hidden_words else {"hidden_words"}
        found = {task: self.settings.weights[task] for task in TASKS if task not in lacking}
        total = sum(found.values())
        if not total:
            raise InputError(
                f"None of the tasks that --config.tasks.weights asks for has its data here (lacking: {', '.join(sorted(lacking))})."
            )
        return {task: weight / total for task, weight in found.items() if weight}

    # ---- what is read

    def item(self, item: int, stars: float | None = None) -> list[int]:
        """An item's words: its code, its title, and its stars."""
        return self.code_words[item] + self.titles[item] + ([] if stars is None else [self.star(stars)])

    def star(self, rating: float) -> int:
        """The word of a rating, whose scale ends at config.data.best_rating: one of five."""
        return self.stars[stars_of(rating, self.scale * len(STARS)) - 1]

    @functools.cached_property
    def eligible(self) -> dict[str, list[tuple[int, int]]]:
        """(user's number, place of an item that is asked for) of the tasks that not all items have the data for."""
        at = [(number, place) for number, user in enumerate(self.users) for place in range(1, len(user.items))]
        rated = [(n, place) for n, place in at if self.users[n].stars and self.users[n].stars[place] is not None]
        said = [(n, place) for n, place in at if self.users[n].reviews and self.users[n].reviews[place].strip()]
        return {"rating": rated, "explanation": said}

    def fill(self, task: str, **parts: list[list[int]]) -> list[int]:
        """A task's sentence with parts, lists of items' words, for its places; the first items are dropped where all is too long."""
        most = self.settings.max_tokens
        while True:
            ids = list(self.places)
            for number, piece in enumerate(self.pieces[task]):
                ids += sum(parts[piece], []) if number % 2 else piece
            if len(ids) < most:
                return [*ids, self.end]
            if not parts.get("items"):
                raise InputError(
                    f"--config.tasks.max_tokens={most} won't do: the task {task} takes {len(ids) + 1} tokens without any history."
                )
            parts["items"] = parts["items"][1:]

    def history(self, items: Sequence[int]) -> list[list[int]]:
        """The latest of items, as words."""
        return [self.item(item) for item in items[-self.settings.history_items :]]

    def retrieval(self, history: Sequence[int]) -> list[int]:
        """What is read of a history to name the next item."""
        return self.fill("retrieval", items=self.history(history))

    def explanation(self, item: int) -> list[int]:
        """What is read of an item to say why a person would choose it."""
        return self.fill("explanation", item=[self.item(item)])

    def rating(self, history: Sequence[int], stars: Sequence[float], item: int) -> list[int]:
        """What is read of a rated history to tell an item's stars."""
        last = self.settings.history_items
        rated = [self.item(*pair) for pair in zip(history[-last:], stars[-last:], strict=True)]
        return self.fill("rating", items=rated, item=[self.item(item)])

    # ---- examples

    def longest(self, task: str) -> int:
        """How long an answer to a task may be, in digits or words."""
        return longest(self.settings, task, self.codes.digits.shape[1])

    def draw(self, task: str, rng: np.random.Generator) -> Example:
        """One example of a task, of a randomly drawn user."""
        for _ in range(TRIES):
            if task in self.eligible:
                number, at = self.eligible[task][int(rng.integers(len(self.eligible[task])))]
            else:
                number = int(rng.integers(len(self.users)))
                at = self._split(self.users[number], rng)
            found = getattr(self, f"_{task}")(self.users[number], at, self.known[number], rng)
            if found:
                return found
        raise InputError(f"No user has what the task {task} needs: set --config.tasks.weights.{task}=0.")

    def _code(self, item: int) -> tuple[int, ...]:
        return tuple(self.codes.digits[item].tolist())

    def _about(self, user: User, at: int) -> tuple:
        return user.id, tuple(user.items[:at])

    def _split(self, user: User, rng) -> int:
        """A place in a user's items, with at least one before it."""
        return int(rng.integers(1, len(user.items)))

    def _others(self, known: set, count: int, rng) -> list[int]:
        return others(known, count, self.count, rng)

    def _retrieval(self, user, at, known, rng):
        asked, share = user.items[at : at + self.settings.next_items], self.settings.alone
        read = () if share and rng.random() < share else user.items[:at]
        return Example(self.retrieval(read), sum(map(self._code, asked), ()), about=self._about(user, at))

    def _ranking(self, user, at, known, rng):
        candidates = [user.items[at], *self._others(known, self.settings.candidates - 1, rng)]
        shown = [self.item(candidates[place]) for place in rng.permutation(len(candidates))]
        read = self.fill("ranking", items=self.history(user.items[:at]), candidates=shown)
        return Example(read, self._code(user.items[at]), about=self._about(user, at))

    def _rating(self, user, at, known, rng):
        read = self.rating(user.items[:at], user.stars[:at], user.items[at])
        return Example(read, words=[self.star(user.stars[at]), self.end], about=self._about(user, at))

    def _hidden_item(self, user, at, known, rng):
        last = self.settings.history_items
        start = int(rng.integers(0, max(len(user.items) - last, 0) + 1))
        stretch = user.items[start : start + last]
        hidden = int(rng.integers(len(stretch)))
        shown = [[self.sentinels[0]] if place == hidden else self.item(item) for place, item in enumerate(stretch)]
        others, read = (*stretch[:hidden], *stretch[hidden + 1 :]), self.fill("hidden_item", items=shown)
        if self.sentinels[0] not in read:  # dropped with what was too long
            return None
        return Example(read, self._code(stretch[hidden]), about=(user.id, others))

    def _hidden_words(self, user, at, known, rng):
        stretch = user.items[max(at - self.settings.history_items, 0) : at]
        shown, asked, spans = [], [], 0
        for item in stretch:
            title, words = self.titles[item], []
            place = 0
            while place < len(title):
                if rng.random() < self.settings.hidden_words / SPAN and spans < len(self.sentinels):
                    length = min(1 + rng.poisson(SPAN - 1), len(title) - place)
                    asked += [self.sentinels[spans], *title[place : place + length]]
                    words.append(self.sentinels[spans])
                    place, spans = place + length, spans + 1
                else:
                    words.append(title[place])
                    place += 1
            shown.append(self.code_words[item] + words)
        if not asked or len(asked) >= self.settings.max_words:
            return None
        read = self.fill("hidden_words", items=shown)
        gone = [s for s in asked if s in self.sentinels and s not in read]  # dropped with what was too long
        return None if gone else Example(read, words=[*asked, self.end], about=(user.id, tuple(stretch)))

    def _preference(self, user, at, known, rng):
        others = self._others(known, 1, rng)
        if not others:
            return None
        first = int(rng.integers(2))
        pair = [user.items[at], others[0]][:: 1 if first == 0 else -1]
        parts = {"items": self.history(user.items[:at]), "first": [self.item(pair[0])], "second": [self.item(pair[1])]}
        return Example(
            self.fill("preference", **parts), words=[self.either[first], self.end], about=self._about(user, at)
        )

    def _explanation(self, user, at, known, rng):
        words = self.said(user.reviews[at])
        if not words:
            return None
        return Example(self.explanation(user.items[at]), words=[*words, self.end], about=self._about(user, at))

    def said(self, review: str) -> list[int]:
        """How a review begins, as token ids: its first sentence, cut to settings.max_words less the end."""
        return self.words(re.split(r"(?<=[.!?])\s", review.strip())[0])[: self.settings.max_words - 1]


def sentinels(tokenizer) -> list[int]:
    """The ids of marks for what is hidden: <extra_id_0>, …, in this order; else of special tokens that have no other use."""
    vocabulary = tokenizer.get_vocab()
    found = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[name])
    if not found:
        used = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
        template = str(tokenizer.chat_template or "")
        added = sorted(tokenizer.added_tokens_decoder.items())
        found = [i for i, mark in added if mark.special and i not in used and mark.content not in template]
    if not found:
        raise InputError(
            "The tokenizer of --config.lm.source has no marks for what is hidden, such as T5's <extra_id_0>: use another."
        )
    return found
