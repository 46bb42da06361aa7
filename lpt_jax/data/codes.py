"""Items' codes: a few digits for each item, the same number for all, by which a language model names it; and their trie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lpt_jax.errors import InputError


class Codes(NamedTuple):
    """The digits of N items, Int[N, levels], each from 0 to width - 1; no two items have the same."""

    digits: np.ndarray
    width: int


def needed(count: int, levels: int) -> int:
    """The smallest width whose codes of so many digits are enough for `count` items, 2 at least.

    >>> needed(1000, 3), needed(1001, 3), needed(12101, 1)
    (10, 11, 12101)
    """
    width = max(2, int(count ** (1 / levels)) - 1)
    while width**levels < count:
        width += 1
    return width


def of_order(order: Sequence[int], levels: int, width: int) -> Codes:
    """The k-th item of `order` gets the k-th of evenly spread numbers, written in base `width`.

    >>> of_order([2, 0, 1], levels=2, width=4).digits.tolist()
    [[1, 1], [2, 2], [0, 0]]
    """
    count, room = len(order), width**levels
    if count > room:
        raise InputError(
            f"{count:,} items need longer codes than --config.codes.levels={levels} digits of --config.codes.width={width}, "
            f"which are enough for {room:,}: raise one of them."
        )
    numbers = np.empty(count, np.int64)
    numbers[np.asarray(order)] = np.arange(count) * room // count
    return Codes(np.stack([numbers // width**power % width for power in range(levels - 1, -1, -1)], 1), width)


def shuffled(count: int, levels: int, width: int, seed: int) -> Codes:
    """Codes that say nothing of the items."""
    return of_order(np.random.default_rng((seed, 41)).permutation(count), levels, width)


def of_vectors(vectors: np.ndarray, levels: int, width: int) -> Codes:
    """Codes of which items with like vectors Float[N, D] share the first digits.

    The items are halved again and again, each time along the direction in which the half varies most, so that all
    codes that begin alike have as many items: an item's code is its place in the order that results.
    """
    order, parts = [], [np.arange(len(vectors))]
    while parts:  # a stack: the last is the first to be cut
        items = parts.pop()
        if len(items) < 3:
            order += items.tolist()
            continue
        along = _direction(vectors[items])
        items = items[np.argsort(along, kind="stable")]
        parts += [items[len(items) // 2 :], items[: len(items) // 2]]
    return of_order(order, levels, width)


def _direction(vectors: np.ndarray) -> np.ndarray:
    """Where vectors lie along their first principal direction, whose sign is such that the largest is positive."""
    apart = (vectors - vectors.mean(0)).astype(np.float64)
    if len(apart) < apart.shape[1]:  # few vectors: their products with one another are the smaller matrix
        along = np.linalg.eigh(apart @ apart.T)[1][:, -1]
    else:
        along = apart @ np.linalg.eigh(apart.T @ apart)[1][:, -1]
    return along * (np.sign(along[np.abs(along).argmax()]) or 1)


class Trie(NamedTuple):
    """Which codes there are: next_of[level] Int[nodes, width] is the node that a digit leads to, at the last level the item; -1: none."""

    next_of: tuple[np.ndarray, ...]


def trie(codes: Codes) -> Trie:
    """The trie of all codes.

    >>> [level.tolist() for level in trie(Codes(np.array([[1, 0], [0, 2], [1, 1]]), 3)).next_of]
    [[[0, 1, -1]], [[-1, -1, 1], [0, 2, -1]]]
    """
    nodes, levels = np.zeros(len(codes.digits), np.int64), []
    for level, digits in enumerate(codes.digits.T):
        steps = nodes * codes.width + digits
        if level == codes.digits.shape[1] - 1:
            after = np.arange(len(steps))
        else:
            after = np.unique(steps, return_inverse=True)[1]
        table = np.full((nodes.max(initial=0) + 1) * codes.width, -1, np.int32)
        table[steps] = after
        levels.append(table.reshape(-1, codes.width))
        nodes = after
    return Trie(tuple(levels))
