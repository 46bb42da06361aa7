"""Rewards: the docstrings' by-hand examples, and what they leave open."""

import doctest
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lpt_jax import rewards
from lpt_jax.errors import InputError
from lpt_jax.text_audit import Shown, attribute_pattern


def test_docstring_examples():
    assert doctest.testmod(rewards).failed == 0 < doctest.testmod(rewards).attempted


def test_absent_targets_do_not_count():
    ranks = jnp.array([[[1, 3, 0], [0, 0, 0]]])
    np.testing.assert_allclose(rewards.ndcg(ranks), [[0.75, 0.0]])
    np.testing.assert_allclose(rewards.mrr(ranks), [[2 / 3, 0.0]], rtol=1e-6)


def test_dense_stops_rewarding_the_rank_at_1000():
    ranks, similarity = jnp.array([[[1000], [1001]]]), jnp.array([[[0.0], [0.5]]])
    expected = [[0.95 / math.log2(1001), 0.025]]
    np.testing.assert_allclose(rewards.dense(ranks, similarity), expected, rtol=1e-6)


def test_target_similarity_is_a_softmax_over_real_items():
    cosines = np.array([[[0.2, 0.5, 0.9]]], np.float32)
    nobody, targets = jnp.full((1, 2), -1), jnp.array([[1, -1]])
    found = rewards.target_similarity(jnp.array(cosines), targets, nobody, 0.1, valid=2)
    np.testing.assert_allclose(found[0, 0, 0], 1 / (1 + math.exp(-3)), rtol=1e-5)
    without_first = rewards.target_similarity(jnp.array(cosines), targets, jnp.array([[0, -1]]), 0.1)
    np.testing.assert_allclose(without_first[0, 0, 0], 1 / (1 + math.exp(4)), rtol=1e-5)


def rollout(ranks, texts=None, **more):
    shown = [Shown(["Heat (1995)"], {"crime"})] * len(ranks)
    more = {"similarities": jnp.zeros(ranks.shape), "ended": np.ones(ranks.shape[:2], bool), "shown": shown} | more
    return rewards.Rollout(ranks=ranks, texts=texts, items=9, names=attribute_pattern(["crime", "war"]), **more)


def length_reward(rollout):
    return [[float(len(text)) for text in row] for row in rollout.texts]


def not_finite(rollout):
    return np.full(rollout.ranks.shape[:2], np.nan)


def test_a_function_of_ones_own():
    ranks = jnp.ones((1, 2, 1), jnp.int32)
    found = rewards.earned(f"{__name__}:length_reward", rollout(ranks, [["ab", "c"]]))
    assert found["metric"].tolist() == [[2.0, 1.0]]
    with pytest.raises(InputError, match="not_finite must return finite numbers of shape"):
        rewards.earned(f"{__name__}:not_finite", rollout(ranks, [["ab", "c"]]))


def test_rewards_of_ranks_by_name():
    ranks, similarity = jnp.array([[[3], [1]]]), jnp.array([[[0.5], [0.5]]])
    seen = rollout(ranks, similarities=similarity)
    earned = {name: rewards.earned(name, seen)["metric"] for name in ("ndcg", "mrr", "dense")}
    assert earned["ndcg"].tolist() == [[0.5, 1.0]] and earned["mrr"][0, 1] == 1.0
    np.testing.assert_allclose(earned["dense"], [[0.5, 0.975]])
    seen = seen._replace(similarities=similarity / 4, items=16)  # an eighth each, chance is a sixteenth
    np.testing.assert_allclose(rewards.earned("likelihood", seen)["metric"], [[math.log(2), math.log(2)]], rtol=1e-6)


def test_parts_of_texts_by_hand():
    """The second names one thing that isn't shown, and a title; the third nothing; the fourth was cut off."""
    texts = [["I like crime.", "Likes war, for example Heat (1995).", "Likes films a lot.", "Likes crime"]]
    ended = np.array([[True, True, True, False]])
    seen = rollout(jnp.ones((1, 4, 1), jnp.int32), texts, ended=ended)
    earned = {name: rewards.earned(name, seen)["metric"] for name in ("ended", "clean", "supported", "copied")}
    assert earned["ended"].tolist() == earned["clean"].tolist() == [[1, 1, 1, 0]]
    assert earned["supported"].tolist() == [[1, 0.5, 0, 1]]
    np.testing.assert_allclose(earned["copied"], [[0, 8 / 26, 0, 0]], rtol=1e-6)


def test_a_sum_of_parts():
    ranks = jnp.array([[[1], [3]]])
    seen = rollout(ranks, [["I like crime.", "Likes war."]], ended=np.array([[False, True]]))
    found = rewards.earned("2*ndcg + 0.5*ended - supported", seen)
    assert found.keys() == {"ndcg", "ended", "supported", "metric"}
    assert found["metric"].tolist() == [[2 - 1, 2 * 0.5 + 0.5]]


@pytest.mark.parametrize("wrong", ["", "ndcg ended", "ndcg + ndcg", "2*", "ndcg + 0.2", "ndcg * 2", "0.2ended", "+"])
def test_what_is_no_sum(wrong):
    assert rewards.terms(wrong) == {}


def test_what_a_reward_reads():
    assert rewards.reads("ndcg + mrr") == set() and rewards.reads("ndcg - dense") == {"similarities"}
    assert rewards.reads("explains + ended") == {"history", "texts"} and len(rewards.reads("a:b + ndcg")) == 3


def test_parts_add_up_and_invalid_earns_nothing_but_kl():
    found = rewards.parts(jnp.array([[0.7, 0.4]]), jnp.array([[False, True]]), jnp.array([[2.0, -1.0]]), 0.1)
    np.testing.assert_allclose(found["total"], [[-0.2, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(found["metric"] + found["invalid"] + found["kl"], found["total"], rtol=1e-6)


def test_whiten_has_mean_0_and_variance_1_and_ties_stay_finite():
    values = jnp.array(np.random.default_rng(0).random((5, 4)), jnp.float32)
    for baseline in ("batch", "user", "user_std"):
        white = rewards.whiten(values, baseline)
        assert abs(white.mean()) < 1e-5 and abs(white.var() - 1) < 1e-5
    assert np.abs(rewards.whiten(values, "user").mean(axis=1)).max() < 1e-5
    each = rewards.whiten(values, "user_std")
    np.testing.assert_allclose([each.mean(1), each.var(1)], [[0] * 5, [1] * 5], atol=1e-4)
    for baseline in ("batch", "user_std"):
        assert rewards.whiten(jnp.full((2, 2), 0.5), baseline).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_all_tied_counts_users():
    assert int(rewards.all_tied(jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))) == 2


def test_an_invalid_profile_earns_no_more_than_the_worst_valid_one():
    """Where rewards are below zero, as a likelihood's may be, 0 would be the best of all."""
    values, valid = jnp.array([[-2.0, -5.0], [-1.0, 3.0]]), jnp.array([[True, False], [True, False]])
    earned = rewards.parts(values, valid, jnp.zeros((2, 2)), 0.0)["total"]
    np.testing.assert_allclose(earned, [[-2, -2], [-1, -2]])
    none = rewards.parts(values, jnp.zeros((2, 2), bool), jnp.zeros((2, 2)), 0.0)["total"]
    np.testing.assert_allclose(none, np.zeros((2, 2)))
