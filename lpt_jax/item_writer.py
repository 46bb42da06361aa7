"""From a history to the items that a T5 names next: sentence → code by code over the trie → items; a run and its model."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices, metrics, ranking, search
from lpt_jax.baselines import counts
from lpt_jax.data import codes, prompts, tasks
from lpt_jax.data.sessions import training_items
from lpt_jax.learning.tasks import STEP, in_batches, padded
from lpt_jax.models import layers
from lpt_jax.models.encoder import TextEncoder
from lpt_jax.models.t5 import T5, T5Spec
from lpt_jax.models.weights import Source
from lpt_jax.run import Run
from lpt_jax.similarity import DualEncoder, Embedder

SPECIAL = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(16)))
FACTORS = 64  # of the training matrix, for codes by who chose what


def scratch_tokenizer(titles: list[str], size: int):
    """A lower-casing word tokenizer of the tasks' sentences and the titles' most frequent words, of `size` words at most."""
    import tokenizers
    import transformers  # here, as its import is slow

    def words(text):
        return re.findall(r"\w+|[^\w\s]", text.lower())

    sentences = " ".join(re.sub(r"\{\w+\}", " ", sentence) for sentence in prompts.KNOWLEDGE.values())
    known = dict.fromkeys([*SPECIAL, *tasks.STARS, *map(str.lower, tasks.EITHER), *words(sentences)])
    counted = collections.Counter(word for title in titles for word in words(title))
    known |= dict.fromkeys(word for word, _ in counted.most_common(max(size - len(known), 0)))
    vocabulary = {word: number for number, word in enumerate(known)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation()]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    more = {"additional_special_tokens": list(SPECIAL[3:])}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special, **more)


def load_t5(config, titles: list[str]) -> T5:
    """The language model of a config: read from its source, or random, of the shape that its settings give."""
    settings, of_codes = config.lm, (config.codes.levels, config.codes.width)
    dtype = devices.product_type(settings.dtype)
    if settings.source != "scratch":
        return T5.load(settings.source, dtype, *of_codes)
    tokenizer = scratch_tokenizer(titles, settings.vocab)
    shape = settings.width, settings.layers, settings.decoder_layers, settings.heads, settings.width // settings.heads
    spec = T5Spec(len(tokenizer), *shape, settings.hidden, levels=of_codes[0], digits=of_codes[1])
    lm = T5(spec, nnx.Rngs(params=jax.random.key(config.seed)))
    lm.set_attributes(dtype=dtype)
    lm.source = Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    return lm


class ItemWriter:
    """A run and its T5. What training changes is not kept here but given as weights, of the state's part "lm"."""

    def __init__(self, run: Run):
        self.run, self.config, self.data, self.sessions = run, run.config, run.data, run.sessions

    # ---- the model

    @functools.cached_property
    def lm(self) -> T5:
        """The language model as the run begins with it."""
        lm = load_t5(self.config, self.data.catalogue.titles)
        lm.set_attributes(mesh=self.run.mesh)
        return lm

    @functools.cached_property
    def _split(self):
        graph, state = nnx.split(self.lm)
        return graph, layers.masters(layers.plain(state))

    @property
    def graph(self) -> nnx.GraphDef:
        """The model's structure."""
        return self._split[0]

    def fresh(self, part: str) -> dict:
        """The weights as the run begins with them, on the mesh, as float32 masters."""
        return self.place(part, self._split[1])

    def weights(self, state: dict, part: str) -> dict:
        """The weights of a state, or what the run begins with."""
        return state[part].weights if part in state else self.fresh(part)

    def place(self, part: str, tree):
        """A tree of weights, or of an optimiser's state, on the mesh."""
        return devices.place(tree, self.run.mesh, layers.axes_of(self.lm))

    def begin_with(self, part: str, weights: dict) -> None:
        """Lets the run begin with these weights."""
        self._split = self.graph, weights

    def prepare(self) -> None:
        """Makes what is counted among the data."""
        assert self.tasks.weights()

    # ---- items' codes

    @functools.cached_property
    def codes(self) -> codes.Codes:
        """The items' codes, as config.codes says."""
        settings, count = self.config.codes, self.run.count
        size = settings.levels, settings.width
        if settings.kind == "shuffled":
            return codes.shuffled(count, *size, self.config.seed)
        if settings.kind == "ordered":
            seen = dict.fromkeys(item for sequence in training_items(self.data) for item in sequence)
            return codes.of_order([*seen, *(item for item in range(count) if item not in seen)], *size)
        if settings.kind == "together":
            return codes.of_vectors(counts.factors(training_items(self.data), count, FACTORS, 0), *size)
        return codes.of_vectors(self.vectors, *size)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """The embeddings [N, D] of the items' texts, for codes by text; kept in the run's workdir."""
        settings = self.config.embedder
        embedder = Embedder(
            DualEncoder(TextEncoder.load(settings.source)), settings, self.run.mesh, self.run.workdir / "catalogue"
        )
        return embedder.kept(embedder.fresh(), self.data.catalogue.texts)

    @functools.cached_property
    def trie(self) -> tuple[jax.Array, ...]:
        """Which codes there are (codes.Trie)."""
        return tuple(map(jnp.asarray, codes.trie(self.codes).next_of))

    @functools.cached_property
    def tasks(self) -> tasks.Tasks:
        """What makes examples and sentences."""
        return tasks.Tasks(
            self.data, self.codes, self.lm.tokenizer, self.lm.spec.vocab, self.config.tasks, self.shown_titles
        )

    @functools.cached_property
    def shown_titles(self) -> list[str]:
        """The items' titles as the model reads them; those of other items where config.tasks.titles says shuffled."""
        titles = self.data.catalogue.titles
        if self.config.tasks.titles == "own":
            return titles
        return [titles[item] for item in np.random.default_rng((self.config.seed, 43)).permutation(len(titles))]

    # ---- what it names

    def _read(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts' tokens and mask, of one of a few static lengths."""
        return padded(rows, -(-max(map(len, rows)) // STEP) * STEP)

    def found(self, weights: dict, histories: list, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k likeliest items of histories, without these: ids Int[S, k], best first, -1 for none, and log-probabilities."""
        read = [self.tasks.retrieval(history) for history in histories]
        order = np.argsort([len(row) for row in read], kind="stable")
        width = max(map(len, histories), default=1)
        ids, scores = np.full((len(histories), k), -1, np.int64), np.full((len(histories), k), -np.inf)
        for batch, new in in_batches(len(histories), self.config.search.batch):
            rows = order[batch]
            tokens, mask = self._read([read[row] for row in rows])
            hidden = np.full((len(rows), width), -1, np.int32)
            for line, row in zip(hidden, rows, strict=True):
                line[: len(histories[row])] = histories[row]
            put = devices.split_batch((tokens, mask, hidden), self.run.mesh)
            best = devices.fetch(
                search.beam(self.graph, weights, *put[:2], self.trie, put[2], max(k, self.config.search.beams))
            )
            ids[rows[:new]], scores[rows[:new]] = best[0][:new, :k], best[1][:new, :k]
        return ids, scores

    def ranks(self, weights: dict, sessions: list) -> np.ndarray:
        """Ranks Int[S, M] of sessions' targets among what the beam finds, without the other targets; N for what it doesn't find."""
        ids, _ = self.found(weights, [session.history for session in sessions], self.config.search.beams)
        ranks = np.zeros((len(sessions), max(len(session.targets) for session in sessions)), np.int64)
        for line, row, session in zip(ranks, ids.tolist(), sessions, strict=True):
            for place, target in enumerate(session.targets):
                others = [item for item in row if item not in session.targets or item == target]
                line[place] = 1 + others.index(target) if target in others else self.run.count
        return ranks

    def rank(self, split: str, profiles, items) -> np.ndarray:
        """Ranks Int[S, M] of a split's targets by what a baseline ranks by (ranking.session_ranks)."""
        return ranking.session_ranks(profiles, items, self.sessions[split], self.run.count)

    def likelihoods(self, weights: dict, histories: list, candidates: np.ndarray) -> np.ndarray:
        """log p(item | history), Float[S, G], of candidates Int[S, G] for each history."""
        found = np.empty(candidates.shape)
        for rows, new in in_batches(len(histories), self.config.search.batch):
            tokens, mask = self._read([self.tasks.retrieval(histories[row]) for row in rows])
            put = devices.split_batch(
                (tokens, mask, self.codes.digits[candidates[rows]].astype(np.int32)), self.run.mesh
            )
            found[rows[:new]] = devices.fetch(search.likelihoods(self.graph, weights, *put))[:new]
        return found

    def stars(self, weights: dict, asked: list[tuple]) -> np.ndarray:
        """p(1 star) … p(5 stars), Float[n, 5], for (history, stars, item) each."""
        found, words = np.empty((len(asked), len(tasks.STARS))), jnp.asarray(self.tasks.stars)
        for rows, new in in_batches(len(asked), self.config.search.batch):
            tokens, mask = self._read([self.tasks.rating(*asked[row]) for row in rows])
            put = devices.split_batch((tokens, mask), self.run.mesh)
            found[rows[:new]] = devices.fetch(search.first_words(self.graph, weights, *put, words))[:new]
        return found

    def validation(self, ranks: np.ndarray) -> dict[str, float]:
        """Validation metrics of ranks Int[S, M]."""
        users = [session.user for session in self.sessions["validation"]]
        names = {"ndcg@10", "recall@10", self.config.evaluation.metric}
        return {f"val/{name}": metrics.mean(ranks, users, name) for name in sorted(names)}
