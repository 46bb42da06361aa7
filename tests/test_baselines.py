"""The baselines that train nothing, on a catalogue small enough to rank by eye."""

import math
from types import SimpleNamespace

import numpy as np

from lpt_jax.baselines import simple
from lpt_jax.ranking import session_best, session_ranks


def session(history, targets):
    return SimpleNamespace(history=history, hidden=history, targets=targets)


ITEMS = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [0, 0]], np.float32)  # the last is padding
SESSIONS = [session((3, 0), (1, 2)), session((0, 3), (1,))]
TEXTS = [
    "Title: Red nail polish",
    "Title: Red lipstick, red",
    "Title: Nail file",
    "Title: Rouge à lèvres",
    "...",
    "Title: Nail file",
]


def test_popularity_ranks_by_count_then_catalogue_order():
    counts = np.array([9, 5, 5, 7])
    sessions = [session((0,), (2,)), session((3,), (1,)), session((0,), (2, 1))]
    found = session_ranks(
        *simple.popularity(sessions, counts), sessions
    )  # left: 3, 1, 2; 0, 1, 2; 3 and one of 1 and 2
    assert found.tolist() == [[3, 0], [2, 0], [2, 2]]


def test_last_item_is_the_latest_of_the_history():
    found = session_ranks(*simple.last_item(SESSIONS, ITEMS), SESSIONS, 4)  # near 0: item 1; near 3: items 1 and 2
    assert found.tolist() == [[1, 1], [1, 0]]
    alone = [session((1, 2), (0,))]
    assert session_ranks(*simple.last_item(alone, ITEMS), alone, 4).tolist() == [[2]]  # 3 is nearer


def by_hand(query, texts):
    """Lucene's BM25 as its formula stands."""
    words = [simple.words_of(text) for text in texts]
    average = sum(map(len, words)) / len(texts)
    found = []
    for own in words:
        score = 0.0
        for word in simple.words_of(query):
            having, count = sum(word in other for other in words), own.count(word)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            score += idf * count / (count + 1.5 * (0.25 + 0.75 * len(own) / average)) if count else 0
        found.append(score)
    return found


def test_bm25_is_its_formula_and_words_have_any_script(caplog):
    caplog.set_level("DEBUG")
    queries = ["Title: Red nail polish\n\nTitle: Nail file", "LÈVRES à 口紅", "?", "unheard of"]
    scores = simple.BM25(queries, TEXTS)
    for row, query in enumerate(queries):
        np.testing.assert_allclose(scores[np.array([row])][0], by_hand(query, TEXTS), rtol=1e-5, atol=1e-7)
    assert simple.words_of("Rouge À lèvres, 50ml: 口紅_x") == ["rouge", "à", "lèvres", "50ml", "口紅_x"]
    assert not [r for r in caplog.records if r.name == "bm25s"]  # whose own talk is none of ours


def test_bm25_ranks_by_words_without_the_history_ties_in_catalogue_order():
    sessions = [session((0, 2), (5, 1)), session((3,), (4,))]
    scores = simple.BM25([f"{TEXTS[2]}\n\n{TEXTS[0]}", "?"], TEXTS)
    assert session_best(scores, None, sessions, 4).tolist() == [[5, 1, 3, 4], [0, 1, 2, 4]]
    assert session_ranks(scores, None, sessions).tolist() == [[1, 1], [4, 0]]
    assert session_ranks(simple.BM25(["?"] * 2, ["...", "!"] * 3), None, sessions).tolist() == [[3, 1], [4, 0]]


def test_random_is_even_over_the_free_places_and_seeded():
    sessions = [session((0, 1, 1), (2, 3)), session((0,), (1,))] * 2000
    found = simple.random(sessions, 8, seed=0)  # 8 - 2 in the history - 1 other target; 8 - 1
    assert (found[1::2, 1] == 0).all()
    for column, places in ((found[::2, 0], 5), (found[::2, 1], 5), (found[1::2, 0], 7)):
        counts = np.bincount(column, minlength=places + 1)[1:]
        assert len(counts) == places and np.abs(counts / 2000 - 1 / places).max() < 0.04
    assert (found == simple.random(sessions, 8, seed=0)).all()
    assert (found != simple.random(sessions, 8, seed=1)).any()
