"""Attributes of items, and edits made of them: what follows an edit has what is liked and lacks what is disliked."""

import re

import numpy as np
import pytest

from lpt_jax.config import default, tiny
from lpt_jax.data import attributes, edits, prompts, sessions


@pytest.fixture(scope="module")
def data():
    config = tiny(default()).data
    found = sessions.prepare(config)

    return found


def test_attributes_of_all_fields_are_of_enough_items_and_not_of_nearly_all():
    items = [{"genres": ["Horror", "Drama"], "year": 1994, "brand": "L'Oreal"}] * 3
    items += [{"categories": ["Beauty", "Nail  Polish"], "brand": "Unknown", "year": "2001"}] * 4
    items += [{"genres": ["Drama"]}] * 2
    found = attributes.attributes_of(items, fewest=3)
    assert dict(zip(found.names, found.fields)) == {
        "beauty": "categories",
        "nail polish": "categories",
        "2000s": "decade",
        "L'Oreal": "brand",
        "1990s": "decade",
        "horror": "genres",
    }  # drama is of 5 of 9
    assert found.has.sum(1).tolist() == [4, 4, 4, 3, 3, 3]
    assert found.has[found.names.index("horror")].tolist() == [True] * 3 + [False] * 6
    assert found.of(8) == []


def test_attributes_are_words_of_titles_where_no_field_names_any():
    items = [{"title": f"Red nail polish {i}"} for i in range(3)] + [{"title": "A brush"}] * 4
    found = attributes.attributes_of(items, fewest=3)
    assert sorted(found.names) == ["nail", "polish"] and set(found.fields) == {"title"}  # "brush" is of over half
    assert attributes.attributes_of([{}], fewest=1).names == []


def templates(phrases):
    """Phrases as patterns of what they could say of anything."""
    return {re.sub(r"\{\w+\}", "X", phrase).lower().strip(" .!") for phrase in phrases}


@pytest.mark.parametrize("phrases", [prompts.LIKES, prompts.DISLIKES, prompts.BOTH, prompts.NEUTRAL])
def test_the_audits_phrases_are_never_trained_on(phrases):
    trained = templates(phrases["train"]) | templates(prompts.TITLES)
    trained |= templates(phrase for summary in prompts.SUMMARIES for phrase in summary)
    assert phrases["audit"] and not templates(phrases["audit"]) & trained


def test_what_follows_an_edit_has_what_it_likes_and_lacks_what_it_dislikes(data):
    maker, rng = edits.Edits(data, "films"), np.random.default_rng(0)
    has, names, seen = data.catalogue.attributes.has, data.catalogue.attributes.names, set()
    for number in range(300):
        session = data.sessions["train"][number % len(data.sessions["train"])]
        edit = maker.draw(rng, number, "A profile.", session)
        kind = edits.TURN[number % 3]
        named = [a for a, name in enumerate(names) if name in edit.text]
        seen.add((kind, edit.text.startswith("A profile."), len(named)))
        assert not edit.allowed[edit.positive]
        if kind == "dislike":
            (rejected,) = [a for a in named if has[a].tolist() == edit.allowed.tolist()]  # its only negatives have it
            assert (
                not has[rejected, edit.positive] and len(edit.drawn) == edits.DRAWN and has[rejected][edit.drawn].all()
            )
            assert all(has[a, edit.positive] for a in named if a != rejected), edit.text  # likes the other
        elif named:
            assert has[named[0], edit.positive] and not (edit.allowed & has[named[0]]).any(), edit.text
    assert len(seen) > 6


def test_edits_depend_on_the_seed_alone(data):
    maker, session = edits.Edits(data, "films"), data.sessions["train"][0]
    drawn = [[maker.draw(np.random.default_rng(s), i, "x", session).text for i in range(9)] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
