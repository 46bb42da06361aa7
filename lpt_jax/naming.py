"""Journeys of a run's users and their names: titles → what is alike → journeys → a prompt each → names by a language model."""

import functools
import zlib
from collections.abc import Callable

import numpy as np

from lpt_jax import journeys
from lpt_jax.data import collections, prompts
from lpt_jax.generation import Draws, LanguageModel
from lpt_jax.models import layers
from lpt_jax.run import Run
from lpt_jax.similarity import Embedder

Group = list[int]  # catalogue indices of what is to be named, oldest first


class JourneyNamer:
    """A run, the language models that name, one for each way to train it, and the embedder of titles, which isn't trained.

    What training changes is not kept here but given as weights, by the language models' names, the state's parts.
    """

    def __init__(self, run: Run, lms: dict[str, Callable[[], LanguageModel]], embedder: Callable[[], Embedder]):
        """lms, embedder: make the models, which happens when they are first asked for."""
        self.run, self._lms, self._embedder = run, lms, embedder
        self._made, self._loaded = {}, {}
        self.config, self.data, self.sessions = run.config, run.data, run.sessions

    def lm(self, part: str) -> LanguageModel:
        """The language model of a part of the state."""
        if part not in self._made:
            lm = self._made[part] = self._lms[part]()
            tried = collections.draws(self.collections["train"], self.config.prompt.titles, 1, seed=0)
            lengths = [len(self.prompt(group, lm=lm)) for _, group in tried] + [self.config.prompt.max_tokens]
            lm.lengths = tuple(
                sorted({-(-int(length) // 16) * 16 for length in (np.median(lengths), *sorted(lengths)[-2:])})
            )
        return self._made[part]

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The embedder."""
        return self._embedder()

    # ---- weights, for train.py

    def fresh(self, part: str) -> dict:
        """A part's weights as the run begins with them."""
        return self.lm(part).fresh()

    def weights(self, state: dict, part: str) -> dict:
        """A part's weights in a state, or, where none is trained, what the run begins with."""
        return state[part].weights if part in state else self.fresh(part)

    def place(self, part: str, tree):
        """A tree of a part's weights, or of its optimiser's state, on the mesh."""
        return self.lm(part).place(tree)

    def begin_with(self, part: str, weights: dict) -> None:
        """Lets the run begin with these weights."""
        lm = self.lm(part)
        self._loaded[part], lm.begin_with = lm.begin_with, weights

    def untrained(self, part: str) -> dict:
        """A part's weights as they were loaded."""
        return self.place(part, layers.masters(self._loaded.get(part, self.lm(part).begin_with)))

    def prepare(self) -> None:
        """Makes what is counted among the data, and a prompt of each training collection."""
        assert self.collections and self.lm(next(iter(self._lms))).lengths

    # ---- items, journeys and collections

    @functools.cached_property
    def collections(self) -> dict[str, list[collections.Collection]]:
        """The named collections by split."""
        found, counts = collections.read(self.config.collections, self.config.data, self.data.catalogue)
        self.data.counts.update(counts)
        return collections.split(found, self.config.collections)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """The titles' embeddings [N, D]; kept in the run's workdir."""
        return self.embedder.kept(self._weights, self.data.catalogue.titles)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings [n, D] of names."""
        return self.embedder.embed(self._weights, texts, self.embedder.spec.max_tokens)[0]

    @functools.cached_property
    def _weights(self) -> dict:
        return self.embedder.fresh()

    @functools.cached_property
    def finder(self) -> journeys.Journeys:
        """What finds journeys, by the items' titles."""
        settings = self.config.journeys
        return journeys.Journeys(self.data.catalogue.titles, self.vectors if settings.vectors else None, settings)

    def journeys(self, items: Group) -> list[Group]:
        """The journeys of a user's items, oldest first, as their catalogue indices."""
        return self.finder.of(items)

    @functools.cached_property
    def _terms(self) -> tuple[list[str], object]:
        return journeys.terms_of(self.data.catalogue.titles)

    def words(self, group: Group, count: int) -> list[str]:
        """The `count` terms that weigh most in a group's titles (TF-IDF), none within another."""
        return journeys.heaviest(*self._terms, group, count)

    # ---- names

    def shown(self, group: Group) -> tuple[list[str], list[str]]:
        """What a prompt shows of a group: the latest titles, and frequent words."""
        settings = self.config.prompt
        words = self.words(group, settings.words) if settings.words else []
        return [self.data.catalogue.titles[item] for item in group[-settings.titles :]], words

    @functools.cached_property
    def examples(self) -> list[tuple[list[str], list[str], str]]:
        """Titles, words and names of prompt.shots training collections, drawn by the run's seed."""
        found, settings = self.collections["train"], self.config.collections
        rng = np.random.default_rng((self.config.seed, 21))
        chosen = rng.permutation(len(found))[: self.config.prompt.shots]
        groups = dict(collections.draws(found, settings.shown, 1, seed=self.config.seed))
        return [(*self.shown(groups[number]), found[number].name) for number in chosen]

    def prompt(self, group: Group, few_shot: bool = False, lm: LanguageModel | None = None) -> list[int]:
        """The token ids that ask for a group's name, after examples if few_shot."""
        lm = lm or self.lm(next(iter(self._lms)))
        examples = self.examples if few_shot else []
        return prompts.encode_naming(
            self.shown(group), examples, self.config.data, self.config.prompt, lm.source.tokenizer
        )[0]

    def write(self, part: str, weights: dict, groups: list[Group], few_shot: bool = False, what: str = "") -> list[str]:
        """A name for each group, greedily; what: the progress bar's name."""
        lm, what = self.lm(part), what if len(groups) > self.config.names.batch else ""
        asked = [self.prompt(group, few_shot, lm) for group in groups]
        if not asked:
            return []
        texts = lm.write(weights, asked, np.arange(len(asked)), self.run.key, what=what, keep=self._asked_to_stop)
        return [prompts.written_name(text) for text in texts]

    def _asked_to_stop(self, *_) -> None:
        """Stops a run that was asked to, between two batches of names."""
        if self.run.interrupt:
            self.run.interrupt.check("all training")

    def best(self, part: str, weights: dict, groups: list[Group], what: str = "") -> list[str]:
        """For each group, of names.samples drawn names the one whose embedding is nearest to the mean of its items'."""
        lm, s, what = self.lm(part), self.config.names, what if len(groups) > self.config.names.batch else ""
        asked = [self.prompt(group, lm=lm) for group in groups]
        numbers = [zlib.crc32(repr(group).encode()) for group in groups]  # a group's draws are always the same

        def choose(rows, texts, ended):
            texts_of = dict(zip(rows.tolist(), texts))  # the last batch repeats rows
            near = {row: self.nearest(of_row, groups[row]) for row, of_row in texts_of.items()}
            return np.array([near[row] for row in rows.tolist()])

        draws = Draws(s.temperature, s.samples, choose)
        texts = lm.write(weights, asked, numbers, self.run.key, draws, what, keep=self._asked_to_stop)
        return [prompts.written_name(text) for text in texts]

    def nearest(self, texts: list[str], group: Group) -> int:
        """Which of written names is nearest to a group's items; empty ones are none."""
        names = [prompts.written_name(text) for text in texts]
        near = self.embed(names) @ journeys.mean(self.vectors[group])
        return int(np.argmax(np.where([name != "" for name in names], near, -np.inf)))
