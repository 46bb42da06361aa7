"""The settings of PeaPOD (systems/peapod.py): those of recommendation knowledge, and the personal prompt."""

from ml_collections import ConfigDict

from lpt_jax.systems import knowledge_settings
from lpt_jax.systems.shared_settings import group

CHOICES = knowledge_settings.CHOICES | {
    "personal.kind": ("neighbours", "pool", "own", "profile", "task", "none"),
    "personal.neighbours_of": ("own", "others"),
}
LISTS = knowledge_settings.LISTS
MAY_BE_ZERO = [*knowledge_settings.MAY_BE_ZERO, "personal.penalty"]
MAY_BE_NEGATIVE = ()


def settings() -> ConfigDict:
    """All of them with their defaults."""
    c = knowledge_settings.settings()
    c.personal = group(  # vectors before every text, made of the person's
        # neighbours (PeaPOD v2) | pool (v1) | own (of the person alone) | profile (of a text about the person) | task (of the task
        kind="neighbours",  # alone: POD) | none
        tokens=3,  # vectors of a person
        task_tokens=3,  # vectors of a task
        size=64,  # of a person's vector: factors of who chose what
        neighbours=20,  # nearest training users
        neighbours_of="own",  # own | others (the control: somebody else's)
        heads=4,  # of the attention over neighbours
        pool=10,  # prompts in the pool
        penalty=0.1,  # × how far the pool is from orthogonal
        latest=6,  # items that a profile, written by rules, speaks of
        rewritten=4,  # items after which training takes a new profile: each is embedded once
    )
    c.tasks.weights.update(retrieval=0.5, ranking=0.3, explanation=0.2)
    c.tasks.weights.update(rating=0.0, hidden_item=0.0, hidden_words=0.0, preference=0.0)
    return c


def tiny(config: ConfigDict) -> None:
    """Shrinks them to a random tiny model."""
    knowledge_settings.tiny(config)
    config.personal.update(size=8, neighbours=4, heads=2, pool=3)


def check(config: ConfigDict, wrong) -> None:
    """Calls wrong(setting, what it must be) for settings that don't go together."""
    knowledge_settings.check(config, wrong)
    if config.personal.size % config.personal.heads:
        wrong("personal.heads", "a divisor of personal.size")
