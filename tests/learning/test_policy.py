"""RLSO: the losses against their equations, what trains, and one device against eight."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpt_jax import devices
from lpt_jax.generation import Profiles
from lpt_jax.learning import optimisers, policy
from lpt_jax.learning.loop import Part
from lpt_jax.models import decoder, layers, low_rank
from lpt_jax.models.decoder import top_layers
from tests.tiny_models import SPECS, full_logits, joined, random_decoder

# ---- losses


def rollout(seed=0, batch=3, samples=4, length=5):
    rng = np.random.default_rng(seed)
    new, old = -rng.exponential(1, (2, batch, samples, length))
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, samples, 1))
    return new, old, mask, rng.standard_normal((batch, samples))


def rebel(new, old, mask, rewards, eta, clip_ratio):
    """papers.md §1, pair by pair."""
    terms = []
    for user in range(len(new)):
        moved = [(new[user, g] - old[user, g])[mask[user, g]].sum() for g in range(new.shape[1])]
        for i, j in itertools.combinations(range(new.shape[1]), 2):
            difference = rewards[user, i] - rewards[user, j]
            terms.append((moved[i] - moved[j] - eta * difference) ** 2)
    return np.mean(terms)


def rloo(new, old, mask, rewards, eta, clip_ratio):
    terms = []
    for user, sample in np.ndindex(rewards.shape):
        others = [r for j, r in enumerate(rewards[user]) if j != sample]
        at = mask[user, sample]
        ratio = np.exp((new[user, sample] - old[user, sample])[at].sum())
        terms.append(-(rewards[user, sample] - np.mean(others)) * ratio)
    return np.mean(terms)


def grpo(new, old, mask, rewards, eta, clip_ratio):
    terms = []
    for user, sample in np.ndindex(rewards.shape):
        advantage = (rewards[user, sample] - rewards[user].mean()) / (rewards[user].std() + 1e-4)
        ratio = np.exp(new[user, sample] - old[user, sample])[mask[user, sample]]
        clipped = np.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
        terms.append(-np.minimum(ratio * advantage, clipped * advantage).mean())
    return np.mean(terms)


@pytest.mark.parametrize("transcribed", [rebel, rloo, grpo])
def test_losses_are_their_equations(transcribed):
    settings = dict(eta=0.7, clip_ratio=0.3)
    new, old, mask, rewards = rollout()
    loss = jax.jit(lambda new, old: policy.LOSSES[transcribed.__name__](new, old, mask, rewards, **settings))
    wanted = transcribed(new, old, mask, rewards, **settings)
    found, gradient = jax.jit(jax.value_and_grad(loss))(new, old)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for at in [(0, 0, 0), (1, 2, 0), (2, 3, 1)]:  # its gradient by differences of the float64 transcription
        step = np.zeros_like(new)
        step[at] = 1e-6
        sides = [transcribed(new + s, old, mask, rewards, **settings) for s in (step, -step)]
        np.testing.assert_allclose(gradient[at], (sides[0] - sides[1]) / 2e-6, rtol=1e-3, atol=1e-5)
    noise = np.where(mask, 0, np.random.default_rng(1).standard_normal(mask.shape))
    np.testing.assert_allclose(loss(new + noise, old - noise), found, rtol=1e-6)
    assert not np.asarray(gradient)[~mask].any()


@pytest.mark.parametrize("name", ["rebel", "rloo", "grpo"])
def test_a_profile_that_is_masked_is_left_out(name):
    """As if it had not been sampled, whatever it earned; a user without any is no more than a zero."""
    new, old, mask, rewards = rollout()
    loss = functools.partial(policy.LOSSES[name], eta=0.7, clip_ratio=0.3)
    mask[:, 1] = False
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(new), old, mask, rewards)
    fewer = [np.delete(a, 1, 1) for a in (new, old, mask, rewards)]
    np.testing.assert_allclose(found, loss(*fewer), rtol=1e-5)
    assert not np.asarray(gradient)[:, 1].any()
    mask[0] = False
    rest = [a[1:] for a in fewer]
    np.testing.assert_allclose(loss(new, old, mask, rewards), loss(*rest) * len(rest[0]) / len(new), rtol=1e-5)


def test_two_samples_by_hand():
    new = np.array([[[-1.0, -2.0], [-3.0, -9.0]]], np.float32)
    old = np.array([[[-1.5, -2.5], [-2.0, -1.0]]], np.float32)
    mask = np.array([[[True, True], [True, False]]])  # moved by +1 and −1
    rewards = np.array([[1.0, 0.5]], np.float32)
    losses = policy.LOSSES.items()
    found = jax.jit(lambda *a: {name: loss(*a, eta=2.0, clip_ratio=0.2) for name, loss in losses})
    found = found(new, old, mask, rewards)
    np.testing.assert_allclose(found["rebel"], (1 - -1 - 2.0 * 0.5) ** 2)  # = 1
    # advantages ± 0.5, ratios e and 1 / e
    np.testing.assert_allclose(found["rloo"], -(0.5 * np.e - 0.5 / np.e) / 2, rtol=1e-6)
    # advantages ± 1; ratios √e twice, counted as 1.2; 1 / e, which as a loss counts as 0.8
    np.testing.assert_allclose(found["grpo"], -(1.2 - 0.8) / 2, rtol=1e-3)


def test_rloo_starts_as_reinforce():
    """At θ = old the gradient is that of −mean A log π, with the leave-one-out advantage."""
    _, old, mask, rewards = rollout()
    gradient = jax.jit(jax.grad(policy.rloo))(old, old, mask, rewards)
    advantage = [[r - np.mean(np.delete(row, i)) for i, r in enumerate(row)] for row in rewards]
    wanted = np.where(mask, -np.array(advantage)[..., None] / rewards.size, 0.0)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_rebel_begins_in_rloo_s_direction():
    """At θ = old its gradient is RLOO's times 4 η, whatever is masked: with one epoch and unit steps they are one method."""
    _, old, mask, rewards = rollout()
    mask = mask & (np.arange(mask.shape[1]) != 1)[None, :, None]  # a profile of each user is left out
    ours, other = (jax.grad(policy.LOSSES[name]) for name in ("rebel", "rloo"))
    found, wanted = ours(old, old, mask, rewards, eta=0.7), other(old, old, mask, rewards)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, 2.8 * wanted, rtol=1e-4, atol=1e-6)


# ---- what trains

FILTERS = {"last_layers": top_layers, "lora": nnx.LoRAParam}
P, T = 6, 4


class Model:
    """A decoder in two parts, what trains and what is frozen; base: its graph without LoRA."""

    def __init__(self, name, trains, mesh=None):
        self.lm = random_decoder(SPECS[name])
        self.lm.set_attributes(mesh=mesh)
        self.base = nnx.graphdef(self.lm)
        if trains == "lora":
            low_rank.attach(self.lm, "q|up|down|head", 2, 1.0, jax.random.key(0))
        else:
            self.lm.divide(self.lm.spec.layers - 1)
        self.axes = layers.axes_of(self.lm)
        self.graph, trained, frozen = nnx.split(self.lm, FILTERS[trains], ...)
        self.trained, self.frozen = layers.plain(trained), layers.plain(frozen)

    def plan(self, **changes) -> policy.Plan:
        settings = dict(temperature=1.0, chunk=16, loss="rebel", eta=1.0, clip_ratio=0.2, remat=False)
        return policy.Plan(self.graph, OPTIMISER, self.lm.start, **(settings | changes))


def profiles_of(lm, users=8, samples=2):
    """Rollouts of random tokens and ends, with hidden states; the contexts' mask; the inputs."""
    rng, vocab = np.random.default_rng(0), lm.spec.vocab
    context = rng.integers(3, vocab, (users, P)).astype(np.int32)
    context_mask = np.arange(P) >= rng.integers(0, P, (users, 1))
    tokens = rng.integers(3, vocab, (users, samples, T)).astype(np.int32)
    mask = np.arange(T) < rng.integers(1, T + 1, (users, samples, 1))
    inputs = np.concatenate([np.full_like(tokens[..., :1], 5), tokens[..., :-1]], -1)  # all prompts end with a 5
    x = lm.embed_tokens(np.concatenate([context, inputs.reshape(users, -1)], 1))
    if lm.lower is not None:
        x, _ = decoder.run(lm.lower, x, context_mask, samples)
    hidden = x[:, P:].reshape(users, samples, T, -1)
    return Profiles(tokens, mask, None, x[:, :P], hidden), context_mask, (context, inputs)


def pointers(tree):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size}


@pytest.mark.parametrize("trains", FILTERS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # a head of its own; tied
def test_split_and_assembled_is_the_model(name, trains):
    """Scores by parts are the full model's, and nothing that trains lies in a frozen part."""
    m = Model(name, trains)
    assert m.lm.start == (2 if trains == "last_layers" else 0)
    assert not pointers(m.trained) & pointers(m.frozen)
    profiles, context_mask, (context, inputs) = profiles_of(m.lm)
    plan = m.plan(temperature=0.7, chunk=64)
    found = policy.score(plan, m.frozen, m.trained, profiles, context_mask)
    plain = random_decoder(SPECS[name])
    scores = full_logits(plain, *joined(context, context_mask, jnp.asarray(inputs)))[:, P:]
    wanted = np.asarray(jax.nn.log_softmax(scores / 0.7)).reshape(8, 2, T, -1)
    wanted = np.take_along_axis(wanted, profiles.tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, np.where(profiles.mask, wanted, 0), atol=1e-4)
    if trains == "lora":  # the reference policy: the base alone
        reference = policy.score(dataclasses.replace(plan, graph=m.base), m.frozen, {}, profiles, context_mask)
        np.testing.assert_allclose(reference, found, atol=1e-5)


def test_what_trains():
    m = Model("llama", "last_layers")
    assert set(m.trained) == {"upper", "final_norm", "head"} and set(m.trained["upper"]) == set(m.frozen["lower"])
    assert {len(w) for w in jax.tree.leaves(m.trained["upper"])} == {1} and set(m.frozen) == {"embed", "lower"}
    m = Model("gemma2", "last_layers")
    assert set(m.trained) == {"upper", "final_norm"} and set(m.frozen) == {"embed", "lower"}  # a tied head stays
    m = Model("llama", "lora")
    upper = m.trained["upper"]
    assert set(m.trained) == {"upper", "head"} and set(m.trained["head"]["lora"]) == {"a", "b"}
    assert set(upper["attention"]) == {"q"} and set(upper["mlp"]) == {"up", "down"}
    lm = random_decoder(SPECS["llama"])
    lm.divide(0)
    trained = layers.plain(nnx.state(lm, top_layers))
    assert {len(w) for w in jax.tree.leaves(trained["upper"])} == {3} and "embed" not in trained


# ---- updates

OPTIMISER = optimisers.adamw(optimisers.rate(5e-4, 1), 0.0, 1.0)


def copied(tree):
    return jax.tree.map(lambda a: np.array(a), tree)


def updates(mesh, trains, steps, change=lambda profiles: profiles, accumulation=1):
    """Losses, last metrics, and the trained parts before and after some steps on one batch."""
    m = Model("llama", trains, mesh if accumulation > 1 else None)
    before = copied((m.trained, m.frozen))
    profiles, context_mask, _ = profiles_of(m.lm)
    profiles = change(profiles)
    rewards = np.random.default_rng(1).standard_normal(profiles.tokens.shape[:2]).astype(np.float32)
    put = devices.split_batch((profiles, context_mask, rewards), mesh)
    frozen, trained = (devices.place(tree, mesh, m.axes) for tree in (m.frozen, m.trained))
    part = Part(trained, devices.place(OPTIMISER.init(trained), mesh, m.axes))
    plan = m.plan(remat=mesh.size == 1, accumulation=accumulation)  # remat changes no number
    old = policy.score(plan, frozen, trained, *put[:2])
    if accumulation > 1:  # the rows come back in order
        np.testing.assert_allclose(old, policy.score(m.plan(), frozen, trained, *put[:2]), atol=1e-5)
    losses = []
    for _ in range(steps):
        part, found = policy.update(plan, frozen, part, *put[:2], old, put[2])
        losses.append(float(found["loss"]))
    jax.tree.map(np.testing.assert_array_equal, copied(frozen), before[1])
    if accumulation == 1:
        placed = devices.place(part.weights, mesh, m.axes)  # what comes out of a step lies where it went in
        for (path, a), b in zip(jax.tree.leaves_with_path(part.weights), jax.tree.leaves(placed), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), jax.tree_util.keystr(path)
    return losses, found, before[0], part.weights


def test_without_old_log_probs_the_first_update_is_the_same():
    m = Model("llama", "last_layers")
    profiles, context_mask, _ = profiles_of(m.lm)
    rewards = jnp.array(np.random.default_rng(1).standard_normal(profiles.tokens.shape[:2]), jnp.float32)
    old = policy.score(m.plan(), m.frozen, m.trained, profiles, context_mask)
    found = []
    for given in (old, None):
        copy = jax.tree.map(jnp.copy, m.trained)
        part = Part(copy, OPTIMISER.init(copy))
        found.append(policy.update(m.plan(), m.frozen, part, profiles, context_mask, given, rewards))
    weights = [part.weights for part, _ in found]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *weights)
    assert found[1][1]["loss"] == pytest.approx(float(found[0][1]["loss"]), rel=1e-5)
    assert found[1][1]["log_ratio_moved"] == 0


def one_device():
    return devices.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def on_one():
    return {trains: updates(one_device(), trains, 4) for trains in FILTERS}


@pytest.mark.parametrize("trains", FILTERS)
def test_updates_lower_the_loss_by_what_trains(on_one, trains):
    losses, found, before, after = on_one[trains]
    assert losses[0] > losses[1] > losses[2] > losses[3] and losses[3] < 0.97 * losses[0]
    rewards = np.random.default_rng(1).standard_normal((8, 2))  # at first nothing has moved
    np.testing.assert_allclose(losses[0], np.mean((rewards[:, 0] - rewards[:, 1]) ** 2), rtol=1e-4)
    assert found["grad_norm"] > 0 and found["log_ratio_moved"] > 0
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if np.array_equal(a, b)
    ]
    assert still == []


@pytest.mark.parametrize(
    "trains, sizes",
    [("last_layers", (8, 1, 1)), ("last_layers", (4, 2, 1)), ("last_layers", (2, 2, 2)), ("lora", (2, 2, 2))],
)
def test_eight_devices_do_what_one_does(on_one, trains, sizes):
    mesh = devices.make_mesh(dict(zip(devices.AXES, sizes)))
    losses, found, _, after = updates(mesh, trains, 4)
    np.testing.assert_allclose(losses, on_one[trains][0], rtol=2e-5)
    for name, value in on_one[trains][1].items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), copied(after), copied(on_one[trains][3]))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1), (2, 2, 2)])
def test_parts_one_after_another_are_the_same_update(on_one, sizes):
    """On (2, 2, 2) a part has a user less than there are devices: its rows are replicated."""
    mesh = (
        one_device()
        if sizes == (1, 1, 1)
        else devices.make_mesh(dict(zip(devices.AXES, sizes)), jax.devices()[: math.prod(sizes)])
    )
    losses, found, _, after = updates(mesh, "last_layers", 4, accumulation=4)
    np.testing.assert_allclose(losses, on_one["last_layers"][0], rtol=2e-5)
    for name, value in on_one["last_layers"][1].items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), copied(after), copied(on_one["last_layers"][3])
    )


def test_what_is_behind_a_profiles_end_has_no_influence(on_one):
    def other_padding(profiles):
        tokens = np.where(profiles.mask, profiles.tokens, 90)
        ended = np.concatenate([np.zeros_like(profiles.mask[..., :1]), ~profiles.mask[..., :-1]], -1)
        hidden = jnp.where(ended[..., None], 7.0, profiles.hidden)
        return dataclasses.replace(profiles, tokens=tokens, hidden=hidden)

    losses, _, _, after = updates(one_device(), "last_layers", 4, other_padding)
    np.testing.assert_allclose(losses, on_one["last_layers"][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), after, on_one["last_layers"][3])
