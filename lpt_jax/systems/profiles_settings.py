"""The settings of LangPTune (systems/profiles.py): models, prompts, profiles, and both phases of training."""

import importlib
import re

from ml_collections import ConfigDict

from lpt_jax.errors import InputError
from lpt_jax.systems.shared_settings import (
    JOURNEYS,
    MODELS,
    check_journeys,
    group,
    journeys,
    language_model,
    lora,
    optimiser,
    soft_prompt,
    text_embedder,
)

HANDED_OUT = ("profile.samples", "profile.temperature", "profile.best_by")  # how profiles are drawn for people
KINDS = ("retrieval", "ranking", "rating", "hidden_item", "preference")  # of questions (data/questions.py)
PHASES = ("knowledge", "imitation", "contrastive", "policy", "residuals")
CHOICES = MODELS | {
    "profile.per": ("user", "journey"),
    "policy.trains": ("last_layers", "lora", "soft_prompt"),
    "policy.loss": ("rebel", "rloo", "grpo"),
    "policy.baseline": ("batch", "user", "user_std"),
    **dict.fromkeys((f"{phase}.optimiser" for phase in PHASES), ("adamw", "unit_sgd")),
    **dict.fromkeys((f"{phase}.schedule" for phase in PHASES), ("constant", "linear")),
}
LISTS = {  # comma-separated settings, none of them empty: what they may name
    "phases": PHASES,
    "contrastive.texts": ("profiles", "summaries", "histories"),
    "imitation.texts": ("summaries", "best", "file"),
    "knowledge.tasks": KINDS,
}
MAY_BE_ZERO = """
    knowledge.steps knowledge.warmup knowledge.weight_decay imitation.steps imitation.sessions imitation.warmup imitation.weight_decay contrastive.steps contrastive.edits score.popularity score.rejected score.history residuals.steps residuals.warmup residuals.weight_decay residuals.penalty contrastive.warmup contrastive.weight_decay contrastive.hard_negatives
    knowledge.evaluate_every imitation.evaluate_every
    contrastive.sampling_temperature policy.steps policy.warmup policy.weight_decay policy.kl_coef policy.clip_ratio journeys.vectors audit.profiles
""".split()  # all other numbers are greater
MAY_BE_NEGATIVE = JOURNEYS


def knowledge() -> ConfigDict:
    """Of questions about items by their titles, by the language model, before it learns to write profiles."""
    return group(
        steps=60,  # updates per iteration
        batch=16,  # questions per update
        tasks=",".join(KINDS),  # of retrieval, ranking, rating, hidden_item, preference, each as often
        candidates=5,  # of ranking
        **optimiser(learning_rate=2e-4, warmup=10),
        evaluate_every=60,  # steps between validations; 0: none, where keep_best is off
        keep_best=False,
    )


def imitation() -> ConfigDict:
    """Of given texts, by the language model: supervised fine-tuning of what policy.trains says."""
    return group(
        steps=120,  # updates per iteration
        batch=8,  # training sessions per update, with all texts of each
        texts="summaries",  # of summaries (made by rules, in several wordings), best (sampled, by reward), file
        file="",  # JSON lines or .parquet with user and profile, such as a larger model's --mode=write_profiles
        samples=8,  # of a session, of which the best by policy.reward is imitated
        sessions=0,  # of which the best are imitated, drawn by the seed; 0: all training sessions
        **optimiser(learning_rate=2e-4, warmup=10),
        evaluate_every=120,  # as in knowledge
        keep_best=False,  # before contrastive learning the embedder knows little of what is a good profile
    )


def policy() -> ConfigDict:
    """Of RLSO: rollouts, what trains, the loss, the reward."""
    return group(
        steps=20,  # rollout batches per iteration
        users=16,  # prompts per rollout batch
        samples=4,  # G, profiles per prompt
        temperature=1.0,  # of the policy: sampling and log-probabilities alike
        trains="last_layers",  # last_layers | lora | soft_prompt
        last_layers=4,  # with last_layers: the top blocks and the final norm (and an untied head)
        lora=lora(),
        soft_prompt=soft_prompt("Describe this person's taste."),
        loss="rebel",  # rebel | rloo | grpo
        eta=1.0,  # REBEL's η
        clip_ratio=0.2,  # GRPO's ε
        kl_coef=0.2,  # reward minus kl_coef × (log π − log π_ref), summed over tokens
        whiten=True,  # rewards to mean 0, variance 1 over the batch
        baseline="batch",  # whitening's mean and s.d. are the batch's | user: the mean is a user's | user_std: both are
        epochs=4,  # passes over each rollout batch
        minibatches=1,  # updates per pass
        accumulation=1,  # parts of an update's users that are computed one after another: less memory, the same update
        # a sum such as "ndcg + 0.2*ended - 0.1*copied" of ndcg, mrr, dense, likelihood (these two at contrastive.temperature),
        # explains, held_back (NDCG of items shown, and not shown), ended, clean, supported, copied (of the text), "module:function"s
        reward="ndcg",
        mask_unended=False,  # profiles that the limit cut are left out of the loss
        **optimiser(learning_rate=1e-5, warmup=5),  # warmup in updates: a step has epochs × minibatches
        logits_chunk=512,  # positions whose logits exist at once
        evaluate_every=10,  # as in contrastive
        keep_best=True,
    )


def settings() -> ConfigDict:
    """All of them with their defaults."""
    c = ConfigDict()
    c.phases = "contrastive,policy"  # phases of one iteration, in order, of knowledge, imitation, contrastive, policy, residuals
    c.lm = language_model()  # that writes profiles: the paper's profile encoder
    c.embedder = text_embedder()  # that ranks by profiles: the paper's recommender decoder
    c.score = group(  # of an item for a profile: their cosine, and
        popularity=0.05,  # × log of the item's training interactions, relative to the most popular's
        rejected=0.4,  # − this × the cosine of what the profile rejects
        history=1.0,  # in the rows that say so, + this × the mean of the latest items: where the residuals phase has run
        decay=0.95,  # γ: a line's score counts × this for each line after it, where profile.per is journey
    )
    c.prompt = group(
        max_tokens=1024,  # template and history together; the oldest items are dropped to fit
        history_items=20,  # at most this many of the latest items are shown (and make up the history's raw text)
        system="",  # a system message; empty: none (SmolLM2's template then adds its own)
        start="",  # the words every profile begins with, {kind} being data.kind; keeps a small model on its task
        style="paper",  # the instruction's wording: paper | short | genres | kinds | taste | tiny (lpt_jax/data/prompts.py)
        buckets=4,  # prompts are padded to this many static lengths at most
    )
    c.profile = group(
        per="user",  # user | journey: a line for each of a user's latest journeys, of which the best for an item counts
        journeys=3,  # at most
        max_tokens=512,  # longest profile, or line of it, in the language model's tokens
        batch=16,  # profiles that are written at once
        samples=1,  # drawn of each profile that is handed out, of which the best is kept; 1: a greedy one
        temperature=0.5,  # of these
        best_by="explains + clean + supported",  # a sum as policy.reward's, of parts that read no next item
    )
    c.journeys = journeys(join=0.1, fewest=1)  # found by the items' texts, where profile.per is journey
    c.knowledge = knowledge()
    c.imitation = imitation()
    c.contrastive = group(
        steps=100,  # embedder updates per iteration
        batch=32,  # profile-item pairs per update, over all devices
        temperature=0.1,  # of InfoNCE, on cosines
        **optimiser(learning_rate=1e-5, warmup=10),
        popularity_correction=False,  # subtract log sampling probability (logQ): popularity is then learned, not score.popularity's
        edits=0.25,  # share of a batch that are edits: a like or dislike said of an attribute ↔ an item (data/edits.py)
        texts="profiles,summaries",  # of profiles, summaries (by rules, of the items' fields), histories (raw): what is read beside edits
        hard_negatives=0,  # further catalogue items per batch, drawn evenly, as negatives for all
        profiles_per_session=1,  # different sampled profiles of one training session
        sampling_temperature=1.0,  # of the training profiles; 0 = greedy
        evaluate_every=50,  # steps between validations
        keep_best=True,  # the phase ends with its best state by validation, its start included
    )
    c.residuals = group(  # what interactions teach of items beyond their texts: residuals and biases
        steps=150,  # updates
        batch=256,  # training sessions per update
        windows=4,  # sessions per training user at most, as data.windows
        targets=10,  # next items per session
        temperature=0.1,  # of the softmax over all items
        penalty=3.0,  # × the residuals' mean square
        **optimiser(learning_rate=3e-3, warmup=10),
        evaluate_every=20,
        keep_best=True,
    )
    c.policy = policy()
    c.audit = group(  # of what profiles' words do (lpt_jax/audit.py)
        profiles=48,  # test profiles that are edited, a fixed sample; 0: no audit
        attributes=20,  # that edits name, the most frequent
    )
    return c


def tiny(config: ConfigDict) -> None:
    """Shrinks them to random tiny models."""
    config.lm.update(source="tiny", dtype="float32")
    config.embedder.update(source="tiny", dtype="float32", max_profile_tokens=32, max_item_tokens=32, batch=64)
    config.prompt.update(max_tokens=96, history_items=6, style="tiny", system="", start="", buckets=1)
    config.profile.update(max_tokens=24 if "imitation" in config.phases else 8, batch=16)  # summaries are to fit
    config.profile.samples = min(config.profile.samples, 2)
    config.contrastive.update(steps=2, batch=16, evaluate_every=2, warmup=1, profiles_per_session=1)
    config.knowledge.update(steps=2, batch=16, evaluate_every=2, warmup=1, candidates=2)
    config.imitation.update(steps=2, batch=16, evaluate_every=2, samples=2, warmup=1)
    config.residuals.update(steps=4, batch=16, windows=2, targets=2, evaluate_every=2, warmup=1)
    config.policy.update(steps=2, users=8, samples=2, evaluate_every=2, epochs=2)
    config.policy.update(warmup=1, last_layers=1, minibatches=1)
    config.policy.lora.update(rank=4, alpha=8.0)
    config.audit.profiles = 4
    config.journeys.update(vectors=0.0)  # random models' vectors say nothing


def check(config: ConfigDict, wrong) -> None:
    """Calls wrong(setting, what it must be) for settings that don't go together."""
    policy = config.policy
    if policy.samples < 2:
        wrong("policy.samples", "at least 2: every loss compares profiles of one user")
    if policy.users % policy.minibatches:
        wrong("policy.minibatches", "a divisor of policy.users")
    if policy.users // policy.minibatches % policy.accumulation:
        wrong("policy.accumulation", "a divisor of policy.users / policy.minibatches")
    if config.contrastive.edits > 0.9:
        wrong("contrastive.edits", "a share of at most 0.9: profiles are to be learned too")
    if ("file" in config.imitation.texts) != bool(config.imitation.file):
        wrong("imitation.file", "a file of profiles if imitation.texts names file, else empty")
    if "file" in config.imitation.texts and config.profile.per == "journey":
        wrong("imitation.texts", "summaries, best: a file's texts are of users, not of journeys (profile.per)")
    if config.score.decay > 1:
        wrong("score.decay", "at most 1")
    check_journeys(config, wrong)
    for phase in ("knowledge", "imitation"):
        if config[phase].keep_best and not config[phase].evaluate_every:
            wrong(
                f"{phase}.evaluate_every", f"1 or more, or {phase}.keep_best false: what is best is told by validation"
            )
    if config.knowledge.candidates < 2:
        wrong("knowledge.candidates", "at least 2: the next item, and others")
    if config.imitation.sessions and "best" not in config.imitation.texts:
        wrong("imitation.sessions", "0 unless imitation.texts names best")
    if config.contrastive.batch < 2:
        wrong("contrastive.batch", "at least 2: the other pairs are the negatives")
    try:
        re.compile(policy.lora.targets)
    except re.error as error:
        wrong("policy.lora.targets", f"a regular expression ({error})")
    check_reward(config, "policy.reward", wrong)
    check_reward(config, "profile.best_by", wrong, ("ndcg", "mrr", "dense", "likelihood"))  # of next items


def check_reward(config: ConfigDict, name: str, wrong, left_out: tuple[str, ...] = ()) -> None:
    """A reward is a sum of the library's parts, but those left out, and of functions that can be imported."""
    from lpt_jax.rewards import PARTS, terms  # here, as it starts jax

    group, setting = name.split(".")
    parts, known = terms(config[group][setting]), [part for part in PARTS if part not in left_out]
    if not parts or not all(part in known or importable(name, part) for part in parts):
        example = f"{known[0]} + 0.2*ended"
        wrong(name, f'a sum of {", ".join(known)}, or of importable "module:function"s, such as "{example}"')


def importable(setting: str, name: str) -> bool:
    """Whether "module:function" is one."""
    module, _, function = name.partition(":")
    try:
        return bool(function) and callable(getattr(importlib.import_module(module), function, None))
    except (ImportError, ValueError):
        return False
    except Exception as error:  # of the user's own code
        raise InputError(f"--config.{setting}: {module} can't be imported ({type(error).__name__}: {error}).") from None
