"""LangPTune (arXiv 2410.18870): a profile encoder and a recommender decoder, trained end to end.

for each iteration:
    profiles = write(decoder, training sessions)          # plain language, one per session
    encoder  = contrastive phase: profile ↔ next items    # learn to rank by profiles
    items    = embed(encoder, catalogue)                  # Float[N, D], spread over the mesh
    decoder  = policy phase: sample G profiles per user → rank → reward → update
"""

import functools
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import devices, files, ranking, rewards, similarity, trackers
from lpt_jax import evaluate as evaluate_lib
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.data import batches
from lpt_jax.errors import InputError
from lpt_jax.learning import contrastive, loop, policy
from lpt_jax.recommender import ProfileRecommender

# ---- the phases


def contrastive_phase(r: ProfileRecommender, iteration: int, part: str = "encoder") -> loop.Phase:
    """CL: fresh profiles of all training sessions (or, for the control, the history's raw text) ↔ next items."""
    settings, held = r.config.contrastive, {}
    train = r.sessions["train"]

    def begin(state, position):
        if part == "control":
            texts, held["val"] = r.history_texts("train"), r.history_texts("validation")
        else:
            r.use_policy(r.part(state, "policy"))
            texts = []
            for copy in range(settings.profiles_per_session):
                texts += r.write("train", r.workdir / f"profiles/{position}-train-{copy}.jsonl", position,
                                    settings.sampling_temperature, copy)  # fmt: skip
            held["val"] = r.write("validation", r.workdir / f"profiles/{position}-validation.jsonl", 0, 0.0)
        prefix = r.encoder_spec.query_prefix
        held["rows"], _ = batches.tokenise(r.ranker.tokenizer, [prefix + t for t in texts], r.profile_limit)
        usable = [bool(t.strip()) for t in texts]
        held["pairs"] = [(row, target) for row in range(len(texts)) if usable[row]
                         for target in train[row % len(train)].targets]  # fmt: skip
        if not held["pairs"]:
            raise InputError("Every training profile is empty: raise --config.profile.max_tokens.")
        frequency = np.bincount([t for _, t in held["pairs"]], minlength=r.count) / len(held["pairs"])
        held["correction"] = contrastive.log_sampling(frequency, settings.batch, settings.hard_negatives)
        sides = [np.array([len(row) for row in rows]) for rows in (held["rows"], r.item_rows)]
        held["room"], held["most"] = similarity.line_of(max(side.max() for side in sides))
        tokens = settings.batch * np.mean([sides[0][row] + sides[1][target] for row, target in held["pairs"]])
        tokens += settings.hard_negatives * sides[1].mean()
        texts, ways = 2 * settings.batch + settings.hard_negatives, r.mesh.shape["data"] * r.mesh.shape["fsdp"]
        sizes = {min(texts, math.ceil(slack * tokens / held["room"])) for slack in (1.1, 1.4)} | {texts}
        held["sizes"] = sorted({-(-size // ways) * ways for size in sizes})  # lines of a batch; nearly always the first

    def step(state, step):
        number = iteration * settings.steps + step
        seed = r.config.seed * 1000 + (1 if part == "control" else 2)
        pairs = [held["pairs"][i] for i in batches.indices(len(held["pairs"]), settings.batch, seed, number)]
        rng = np.random.default_rng((seed, number))
        positives = np.array([target for _, target in pairs])
        candidates = np.concatenate([positives, rng.integers(0, r.count, settings.hard_negatives)])
        users = [train[row % len(train)] for row, _ in pairs]
        excluded = contrastive.exclusions(positives, candidates, [s.history + s.targets for s in users])
        correction = held["correction"][candidates] * settings.popularity_correction
        rows = [held["rows"][row] for row, _ in pairs] + [r.item_rows[i] for i in candidates]
        lines = batches.packed([len(row) for row in rows], held["room"], held["most"])
        size = batches.bucket(len(lines), held["sizes"])
        tokens, texts, where = batches.pack(rows, lines, size, held["room"], held["most"], r.ranker.pad_id)
        where = where[np.argsort(sum(lines, []))]  # in the order of rows
        batch = {"tokens": tokens, "texts": texts, "profiles": where[: len(pairs)], "items": where[len(pairs) :],
                 "correction": correction, "excluded": excluded}  # fmt: skip
        state[part], state[f"{part}_optimiser"], found = contrastive.update(
            r.encoder_spec, state[part], state[f"{part}_optimiser"], devices.split_batch(batch, r.mesh),
            optimiser=r.optimisers[part], temperature=settings.temperature, most=held["most"], dtype=r.encoder_dtype,
            remat=r.config.lm.remat,
        )  # fmt: skip
        return state, found

    def validate(state):
        return r.validation(r.ranks(state[part], held["val"], "validation", cut=part == "control"))

    name = "control" if part == "control" else "contrastive"
    return loop.Phase(name, iteration, part, settings, begin, step, validate)


def policy_phase(r: ProfileRecommender, iteration: int, tracker) -> loop.Phase:
    """RLSO: sample G profiles per user, rank the whole catalogue by each, reward, several epochs of updates."""
    settings, train, held = r.config.policy, r.sessions["train"], {}
    static = {"start": r.start, "temperature": settings.temperature, "chunk": settings.logits_chunk}

    def begin(state, position):
        r.use_policy(state["policy"])
        held["encoder"] = r.part(state, "encoder")  # fixed in this phase
        held["items"] = r.embed_catalogue(held["encoder"])
        held["hidden"] = ranking.padded([s.history for s in train]).shape[1]

    def rewards_of(encoder, texts, users, longest=0):
        """The reward's metric [B, G], which profiles count [B, G], and the ranks [B, G, M]."""
        samples = len(texts[0])
        embedded, valid = r.embed_profiles(encoder, sum(texts, []))
        repeat = lambda a: np.repeat(a, samples, 0)  # noqa: E731
        width = max(r.config.data.targets, r.config.data.eval_targets)
        targets = repeat(ranking.padded([s.targets for s in users], width))
        hidden = repeat(ranking.padded([s.history for s in users], longest))
        put = devices.split_batch((embedded, targets, hidden), r.mesh)
        shape = (len(users), samples, width)
        ranks = devices.fetch(ranking.target_ranks(put[0], held["items"], put[1], put[2], r.count)).reshape(shape)
        near = np.zeros(shape, np.float32)
        if settings.reward not in ("ndcg", "mrr"):
            cosines = ranking.score(put[0], held["items"]).reshape(len(users), samples, -1)
            of_user = (a.reshape(*shape[:2], -1)[:, 0] for a in (targets, hidden))
            temperature = r.config.contrastive.temperature
            near = devices.fetch(rewards.target_similarity(cosines, *of_user, temperature, r.count))
        value = rewards.metric(settings.reward, ranks, near, texts, r.count)
        return value, valid.reshape(shape[:2]), ranks

    def step(state, step):
        clock, seconds = time.monotonic(), {}

        def lap(name):
            nonlocal clock
            seconds[f"seconds/{name}"], clock = time.monotonic() - clock, time.monotonic()

        number = iteration * settings.steps + step
        rows = batches.indices(len(train), settings.users, r.config.seed * 1000 + 3, number)
        users = [train[i] for i in rows]
        key = jax.random.fold_in(jax.random.fold_in(r.key, 1 << 20), number)
        profiles, mask = r.writer.sample([r.prompts["train"][i] for i in rows], rows, key,
                                            settings.samples, settings.temperature, keep_hidden=True)  # fmt: skip
        texts, unended = r.writer.texts(profiles)
        lap("generation")
        value, valid, ranks = rewards_of(held["encoder"], texts, users, held["hidden"])
        lap("reward")
        context_mask, remat = mask[:, :-1], r.config.lm.remat

        def scored(trainable):
            return jax.block_until_ready(policy.score(
                r.spec, r.upper, trainable, profiles, context_mask, accumulation=settings.accumulation, **static
            ))  # fmt: skip

        once = settings.epochs * settings.minibatches == 1  # then the update itself has the old policy's
        old = None if once else scored(state["policy"])
        log_ratio, measured = np.zeros(value.shape, np.float32), {}
        if settings.kl_coef or (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            log_ratio = devices.fetch(jnp.sum((profiles.log_probs if once else old) - scored(r.reference), -1))
            measured = {"kl": log_ratio.mean()}
        parts = rewards.parts(value, valid, log_ratio, settings.kl_coef)
        lap("scoring")
        whitened = rewards.whiten(parts["total"], settings.baseline) if settings.whiten else parts["total"]
        size = settings.users // settings.minibatches
        for epoch in range(settings.epochs):
            order = batches.order(settings.users, r.config.seed, number * settings.epochs + epoch)
            for at in range(0, settings.users, size):
                chosen = np.sort(order[at : at + size])
                rows = (profiles, context_mask, old, devices.split_batch(np.asarray(whitened), r.mesh))
                rows = rows if size == settings.users else devices.take_rows(rows, chosen)
                state["policy"], state["policy_optimiser"], found = policy.update(
                    r.spec, r.upper, state["policy"], state["policy_optimiser"], *rows,
                    optimiser=r.optimisers["policy"], loss=settings.loss, remat=remat, eta=settings.eta,
                    clip_ratio=settings.clip_ratio, accumulation=settings.accumulation, **static,
                )  # fmt: skip
                found = devices.fetch(found)
        r.use_policy(state["policy"])
        lap("updates")
        flat, tied = sum(texts, []), rewards.all_tied(parts["metric"] + parts["invalid"])
        empty = sum(not t.strip() for t in flat)
        tracker.sample(iteration, "policy", step + 1, {
            "user": users[0].user, "history": [r.data.catalogue.titles[i] for i in users[0].history[-10:]],
            "profile": texts[0][0], "ranks": ranks[0, 0].tolist(),
            **{f"reward/{n}": float(p[0, 0]) for n, p in parts.items()},
        })  # fmt: skip
        return state, found | seconds | measured | {
            "reward": parts["total"].mean(), **{f"reward/{n}": p.mean() for n, p in parts.items()},
            "tied": tied / len(users), "invalid": 1 - valid.mean(),
            "empty": empty / len(flat), "unended": unended.mean(), "spread": value.std(1).mean(),
            "profile_tokens": devices.fetch(profiles.mask).sum(-1).mean(),
            "batch_tied": float(tied == len(users)),
        }  # fmt: skip

    def validate(state):
        r.use_policy(state["policy"])
        texts = r.write("validation", None, 0, 0.0)
        found = r.validation(r.ranks(held["encoder"], texts, "validation", held["items"]))
        if settings.reward not in ("ndcg", "mrr"):  # these are among the metrics
            users, size, sums = r.sessions["validation"], settings.users * settings.samples, []
            for at in range(0, len(users), size):
                value, valid, _ = rewards_of(
                    held["encoder"], [[t] for t in texts[at : at + size]], users[at : at + size]
                )
                sums.append(float(jnp.sum(value * valid)))
            found["val/reward"] = sum(sums) / len(users)
        return found

    return loop.Phase("policy", iteration, "policy", settings, begin, step, validate)


def schedule(r: ProfileRecommender, tracker) -> list[loop.Phase]:
    """All phases in order; the profile-free control, where asked for, comes last."""
    make = {"contrastive": contrastive_phase, "policy": functools.partial(policy_phase, tracker=tracker)}
    names = config_lib.listed(r.config.phases)
    phases = [make[name](r, i) for i in range(r.config.iterations) for name in names]
    if "history_trained" in config_lib.listed(r.config.evaluation.baselines) and "contrastive" in names:
        phases += [contrastive_phase(r, i, "control") for i in range(r.config.iterations)]
    return phases


# ---- the runs


def train(config, workdir: Path) -> dict:
    """Trains both models by the config's schedule, tests them once at the end and writes results and report."""
    interrupt = loop.Interrupt()
    try:
        r = ProfileRecommender(config, workdir, interrupt)
        r.print_data()
        tracker = trackers.Silent()
        if devices.first():
            tracker = trackers.Tracker(workdir, config_lib.listed(config.trackers), config.to_dict())
        phases = schedule(r, tracker)
        state = r.initial_state({p.part: 0 for p in phases})
        state, note = loop.run(phases, state, config, workdir, tracker, interrupt)
        tracker.close()
        return evaluate_lib.test(r, stages(r, phases, state), state.get("control"), note)
    finally:
        interrupt.close()


def evaluate(config, workdir: Path, run: str | None = None) -> dict:
    """The test of a trained workdir once more, from its checkpoints, with TREC files; or of another system's TREC run."""
    if run:
        return evaluate_lib.score_run(config, workdir, run)
    r, phases, state, note = trained(config, workdir)
    if note["position"] < len(phases):
        raise InputError(
            f"The run in {workdir} has not finished ({phases[note['position']].name}, step {note['step']}): go on with "
            "--mode=train first, the test is at its end."
        )
    return evaluate_lib.test(r, stages(r, phases, state), state.get("control"), note, trec=True)


def stages(r: ProfileRecommender, phases: list[loop.Phase], state: dict) -> dict[str, tuple[dict, dict]]:
    """The rows that are steps of training, in order: name -> (policy, encoder) at that time.

    zero_shot (or start, of a run that begins from another); the phases of the first iteration, as "cl" and "cl_rlso"; of
    several iterations the last's end, "cl_rlso_x5".
    """
    now = {"policy": r.fresh_policy(), "encoder": r.fresh_encoder()}
    found, name = {"start" if r.config.begin_from else "zero_shot": tuple(now.values())}, []
    for position, phase in enumerate(p for p in phases if p.iteration == 0 and p.part != "control"):
        kept = Checkpoints(loop.stage_folder(r.workdir, position, phase), 1)
        now |= kept.restore(kept.latest(), {phase.part: state[phase.part]})
        name.append({"contrastive": "cl", "policy": "rlso"}[phase.name])
        found["_".join(name)] = tuple(now.values())
    if r.config.iterations > 1:
        found[f"{'_'.join(name)}_x{r.config.iterations}"] = tuple((now | state)[part] for part in ("policy", "encoder"))
    return found


def trained(config, workdir: Path):
    """A finished (or still going) run as it stands: recommender, phases, state and note of its last checkpoint."""
    r = ProfileRecommender(config, workdir)
    phases = schedule(r, None)
    state = r.initial_state({p.part: 0 for p in phases})
    last = Checkpoints(Path(workdir) / "checkpoints" / "last", config.checkpoint.keep)
    if last.latest() is None:
        raise InputError(f"{workdir} holds no checkpoint: train first, with the same --config and --workdir.")
    note = last.note(last.latest())
    state = last.restore(last.latest(), state)
    r.use_policy(r.part(state, "policy"))
    return r, phases, state, note


def write_profiles(config, workdir: Path, output: Path, split: str) -> list[str]:
    """Writes one greedy profile per session of a split with the trained policy, as JSON lines or, named .parquet, a table.

    All of the split's sessions, whatever config.evaluation caps; ProfileRecommender.write has the fields. While it is
    written the file is JSON lines, called after the checkpoint, so that a killed call goes on where it was and never mixes
    two policies; a file that is there is not overwritten.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--output={output} won't do: its name must end in .jsonl or .parquet.")
    if output.exists():
        raise InputError(f"{output} is there already: name another --output, or move it away.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        (part := output.with_name(f"{output.name}.part")).touch()
        part.unlink(missing_ok=True)  # another process may have been here
    except OSError as error:
        raise InputError(f"--output={output} can't be written ({error.strerror}): name another file.") from None
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.update(max_users=0, max_test_sessions=0)
    r, _, _, note = trained(config, workdir)
    part = output.with_name(f"{output.name}.{split}-{note['global_step']}.part")
    texts = r.write(split, part, 0, 0.0)
    if devices.first() and output.suffix == ".parquet":
        kinds = {"row": "int64", "user": "string", "history": "int64", "profile": "string", "tokens": "int64"}
        files.write_parquet(output, part, kinds | dict.fromkeys(("ended", "empty", "over_long"), "bool"))
        part.unlink()
    elif devices.first():
        part.rename(output)
    print(f"lpt_jax: {len(texts)} profiles of {split} users in {output}")
    return texts
