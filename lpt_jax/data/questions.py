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
from lpt_jax.errors import InputError

TRIES = 100  # sessions that are drawn for a kind before it is given up
HIDDEN = "[hidden]"


class Question(NamedTuple):
    """What is asked, the answer, and the prompt's token ids."""

    text: str
    answer: str
    ids: list[int]


def drawn(kinds: list[str], count: int, sessions: list, catalogue, config, tokenizer, seed: int) -> list[Question]:
    """So many questions of randomly drawn training sessions, each kind as often; InputError for a kind that lacks its data."""
    rng, found = np.random.default_rng((seed, 62)), []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        for _ in range(TRIES):
            session = sessions[int(rng.integers(len(sessions)))]
            if parts := globals()[f"_{kind}"](session, catalogue, config.knowledge.candidates, rng):
                found.append(encoded(kind, *parts, catalogue, config, tokenizer))
                break
        else:
            needs = "ratings" if kind == "rating" else "two items a session, and others"
            raise InputError(f"The questions {kind} need {needs}: leave {kind} out of --config.knowledge.tasks.")
    return found


def encoded(kind: str, items: list, parts: dict, answer: str, catalogue, config, tokenizer) -> Question:
    """A question with the latest of its items' lines: as many as config.prompt has room for.

    The item that is asked for is not cut off: where `items` has it hidden, those after it stay.
    """
    control, most = prompts.control_tokens(tokenizer), config.prompt.history_items
    items, sentence = items[-most:], prompts.KNOWLEDGE[kind]
    while True:
        shown = {"items": "\n".join(items), **{name: "\n".join(lines) for name, lines in parts.items()}}
        text = sentence.format(**{name: prompts.neutralise(lines, control) for name, lines in shown.items()})
        ids = prompts.encode_question(text, config.prompt, tokenizer)
        if len(ids) <= config.prompt.max_tokens:
            return Question(text, answer, ids)
        if len(items) < 2 or items[0] == HIDDEN:
            raise InputError(
                f"--config.prompt.max_tokens={config.prompt.max_tokens} won't do: a question of the kind {kind} takes {len(ids)} tokens."
            )
        items = items[1:]


# ---- each kind: (lines of items, lines of the sentence's other places, answer); None where the session has not the data


def _titles(catalogue, items) -> list[str]:
    return [catalogue.titles[item] for item in items]


def _others(session, catalogue, count: int, rng) -> list[int]:
    """Items that the session does not have."""
    own, found = {*session.history, *session.targets}, []
    while len(found) < count and len(own) + len(found) < len(catalogue.titles):
        item = int(rng.integers(len(catalogue.titles)))
        if item not in own and item not in found:
            found.append(item)
    return found


def _retrieval(session, catalogue, count, rng):
    return _titles(catalogue, session.history), {}, catalogue.titles[session.targets[0]]


def _ranking(session, catalogue, count, rng):
    candidates = [session.targets[0], *_others(session, catalogue, count - 1, rng)]
    shown = _titles(catalogue, [candidates[place] for place in rng.permutation(len(candidates))])
    return _titles(catalogue, session.history), {"candidates": shown}, catalogue.titles[session.targets[0]]


def _rating(session, catalogue, count, rng):
    stars = session.ratings or ()
    if len(stars) < 2 or any(star is None or star != star for star in stars):
        return None
    lines = [f"{title}: {star:g}" for title, star in zip(_titles(catalogue, session.history), stars)]
    return lines[:-1], {"item": _titles(catalogue, session.history[-1:])}, f"{stars[-1]:g}"


def _hidden_item(session, catalogue, count, rng):
    if len(session.history) < 2:
        return None
    lines = _titles(catalogue, session.history)
    back = 1 + int(rng.integers(min(3, len(lines))))  # of the latest: older ones may be dropped
    answer, lines[-back] = lines[-back], HIDDEN
    return lines, {}, answer


def _preference(session, catalogue, count, rng):
    others = _others(session, catalogue, 1, rng)
    if not others:
        return None
    first = int(rng.integers(2))
    pair = [session.targets[0], others[0]][:: 1 if first == 0 else -1]
    parts = {"first": _titles(catalogue, pair[:1]), "second": _titles(catalogue, pair[1:])}
    return _titles(catalogue, session.history), parts, "AB"[first]
