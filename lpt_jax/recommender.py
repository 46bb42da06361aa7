"""The way from a session's prompt to a profile in plain language, and from the profile to the rank of its target."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices, files, metrics, ranking
from lpt_jax.data import batches, made_up, prompts
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError
from lpt_jax.generation import GREEDY, LanguageModel, Profiles, Sampling
from lpt_jax.journeys import Journeys
from lpt_jax.models import low_rank, soft_prompts
from lpt_jax.models.decoder import Decoder, DecoderSpec, top_layers
from lpt_jax.models.encoder import EncoderSpec, TextEncoder
from lpt_jax.models.weights import Source
from lpt_jax.run import Run
from lpt_jax.similarity import Embedder

TINY_WIDTH = 64  # of the random models of ":tiny"


def load_decoder(config) -> Decoder:
    """The language model of a config, in its settings' type."""
    dtype = devices.product_type(config.lm.dtype)
    if config.lm.source != "tiny":
        return Decoder.load(config.lm.source, dtype)
    tokenizer = made_up.tiny_tokenizer()
    key, _ = jax.random.split(jax.random.key(config.seed))
    spec = DecoderSpec("llama", len(tokenizer), TINY_WIDTH, 2, 4, 2, 16, 2 * TINY_WIDTH)
    lm = Decoder(spec, nnx.Rngs(params=key))
    lm.set_attributes(dtype=dtype)
    lm.source = Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    return lm


def load_encoder(config) -> TextEncoder:
    """The text embedder of a config."""
    if config.embedder.source != "tiny":
        return TextEncoder.load(config.embedder.source)
    tokenizer = made_up.tiny_tokenizer()
    _, key = jax.random.split(jax.random.key(config.seed))
    encoder = TextEncoder(EncoderSpec(len(tokenizer), TINY_WIDTH, 1, 4, 2 * TINY_WIDTH, 512), nnx.Rngs(params=key))
    encoder.source = Source(tokenizer, tokenizer.pad_token_id)
    return encoder


TRAINED = {"last_layers": top_layers, "lora": nnx.LoRAParam, "soft_prompt": soft_prompts.SoftPromptParam}  # nnx filters


def make_trainable(lm: Decoder, config, group: str, key: jax.Array) -> Decoder:
    """The decoder with LoRA or a soft prompt attached, or with its last layers apart; InputError if it can't be.

    group: of the settings that say so, "policy" or another one that has trains, last_layers, lora and soft_prompt.
    """
    settings = config[group]
    if settings.trains == "lora":
        low_rank.attach(lm, settings.lora.targets, settings.lora.rank, settings.lora.alpha, key)
    elif settings.trains == "soft_prompt":
        soft_prompts.attach(lm, settings.soft_prompt.tokens, settings.soft_prompt.start)
    elif settings.last_layers > lm.spec.layers:
        raise InputError(
            f"--config.{group}.last_layers={settings.last_layers} won't do: {config.lm.source} has {lm.spec.layers} layers."
        )
    else:
        lm.divide(lm.spec.layers - settings.last_layers)
        lm.keep_steps()
    return lm


def language_model(
    config, lm: Decoder, mesh, key: jax.Array, platform: str = "", trains: str = "policy", written=None
) -> LanguageModel:
    """The LanguageModel of a config; lm may hold shapes in place of arrays (platform: of the mesh's devices).

    trains: the group of settings that say what trains; written: those of what it writes, by default config.profile.
    """
    lm.set_attributes(mesh=mesh)
    settings, (base, weights) = config[trains], nnx.split(lm)
    make = functools.partial(make_trainable, config=config, group=trains, key=key)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(weights)):
        lm = nnx.eval_shape(make, lm)
    else:
        lm = make(lm)
    alone = (platform or jax.default_backend()) != "cpu" and mesh.size == 1
    return LanguageModel(
        lm,
        TRAINED[settings.trains],
        mesh,
        written or config.profile,
        base=base if settings.trains == "lora" else None,
        listed=config.lm.layers == "listed" or config.lm.layers == "auto" and alone,
        start=prompts.start_of(config.data, config.prompt),
    )


@jax.jit
def _mean_items(items, recent):
    """The means [S, D] of items' embeddings, without their bias, by indices [S, K], -1 for none."""
    exists = recent >= 0
    found = items[jnp.maximum(recent, 0), :-1] * exists[..., None]
    return jnp.sum(found, 1) / jnp.maximum(exists.sum(1, keepdims=True), 1)


class ProfileRecommender:
    """Prompt → profile → rank: a run, its language model and its embedder.

    What training changes is not kept here but given as weights: of the state's parts "lm", "embedder" and "control"
    (a second embedder, for raw histories).
    """

    def __init__(self, run: Run, lm: Callable[[], LanguageModel], embedder: Callable[[], Embedder]):
        """lm, embedder: make the models, which happens when they are first asked for."""
        self.run, self._lm, self._embedder, self.begin_residuals = run, lm, embedder, None
        self._kept = {}  # id of a session -> the session, and how many items its prompt shows
        self._parts = {}  # id of a session -> the session, and its journeys
        self._compared = None, None, None  # the last weights, items less their mean, and their covariance
        self._greedy = None, "", [], {}  # the last greedy profiles: their weights, split, texts, and which ended
        self.config, self.data = run.config, run.data

    @functools.cached_property
    def sessions(self) -> dict[str, list[Session]]:
        """The sessions by split."""
        return self.run.sessions | {"train": self.training(self.run.sessions["train"])}

    @functools.cached_property
    def lm(self) -> LanguageModel:
        """The language model; until the sessions' prompts are made it has one static length, the longest."""
        lm = self._lm()
        lm.lengths = (-(-self.config.prompt.max_tokens // 16) * 16,)
        return lm

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The embedder."""
        return self._embedder()

    # ---- weights

    def fresh(self, part: str) -> dict:
        """A part's weights as the run begins with them, on the mesh, as float32 masters."""
        if part == "lm":
            return self.lm.fresh()
        if part == "residuals":
            shape = self.run.count, self.embedder.spec.width
            return self.place(
                part,
                self.begin_residuals
                or {"residual": np.zeros(shape, np.float32), "bias": np.zeros(shape[:1], np.float32)},
            )
        return self.embedder.fresh(loaded=part == "control")

    def weights(self, state: dict, part: str) -> dict:
        """A part's weights in a state, or, where none is trained, what the run begins with."""
        return state[part].weights if part in state else self.fresh(part)

    def place(self, part: str, tree):
        """A tree of a part's weights, or of its optimiser's state, on the mesh."""
        if part == "residuals":
            return devices.place(tree, self.run.mesh, {})
        return (self.lm if part == "lm" else self.embedder).place(tree)

    def begin_with(self, part: str, weights: dict) -> None:
        """Lets the run begin with these weights of "lm" or "embedder"."""
        if part == "residuals":
            self.begin_residuals = weights
        else:
            (self.lm if part == "lm" else self.embedder).begin_with = weights

    # ---- journeys: what is read for a profile of its own (config.profile.per)

    @property
    def by_journey(self) -> bool:
        """Whether a profile has a line for each of a user's journeys."""
        return self.config.profile.per == "journey"

    @functools.cached_property
    def journeys(self) -> Journeys:
        """What finds them, by the items' texts and the embedder as loaded."""
        texts, settings = self.data.catalogue.texts, self.config.journeys
        if not settings.vectors:
            return Journeys(texts, None, settings)
        folder = self.run.workdir / "catalogue_as_loaded"  # so that a later process need not embed it
        return Journeys(texts, self.embedder.kept(self.fresh("control"), texts, folder), settings)

    def parts(self, session: Session) -> list[Session]:
        """The sessions that a profile is written of each: of its latest journeys, what was chosen last coming last; or itself."""
        if not self.by_journey or session.whole:
            return [session]
        if id(session) not in self._parts:
            found = sorted(self.journeys.places(session.history), key=max)[-self.config.profile.journeys :]
            self._parts[id(session)] = session, [session.part(places, ()) for places in found] or [session]
        return self._parts[id(session)][1]

    def training(self, sessions: list[Session]) -> list[Session]:
        """Training sessions: each journey with those of the next items that are most like it; without any it is left out."""
        if not self.by_journey:
            return sessions
        found = []
        for session in sessions:
            parts = self.parts(session)
            nearest = [self.journeys.nearest(target, [part.history for part in parts]) for target in session.targets]
            for number, part in enumerate(parts):
                own = tuple(target for target, of in zip(session.targets, nearest, strict=True) if of == number)
                others = tuple(target for target in session.targets if target not in own)
                found += [dataclasses.replace(part, targets=own, whole=session.past, others=others)] * bool(own)
        return found

    def forget(self, session: Session) -> None:
        """Lets go of what is remembered of a session that will not be asked for again."""
        for part in self.parts(session):
            self._kept.pop(id(part), None)
        self._parts.pop(id(session), None)

    def shown(self, session: Session) -> list[int]:
        """The items that a session's prompts show."""
        return [item for part in self.parts(session) for item in part.history[len(part.history) - self.kept(part) :]]

    def length(self, profile: str) -> int:
        """The embedder's tokens of a profile, or of the longest of its lines, where each is a query."""
        return max(map(self.embedder.length, profile.split("\n") if self.by_journey else [profile]))

    def line(self, text: str) -> str:
        """A profile as it is kept: that of a journey is a line."""
        return " ".join(text.split()) if self.by_journey else text

    # ---- prompts

    def prompt(self, session) -> tuple[list[int], int]:
        """A session's prompt: its token ids, and how many of the latest items it shows (prompts.encode_prompt)."""
        settings = self.config.data, self.config.prompt, self.lm.source.tokenizer
        return prompts.encode_prompt(session, self.data.catalogue, *settings)

    def kept(self, session) -> int:
        """How many of the latest items a session's prompt shows."""
        if id(session) not in self._kept:
            self._kept[id(session)] = session, self.prompt(session)[1]
        return self._kept[id(session)][1]

    @functools.cached_property
    def prompts(self) -> dict[str, list[list[int]]]:
        """The prompts of all sessions' parts by split, for which the language model then has few static lengths."""
        made, lengths = {}, []
        for split, sessions in self.sessions.items():
            sessions = [part for session in sessions for part in self.parts(session)]
            rows = [self.prompt(session) for session in sessions]
            self._kept |= {id(s): (s, kept) for s, (_, kept) in zip(sessions, rows, strict=True)}
            self.data.counts[f"{split} prompts without room for an item"] = sum(kept == 0 for _, kept in rows)
            made[split] = [ids for ids, _ in rows]
            lengths += [len(ids) for ids, _ in rows]
        self.lm.lengths = batches.bucket_lengths(lengths, self.config.prompt.buckets)
        return made

    @functools.cached_property
    def item_rows(self) -> list[list[int]]:
        """The items' texts as the embedder's tokens, cut to its window (counted)."""
        rows, cut = batches.tokenise(self.embedder.tokenizer, self.data.catalogue.texts, self.embedder.item_limit)
        self.data.counts["item texts cut to the window"] = int(cut.sum())
        return rows

    def prepare(self) -> None:
        """Makes what is counted among the data: all prompts, and the items' tokens."""
        assert self.prompts and self.item_rows

    # ---- profiles

    def sample(self, weights: dict, rows: np.ndarray, key, how: Sampling) -> tuple[Profiles, jax.Array]:
        """Profiles of the training sessions `rows`, and their PromptMask."""
        asked = [self.prompts["train"][row] for row in rows]
        return self.lm.sample(weights, asked, rows, key, how)

    def write(
        self, weights: dict, split: str, file: Path | None = None, seed=0, draws=GREEDY, copy=0, ended=None
    ) -> list[str]:
        """One profile per session of a split, that of each of its journeys on a line; `file` keeps them, so a killed run goes on.

        Its lines: row (in the split), user, history (items), journey (0: the session's first), profile, tokens (of the
        language model), ended (an end token came), empty, and over_long (for the embedder's window). draws: how each is drawn,
        and chosen of several; the rows that are chosen for are numbers among all parts of the split. copy: which of several of
        a session. ended: a dict that gets, by row, which profiles the model ended itself. Greedy profiles without a file are remembered: two phases
        may validate the same weights one after the other.
        """
        known_weights, known_split, texts, by_itself = self._greedy
        if file is None and not draws.temperature and known_weights is weights and known_split == split:
            if ended is not None:
                ended |= by_itself
            return texts
        sessions, lines = self.sessions[split], files.read_jsonl(file) if file else []
        places = [(row, number) for row, session in enumerate(sessions) for number in range(len(self.parts(session)))]
        at = {place: number for number, place in enumerate(places)}
        known, ends_of = (
            {at[line["row"], line["journey"]]: line[key] for line in lines} for key in ("profile", "ended")
        )
        devices.wait_for_all(f"read {file}")
        if file and devices.first():
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_file(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

        def keep(rows, texts, tokens, ends):
            ends_of.update(zip(map(int, rows), map(bool, ends), strict=True))
            if not file:
                return
            queries = [self.embedder.spec.query_prefix + text for text in texts]
            _, overlong = batches.tokenise(self.embedder.tokenizer, queries, self.embedder.profile_limit)
            with open(file if devices.first() else os.devnull, "a", encoding="utf-8") as out:
                for number, text, n, end, long in zip(rows, texts, tokens, ends, overlong, strict=True):
                    row, journey = places[number]
                    line = {"row": row, "user": sessions[row].user, "history": len(sessions[row].history)}
                    line |= {"journey": journey}
                    line |= {"profile": self.line(text), "tokens": int(n), "ended": bool(end)}
                    line |= {"empty": not text.strip(), "over_long": bool(long)}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
            if self.run.interrupt:
                self.run.interrupt.check(f"profiles in {file}")

        numbers, key = np.arange(len(places)) + copy * len(places), jax.random.fold_in(self.run.key, seed)
        what = f"{split} profiles"
        written = self.lm.write(weights, self.prompts[split], numbers, key, draws, what, known, keep)
        lines, by_itself = [[] for _ in sessions], dict.fromkeys(range(len(sessions)), True)
        for number, ((row, _), text) in enumerate(zip(places, written, strict=True)):
            lines[row].append(self.line(text))
            by_itself[row] &= ends_of[number]
        texts = ["\n".join(of_session) for of_session in lines]
        if ended is not None:
            ended |= by_itself
        if file is None and not draws.temperature:
            self._greedy = weights, split, texts, by_itself
        return texts

    def summaries(self, split: str, copy: int = 0) -> list[str]:
        """A summary of each session's latest items, as many as prompts show (prompts.summary); copies differ in wording."""
        return self.summaries_of(self.sessions[split], copy)

    def summaries_of(self, sessions: list, copy: int = 0) -> list[str]:
        """A summary of each of the sessions."""
        last, settings = self.config.prompt.history_items, self.config.data

        def of(part, number):
            return prompts.summary(part, self.data.catalogue, settings, last, copy and copy + number)

        return ["\n".join(of(part, number) for part in self.parts(s)) for number, s in enumerate(sessions)]

    def history_texts(self, split: str) -> list[str]:
        """The raw texts of the histories' latest items, as many as prompts show."""
        last = self.config.prompt.history_items
        sessions = [dataclasses.replace(s, history=s.past) for s in self.sessions[split]]
        return [prompts.history_text(s, self.data.catalogue, last) for s in sessions]

    # ---- ranks

    @functools.cached_property
    def bias(self) -> np.ndarray:
        """What popularity adds to each item's score, Float[N]: score.popularity × log((1 + n) / (1 + the most)).

        n: training interactions; of an item without any, those of the median item that has some. With in-batch negatives and no logQ, InfoNCE at temperature τ teaches log p(item | profile) −
        log p(item); τ × log n gives the latter back (Yi et al. 2019, turned round), so that the text need not carry it.
        """
        counts = self.data.popularity.astype(np.float64)
        counts = 1 + np.where(counts > 0, counts, np.median(counts[counts > 0]))
        return (self.config.score.popularity * np.log(counts / counts.max())).astype(np.float32)

    def catalogue(self, weights: dict, keep: bool = False) -> jax.Array:
        """ItemEmbeddings [N, D + 1], the bias in the last column (Embedder.catalogue); by journey less their mean, which changes
        what single queries rank by a constant."""
        return self._centred(weights, keep)[0] if self.by_journey else self.raw_catalogue(weights, keep)

    def raw_catalogue(self, weights: dict, keep: bool = False) -> jax.Array:
        """ItemEmbeddings [N, D + 1] as they are."""
        return self.embedder.catalogue(weights, self.data.catalogue.texts, self.bias, keep)

    def _centred(self, weights: dict, keep: bool = False) -> tuple[jax.Array, np.ndarray]:
        """ItemEmbeddings [N, D + 1] less their mean, and their covariance [D, D]: what makes the scores of several queries alike."""
        if self._compared[0] is not weights:
            items = self.raw_catalogue(weights, keep)
            mean, covariance = devices.fetch(ranking.mean_and_covariance(items, self.run.count))
            self._compared = weights, items - np.append(mean, np.float32(0)), covariance
        return self._compared[1:]

    def with_terms(self, items: jax.Array, terms: dict) -> jax.Array:
        """ItemEmbeddings with what the residuals phase learned of them: residuals, and biases (learning/residuals.py)."""
        learned = np.concatenate([terms["residual"], np.asarray(terms["bias"])[:, None]], 1)
        learned *= (self.data.popularity > 0)[:, None]
        return items + devices.split_rows(learned, self.run.mesh)

    def with_history(self, queries: np.ndarray, items: jax.Array, histories: list, weight: float) -> np.ndarray:
        """Queries + weight × the mean of each history's latest items, as many as prompts show."""
        if not weight:
            return queries
        means = self.history_means(items, histories)
        means = means[:, None] if queries.ndim == 3 else means
        return np.concatenate([queries[..., :-1] + weight * means, queries[..., -1:]], -1)

    def history_means(self, items: jax.Array, histories: list) -> np.ndarray:
        """The mean Float[n, D] of each history's latest items, as many as prompts show."""
        last = self.config.prompt.history_items
        recent = ranking.padded([history[-last:] for history in histories], last)
        return devices.fetch(_mean_items(items, recent))

    def queries(
        self, weights: dict, texts: list[str], rejects: bool = True, loud=None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Profiles to what scores the catalogue's rows, Float[n, D + 1], and Bool[n]: the profile counts.

        score = cos(what the profile affirms, item) − w × Σ cos(a thing that it rejects, item) + bias, w = score.rejected
        (prompts.clauses; w = 0 or rejects=False, as texts are no profiles: cos(text, item) + bias). With profile.per=journey
        each line is a query, the best of which counts: Float[n, J, D + 1]. Their scores are made alike in mean and s.d. over the catalogue,
        else one line outdoes the others everywhere; then a line counts × score.decay for each line after it, and × loud[n][line]
        where that is given.
        """
        against_it, split = self.config.score.rejected if rejects else 0.0, self.by_journey and rejects
        neutral = prompts.NEUTRAL["train"][0].format(kind=self.config.data.kind)
        read = [prompts.read_lines(text.split("\n") if split else [text], neutral, bool(against_it)) for text in texts]
        of_texts = list(itertools.chain(*(affirmed.values() for affirmed, _ in read)))
        things = list(dict.fromkeys(thing for _, of_one in read for thing in of_one))
        vectors, valid = self.embedder.embed_profiles(
            weights, of_texts + [prompts.LIKED_THING.format(n=thing) for thing in things]
        )
        against, start = dict(zip(things, vectors[len(of_texts) :], strict=True)), 0
        width = max(len(affirmed) for affirmed, _ in read) if texts else 1
        width = 1 << (width - 1).bit_length()  # few shapes compile
        queries, counts = np.ones((len(texts), width, vectors.shape[1] + 1), np.float32), np.ones(len(texts), bool)
        spread = self._spread(weights, vectors) if width > 1 else None
        for row, (affirmed, of_one) in enumerate(read):
            at, start = slice(start, start + len(affirmed)), start + len(affirmed)
            own, counts[row] = vectors[at], valid[at].all()
            if len(affirmed) > 1:
                later = np.arange(len(affirmed) - 1, -1, -1.0)
                own = own * (self.config.score.decay**later * spread[at].mean() / spread[at])[:, None]
            if loud:
                own = own * np.array([loud[row][line] for line in affirmed])[:, None]
            if of_one:  # what is rejected makes a text longer, too
                own = own - against_it * np.sum([against[thing] for thing in of_one], 0)
                counts[row] &= self.length(texts[row]) <= self.embedder.profile_limit
            queries[row, : len(own), :-1], queries[row, len(own) :, :-1] = own, own[-1]
        return queries if width > 1 else queries[:, 0], counts

    def _spread(self, weights: dict, queries: np.ndarray) -> np.ndarray:
        """The s.d. of each query's scores over the catalogue, Float[n], of queries [n, D]."""
        return np.sqrt(np.maximum(np.sum(queries @ self._centred(weights)[1] * queries, 1), 1e-12))

    def scored(self, weights: dict, texts: list[str], items: jax.Array | None = None, cut: bool = False) -> tuple:
        """What to rank by: Embeddings of the profiles, ItemEmbeddings, and Bool[n]: the profile counts.

        weights: the embedder's. cut: the texts are raw histories, latest item first: over-long ones are cut to fit and
        count.
        """
        items = self.catalogue(weights) if items is None else items
        embedded, valid = self.queries(weights, texts, rejects=not cut)
        return embedded, items, valid | cut

    def rank(self, split: str, profiles, items, valid=True) -> np.ndarray:
        """Ranks Int[S, M] of a split's targets by what scored() gives; a profile that doesn't count ranks all of its last."""
        ranks = ranking.session_ranks(profiles, items, self.sessions[split], self.run.count)
        return np.where((ranks > 0) & ~np.asarray(valid).reshape(-1, 1), self.run.count, ranks)

    def validation(self, ranks: np.ndarray) -> dict:
        """Validation metrics of ranks Int[S, M]."""
        users = [s.user for s in self.sessions["validation"]]
        names = {"ndcg", "ndcg@10", "mrr", "recall@10", self.config.evaluation.metric}
        return {f"val/{name}": metrics.mean(ranks, users, name) for name in sorted(names)}
