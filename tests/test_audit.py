"""The audit by hand: what counts as moved, obeyed and kept."""

import numpy as np
import pytest

from lpt_jax import audit

HAS = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]], bool)  # attribute 0 of items 0 and 1, attribute 1 of item 2


def lists(*items):
    items = np.array(items)
    return audit.Lists(items, HAS[:, items].mean(-1).T)


def test_measured_by_hand():
    before = lists([0, 2, 3, 4], [3, 4, 5, 2])
    after = lists([0, 1, 2, 3], [3, 4, 5, 2], [2, 3, 4, 5], [0, 3, 4, 5])  # profile 0: a0, a1; profile 1: a0, a1
    pairs = audit.Pairs(["x"] * 4, np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    found = audit.measured(pairs, before, after, HAS, False, 0, 200)
    assert found["change"] == pytest.approx((0.25 + 0 + 0 - 0.25) / 4)
    assert (found["right"], found["wrong"], found["attributes"], found["obeyed"]) == (0.25, 0.25, 2, 1)
    # of [2, 3, 4] two stay where two fit; of [0, 3, 4] two of three; of [3, 4, 5, 2] all; of [3, 4, 5] all
    assert found["kept"] == pytest.approx((1 + 2 / 3 + 1 + 1) / 4)
    assert found["low"] <= found["change"] <= found["high"]


def test_a_rejection_is_right_only_where_there_was_something_to_reject():
    before = lists([0, 2, 3, 4], [3, 4, 5, 2])
    after = lists([2, 3, 4, 5], [2, 3, 4, 5])
    pairs = audit.Pairs(["x", "x"], np.array([0, 1]), np.array([0, 0]))
    found = audit.measured(pairs, before, after, HAS, True, 0, 200)
    assert (found["right"], found["wrong"], found["obeyed"]) == (1.0, 0.0, 1)
    raised = audit.measured(pairs, before, lists([0, 1, 2, 3], [0, 1, 2, 3]), HAS, True, 0, 200)
    assert (raised["right"], raised["wrong"], raised["obeyed"], raised["change"]) == (0.0, 1.0, 0, 0.375)
    assert audit.measured(audit.Pairs([], np.zeros(0, int), np.zeros(0, int)), before, after, HAS, True, 0, 9) == {}


class Known:
    names, fields, has = ["horror", "war"], ["genres", "genres"], HAS


def test_edits_are_made_of_each_profile_and_attribute():
    made = audit.pairs(["Likes war films.", "Nothing.", "Neutral."], Known, 2, "films")
    assert list(made) == list(audit.KINDS)
    assert len(made["like"].texts) == len(made["dislike"].texts) == 3 * 2
    assert made["like"].texts[0].startswith("Likes war films. ") and "horror" in made["like"].texts[0]
    assert set(made["like_alone"].profiles) == {2} == set(made["avoid_alone"].profiles)
    assert made["replace"].texts == ["Likes horror films."] and made["replace"].about.tolist() == [0]


def test_a_replacement_names_what_the_profile_did_not():
    assert audit.replacement("War, and more WAR.", Known, 2, 5) == ("horror, and more horror.", 0)
    assert audit.replacement("Warm films", Known, 2, 0) is None  # a word, not a part of one
    assert audit.replacement("war and horror", Known, 2, 0) is None  # nothing is left to put there


def test_queries_are_embedded_once_for_rows_of_the_same_texts():
    calls = []

    class Recommender:
        def queries(self, weights, texts):
            calls.append((weights, texts))
            return len(calls), True

    queries, one, two = audit.Queries(Recommender()), {"w": 1}, {"w": 1}
    assert queries(one, ["a"]) == queries(one, ["a"]) == (1, True)
    assert queries(one, ["b"]) == (2, True) and queries(two, ["b"]) == (3, True)  # other texts, other weights
