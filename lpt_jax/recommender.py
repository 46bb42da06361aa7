"""The models and the data of a run, and the way from a session's prompt to the rank of its target."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from lpt_jax import config as config_lib
from lpt_jax import devices, files, generation, metrics, ranking, similarity
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.data import batches, made_up, prompts, sessions
from lpt_jax.errors import InputError
from lpt_jax.learning import optimisers, policy
from lpt_jax.models import decoder as decoder_lib
from lpt_jax.models import encoder as encoder_lib
from lpt_jax.models import weights

TINY_WIDTH = 64
SHARD = 1 << 16  # items whose embeddings are one file, where the catalogue is larger


def with_settings(spec: decoder_lib.DecoderSpec, config, mesh) -> decoder_lib.DecoderSpec:
    """A decoder's spec with the config's types and LoRA scale, on a mesh; InputError if it can't have them."""
    lora = config.policy.lora
    if config.policy.trains == "last_layers" and config.policy.last_layers > spec.layers:
        raise InputError(
            f"--config.policy.last_layers={config.policy.last_layers} won't do: {config.lm.source} has "
            f"{spec.layers} layers."
        )
    return dataclasses.replace(
        spec,
        dtype=devices.product_type(config.lm.dtype),
        lora_scale=lora.alpha / lora.rank if config.policy.trains == "lora" else 0.0,
        mesh=mesh,
    )


def frozen_listed(config, mesh, platform: str) -> bool:
    """Whether frozen layers lie in a list (config.lm.layers)."""
    alone = platform != "cpu" and mesh.size == 1
    return config.lm.layers == "listed" or config.lm.layers == "auto" and alone


def with_lists(*parts: dict) -> list[dict]:
    """Parts of a decoder, their stacked frozen layers (numpy) as lists of views."""
    return [part | {"layers": weights.listed(part["layers"])} if part["layers"] else part for part in parts]


def make_optimisers(config) -> dict:
    """The optimisers of both phases, by what they train."""
    passes = config.policy.epochs * config.policy.minibatches
    found = {
        "policy": optimisers.of(config.policy, config.iterations * config.policy.steps * passes),
        "encoder": optimisers.of(config.contrastive, config.iterations * config.contrastive.steps),
    }
    return found | {"control": found["encoder"]}


def load_models(config) -> tuple[weights.Loaded, weights.Loaded]:
    """The profile encoder and the recommender decoder of a config, in their settings' types."""
    tokenizer = made_up.tiny_tokenizer() if "tiny" in (config.lm.source, config.embedder.source) else None
    keys = jax.random.split(jax.random.key(config.seed))
    dtype = devices.product_type(config.lm.dtype)
    if config.lm.source == "tiny":
        spec = decoder_lib.DecoderSpec("llama", len(tokenizer), TINY_WIDTH, 2, 4, 2, 16, 2 * TINY_WIDTH)
        writer = weights.Loaded(spec, decoder_lib.init_weights(spec, keys[0]), tokenizer, tokenizer.pad_token_id,
                                frozenset({tokenizer.eos_token_id}))  # fmt: skip
    else:
        writer = weights.load_decoder(config.lm.source, dtype)
    if config.embedder.source == "tiny":
        spec = encoder_lib.EncoderSpec(len(tokenizer), TINY_WIDTH, 1, 4, 2 * TINY_WIDTH, 512)
        ranker = weights.Loaded(spec, encoder_lib.init_weights(spec, keys[1]), tokenizer, tokenizer.pad_token_id)
    else:
        ranker = weights.load_encoder(config.embedder.source, "float32")
    return writer, ranker


def used_sessions(data: sessions.Dataset, settings) -> dict[str, list[sessions.Session]]:
    """The sessions by split, of validation and test no more than config.evaluation says, which data then tells too."""
    used = dict(data.sessions)
    for split, cap in {"validation": settings.max_users, "test": settings.max_test_sessions}.items():
        if 0 < cap < (n := len(used[split])):
            rows = np.sort(np.random.default_rng(0).permutation(n)[:cap])  # the same for every seed of the run
            used[split] = [used[split][i] for i in rows]
            data.counts[f"{split} sessions left out by config.evaluation"] = n - cap
            data.protocol += f" Of {n} {split} sessions a fixed sample of {cap} is used."
    return used


class ProfileRecommender:
    """The profile encoder, the recommender decoder and the data: everything from prompts to ranks.

    What training changes is not kept here but in `state`, a dict of trees: "policy" (what trains of the profile
    encoder), "encoder" (the recommender decoder), "control" (a second one, for raw histories), and their optimisers'.
    """

    def __init__(self, config, workdir: Path, interrupt=None):
        self.config, self.workdir, self.interrupt = config, Path(workdir), interrupt
        self.data = sessions.prepare(config.data)
        self.sessions = used_sessions(self.data, config.evaluation)
        self.mesh = devices.make_mesh(config.mesh)
        self.key = jax.random.key(config.seed)
        writer, ranker = load_models(config)
        self.spec, self.decoder_config = with_settings(writer.spec, config, self.mesh), writer.config
        self.encoder_spec, self.ranker = dataclasses.replace(ranker.spec, mesh=self.mesh), ranker
        cap = min(config.embedder.max_profile_tokens, ranker.spec.max_tokens)
        self.profile_limit, self.item_limit = (cap, min(config.embedder.max_item_tokens, ranker.spec.max_tokens))
        self.encoder_dtype = devices.product_type(config.embedder.dtype)
        self.optimisers = make_optimisers(config)
        trunk, upper, trainable = policy.split(self.spec, writer.weights, config.policy, self.key)
        trainable = jax.device_get(trainable)  # LoRA's are made on a device
        self.start = trunk["layers"]["q"].shape[0]  # layers below the first trained one
        if frozen_listed(config, self.mesh, jax.default_backend()):
            trunk, upper = with_lists(trunk, upper)
        self.trunk = devices.place(trunk, self.mesh)  # from numpy: no device ever holds a whole model
        shared = {"embed": self.trunk["embed"]} if "embed" in upper else {}
        self.upper = devices.place({n: w for n, w in upper.items() if n not in shared}, self.mesh) | shared
        self.reference = {} if config.policy.trains == "lora" else devices.place(trainable, self.mesh)
        self._start = {"policy": jax.tree.map(lambda a: np.array(a, np.float32), trainable), "encoder": ranker.weights}
        self._embedded = None, None  # an encoder's word table, and the catalogue embedded by it
        start = prompts.start_of(config.data, config.prompt)
        self.writer = generation.Writer(writer, self.spec, self.trunk, (), self.mesh, config.profile, start)
        self.prompts, lengths = {}, []
        for split, found in self.sessions.items():
            rows = [self.prompt(s) for s in found]
            self.data.counts[f"{split} prompts without room for an item"] = sum(kept == 0 for _, kept in rows)
            self.prompts[split] = [ids for ids, _ in rows]
            lengths += [len(ids) for ids, _ in rows]
        self.writer.lengths = batches.bucket_lengths(lengths, config.prompt.buckets)
        self.item_rows, cut = batches.tokenise(ranker.tokenizer, self.data.catalogue.texts, self.item_limit)
        self.data.counts["item texts cut to the window"] = int(cut.sum())
        if config.begin_from:
            self._start |= self._begun(Path(config.begin_from))

    def _begun(self, workdir: Path) -> dict[str, dict]:
        """What another, finished run on the same data and models ended with: "policy", "encoder", whichever it trained."""
        if not (workdir / "results.json").is_file():
            raise InputError(f"--config.begin_from={workdir} holds no finished run: name the workdir of one.")
        theirs, ours = json.loads((workdir / "config.json").read_text(encoding="utf-8")), self.config.to_dict()
        if "decoder" in theirs:  # now "lm"
            raise InputError(
                f"--config.begin_from={workdir} is a run of lpt_jax 0.1, whose models this version can't read: name the "
                "workdir of another."
            )
        same = ("data", "lm.source", "embedder.source", "policy.trains", "policy.last_layers", "policy.lora")
        same += ("seed",) if "tiny" in (self.config.lm.source, self.config.embedder.source) else ()
        for name in same:  # of other data, users who are tested here may have been trained on there
            if config_lib.get(theirs, name) != config_lib.get(ours, name):
                raise InputError(
                    f"--config.begin_from={workdir} has another {name} ({config_lib.get(theirs, name)!r}): a run can only "
                    "begin from one on the same data and models."
                )
        found = self._begun(Path(theirs["begin_from"])) if theirs.get("begin_from") else {}
        for kind in config_lib.listed(theirs["phases"]):
            part = {"contrastive": "encoder", "policy": "policy"}[kind]
            ends = sorted(workdir.glob(f"checkpoints/*-{kind}"), key=lambda folder: int(folder.name.partition("-")[0]))
            if not ends:
                raise InputError(
                    f"--config.begin_from={workdir} has results but not their models: there is no checkpoints/*-{kind}."
                )
            kept = Checkpoints(ends[-1], 1)
            end = kept.restore(kept.latest(), {part: self.part({}, part)})[part]
            found[part] = jax.tree.map(np.array, devices.fetch(end))
            kept.close()
        return found

    def print_data(self) -> None:
        """What was read, dropped and kept, and the protocol."""
        width = max(map(len, self.data.counts))
        print(*(f"  {name:<{width}}  {count:>9,}" for name, count in self.data.counts.items()), sep="\n")
        print(f"protocol: {self.data.protocol}", flush=True)

    # ---- parts of the way from prompts to ranks

    def prompt(self, session) -> tuple[list[int], int]:
        """A session's prompt: its token ids, and how many of the latest items it shows (prompts.encode_prompt)."""
        settings = self.config.data, self.config.prompt, self.writer.tokenizer
        return prompts.encode_prompt(session, self.data.catalogue, *settings)

    def fresh_encoder(self, loaded: bool = False) -> dict:
        """The recommender decoder's weights as the run begins with them (or as loaded), on the mesh, as float32 masters."""
        start = self.ranker.weights if loaded else self._start["encoder"]
        return devices.place(jax.tree.map(lambda a: np.array(a, np.float32), start), self.mesh)

    def fresh_policy(self) -> dict:
        """What trains of the profile encoder as the run begins with it, on the mesh, as float32 masters."""
        return devices.place(jax.tree.map(np.copy, self._start["policy"]), self.mesh)

    def part(self, state: dict, name: str) -> dict:
        """The "policy" or "encoder" of a state, or, where none is trained, what the run begins with."""
        return state[name] if name in state else self.fresh_policy() if name == "policy" else self.fresh_encoder()

    def initial_state(self, names) -> dict:
        """Fresh trainable parts and their optimisers' states."""
        state = {}
        for name in names:
            state[name] = self.fresh_encoder(loaded=True) if name == "control" else self.part({}, name)
            state[f"{name}_optimiser"] = devices.place(self.optimisers[name].init(state[name]), self.mesh)
        return state

    def use_policy(self, trainable: dict) -> None:
        """Hands the policy to the writer; LoRA stays beside its matrices: merged, bfloat16 would round small steps away."""
        self.writer.use(policy.assemble(self.upper, trainable))

    def embed(self, encoder: dict, texts: list[str], limit: int, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Texts to (Embeddings, Bool[n] over-long)."""
        return similarity.embed_texts(
            self.encoder_spec, encoder, self.ranker.tokenizer, texts, self.config.embedder.batch, limit, prefix,
            dtype=self.encoder_dtype, mesh=self.mesh,
        )  # fmt: skip

    def embed_profiles(self, encoder: dict, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Profiles to (Embeddings, Bool[n] valid: neither empty nor longer than the embedder's window)."""
        found, overlong = self.embed(encoder, texts, self.profile_limit, self.encoder_spec.query_prefix)
        return found, ~overlong & np.array([bool(t.strip()) for t in texts], bool)

    def embed_catalogue(self, encoder: dict) -> jax.Array:
        """ItemEmbeddings [N, D], padded and spread over the mesh; asked twice for one encoder, it embeds once."""
        if self._embedded[0] is not encoder["word"]:  # an update makes new arrays
            texts = self.data.catalogue.texts
            large = len(texts) > SHARD
            found = self._embed_shards(encoder, texts) if large else self.embed(encoder, texts, self.item_limit)[0]
            self._embedded = encoder["word"], devices.split_rows(found, self.mesh)
        return self._embedded[1]

    def _embed_shards(self, encoder: dict, texts: list[str]) -> np.ndarray:
        """Embeddings [N, D] of many texts, shard by shard; those done are kept in files until another encoder comes."""
        parts = [np.ascontiguousarray(a) for a in jax.tree.leaves(devices.fetch(encoder))]
        parts += [f"{self.item_limit} {self.encoder_dtype} {len(texts)}".encode(), "\n".join(texts).encode()]
        state = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
        folder, shards = self.workdir / "catalogue" / state, []
        if devices.first():
            for old in folder.parent.glob("*"):
                shutil.rmtree(old) if old != folder else None
            folder.mkdir(parents=True, exist_ok=True)
        devices.wait_for_all("the catalogue's folder")
        done = {file.name for file in folder.iterdir()} if folder.exists() else set()
        for start in tqdm(range(0, len(texts), SHARD), "catalogue", unit="shard", disable=not devices.first()):
            file = folder / f"{start}-{SHARD}.npy"
            if not devices.any_process(file.name not in done):
                shards.append(np.load(file, allow_pickle=False))
                continue
            shards.append(self.embed(encoder, texts[start : start + SHARD], self.item_limit)[0])
            if devices.first():
                np.save(part := file.with_suffix(".part.npy"), shards[-1])
                part.rename(file)
            if self.interrupt:
                self.interrupt.check(f"the embeddings of {start + len(shards[-1])} items")
        return np.concatenate(shards)

    @property
    def count(self) -> int:
        """N, the number of items that are ranked."""
        return len(self.data.catalogue.ids)

    def write(self, split: str, file: Path | None, seed: int, temperature: float, copy: int = 0) -> list[str]:
        """One profile per session of a split with the writer's policy; `file` keeps them, so a killed run goes on.

        Its lines: row (in the split), user, history (items), profile, tokens (of the language model), ended (an end
        token came), empty, and over_long (for the embedder's window).
        """
        found, lines = self.sessions[split], files.read_jsonl(file) if file else []
        known = {line["row"]: line["profile"] for line in lines}
        devices.wait_for_all(f"read {file}")
        if file and devices.first():
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_file(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

        def keep(rows, texts, tokens, ended):
            queries = [self.encoder_spec.query_prefix + text for text in texts]
            _, overlong = batches.tokenise(self.ranker.tokenizer, queries, self.profile_limit)
            with open(file if devices.first() else os.devnull, "a", encoding="utf-8") as out:
                for row, text, n, end, long in zip(rows, texts, tokens, ended, overlong, strict=True):
                    line = {"row": int(row), "user": found[row].user, "history": len(found[row].history)}
                    line |= {"profile": text, "tokens": int(n), "ended": bool(end)}
                    line |= {"empty": not text.strip(), "over_long": bool(long)}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
            if self.interrupt:
                self.interrupt.check(f"profiles in {file}")

        numbers = np.arange(len(found)) + copy * len(found)
        return self.writer.write(self.prompts[split], numbers, jax.random.fold_in(self.key, seed),
                                 temperature, f"{split} profiles", known, keep if file else None)  # fmt: skip

    def history_texts(self, split: str) -> list[str]:
        """The raw texts of the histories' latest items, as many as prompts show."""
        last = self.config.prompt.history_items
        return [prompts.history_text(s, self.data.catalogue, last) for s in self.sessions[split]]

    def scored(self, encoder: dict, texts: list[str], items: jax.Array | None = None, cut: bool = False) -> tuple:
        """What to rank by: Embeddings of the profiles, ItemEmbeddings, and Bool[n]: the profile counts.

        cut: the texts are raw histories, latest item first: over-long ones are cut to fit and count.
        """
        items = self.embed_catalogue(encoder) if items is None else items
        embedded, valid = self.embed_profiles(encoder, texts)
        return embedded, items, valid | cut

    def rank(self, split: str, profiles, items, valid=True) -> np.ndarray:
        """Ranks Int[S, M] of a split's targets by what scored() gives; a profile that doesn't count ranks all of its last."""
        ranks = ranking.session_ranks(profiles, items, self.sessions[split], self.count)
        return np.where((ranks > 0) & ~np.asarray(valid).reshape(-1, 1), self.count, ranks)

    def ranks(self, encoder: dict, texts: list[str], split: str, items: jax.Array | None = None, cut: bool = False):
        """Ranks Int[S, M] of a split's targets by these profiles: rank() by scored()."""
        return self.rank(split, *self.scored(encoder, texts, items, cut))

    def validation(self, ranks: np.ndarray) -> dict:
        """Validation metrics of ranks, and the held-out reward's own metric part."""
        users = [s.user for s in self.sessions["validation"]]
        names = {"ndcg", "ndcg@10", "mrr", "recall@10", self.config.evaluation.metric}
        return {f"val/{name}": metrics.mean(ranks, users, name) for name in sorted(names)}
