"""What interactions teach of items: the loss against NumPy, and that items move towards those who choose them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpt_jax.learning import residuals
from lpt_jax.learning.loop import Part
from lpt_jax.systems import profiles
from tests.systems.tiny_run import recommender, small_config

RNG = np.random.default_rng(0)
N, D = 7, 4


def batch(history=1.0):
    texts = RNG.normal(size=(3, D)).astype(np.float32)
    return {
        "texts": texts,
        "recent": np.array([[0, 1], [2, -1], [-1, -1]], np.int32),
        "targets": np.array([[3, 4], [5, -1], [0, -1]], np.int32),
        "hidden": np.array([[0, 1], [2, -1], [-1, -1]], np.int32),
        "history": np.full(3, history, np.float32),
    }


ITEMS = {
    "text": RNG.normal(size=(N, D)).astype(np.float32),
    "bias": RNG.normal(size=N).astype(np.float32),
    "trained": np.array([1, 1, 1, 1, 1, 1, 0], np.float32),
}


def loss_by_hand(weights, plan, b):
    vectors = ITEMS["text"] + weights["residual"] * ITEMS["trained"][:, None]
    total, count = 0.0, 0
    for text, recent, targets, hidden, history in zip(
        *(b[k] for k in ("texts", "recent", "targets", "hidden", "history"))
    ):
        recent = [i for i in recent if i >= 0]
        user = text + plan.history * history * (vectors[recent].mean(0) if recent else 0)
        scores = (vectors @ user + ITEMS["bias"] + weights["bias"] * ITEMS["trained"]) / plan.temperature
        left = [i for i in range(N) if i not in hidden]
        for target in (t for t in targets if t >= 0):
            total += np.log(np.sum(np.exp(scores[left]))) - scores[target]
            count += 1
    return total / count


def parts():
    weights = {"residual": RNG.normal(size=(N, D)), "bias": RNG.normal(size=N)}
    return {name: jnp.asarray(a * 0.3, jnp.float32) for name, a in weights.items()}


@pytest.mark.parametrize("history", [0.0, 1.0])
def test_the_loss_is_the_softmax_over_all_items_that_are_not_hidden(history):
    import optax

    plan, weights, b = residuals.Plan(optax.sgd(0.0), 0.5, 0.7, 0.0), parts(), batch(history)
    wanted = loss_by_hand(jax.tree.map(np.asarray, weights), plan, b)
    _, metrics = residuals.update(plan, Part(weights, plan.optimiser.init(weights)), ITEMS, b)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_gradients_are_those_of_finite_differences_and_untrained_items_stay():
    import optax

    plan, weights, b = residuals.Plan(optax.sgd(1.0), 0.5, 0.7, 0.1), parts(), batch()
    before = jax.tree.map(np.asarray, weights)

    def value(w):
        return loss_by_hand(w, plan, b) + plan.penalty * np.mean(np.sum(w["residual"] ** 2, 1))

    part, _ = residuals.update(plan, Part(weights, plan.optimiser.init(weights)), ITEMS, b)
    for name, at in (("residual", (0, 1)), ("residual", (3, 2)), ("bias", (5,)), ("bias", (6,))):
        changed = {k: a.astype(np.float64) for k, a in before.items()}
        slope = 0.0
        for sign in (1, -1):
            moved = {k: a.copy() for k, a in changed.items()}
            moved[name][at] += sign * 1e-4
            slope += sign * value(moved) / 2e-4
        np.testing.assert_allclose(before[name][at] - np.asarray(part.weights[name])[at], slope, atol=2e-3)
    assert np.asarray(part.weights["bias"])[6] == before["bias"][6]  # no training interaction has it


def test_the_phase_alone_raises_the_likelihood_and_ranks_by_what_it_learned(tmp_path):
    r = recommender(small_config({"phases": "residuals", "residuals.learning_rate": 0.05}), tmp_path)
    (phase,) = profiles.schedule(r)
    weights = r.fresh("residuals")
    state = {"residuals": Part(weights, phase.optimiser.init(weights))}
    phase.begin(state)
    losses = []
    for step in range(20):
        state, report = phase.step(state, step)
        losses.append(float(report.metrics["loss"]))
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1
    assert {"val/ndcg", "val/text alone, ndcg"} <= phase.validate(state).keys()
    items = r.catalogue(r.fresh("embedder"))
    learned = np.asarray(r.with_terms(items, state["residuals"].weights)) - np.asarray(items)
    residual = np.asarray(state["residuals"].weights["residual"])
    np.testing.assert_allclose(learned[: r.run.count, :-1], residual * (r.data.popularity > 0)[:, None], atol=1e-6)


def test_the_history_is_the_mean_of_its_latest_items(tmp_path):
    r = recommender(small_config(), tmp_path)
    items, last = r.catalogue(r.fresh("embedder")), r.config.prompt.history_items
    queries = np.ones((2, items.shape[1]), np.float32)
    history = tuple(range(last + 3))
    found = r.with_history(queries, items, [history, ()], 0.5)
    np.testing.assert_allclose(found[0, :-1], 1 + 0.5 * np.asarray(items)[3 : last + 3, :-1].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found[1], queries[1])
    assert found[0, -1] == 1 and r.with_history(queries, items, [history, ()], 0.0) is queries
