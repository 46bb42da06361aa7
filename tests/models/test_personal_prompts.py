"""Personal prompts by hand: attention over neighbours, the pool's cosines and penalty, the controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpt_jax.models.personal_prompts import KINDS, PersonalPrompt, PersonalSpec

WIDTH = 6


def made(kind, **shape):
    """A prompt of this kind with large random weights, and people: two in a line, with three neighbours each."""
    spec = PersonalSpec(kind, tasks=2, task_tokens=1, tokens=2, **{"size": 4, "heads": 2, "pool": 2} | shape)
    prompt, rng = PersonalPrompt(spec, WIDTH, nnx.Rngs(0)), np.random.default_rng(1)
    state = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), nnx.state(prompt))
    nnx.update(prompt, state)
    who = {"task": np.array([[0, 1]]), "user": rng.standard_normal((1, 2, spec.size)).astype(np.float32)}
    who["neighbours"] = rng.standard_normal((1, 2, 3, spec.size)).astype(np.float32)
    return prompt, who


def kernel(linear):
    return np.asarray(linear.kernel[...], np.float64)


def test_attention_over_neighbours_by_hand():
    prompt, who = made("neighbours")
    found = prompt(who)
    assert found.shape == (1, 2, 3, WIDTH)
    for row in range(2):
        user, others = who["user"][0, row].astype(np.float64), who["neighbours"][0, row].astype(np.float64)
        q, k, v = user @ kernel(prompt.q), others @ kernel(prompt.k), others @ kernel(prompt.v)
        read = []
        for head in (slice(0, 2), slice(2, 4)):
            scores = k[:, head] @ q[head] / np.sqrt(2)
            shares = np.exp(scores) / np.exp(scores).sum()
            read.append(shares @ v[:, head])
        own = np.concatenate(read) @ kernel(prompt.out) + np.asarray(prompt.bias[...])
        np.testing.assert_allclose(found[0, row, 1:], own.reshape(2, WIDTH), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[0, row, 0], np.asarray(prompt.task[...])[row, 0])


def test_the_order_of_neighbours_says_nothing():
    prompt, who = made("neighbours")
    turned = who | {"neighbours": who["neighbours"][:, :, ::-1]}
    np.testing.assert_allclose(prompt(turned), prompt(who), atol=1e-5)


def test_the_pool_by_hand():
    """M = 2, d = 2."""
    prompt, who = made("pool", size=2)
    found, keys, weights = prompt(who), *(np.asarray(a[...], np.float64) for a in (prompt.keys, prompt.weights))
    for row in range(2):
        user, own = who["user"][0, row], 0.0
        for m in range(2):
            seen = user * weights[m]
            near = seen @ keys[m] / np.linalg.norm(seen) / np.linalg.norm(keys[m])
            own = own + near * np.asarray(prompt.prompts[...])[m]
        np.testing.assert_allclose(found[0, row, 1:], own, rtol=1e-4, atol=1e-5)
    flat = np.asarray(prompt.prompts[...], np.float64).reshape(2, -1)
    expected = sum(np.mean((a @ a.T - np.eye(2)) ** 2) for a in (keys, weights, flat))
    assert float(prompt.penalty()) == pytest.approx(expected, rel=1e-4)


def test_the_controls():
    prompt, who = made("own")
    own = who["user"][0] @ kernel(prompt.out) + np.asarray(prompt.bias[...])
    np.testing.assert_allclose(prompt(who)[0, :, 1:], own.reshape(2, 2, WIDTH), rtol=1e-4, atol=1e-5)
    alone, _ = made("task")
    np.testing.assert_array_equal(alone({"task": who["task"]})[0], np.asarray(alone.task[...]))
    assert float(prompt.penalty()) == 0


def test_how_many_vectors_stand_before_a_text():
    counts = {kind: PersonalSpec(kind, task_tokens=3, tokens=4).count for kind in KINDS}
    assert counts == {"neighbours": 7, "pool": 7, "own": 7, "task": 3, "none": 0}
