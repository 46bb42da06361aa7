"""The baselines that train nothing, on a catalogue small enough to rank by eye."""

from types import SimpleNamespace

import numpy as np

from lpt_jax.baselines import simple


def session(history, targets):
    return SimpleNamespace(history=history, targets=targets)


ITEMS = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [0, 0]], np.float32)  # the last is padding
SESSIONS = [session((3, 0), (1, 2)), session((0, 3), (1,))]


def test_popularity_ranks_by_count_then_catalogue_order():
    counts = np.array([9, 5, 5, 7])
    sessions = [session((0,), (2,)), session((3,), (1,)), session((0,), (2, 1))]
    found = simple.popularity(sessions, counts)  # left: 3, 1, 2; 0, 1, 2; 3 and one of 1 and 2
    assert found.tolist() == [[3, 0], [2, 0], [2, 2]]


def test_last_item_is_the_latest_of_the_history():
    found = simple.last_item(SESSIONS, ITEMS, valid=4)  # near 0: item 1; near 3: items 1 and 2
    assert found.tolist() == [[1, 1], [1, 0]]
    assert simple.last_item([session((1, 2), (0,))], ITEMS, 4).tolist() == [[2]]  # 3 is nearer


def test_random_is_even_over_the_free_places_and_seeded():
    sessions = [session((0, 1, 1), (2, 3)), session((0,), (1,))] * 2000
    found = simple.random(sessions, 8, seed=0)  # 8 - 2 in the history - 1 other target; 8 - 1
    assert (found[1::2, 1] == 0).all()
    for column, places in ((found[::2, 0], 5), (found[::2, 1], 5), (found[1::2, 0], 7)):
        counts = np.bincount(column, minlength=places + 1)[1:]
        assert len(counts) == places and np.abs(counts / 2000 - 1 / places).max() < 0.04
    assert (found == simple.random(sessions, 8, seed=0)).all()
    assert (found != simple.random(sessions, 8, seed=1)).any()
