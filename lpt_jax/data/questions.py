"""Training sessions as questions about items by their titles, with answers: what a writer of profiles may learn first.

retrieval    what was chosen, oldest first            → the next item
ranking      the same, and candidates                 → the next item
rating       what was chosen with stars, and an item  → its stars
hidden_item  what was chosen, one of it hidden (MIM)  → the hidden item
preference   what was chosen, and two items (BPR)     → A or B

The tasks of data/tasks.py in plain language, after "Aligning Large Language Models with Recommendation Knowledge" (arXiv 2404.00245).
"""

from typing import NamedTuple

import numpy as np

from lpt_jax.data import prompts
from lpt_jax.data.tasks import others, stars_of
from lpt_jax.errors import InputError

TRIES = 100  # sessions that are drawn for a kind before it is given up
HIDDEN = "[hidden]"


class Question(NamedTuple):
    """What is asked, the answer, and the prompt's token ids."""

    text: str
    answer: str
    ids: list[int]


def drawn(kinds: list[str], count: int, sessions: list, catalogue, config, tokenizer, seed: int) -> list[Question]:
    """So many questions of randomly drawn training sessions, each kind as often; InputError for a kind that none can be asked of.

    A session whose question is longer than config.prompt allows is passed over, and another one drawn.
    """
    rng, found, known = np.random.default_rng((seed, 62)), [], known_items(sessions)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        for _ in range(TRIES):
            session = sessions[int(rng.integers(len(sessions)))]
            parts = MAKERS[kind](session, catalogue, config, known[session.user], rng)
            if parts and (question := encoded(kind, *parts, config, tokenizer)):
                found.append(question)
                break
        else:
            needs = f"{'ratings, ' if kind == 'rating' else ''}two items a session, others beside, and room for them"
            raise InputError(
                f"No session has what a question of the kind {kind} needs ({needs} in --config.prompt.max_tokens="
                f"{config.prompt.max_tokens}): leave {kind} out of --config.knowledge.tasks."
            )
    return found


def known_items(sessions: list) -> dict[str, set]:
    """All items of each user's training sessions."""
    found = {}
    for session in sessions:
        found.setdefault(session.user, set()).update(session.hidden, session.targets)
    return found


def encoded(kind: str, items: list, parts: dict, answer: str, config, tokenizer) -> Question | None:
    """A question with the latest of its items' lines, as many as config.prompt has room for; None where that is none of them."""
    control, sentence = prompts.control_tokens(tokenizer), prompts.KNOWLEDGE[kind]
    items = items[-config.prompt.history_items :]
    while True:
        shown = {"items": "\n".join(items), **{name: "\n".join(lines) for name, lines in parts.items()}}
        text = sentence.format(**{name: prompts.neutralise(lines, control) for name, lines in shown.items()})
        ids = prompts.encode_question(text, config.prompt, tokenizer)
        if len(ids) <= config.prompt.max_tokens:
            return Question(text, answer, ids)
        if len(items) < 2 or items[0] == HIDDEN:
            return None
        items = items[1:]


# ---- each kind: (lines of items, lines of the sentence's other places, answer); None where the session has not the data


def _titles(catalogue, items) -> list[str]:
    return [catalogue.titles[item] for item in items]


def _retrieval(session, catalogue, config, known, rng):
    return _titles(catalogue, session.history), {}, catalogue.titles[session.targets[0]]


def _ranking(session, catalogue, config, known, rng):
    negatives = others(known, config.knowledge.candidates - 1, len(catalogue.titles), rng)
    candidates = [session.targets[0], *negatives]
    shown = _titles(catalogue, [candidates[place] for place in rng.permutation(len(candidates))])
    read = _titles(catalogue, session.history), {"candidates": shown}, catalogue.titles[session.targets[0]]
    return read if negatives else None


def _rating(session, catalogue, config, known, rng):
    given = session.ratings or ()
    if len(given) < 2 or any(star is None or star != star for star in given):
        return None
    stars = [stars_of(star, config.data.best_rating) for star in given]
    titles = _titles(catalogue, session.history)
    lines = [f"{title}: {star}" for title, star in zip(titles, stars)]
    return lines[:-1], {"item": titles[-1:]}, f"{stars[-1]}"


def _hidden_item(session, catalogue, config, known, rng):
    if len(session.history) < 2:
        return None
    lines = _titles(catalogue, session.history)
    latest = min(3, len(lines), config.prompt.history_items)  # older ones may be dropped
    back = 1 + int(rng.integers(latest))
    answer, lines[-back] = lines[-back], HIDDEN
    return lines, {}, answer


def _preference(session, catalogue, config, known, rng):
    negatives, first = others(known, 1, len(catalogue.titles), rng), int(rng.integers(2))
    if not negatives:
        return None
    pair = [session.targets[0], negatives[0]][:: 1 if first == 0 else -1]
    parts = {"first": _titles(catalogue, pair[:1]), "second": _titles(catalogue, pair[1:])}
    return _titles(catalogue, session.history), parts, "AB"[first]


MAKERS = {
    "retrieval": _retrieval,
    "ranking": _ranking,
    "rating": _rating,
    "hidden_item": _hidden_item,
    "preference": _preference,
}
