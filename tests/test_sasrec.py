"""SASRec against a transcription in NumPy, what it must not see, and what it must learn."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpt_jax import config as config_lib
from lpt_jax import metrics
from lpt_jax.baselines import sasrec
from lpt_jax.errors import InputError
from lpt_jax.ranking import session_ranks


def settings(**changes):
    found = config_lib.default().sasrec
    found.update(**dict(width=8, blocks=2, heads=2, max_items=6, batch=8, epochs=30) | changes)
    return found


def weights(items=9, seed=0, **changes):
    """Of ordinary size and none of them 0 or 1, so that each counts."""
    found = sasrec.init_weights(items, settings(**changes), seed)
    rng = np.random.default_rng(seed + 1)
    return {name: w + rng.normal(0, 0.3, w.shape).astype(np.float32) for name, w in found.items()}


def session(history, targets=(0,), user="u"):
    return SimpleNamespace(history=history, hidden=history, targets=targets, user=user)


def by_hand(w, items, heads):
    """The paper's equations for one sequence, item by item, in float64."""
    w = {name: np.asarray(a, np.float64) for name, a in w.items()}
    d, size = w["item"].shape[1], w["item"].shape[1] // heads

    def norm(x, name, i=...):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-8) * w[name][i] + w[f"{name}_bias"][i]

    first = len(w["position"]) - len(items)
    x = [w["item"][item] * np.sqrt(d) + w["position"][first + t] for t, item in enumerate(items)]
    for i in range(len(w["q"])):
        y = [norm(a, "attention_norm", i) for a in x]
        for t in range(len(x)):
            mixed = []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                q = (y[t] @ w["q"][i])[part]
                shares = np.exp([q @ (y[s] @ w["k"][i])[part] / np.sqrt(size) for s in range(t + 1)])
                shares /= shares.sum()
                mixed.append(sum(p * (y[s] @ w["v"][i])[part] for s, p in enumerate(shares)))
            x[t] = x[t] + np.concatenate(mixed)
        for t in range(len(x)):
            z = norm(x[t], "feed_norm", i)
            x[t] = x[t] + np.maximum(z @ w["up"][i] + w["up_bias"][i], 0) @ w["down"][i] + w["down_bias"][i]
    return np.array([norm(a, "norm") for a in x])


@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_equations_wherever_a_sequence_lies(heads):
    w, a, b = weights(), [3, 1, 4, 1, 5], [8, 2, 6]
    tokens = np.array([[3, 1, 4, 1, 5, 0, 0, 0, 0], [0, 8, 2, 6, 3, 1, 4, 1, 5]])
    texts = np.array([[1] * 5 + [0] * 4, [0] + [1] * 3 + [2] * 5])
    positions = np.array([[1, 2, 3, 4, 5, 0, 0, 0, 0], [0, 3, 4, 5, 1, 2, 3, 4, 5]])
    found = sasrec.forward(w, tokens, texts, positions, heads)
    for states in (found[0, :5], found[1, 4:]):
        np.testing.assert_allclose(states, by_hand(w, a, heads), atol=2e-5)
    np.testing.assert_allclose(found[1, 1:4], by_hand(w, b, heads), atol=2e-5)
    last = sasrec.states(w, [session((7, 7, 3, 1, 4, 1, 5)), session((8, 2, 6)), session((4,))], heads, batch=2)
    for state, items in zip(last, ([7, 3, 1, 4, 1, 5], b, [4]), strict=True):
        np.testing.assert_allclose(state, by_hand(w, items, heads)[-1], atol=2e-5)


def test_no_state_sees_what_comes_later():
    w, tokens = weights(), np.array([[3, 1, 4, 1, 5, 8]])
    at = (np.ones((1, 6), int), np.arange(6)[None])
    before = sasrec.forward(w, tokens, *at)
    for t in range(1, 6):
        later = tokens.copy()
        later[:, t:] = 7
        after = sasrec.forward(w, later, *at)
        assert (after[:, :t] == before[:, :t]).all() and (after[:, t:] != before[:, t:]).any(-1).all()


def test_dropout_is_seeded_and_keeps_the_mean():
    w, tokens = weights(), np.full((1, 6), 2)
    of = lambda seed: sasrec.forward(  # noqa: E731
        w, tokens, np.ones((1, 6), int), np.arange(6)[None], 1, 0.5, jax.random.key(seed)
    )
    assert (of(0) == of(0)).all() and (of(0) != of(1)).any()


@pytest.mark.parametrize("negatives", [None, [[7, 0, 3]]])
def test_loss_by_hand_and_its_gradient(negatives):
    jax.config.update("jax_enable_x64", True)
    try:
        w = {name: jnp.asarray(a, jnp.float64) for name, a in weights(blocks=1, heads=1).items()}
        tokens, texts, positions = np.array([[3, 1, 4]]), np.array([[1, 1, 0]]), np.array([[4, 5, 0]])
        targets = np.array([[1, 4, 2]])

        def of(w):
            return sasrec.loss(w, sasrec.forward(w, tokens, texts, positions), texts > 0, targets,
                               None if negatives is None else np.array(negatives))  # fmt: skip

        scores = by_hand(w, [3, 1], 1) @ np.asarray(w["item"]).T
        if negatives is None:
            by_items = [np.log(np.exp(s).sum()) - s[t] for s, t in zip(scores, (1, 4))]
        else:
            by_items = [-np.log(1 / (1 + np.exp(-s[t]))) - np.log(1 - 1 / (1 + np.exp(-s[n])))
                        for s, t, n in zip(scores, (1, 4), (7, 0))]  # fmt: skip
        np.testing.assert_allclose(of(w), np.mean(by_items), rtol=1e-9)
        gradient, rng = jax.grad(of)(w), np.random.default_rng(0)
        for name in w:
            way = rng.normal(size=w[name].shape)
            up, down = (of(w | {name: w[name] + e * way}) for e in (1e-5, -1e-5))
            np.testing.assert_allclose((gradient[name] * way).sum(), (up - down) / 2e-5, rtol=1e-5, atol=1e-9)
    finally:
        jax.config.update("jax_enable_x64", False)


def test_negatives_are_even_over_what_a_user_lacks():
    users, known = np.repeat([0, 1], 6000), np.array([0, 2, 5 + 1, 5 + 2, 5 + 3, 5 + 4])
    found = sasrec.negatives(users, known, 5, np.random.default_rng(0))
    assert set(found[users == 1]) == {0}
    counts = np.bincount(found[users == 0], minlength=5)
    assert counts[[0, 2]].sum() == 0 and np.abs(counts[[1, 3, 4]] / 6000 - 1 / 3).max() < 0.03


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_learns_a_sequence_that_follows_a_rule(loss):
    """Items in a circle, the next one always 3 on: rank 1 where popularity knows nothing."""
    items, rng = 20, np.random.default_rng(0)
    walks = [
        [(first + 3 * t) % items for t in range(int(rng.integers(5, 9)))] for first in range(items) for _ in range(4)
    ]
    val = [session(tuple(walk[:-1]), (walk[-1],), str(u)) for u, walk in enumerate(walks[::5])]
    s = settings(width=16, heads=1, blocks=1, max_items=8, dropout=0.1, epochs=60, learning_rate=1e-2, loss=loss)
    stops = []
    w, note = sasrec.train([walk[:-1] for walk in walks], items, val, s, 0, "ndcg@10", lambda: stops.append(1))
    test = [session(tuple(walk), ((walk[-1] + 3) % items,)) for walk in walks]
    ranks = session_ranks(sasrec.states(w, test), w["item"], test)
    assert (ranks == 1).mean() > 0.95 and note["validation"] > 0.95
    again = session_ranks(sasrec.states(w, val), w["item"], val)  # it is the best state that comes back
    assert metrics.mean(again, [v.user for v in val], "ndcg@10") == note["validation"]
    assert len(stops) == note["epochs"] >= note["best_epoch"] > 0 and note["epochs"] < 60  # it stopped early


def test_the_seed_decides_and_the_best_state_is_kept():
    walks = [[u % 7, (u + 1) % 7, (u + 2) % 7] for u in range(14)]
    val = [session((0, 1), (2,))]
    runs = [sasrec.train(walks, 7, val, settings(epochs=3, evaluate_every=1), seed) for seed in (0, 0, 1)]
    assert all((runs[0][0][name] == runs[1][0][name]).all() for name in runs[0][0]) and runs[0][1] == runs[1][1]
    assert (runs[0][0]["item"] != runs[2][0]["item"]).any()


def test_says_what_is_wrong():
    with pytest.raises(InputError, match="loss is not finite in epoch 1: lower --config.sasrec.learning_rate"):
        sasrec.train([[0, 1, 2]] * 9, 7, [session((0, 1), (2,))], settings(learning_rate=1e38), 0)
    with pytest.raises(InputError, match="SASRec has nothing to learn from"):
        sasrec.train([[3], []], 5, [session((1,))], settings(), 0)
