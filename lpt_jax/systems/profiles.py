"""LangPTune (arXiv 2410.18870): a language model and a text embedder, trained end to end.

The language model (`lm`, the paper's profile encoder) writes a user's profile in plain language; the embedder (the paper's
recommender decoder) ranks the whole catalogue by it.

    for each iteration:
        lm       = knowledge phase: questions about items by title, if it is asked for
        lm       = imitation phase: given texts, token by token   # how a profile reads, if it is asked for
        profiles = write(lm, training sessions)               # plain language, one per session
        embedder = contrastive phase: profile ↔ next items, edit ↔ what follows it   # learn to rank by what profiles say
        items    = embed(embedder, catalogue)                 # Float[N, D], spread over the mesh
        lm       = policy phase: sample G profiles per user → rank → reward → update
        items   += residuals phase                            # what interactions teach of items, if it is asked for

    loss of the policy phase = mean over pairs of a user's profiles ((Δᵢ − Δⱼ) − η (rᵢ − rⱼ))²     (learning/policy.py, rebel)
"""

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import devices, evaluate, files
from lpt_jax.audit import Audited
from lpt_jax.data import prompts
from lpt_jax.errors import InputError
from lpt_jax.evaluate import Row
from lpt_jax.generation import Draws
from lpt_jax.learning import optimisers
from lpt_jax.learning.contrastive import ContrastivePhase
from lpt_jax.learning.loop import Part, Phase
from lpt_jax.learning.next_token import ImitationPhase, KnowledgePhase
from lpt_jax.learning.policy import PolicyPhase
from lpt_jax.learning.residuals import ResidualsPhase
from lpt_jax.recommender import ProfileRecommender, language_model, load_decoder, load_encoder
from lpt_jax.rewarder import BestOf, Rewarder
from lpt_jax.run import Run
from lpt_jax.similarity import DualEncoder, Embedder
from lpt_jax.systems.profiles_settings import HANDED_OUT
from lpt_jax.systems.profiles_settings import settings as settings

# phase -> the part that it trains, and its name in the results' rows
TRAINS = {"knowledge": "lm", "imitation": "lm", "contrastive": "embedder", "policy": "lm", "residuals": "residuals"}
STEPS = {"knowledge": "kn", "imitation": "sft", "contrastive": "cl", "policy": "rlso", "residuals": "items"}
SAME = (
    "data",
    "lm.source",
    "embedder.source",
    "policy.trains",
    "policy.last_layers",
    "policy.lora",
    "policy.soft_prompt",
)  # of begin_from
WRITES, WRITTEN_BY = "profiles", HANDED_OUT
COLUMNS = dict.fromkeys(("row", "user", "history", "journey", "profile", "tokens"), "int64")
COLUMNS |= dict.fromkeys(("user", "profile"), "string")
COLUMNS |= dict.fromkeys(("ended", "empty", "over_long"), "bool")


def build(run: Run) -> ProfileRecommender:
    """The models of a run, as its config names them; they are loaded when they are needed."""
    config, folder = run.config, run.workdir / "catalogue"
    return ProfileRecommender(
        run,
        lambda: language_model(config, load_decoder(config), run.mesh, run.key),
        lambda: Embedder(DualEncoder(load_encoder(config)), config.embedder, run.mesh, folder, run.interrupt),
    )


# ---- the phases


def texts_of_cl(phase: ContrastivePhase, state: dict[str, Part]) -> tuple[list[str], list[str], list[str]]:
    """What CL reads of the training sessions and of the validation sessions, as contrastive.texts says, and what edits are of.

    profiles: fresh ones, several a session if the config says so; summaries, raw histories: one for each of those. Edits are
    never written into raw histories, whose end may be cut, but into the others, else into summaries. Validation is by the
    first of the three that CL reads.
    """
    r, settings, texts, folder = phase.r, phase.settings, [], phase.r.run.workdir / "profiles"
    kinds, copies = config_lib.listed(settings.texts), settings.profiles_per_session
    if "summaries" in kinds:
        texts += [text for copy in range(copies) for text in r.summaries("train", copy + 1)]
    if "profiles" in kinds:
        lm, place = r.weights(state, "lm"), phase.place
        for copy in range(copies):
            file = folder / f"{place}-train-{copy}.jsonl"
            texts += r.write(lm, "train", file, place, Draws(settings.sampling_temperature), copy)
        validation = r.write(lm, "validation", folder / f"{place}-validation.jsonl")
    else:
        validation = (r.summaries if "summaries" in kinds else r.history_texts)("validation")
    edited = texts or r.summaries("train", 1)
    raw = r.history_texts("train") * copies if "histories" in kinds else []
    return texts + raw, validation, edited


def histories(phase: ContrastivePhase, state: dict[str, Part]) -> tuple[list[str], list[str], list[str]]:
    """The raw texts of the training and the validation sessions' histories, without edits."""
    return phase.r.history_texts("train"), phase.r.history_texts("validation"), []


def to_imitate(phase: ImitationPhase, state: dict[str, Part]) -> list[tuple[int, str]]:
    """(row, text) of the training sessions, as imitation.texts says."""
    r, settings, asked = phase.r, phase.settings, []
    kinds = config_lib.listed(settings.texts)
    if "summaries" in kinds:
        for wording in range(len(prompts.SUMMARIES)):
            asked += enumerate(r.summaries("train", wording + 1))
    if "best" in kinds:
        asked += best_profiles(phase, state)
    if "file" in kinds:
        texts = files.read_texts(settings.file, "--config.imitation.file")
        found = [texts.get((s.user, len(s.history)), texts.get((s.user, None))) for s in r.sessions["train"]]
        known = [(row, text) for row, text in enumerate(found) if text is not None]
        if not known:
            raise InputError(f"--config.imitation.file={settings.file} has a profile of none of the training sessions.")
        if (missing := len(found) - len(known)) and devices.first():
            print(f"lpt_jax: {missing} of {len(found)} training sessions have no text in {settings.file}.", flush=True)
        asked += known
    return asked


def best_profiles(phase: ImitationPhase, state: dict[str, Part]) -> list[tuple[int, str]]:
    """(row, text): the best of several sampled profiles of each training session, or of imitation.sessions of them; "" where it is
    too long for the embedder.

    Kept in a file: a run that is resumed has another language model by then, and goes on with the same texts.
    """
    r, settings, policy, split = phase.r, phase.settings, phase.r.config.policy, "best of train"
    rows = np.random.default_rng((r.config.seed, 61)).permutation(len(r.sessions["train"]))
    rows = sorted(rows[: settings.sessions or None].tolist())
    r.sessions[split] = [r.sessions["train"][row] for row in rows]
    r.prompts[split] = [r.prompt(part)[0] for session in r.sessions[split] for part in r.parts(session)]
    choose = Rewarder(r, r.weights(state, "embedder"), policy.reward).chooser(r.sessions[split])
    draws = Draws(policy.temperature, settings.samples, choose, policy.users)
    file = r.run.workdir / f"profiles/{phase.place}-train-best.jsonl"
    texts = r.write(r.weights(state, "lm"), split, file, phase.place, draws)
    return [(row, text if r.length(text) <= r.embedder.profile_limit else "") for row, text in zip(rows, texts)]


def summaries(phase: ResidualsPhase, sessions: list) -> list[str]:
    """Summaries of sessions."""
    return phase.r.summaries_of(sessions)


def schedule(r: ProfileRecommender) -> list[Phase]:
    """All phases in order; the profile-free control, where asked for, comes last."""
    config, phases = r.config, []
    cl = optimisers.of(config.contrastive, config.iterations * config.contrastive.steps)
    names = config_lib.listed(config.phases)
    of_lm = optimisers.of_lm(config)
    for iteration in range(config.iterations):
        for name in names:
            if name == "contrastive":
                raw = config.contrastive.texts == "histories"
                phase = ContrastivePhase(r, name, "embedder", cl, texts_of_cl, cut=raw)
            elif name == "knowledge":
                phase = KnowledgePhase(r, of_lm[name])
            elif name == "imitation":
                phase = ImitationPhase(r, of_lm[name], to_imitate)
            elif name == "policy":
                phase = PolicyPhase(r, of_lm[name])
            else:
                phase = ResidualsPhase(
                    r, optimisers.of(config.residuals, config.iterations * config.residuals.steps), summaries
                )
            phases.append(phase.at(iteration, len(phases)))
    if "history_trained" in config_lib.listed(config.evaluation.baselines) and "contrastive" in names:
        for iteration in range(config.iterations):
            control = ContrastivePhase(r, "control", "control", cl, histories, cut=True)
            phases.append(control.at(iteration, len(phases)))
    return phases


# ---- the results


def rows(r: ProfileRecommender, stages: dict[str, dict], state: dict[str, Part], note: dict):
    """The rows of the results that are steps of training, and the control's; stages: name -> weights by part.

    Profiles are greedy; stages with the same language model share them.
    """
    written, final = {}, list(stages.values())[-1]["embedder"]  # lm -> its texts, and which of them it ended
    for name, weights in stages.items():
        lm = weights["lm"]
        if id(lm) not in written:
            file = r.run.workdir / f"profiles/{name}-{note['global_step']}-test.jsonl"
            ended = {}
            texts = r.write(lm, "test", file, ended=ended)
            written[id(lm)] = texts, [ended[row] for row in range(len(texts))]
        items = r.catalogue(weights["embedder"], keep=weights["embedder"] is final)  # for later calls to recommend
        texts, by_itself = written[id(lm)]
        yield from text_rows(r, name, weights, items, texts, by_itself, stage=True)
    learned = r.with_terms(items, weights["residuals"]) if "residuals" in state else items
    of_next = of_others([session.user for session in r.sessions["test"]], texts)
    yield Row("shuffled_profiles", r.scored(weights["embedder"], of_next, learned))
    if r.by_journey:
        joined = [
            " ".join(text.split("\n")[::-1]) for text in texts
        ]  # the oldest journey last: it is what a window may cut
        yield Row("joined_profiles", (*r.scored(weights["embedder"], joined, learned)[:2], True))
    others = {"summary": (r.summaries("test"), [True] * len(texts))}
    if r.config.profile.samples > 1:
        others["best"] = best(r, weights, note["global_step"])
    for name, of_name in others.items():
        for suffix in ["", "_items"][: 1 + ("residuals" in state)]:
            yield from text_rows(r, name + suffix, weights, items, *of_name)
    if "control" in state:
        yield Row("history_trained", r.scored(state["control"].weights, r.history_texts("test"), cut=True))


def best(r: ProfileRecommender, weights: dict, step: int) -> tuple[list[str], list[bool]]:
    """The test users' profiles as they are handed out, the best of several (config.profile), and which the model ended."""
    how = config_lib.digest(r.config, WRITTEN_BY)
    ended, file = {}, r.run.workdir / f"profiles/best-{how}-{step}-test.jsonl"
    draws = BestOf(r, weights["embedder"]).draws(r.sessions["test"])
    texts = r.write(weights["lm"], "test", file, draws=draws, ended=ended)
    return texts, [ended[row] for row in range(len(texts))]


def test(
    r: ProfileRecommender, stages: dict[str, dict], state: dict[str, Part], note: dict, trec: bool = False
) -> dict:
    """The test of the baselines and of all stages of training."""
    return evaluate.test(r, rows(r, stages, state, note), untrained(r, stages), note, trec)


def untrained(r: ProfileRecommender, stages: dict[str, dict]) -> dict:
    """The embedder's weights as loaded."""
    return r.fresh("control") if r.config.begin_from else next(iter(stages.values()))["embedder"]


def of_others(users: list[str], texts: list[str]) -> list[str]:
    """For each user's text that of the next other user: what the ranking then loses is what the profile itself says.

    >>> of_others(["ann", "ann", "bob"], ["a1", "a2", "b"])
    ['b', 'b', 'a1']
    """
    n = len(users)
    others = [next((j % n for j in range(i + 1, i + n) if users[j % n] != users[i]), i) for i in range(n)]
    return [texts[other] for other in others]


def text_rows(r, name: str, weights: dict, items, texts: list[str], ended: list[bool], stage: bool = False):
    """The row of texts by a stage's weights, audited; after the residuals phase ("items") also one with the latest items."""
    learned = weights["residuals"] if "items" in name.split("_") else None
    items = r.with_terms(items, learned) if learned else items
    queries, valid = r.queries(weights["embedder"], texts)
    audited = Audited(weights["embedder"], items, texts)
    yield Row(name, (queries, items, valid), texts if stage else None, audited, None if learned else ended)
    if learned and r.config.score.history:
        weight, histories = r.config.score.history, [s.history for s in r.sessions["test"]]
        queries = r.with_history(queries, items, histories, weight)
        yield Row(f"{name}_history", (queries, items, valid), audited=audited._replace(history=weight))


def write(r: ProfileRecommender, state: dict[str, Part], split: str, file) -> list[str]:
    """One profile per session of a split, as they are handed out, kept in a file line by line (ProfileRecommender.write)."""
    draws = BestOf(r, r.weights(state, "embedder")).draws(r.sessions[split])
    return r.write(r.weights(state, "lm"), split, file, draws=draws)
