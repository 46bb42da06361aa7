"""Codes: unique, of fixed length, alike where vectors are; the trie; factors of the training matrix."""

import doctest

import numpy as np
import pytest

from lpt_jax.data import codes
from lpt_jax.errors import InputError


def test_docstrings():
    assert doctest.testmod(codes).failed == 0


@pytest.mark.parametrize("count", [1, 2, 5, 63, 64])
def test_codes_are_unique_and_of_one_length(count):
    rng = np.random.default_rng(0)
    for found in (codes.shuffled(count, 3, 4, 7), codes.of_vectors(rng.standard_normal((count, 5)), 3, 4)):
        assert found.digits.shape == (count, 3) and len(np.unique(found.digits, axis=0)) == count
        assert found.digits.min() >= 0 and found.digits.max() < 4
    assert not np.array_equal(codes.shuffled(64, 3, 4, 7).digits, codes.shuffled(64, 3, 4, 8).digits)


def test_too_many_items_get_a_sentence():
    with pytest.raises(InputError, match="65 items need longer codes than --config.codes.levels=3 digits"):
        codes.shuffled(65, 3, 4, 0)


def test_like_items_share_their_first_digits():
    """Four far groups of eight items: the first digit says which; shuffled codes say nothing."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 8)
    centres = 50 * np.eye(4)
    found = codes.of_vectors(centres[group] + rng.standard_normal((32, 4)), 3, 4)
    assert {len(set(group[found.digits[:, 0] == digit])) for digit in range(4)} == {1}
    same = codes.of_vectors(np.zeros((10, 3)), 2, 4)  # nothing tells them apart
    assert len(np.unique(same.digits, axis=0)) == 10


def test_few_and_many_vectors_are_cut_along_the_same_direction():
    vectors = np.random.default_rng(3).standard_normal((6, 6)) * np.arange(1, 7)
    apart = vectors - vectors.mean(0)
    direction = np.linalg.svd(apart)[2][0]
    along = codes._direction(np.concatenate([vectors, np.zeros((6, 3))], 1))  # fewer rows than columns
    expected = apart @ direction
    assert abs(np.corrcoef(along, expected)[0, 1]) == pytest.approx(1, abs=1e-6)
    assert along[np.abs(along).argmax()] > 0


def test_the_trie_leads_to_every_item_and_to_nothing_else():
    found = codes.shuffled(37, 3, 4, 1)
    tables = codes.trie(found).next_of
    items = {}
    for code in np.ndindex(4, 4, 4):
        node = 0
        for level, digit in zip(tables, code, strict=True):
            node = level[node, digit] if node >= 0 else -1
        if node >= 0:
            items[code] = int(node)
    assert items == {tuple(code): item for item, code in enumerate(found.digits.tolist())}
