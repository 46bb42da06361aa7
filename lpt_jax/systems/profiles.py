"""LangPTune (arXiv 2410.18870): a language model and a text embedder, trained end to end.

The language model (`lm`, the paper's profile encoder) writes a user's profile in plain language; the embedder (the paper's
recommender decoder) ranks the whole catalogue by it.

    for each iteration:
        profiles = write(lm, training sessions)               # plain language, one per session
        embedder = contrastive phase: profile ↔ next items    # learn to rank by profiles
        items    = embed(embedder, catalogue)                 # Float[N, D], spread over the mesh
        lm       = policy phase: sample G profiles per user → rank → reward → update

    loss of the policy phase = mean over pairs of a user's profiles ((Δᵢ − Δⱼ) − η (rᵢ − rⱼ))²     (learning/policy.py, rebel)
"""

from lpt_jax import config as config_lib
from lpt_jax.evaluate import Row
from lpt_jax.learning import optimisers
from lpt_jax.learning.contrastive import ContrastivePhase
from lpt_jax.learning.loop import Part, Phase
from lpt_jax.learning.policy import PolicyPhase
from lpt_jax.recommender import ProfileRecommender, language_model, load_decoder, load_encoder
from lpt_jax.run import Run
from lpt_jax.similarity import DualEncoder, Embedder
from lpt_jax.systems.profiles_settings import settings as settings

TRAINS = {"contrastive": "embedder", "policy": "lm"}  # phase -> the part that it trains
STEPS = {"contrastive": "cl", "policy": "rlso"}  # phase -> its name in the results' rows
SAME = ("data", "lm.source", "embedder.source", "policy.trains", "policy.last_layers", "policy.lora")  # of begin_from


def build(run: Run) -> ProfileRecommender:
    """The models of a run, as its config names them; they are loaded when they are needed."""
    config, folder = run.config, run.workdir / "catalogue"
    return ProfileRecommender(
        run,
        lambda: language_model(config, load_decoder(config), run.mesh, run.key),
        lambda: Embedder(DualEncoder(load_encoder(config)), config.embedder, run.mesh, folder, run.interrupt),
    )


# ---- the phases


def written_profiles(phase: ContrastivePhase, state: dict[str, Part]) -> tuple[list[str], list[str]]:
    """Fresh profiles of the training sessions, several a session if the config says so, and of the validation sessions."""
    r, place, settings = phase.r, phase.place, phase.settings
    lm, folder, texts = r.weights(state, "lm"), r.run.workdir / "profiles", []
    for copy in range(settings.profiles_per_session):
        file = folder / f"{place}-train-{copy}.jsonl"
        texts += r.write(lm, "train", file, place, settings.sampling_temperature, copy)
    return texts, r.write(lm, "validation", folder / f"{place}-validation.jsonl")


def histories(phase: ContrastivePhase, state: dict[str, Part]) -> tuple[list[str], list[str]]:
    """The raw texts of the training and the validation sessions' histories."""
    return phase.r.history_texts("train"), phase.r.history_texts("validation")


def schedule(r: ProfileRecommender) -> list[Phase]:
    """All phases in order; the profile-free control, where asked for, comes last."""
    config, phases = r.config, []
    cl = optimisers.of(config.contrastive, config.iterations * config.contrastive.steps)
    updates = config.policy.steps * config.policy.epochs * config.policy.minibatches
    rl = optimisers.of(config.policy, config.iterations * updates)
    names = config_lib.listed(config.phases)
    for iteration in range(config.iterations):
        for name in names:
            if name == "contrastive":
                phase = ContrastivePhase(r, name, "embedder", cl, written_profiles)
            else:
                phase = PolicyPhase(r, rl)
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
    written, final = {}, list(stages.values())[-1]["embedder"]
    for name, weights in stages.items():
        lm = weights["lm"]
        if id(lm) not in written:
            file = r.run.workdir / f"profiles/{name}-{note['global_step']}-test.jsonl"
            written[id(lm)] = r.write(lm, "test", file)
        items = r.catalogue(weights["embedder"], keep=weights["embedder"] is final)  # for later calls to recommend
        yield Row(name, r.scored(weights["embedder"], written[id(lm)], items), written[id(lm)])
    if "control" in state:
        yield Row("history_trained", r.scored(state["control"].weights, r.history_texts("test"), cut=True))


def write(r: ProfileRecommender, state: dict[str, Part], split: str, file) -> list[str]:
    """One greedy profile per session of a split, kept in a file line by line (ProfileRecommender.write)."""
    return r.write(r.weights(state, "lm"), split, file)
