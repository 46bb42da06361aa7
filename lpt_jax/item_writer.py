"""From a history to the items that a language model names next: sentence → code by code over the trie → items; a run and its model."""

import collections
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices, files, metrics, ranking, search
from lpt_jax.baselines import counts
from lpt_jax.data import batches, prompts, tasks
from lpt_jax.data import codes as codes_lib
from lpt_jax.data.sessions import training_items
from lpt_jax.learning.tasks import rounded
from lpt_jax.models import layers
from lpt_jax.models.decoder import Decoder, DecoderSpec
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.models.t5 import T5, T5Spec
from lpt_jax.models.weights import Source
from lpt_jax.recommender import TRAINED, load_encoder, make_trainable
from lpt_jax.run import Run
from lpt_jax.similarity import DualEncoder, Embedder

SPECIAL = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(16)))
FACTORS = 64  # of the training matrix, for codes by who chose what


def scratch_tokenizer(texts: list[str], size: int):
    """A lower-casing word tokenizer of the tasks' sentences and the texts' most frequent words, of `size` words at most."""
    import tokenizers
    import transformers  # here, as its import is slow

    def words(text):
        return re.findall(r"\w+|[^\w\s]", text.lower())

    sentences = " ".join(re.sub(r"\{\w+\}", " ", sentence) for sentence in prompts.KNOWLEDGE.values())
    known = dict.fromkeys([*SPECIAL, *tasks.STARS, *map(str.lower, tasks.EITHER), *words(sentences)])
    counted = collections.Counter(word for text in texts for word in words(text))
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


def random_model(settings, vocab: int, of_codes: tuple[int, int], rngs: nnx.Rngs) -> T5 | Decoder:
    """A language model of the shape that config.lm gives; a T5's codes are there."""
    heads, size = settings.heads, settings.width // settings.heads
    if settings.kind == "t5":
        shape = settings.width, settings.layers, settings.decoder_layers, heads, size, settings.hidden
        return T5(T5Spec(vocab, *shape, levels=of_codes[0], digits=of_codes[1]), rngs)
    shape = settings.width, settings.layers, heads, heads, size, settings.hidden
    return Decoder(DecoderSpec("llama", vocab, *shape), rngs)


def load_model(config, texts: list[str], of_codes: tuple[int, int]) -> T5 | ItemDecoder:
    """The language model of a config: read from its source, or random, of the shape that its settings give.

    texts: whose words a random one knows; of_codes: digits of a code, and words of each.
    """
    settings, dtype, key = config.lm, devices.product_type(config.lm.dtype), jax.random.key(config.seed)
    t5, rngs = settings.kind == "t5", nnx.Rngs(params=key)
    if settings.source == "scratch":
        tokenizer = scratch_tokenizer(texts, settings.vocab)
        lm = random_model(settings, len(tokenizer), of_codes, rngs)
        lm.set_attributes(dtype=dtype)
        lm.source = Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    else:
        lm = T5.load(settings.source, dtype, *of_codes) if t5 else Decoder.load(settings.source, dtype)
    return with_codes(lm, config, of_codes, rngs)


def with_codes(
    lm: T5 | Decoder, config, of_codes: tuple[int, int], rngs, size: float | None = None
) -> T5 | ItemDecoder:
    """A language model with code words, and what trains apart from the rest; a T5 has its code words already.

    size: of the code words' vectors (ItemDecoder).
    """
    if config.lm.kind == "t5":
        lm.remat = config.lm.remat
        return lm
    if config.tasks.trains != "all":
        make_trainable(lm, config, "tasks", jax.random.key(config.seed))
    return ItemDecoder(lm, *of_codes, rngs, config.lm.remat, size)


def divided(lm: T5 | ItemDecoder, trains: str) -> tuple[nnx.GraphDef, dict, dict]:
    """A model's structure, what of it trains, as float32 masters, and what is frozen.

    trains: tasks.trains; of a decoder-only model code words and personal prompts always train.
    """

    def learns(path: tuple, value) -> bool:
        return trains == "all" or path[0] != "lm" or nnx.filterlib.to_predicate(TRAINED[trains])(path[1:], value)

    graph, trained, frozen = nnx.split(lm, learns, ...)
    return graph, layers.masters(layers.plain(trained)), layers.plain(frozen)


def code_shape(config, count: int) -> tuple[int, int]:
    """A code's digits, and the words of each, of so many items."""
    levels, width = config.codes.levels, config.codes.width
    return levels, width or codes_lib.needed(count, levels)


def about(session) -> tuple:
    """Whom a session is about, as data/tasks.py says it."""
    return session.user, session.history


class ItemWriter:
    """A run and its language model. What training changes is not kept here but given as weights, of the state's part "lm"."""

    penalty = 0.0  # × a personal prompt's
    reads_profiles = False

    def __init__(self, run: Run):
        self.run, self.config, self.data, self.sessions = run, run.config, run.data, run.sessions

    # ---- the model

    @functools.cached_property
    def lm(self) -> T5 | ItemDecoder:
        """The language model as the run begins with it."""
        lm = self.load()
        lm.set_attributes(mesh=self.run.mesh)
        return lm

    def load(self) -> T5 | ItemDecoder:
        """Reads or makes the model."""
        reviews = [text for user in self.users for text in user.reviews or ()]
        return load_model(self.config, self.data.catalogue.titles + reviews, self.code_shape)

    @functools.cached_property
    def users(self) -> list[tasks.User]:
        """Who trains; with their reviews, where some task asks for them."""
        return tasks.users_of(self.data, reviews=self.config.tasks.weights.explanation > 0)

    @functools.cached_property
    def _split(self):
        return divided(self.lm, self.config.tasks.trains)

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

    @functools.cached_property
    def frozen(self) -> dict:
        """What is not trained, on the mesh."""
        return self.place("lm", self._split[2])

    def whole(self, weights: dict) -> dict:
        """Trained weights and the frozen ones as one tree."""
        return layers.joined(weights, self.frozen)

    def place(self, part: str, tree):
        """A tree of weights, or of an optimiser's state, on the mesh."""
        return devices.place(tree, self.run.mesh, layers.axes_of(self.lm))

    def begin_with(self, part: str, weights: dict) -> None:
        """Lets the run begin with these weights."""
        self._split = self.graph, weights, self._split[2]

    def prepare(self) -> None:
        """Makes an example of each task, so that what won't do is told before any training."""
        for task in self.tasks.weights():
            self.tasks.draw(task, np.random.default_rng(0))

    # ---- items' codes

    @property
    def code_shape(self) -> tuple[int, int]:
        """A code's digits, and the words of each."""
        return code_shape(self.config, self.run.count)

    @functools.cached_property
    def codes(self) -> codes_lib.Codes:
        """The items' codes, as config.codes says; kept in the workdir, as another machine's arithmetic may make others."""
        file, (_, width), ids = self.run.workdir / "codes.json", self.code_shape, self.data.catalogue.ids
        if devices.any_process(not file.exists()):
            made = self._codes()
            if devices.first():
                text = json.dumps({"width": width, "digits": dict(zip(ids, made.digits.tolist(), strict=True))})
                file.parent.mkdir(parents=True, exist_ok=True)
                files.write_file(file, text + "\n")
            devices.wait_for_all("the items' codes")
        digits = json.loads(file.read_text(encoding="utf-8"))["digits"]
        return codes_lib.Codes(np.array([digits[item] for item in ids]), width)

    def _codes(self) -> codes_lib.Codes:
        settings, count, size = self.config.codes, self.run.count, self.code_shape
        if settings.kind == "shuffled":
            return codes_lib.shuffled(count, *size, self.config.seed)
        if settings.kind == "ordered":
            seen = dict.fromkeys(item for sequence in training_items(self.data) for item in sequence)
            return codes_lib.of_order([*seen, *(item for item in range(count) if item not in seen)], *size)
        if settings.kind == "together":
            found, values = counts.factors(training_items(self.data), count, FACTORS)
            return codes_lib.of_vectors(counts.unit(found * values), *size)
        return codes_lib.of_vectors(self.vectors, *size)

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The text embedder, which is not trained; it keeps the catalogue in the run's workdir."""
        folder, dual = self.run.workdir / "catalogue", DualEncoder(load_encoder(self.config))
        return Embedder(dual, self.config.embedder, self.run.mesh, folder)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """The embeddings [N, D] of the items' texts, for codes by text."""
        return self.embedder.kept(self.embedder.fresh(), self.data.catalogue.texts)

    @functools.cached_property
    def trie(self) -> tuple[jax.Array, ...]:
        """Which codes there are (codes.Trie)."""
        return tuple(map(jnp.asarray, codes_lib.trie(self.codes).next_of))

    @functools.cached_property
    def tasks(self) -> tasks.Tasks:
        """What makes examples and sentences."""
        places = self.lm.personal.spec.count if self.lm.personal is not None else 0
        tokenizer, vocab = self.lm.tokenizer, self.lm.spec.vocab
        return tasks.Tasks(self.users, self.codes, tokenizer, vocab, self.config, self.shown_titles, places)

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
        return batches.pad_right(rows, rounded(max(map(len, rows))))

    def who(self, people: list[tuple], task: str) -> dict | None:
        """What a personal prompt reads of (user's id, items) each; None, as there is none (systems/peapod.py has one)."""
        return None

    def audit(self, weights: dict) -> dict[str, dict]:
        """What edits of profiles do; {}, as none are read."""
        return {}

    def more_rows(self, weights: dict) -> dict[str, np.ndarray]:
        """Ranks of the test's targets by other rows of the results, by name."""
        return {}

    def _put(self, rows: list[list[int]], people: list[tuple], task: str, *more):
        """Texts' tokens and mask, other arrays, and whom they are about, on the mesh."""
        who = self.who(people, task)
        who = who and {name: values[:, None] for name, values in who.items()}  # one text a line
        return devices.split_batch((*self._read(rows), *more, who), self.run.mesh)

    def found(
        self, weights: dict, sessions: list, k: int, profiles: list[str] | None = None, alone: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k likeliest items after sessions' histories, without these: ids Int[S, k], best first, -1 for none, and
        log-probabilities.

        profiles: in place of the users' own, where some are read; alone: no items are read.
        """
        read = [self.tasks.retrieval(() if alone else session.history) for session in sessions]
        order = np.argsort([len(row) for row in read], kind="stable")
        hidden = ranking.padded([session.history for session in sessions])
        ids, scores = np.full((len(sessions), k), -1, np.int64), np.full((len(sessions), k), -np.inf)
        for batch, new in batches.in_batches(len(sessions), self.config.search.batch):
            rows = order[batch]
            people = [(*about(sessions[row]), *(profiles or [])[row : row + 1]) for row in rows]
            *texts, seen, who = self._put([read[row] for row in rows], people, "retrieval", hidden[rows])
            beams = max(k, self.config.search.beams)
            best = devices.fetch(search.beam(self.graph, self.whole(weights), *texts, self.trie, seen, beams, who))
            ids[rows[:new]], scores[rows[:new]] = best[0][:new, :k], best[1][:new, :k]
        return ids, scores

    def ranks(self, weights: dict, sessions: list, profiles: list[str] | None = None, alone=False) -> np.ndarray:
        """Ranks Int[S, M] of sessions' targets among what the beam finds, without the other targets; behind all metrics' cut-offs
        where it doesn't find them. profiles, alone: as in found."""
        most, missed = max(len(session.targets) for session in sessions), self.run.count + max(metrics.CUTOFFS)
        ids, _ = self.found(weights, sessions, self.config.search.beams + most - 1, profiles, alone)
        ranks = np.zeros((len(sessions), most), np.int64)
        for line, row, session in zip(ranks, ids.tolist(), sessions, strict=True):
            for place, target in enumerate(session.targets):
                others = [item for item in row if item not in session.targets or item == target]
                line[place] = 1 + others.index(target) if target in others else missed
        return ranks

    def rank(self, split: str, profiles, items) -> np.ndarray:
        """Ranks Int[S, M] of a split's targets by what a baseline ranks by (ranking.session_ranks)."""
        return ranking.session_ranks(profiles, items, self.sessions[split], self.run.count)

    def likelihoods(self, weights: dict, sessions: list, candidates: np.ndarray) -> np.ndarray:
        """log p(item | history), Float[S, G], of candidates Int[S, G] for each session."""
        found = np.empty(candidates.shape)
        for rows, new in batches.in_batches(len(sessions), self.config.search.batch):
            read = [self.tasks.retrieval(sessions[row].history) for row in rows]
            digits = self.codes.digits[candidates[rows]].astype(np.int32)
            *put, who = self._put(read, [about(sessions[row]) for row in rows], "retrieval", digits)
            found[rows[:new]] = devices.fetch(search.likelihoods(self.graph, self.whole(weights), *put, who))[:new]
        return found

    def stars(self, weights: dict, asked: list[tuple]) -> np.ndarray:
        """p(1 star) … p(5 stars), Float[n, 5], for (session, item) each."""
        found, words = np.empty((len(asked), len(tasks.STARS))), jnp.asarray(self.tasks.stars)
        for rows, new in batches.in_batches(len(asked), self.config.search.batch):
            chosen = [asked[row] for row in rows]
            read = [self.tasks.rating(session.history, session.ratings, item) for session, item in chosen]
            *put, who = self._put(read, [about(session) for session, _ in chosen], "rating")
            chances = search.first_words(self.graph, self.whole(weights), *put, words, who)
            found[rows[:new]] = devices.fetch(chances)[:new]
        return found

    def explain(self, weights: dict, asked: list[tuple]) -> list[str]:
        """Why, in words, for (session, item) each."""
        texts, most = [], self.config.tasks.max_words
        for rows, new in batches.in_batches(len(asked), self.config.search.batch):
            chosen = [asked[row] for row in rows]
            read = [self.tasks.explanation(item) for _, item in chosen]
            *put, who = self._put(read, [about(session) for session, _ in chosen], "explanation")
            words = devices.fetch(search.greedy(self.graph, self.whole(weights), *put, most, self.tasks.end, who))[:new]
            written = [[word for word in row if word >= 0] for row in words.tolist()]
            texts += self.lm.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts

    def validation(self, ranks: np.ndarray) -> dict[str, float]:
        """Validation metrics of ranks Int[S, M]."""
        users = [session.user for session in self.sessions["validation"]]
        names = {"ndcg@10", "recall@10", self.config.evaluation.metric}
        return {f"val/{name}": metrics.mean(ranks, users, name) for name in sorted(names)}
