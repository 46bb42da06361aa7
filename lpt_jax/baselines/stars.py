"""Baselines of stars: biases, and biases with factors (biased matrix factorisation, Koren et al. 2009), by least squares in turns.

stars ≈ mean + b_item + b_user + p_user · q_item. An item is a row (b, q), a user (b, p); somebody who was not there is fitted
to the stars of a history as the users of training are.
"""

import numpy as np

ROUNDS = 15  # of users, then items


def ridge(features: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
    """The weights Float[D] of least squares with penalty × their square: features Float[n, D], wanted Float[n].

    >>> ridge(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), 1.0)
    array([1.5])
    """
    return np.linalg.solve(features.T @ features + penalty * np.eye(features.shape[1]), features.T @ wanted)


def of_one(others: np.ndarray, apart: np.ndarray, penalty: float) -> np.ndarray:
    """The row (bias, factors) of a user or an item, by the rows [n, 1 + F] of what the stars join it with.

    apart Float[n]: these stars less their mean.
    """
    features = np.concatenate([np.ones((len(others), 1)), others[:, 1:]], 1)
    return ridge(features, apart - others[:, 0], penalty)


def fit(users: np.ndarray, items: np.ndarray, stars: np.ndarray, count: int, size: int, penalty: float, seed: int = 0):
    """The mean of the stars Float[n] that users Int[n] gave items Int[n], and the rows Float[count, 1 + size] of all items.

    An item without stars has a row of zeros. size 0: biases alone.
    """
    mean, rng = float(stars.mean()), np.random.default_rng((seed, 48))
    of_users = np.zeros((users.max() + 1, 1 + size))
    of_items = np.concatenate([np.zeros((count, 1)), 0.1 * rng.standard_normal((count, size))], 1)
    places = [[np.flatnonzero(side == number) for number in range(side.max() + 1)] for side in (users, items)]
    for _ in range(ROUNDS):
        for own, others, theirs, at in ((of_users, of_items, items, places[0]), (of_items, of_users, users, places[1])):
            for number, rows in enumerate(at):
                if len(rows):
                    own[number] = of_one(others[theirs[rows]], stars[rows] - mean, penalty)
    of_items[np.bincount(items, minlength=count) == 0] = 0
    return mean, of_items


def predict(fitted: tuple, histories: list, asked: list[int], penalty: float) -> np.ndarray:
    """The stars Float[n] of each history's user for one item each; histories: (items, their stars, None where not known)."""
    mean, of_items = fitted
    found = []
    for (items, given), item in zip(histories, asked, strict=True):
        given = np.array(given, float)
        known = ~np.isnan(given)
        own = of_one(of_items[np.array(items, int)[known]], given[known] - mean, penalty)
        found.append(mean + of_items[item, 0] + own[0] + own[1:] @ of_items[item, 1:])
    return np.array(found)
