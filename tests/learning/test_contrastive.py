"""Contrastive learning: the loss is its equation, no false negatives, 8 devices do as one."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.data.edits import Edit
from lpt_jax.learning import contrastive, optimisers
from lpt_jax.learning.loop import Part
from lpt_jax.models import encoder, layers
from lpt_jax.similarity import DualEncoder


def unit(rng, *shape):
    rows = rng.standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def info_nce(profiles, items, correction, excluded, temperature):
    """The docstring's equation, one profile after the other, in float64."""
    losses, first = [], []
    for i, profile in enumerate(profiles):
        kept = [j for j in range(len(items)) if not excluded[i, j]]
        scores = {j: profile @ items[j] / temperature - correction[j] for j in kept}
        losses.append(np.log(sum(np.exp(s) for s in scores.values())) - scores[i])
        first.append(scores[i] == max(scores.values()))
    return np.mean(losses), np.mean(first)


def test_info_nce_is_its_equation():
    """With extra candidates, exclusions and a correction; gradients by differences in float64."""
    rng = np.random.default_rng(0)
    profiles, items, correction = unit(rng, 5, 8), unit(rng, 9, 8), rng.standard_normal(9)
    items[:2] += 2 * profiles[:2]  # some positives come first
    excluded = rng.random((5, 9)) < 0.3
    np.fill_diagonal(excluded, False)
    wanted, first = info_nce(profiles, items, correction, excluded, 0.3)
    assert 0 < first < 1 and excluded.any()
    loss = jax.jit(jax.value_and_grad(contrastive.info_nce, (0, 1), has_aux=True))
    (found, accuracy), gradients = loss(profiles, items, correction, excluded, 0.3)
    np.testing.assert_allclose([found, accuracy], [wanted, first], rtol=1e-5)
    for which, at in [(0, (0, 0)), (0, (4, 7)), (1, (2, 3)), (1, (8, 1))]:
        step = [np.zeros_like(profiles), np.zeros_like(items)]
        step[which][at] = 1e-6
        sides = [info_nce(profiles + s * step[0], items + s * step[1], correction, excluded, 0.3)[0] for s in (1, -1)]
        np.testing.assert_allclose(gradients[which][at], (sides[0] - sides[1]) / 2e-6, rtol=1e-3, atol=1e-5)


def test_exclusions_by_hand():
    # profiles 0 and 2 have item 4 as positive; user 1 has 6 in the history, and 8 as another target
    found = contrastive.exclusions(np.array([4, 5, 4]), np.array([4, 5, 4, 6, 5]), [[9], (6, 8, 5), ()])
    assert found.tolist() == [
        [False, False, True, False, False],
        [False, False, False, True, True],  # its own positive, again among the extras, is no negative
        [True, False, False, False, False],
    ]


def test_equal_positives_are_no_negatives():
    """Where two users chose the same item, neither is pushed away from it."""
    rng = np.random.default_rng(0)
    profiles, items, positives = unit(rng, 3, 8), unit(rng, 2, 8), np.array([0, 1, 0])
    excluded = contrastive.exclusions(positives, positives, [[], [], []])
    loss, _ = contrastive.info_nce(profiles, items[positives], np.zeros(3), excluded, 0.1)
    scores = profiles @ items.T / 0.1
    # the second profile sees its item once and the other one twice, as the batch drew it
    first, second, third = (np.logaddexp(0, scores[i, 1 - p] - scores[i, p]) for i, p in enumerate(positives))
    second = np.logaddexp(0, scores[1, 0] - scores[1, 1] + np.log(2))
    np.testing.assert_allclose(loss, (first + second + third) / 3, rtol=1e-5)


def test_log_sampling_by_hand():
    found = contrastive.log_sampling(np.array([0.75, 0.25, 0.0, 0.0]), batch=8, extra=2)
    np.testing.assert_allclose(found, np.log([6.5, 2.5, 0.5, 0.5]), rtol=1e-6)
    assert found.dtype == np.float32
    assert np.isfinite(contrastive.log_sampling(np.array([1.0, 0.0]), 8, 0)).all()


def test_correction_makes_in_batch_negatives_a_full_softmax():
    """Popular items are drawn often; the correction takes their extra weight away.

    One profile's scores on 40 items, 300 batches of 64 positives by popularity and 16 extras: the
    mean gradient is close to that of the softmax over the catalogue; uncorrected it is not.
    """
    rng = np.random.default_rng(0)
    items, batch, extra, draws = 40, 64, 16, 300
    popularity = np.arange(1, items + 1) ** -1.0
    popularity /= popularity.sum()
    scores = rng.standard_normal(items).astype(np.float32)
    log_expected = contrastive.log_sampling(popularity, batch, extra)
    positives = rng.choice(items, (draws, batch), p=popularity)
    candidates = np.concatenate([positives, rng.integers(0, items, (draws, extra))], 1)
    excluded = np.stack([contrastive.exclusions(p, c, [[]] * batch) for p, c in zip(positives, candidates)])

    @jax.jit
    def weights(correction):
        """The mean weight that each item gets as a candidate: gradient + share of positives."""

        def of_one(candidates, excluded):
            rows, eye = jnp.tile(scores, (batch, 1)), jnp.eye(items)[candidates]
            gradient = jax.grad(lambda p: contrastive.info_nce(p, eye, correction[candidates], excluded, 1.0)[0])
            return gradient(rows).sum(0) + jnp.bincount(candidates[:batch], length=items) / batch

        return jax.lax.map(lambda a: of_one(*a), (candidates, excluded)).mean(0)

    full = np.exp(scores) / np.exp(scores).sum()
    corrected, plain = (np.abs(weights(c) - full).sum() / 2 for c in (log_expected, 0 * log_expected))
    assert corrected < 0.05 and plain > 0.25


# ---- edits


def test_edits_have_their_own_negatives_and_no_others_see_what_is_drawn_for_them():
    """Two pairs, a like of items 0 and 1, a dislike of items 2 and 3 with two drawn."""
    like = Edit("a", 0, np.array([False, False, True, True, True]), np.array([], int))
    dislike = Edit("b", 4, np.array([False, False, True, True, False]), np.array([2, 3]))
    candidates = np.array([1, 2, 0, 4])  # the pairs' and the edits' positives
    excluded = np.array([[False, False, True, False], [False] * 4])
    correction = np.ones((2, 4))
    found, excluded, correction = contrastive.with_edits([like, dislike], candidates, excluded, correction)
    assert found.tolist() == [1, 2, 0, 4, 2, 3]
    assert excluded.tolist() == [
        [False, False, True, False, True, True],
        [False, False, False, False, True, True],
        [True, False, False, False, False, False],  # all without what is liked, its own positive (0) in third place
        [True, False, True, False, False, False],  # only what has what is disliked, and its own positive (4)
    ]
    assert correction.tolist() == [[1, 1, 1, 1, 0, 0]] * 2 + [[0] * 6] * 2


def test_so_many_of_a_batch_are_edits():
    settings = SimpleNamespace(edits=0.25, batch=64)
    assert contrastive.count_of_edits(settings) == 16
    assert contrastive.drawn_for_edits(settings) == 3 * 10  # of 16 every third, from the first on, is a like: 6


# ---- updates

SPEC = encoder.EncoderSpec(vocab=97, width=32, layers=2, heads=4, hidden=48, positions=16)
OPTIMISER = optimisers.adamw(optimisers.rate(1e-3, 1), 0.01, 1.0)


def updates(mesh, steps):
    """Losses of some steps on one batch, the last metrics and the weights."""
    rng = np.random.default_rng(0)
    dual = DualEncoder(encoder.TextEncoder(SPEC, nnx.Rngs(params=jax.random.key(0))))
    axes, (graph, weights) = layers.axes_of(dual), nnx.split(dual)
    weights = jax.tree.map(lambda a: np.asarray(5 * a), layers.plain(weights))
    rows = [rng.integers(3, 97, n).tolist() for n in rng.integers(1, 8, 24)]
    (packed,) = batches.packs(rows, 16, 4, 0, lambda lines, alone: 16)
    where = packed.places_of_rows()
    batch = {
        "tokens": packed.tokens,
        "texts": packed.texts,
        "profiles": where[:8],
        "items": where[8:],
        "correction": rng.random(16).astype(np.float32),
        "excluded": contrastive.exclusions(np.arange(8) // 2, np.arange(16) // 2, [[7]] * 8),
    }
    weights, batch = devices.place(weights, mesh, axes), devices.split_batch(batch, mesh)
    part, losses = Part(weights, devices.place(OPTIMISER.init(weights), mesh, axes)), []
    plan = contrastive.Plan(graph, OPTIMISER, temperature=0.1, most=4, remat=False)
    for _ in range(steps):
        part, found = contrastive.update(plan, part, batch)
        losses.append(float(found["loss"]))
    return losses, found, part.weights["encoder"]


def test_eight_devices_do_what_one_does_and_learn():
    one = updates(devices.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1]), 4)
    assert one[0] == sorted(one[0], reverse=True) and one[0][-1] < 0.9 * one[0][0]
    many = updates(devices.make_mesh({"data": 2, "fsdp": 2, "model": 2}), 4)
    np.testing.assert_allclose(many[0], one[0], rtol=2e-5)
    np.testing.assert_allclose(many[1]["accuracy"], one[1]["accuracy"])
    for result in (one, many):
        del result[2]["layers"]["attention"]["k"][
            "bias"
        ]  # it changes no softmax: Adam follows the rounding of a zero gradient
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        *(jax.device_get(weights) for *_, weights in (many, one)),
    )
