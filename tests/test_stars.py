"""Baselines of stars: least squares by hand, a minimum that finite differences confirm, and a planted world that biases can't explain."""

import doctest

import numpy as np
import pytest

from lpt_jax.baselines import stars


def world(users=60, items=40, seed=0):
    """Stars of a mean, biases and one taste that users share or oppose, 60 % of them seen."""
    rng = np.random.default_rng(seed)
    truth = 3 + 0.3 * rng.standard_normal((users, 1)) + 0.3 * rng.standard_normal(items)
    truth = truth + rng.choice([-1.0, 1.0], (users, 1)) * rng.choice([-1.0, 1.0], items)
    seen = rng.random((users, items)) < 0.6
    user, item = np.nonzero(seen)
    return truth, seen, user, item, truth[seen]


def test_the_examples_in_docstrings():
    assert doctest.testmod(stars).failed == 0 < doctest.testmod(stars).attempted


def test_biases_by_hand():
    """One user and one item: half of what is apart from the mean is each one's, less what the penalty takes."""
    mean, rows = stars.fit(np.array([0, 1]), np.array([0, 1]), np.array([5.0, 3.0]), 3, 0, 1.0)
    assert mean == 4 and rows[2] == 0  # an item without stars
    user, item = 0.0, 0.0
    for _ in range(stars.ROUNDS):
        user = (1 - item) / 2
        item = (1 - user) / 2
    np.testing.assert_allclose(rows[:2, 0], [item, -item])
    asked = stars.predict((mean, rows), [((0, 1), (5.0, None))], [2], 1.0)
    np.testing.assert_allclose(asked, 4 + (1 - item) / 2)  # the star that isn't known doesn't count
    np.testing.assert_allclose(stars.predict((mean, rows), [((), ())], [0], 1.0), 4 + item)


def test_it_ends_where_squares_are_least():
    """No change of a few items' numbers, users fitted to them anew, makes the penalised squares less."""
    _, _, user, item, given = world()
    mean, rows = stars.fit(user, item, given, 40, 2, 3.0)

    def objective(rows):
        total = 3.0 * np.sum(rows**2)
        for number in range(user.max() + 1):
            at = user == number
            own = stars.of_one(rows[item[at]], given[at] - mean, 3.0)
            predicted = rows[item[at], 0] + own[0] + rows[item[at], 1:] @ own[1:]
            total += np.sum((given[at] - mean - predicted) ** 2) + 3.0 * np.sum(own**2)
        return total

    least, rng = objective(rows), np.random.default_rng(1)
    start = objective(np.zeros_like(rows))
    for _ in range(20):
        step = np.zeros_like(rows)
        step[rng.integers(40), rng.integers(3)] = 1e-3
        slope = (objective(rows + step) - objective(rows - step)) / 2e-3
        assert abs(slope) < 2e-2 * (start - least)
    assert least < 0.5 * start


def test_factors_find_a_taste_that_biases_cannot_tell():
    """Of users that were not there, by half of their stars: the error is a fraction of the biases'."""
    truth, _, user, item, given = world(users=90)
    trained, new, errors = user >= 30, truth[:30], {}
    for size in (0, 2):
        fitted = stars.fit(user[trained] - 30, item[trained], given[trained], 40, size, 1.0)
        histories = [(tuple(range(20)), tuple(row[:20])) for row in new for _ in range(20)]
        found = stars.predict(fitted, histories, list(range(20, 40)) * 30, 1.0)
        errors[size] = np.sqrt(np.mean((found - new[:, 20:].ravel()) ** 2))
    assert errors[2] < 0.4 * errors[0] and errors[0] == pytest.approx(1.0, abs=0.2)
