"""Journeys by hand: the first and the oldest, ties, merging to earlier and later ones, dropping, one item, none."""

import numpy as np
import pytest

from lpt_jax import extraction, journeys
from lpt_jax.data import made_up
from lpt_jax.data.collections import Collection, mixes
from lpt_jax.errors import InputError
from lpt_jax.journeys import Rule

EAST, NORTH, UP = np.eye(3)


def alike(*vectors):
    rows = np.array([np.asarray(v, float) / max(np.linalg.norm(v), 1e-12) for v in vectors])
    return rows @ rows.T


def test_items_join_the_nearest_journey_or_open_one():
    likeness = alike(EAST, NORTH, EAST + 0.1 * NORTH, UP, NORTH + 0.2 * UP)
    assert journeys.found(likeness, Rule(join=0.5)) == [[0, 2], [1, 4], [3]]  # the first journey is one like others
    assert journeys.found(likeness, Rule(join=-1.0)) == [[0, 1, 2, 3, 4]]
    assert journeys.found(likeness, Rule(join=1.0)) == [[0], [1], [2], [3], [4]]


def test_a_tie_goes_to_the_oldest():
    between = EAST + NORTH  # cos .707 with both
    assert journeys.found(alike(EAST, NORTH, between), Rule(join=0.7)) == [[0, 2], [1]]
    assert journeys.found(alike(NORTH, EAST, between), Rule(join=0.7)) == [[0, 2], [1]]


def test_a_journey_is_the_sum_of_its_items():
    """The third is like neither of the first two enough (.665), but like their sum (.72)."""
    middle = np.array([np.cos(np.pi / 8), np.sin(np.pi / 8), 0.0])
    likeness = alike(EAST, EAST + NORTH, middle + 0.964 * UP)
    np.testing.assert_allclose(likeness[2, :2], 0.665, atol=1e-3)
    assert journeys.cosine(likeness, [0, 1], [2]) == pytest.approx(0.72, abs=1e-3)
    assert journeys.found(likeness, Rule(join=0.7)) == [[0, 1, 2]]


def test_small_journeys_join_earlier_and_later_ones_or_are_dropped():
    lone = NORTH + 0.5 * UP
    early = alike(lone, UP, UP, EAST, EAST)  # before what it joins
    late = alike(UP, UP, EAST, EAST, lone)  # after it
    assert journeys.found(early, Rule(join=0.9, merge=0.4, fewest=2)) == [[0, 1, 2], [3, 4]]
    assert journeys.found(late, Rule(join=0.9, merge=0.4, fewest=2)) == [[0, 1, 4], [2, 3]]
    assert journeys.found(late, Rule(join=0.9, merge=0.5, fewest=2)) == [[0, 1], [2, 3]]
    tied = alike(UP, UP, EAST, EAST, UP + EAST)
    assert journeys.found(tied, Rule(join=0.9, merge=0.5, fewest=2)) == [[0, 1, 4], [2, 3]], "the oldest of equals"


def test_small_cases():
    one = alike(EAST)
    assert journeys.found(one, Rule(fewest=1)) == [[0]] and journeys.found(one, Rule(fewest=2, merge=-1.0)) == []
    for passes in (1, 3):
        assert journeys.found(np.zeros((0, 0)), Rule(passes=passes)) == []
        assert journeys.found(np.zeros((2, 2)), Rule(join=0.1, passes=passes)) == [[0], [1]], (
            "titles without a known word"
        )
    assert journeys.labels([], 2).tolist() == [0, 1]


def test_shared_items_are_in_all_journeys_that_are_near():
    likeness = alike(EAST, NORTH, EAST + NORTH, UP)
    assert journeys.found(likeness, Rule(join=0.7, shared=True)) == [[0, 2], [1, 2], [3]]


def test_a_second_pass_moves_items_to_what_grew_like_them():
    drift = [EAST, EAST + 0.9 * NORTH, NORTH + 0.5 * EAST, NORTH, NORTH, NORTH]
    first = journeys.found(alike(*drift), Rule(join=0.72))
    assert first == [[0, 1, 2], [3, 4, 5]]
    assert journeys.found(alike(*drift), Rule(join=0.72, passes=2)) == [[0, 1], [2, 3, 4, 5]]


def by_sums(vectors, rule):
    """The docstring's first part, word for word, on vectors."""
    sums, found = [], []
    for item, x in enumerate(vectors):
        cosines = [x @ r / np.linalg.norm(r) for r in sums]
        if cosines and max(cosines) >= rule.join:
            j = int(np.argmax(cosines))
            sums[j], found[j] = sums[j] + x, [*found[j], item]
        else:
            sums.append(x.copy())
            found.append([item])
    return found


@pytest.mark.parametrize("join", [0.0, 0.2, 0.4, 0.6])
def test_likenesses_do_what_sums_of_vectors_do(join):
    rng = np.random.default_rng(3)
    for _ in range(20):
        vectors = rng.standard_normal((15, 6))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert journeys.found(vectors @ vectors.T, Rule(join=join)) == by_sums(vectors, Rule(join=join))


def test_vectors_terms_and_the_mean_of_both():
    titles = ["red nail polish", "blue nail polish", "hair brush"]
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    dense, terms = journeys.Likeness(titles, vectors), journeys.Likeness(titles, share=0.0)
    np.testing.assert_allclose(dense([0, 1]), [[1.0, 0.6], [0.6, 1.0]])
    assert terms([0, 2])[0, 1] == 0 < terms([0, 1])[0, 1] < 1
    np.testing.assert_allclose(np.diag(terms([0, 1, 2])), 1.0)
    np.testing.assert_allclose(
        journeys.Likeness(titles, vectors, 0.25)([0, 1]), 0.25 * dense([0, 1]) + 0.75 * terms([0, 1])
    )
    apart = journeys.centred(vectors + 5.0)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1.0)
    np.testing.assert_allclose(apart, journeys.centred(vectors), atol=1e-12)


def test_titles_without_words_are_told():
    with pytest.raises(InputError, match="titles have no words"):
        journeys.terms_of(["1", "22"])


def test_the_words_that_weigh_most_don_t_repeat_each_other():
    titles = ["red nail polish", "blue nail polish", "green nail polish", "hair brush", "hair comb"]
    names, weights = journeys.terms_of(titles)
    words = journeys.heaviest(names, weights, [0, 1, 2], 3)
    assert len(words) == 3 and not any(set(a.split()) < set(b.split()) for a in words for b in words)
    assert {"nail", "polish"} <= set(" ".join(words).split()) and "hair" not in words
    assert journeys.heaviest(names, weights, [3], 9) and journeys.heaviest(names, weights, [], 2) == []


def test_planted_journeys_are_found():
    """Of made-up genres' films, 5 and 5 mixed: by vectors around a centre for each genre, and by titles' words."""
    rng = np.random.default_rng(0)
    genres = list(made_up.GENRES)
    centres = rng.standard_normal((len(genres), 16))
    titles = [" ".join(rng.permutation(made_up.GENRES[g].split())[:5]) for g in genres for _ in range(12)]
    vectors = np.repeat(centres, 12, 0) + 0.5 * rng.standard_normal((len(titles), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = [Collection(g, "", tuple(range(12 * i, 12 * i + 12))) for i, g in enumerate(genres)]
    mixed = mixes(known, "far", 5, 40, seed=1)
    for share, join in ((1.0, 0.5), (0.0, 0.05), (0.5, 0.3)):
        likeness = journeys.Likeness(titles, vectors, share)
        found = extraction.measured(
            mixed, extraction.by_rule(likeness, Rule(join=join, merge=-1.0, fewest=2, passes=3))
        )
        assert found["ari"].mean() >= 0.9, (share, found["ari"].mean())


def test_measures_by_hand():
    source = np.array([0, 0, 0, 1, 1, 1])
    assert extraction.measures(source, np.array([5, 5, 5, 2, 2, 2])) == {
        "ari": 1.0,
        "nmi": 1.0,
        "recall": 1.0,
        "journeys": 2,
    }
    one = extraction.measures(source, np.zeros(6, int))
    assert (one["ari"], one["recall"], one["journeys"]) == (0.0, 1.0, 1)
    parted = extraction.measures(source, np.array([0, 0, 1, 2, 2, 3]))
    assert parted["recall"] == pytest.approx(2 / 3) and 0 < parted["ari"] < 1 and parted["journeys"] == 4


def test_what_others_chose_together_is_near():
    vectors = extraction.chosen_together([[0, 1], [0, 1], [2, 3], [2, 3], [0, 1, 2]], 4)
    assert vectors[0] @ vectors[1] > 0.9 > vectors[0] @ vectors[3]
