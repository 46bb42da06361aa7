"""Sampling: its distribution, its log-probabilities, ends, and independence of the batch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lpt_jax import devices, generation
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.learning import policy
from lpt_jax.models import layers
from lpt_jax.models.decoder import DecoderSpec, decoding_layers, top_layers
from lpt_jax.models.weights import Source
from tests.tiny_models import SPECS, changed, divided, full_logits, joined, left_padded, random_decoder

# ---- one token

draw = jax.jit(generation.draw)


@pytest.mark.parametrize("vocab", [5, 128, 300])
def test_draws_follow_the_softmax(vocab):
    """Pearson's chi-square over 20,000 draws, the rare tokens taken together: z below 4."""
    logits = 2.0 * np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    n = 20_000
    tokens = draw(np.broadcast_to(logits, (n, vocab)), jax.random.uniform(jax.random.key(1), (n,)))
    expected = n * np.asarray(jax.nn.softmax(logits), np.float64)
    counts, often = np.bincount(tokens, minlength=vocab), expected > 20
    sums = [(c[often].tolist() + [c[~often].sum()] * (not often.all())) for c in (counts, expected)]
    counts, expected = np.array(sums)
    assert counts.sum() == n and len(counts) > min(vocab, 50) - 1
    chi_square, freedom = np.sum((counts - expected) ** 2 / expected), len(counts) - 1
    assert abs(chi_square - freedom) / np.sqrt(2 * freedom) < 4


def test_draw_inverts_the_cumulative_distribution():
    logits = np.log(
        np.array([0.2, 0.0, 0.3, 0.5], np.float32), where=[True, False, True, True], out=np.full(4, -np.inf, np.float32)
    )
    uniform = np.array([[0.0, 0.19], [0.21, 0.49], [0.51, 1 - 2**-24]], np.float32)
    tokens = draw(np.broadcast_to(logits, (3, 2, 4)), uniform)
    assert tokens.tolist() == [[0, 0], [2, 2], [3, 3]] and tokens.dtype == jnp.int32


def test_impossible_tokens_are_never_drawn():
    """Blocks, first and last words without probability, and uniform numbers at the borders."""
    rng = np.random.default_rng(0)
    n, vocab = 20_000, 700
    logits = rng.normal(0, 3, (n, vocab)).astype(np.float32)
    logits[rng.random((n, vocab)) < 0.5] = -np.inf
    logits[:, :130] = logits[:, 256:384] = logits[:, 640:] = -np.inf
    logits[:, 500] = rng.normal(0, 3, n)  # one at least is possible
    uniform = rng.random(n, np.float32)
    uniform[:100], uniform[100:200] = 0.0, np.nextafter(np.float32(1), np.float32(0))
    # the borders between tokens, as they come out in float32
    p = np.exp(logits - logits.max(1, keepdims=True))
    border = np.cumsum(p, 1, dtype=np.float32)[np.arange(n), rng.integers(0, vocab, n)] / p.sum(1)
    uniform[200:] = np.clip(border[200:], 0, uniform[100])
    tokens = np.asarray(draw(logits, uniform))
    assert np.isfinite(np.take_along_axis(logits, tokens[:, None], 1)).all()


def test_draw_with_extreme_logits():
    logits = np.full((3, 300), -1e30, np.float32)
    logits[0, 299], logits[1, :2], logits[2] = 3e4, 88.0, -1e30  # one; two alike; all alike
    tokens = [draw(logits, np.full(3, u, np.float32)).tolist() for u in (0.0, 0.25, 0.75, 1 - 2**-24)]
    assert [t[0] for t in tokens] == [299] * 4
    assert [t[1] for t in tokens] == [0, 0, 1, 1]
    assert [t[2] for t in tokens] == [0, 75, 225, 299]


# ---- whole profiles

SPEC = SPECS["gemma3"]  # windows, local and global rope
LM = random_decoder(SPEC)
EOS = tuple(range(3, 20))
B, P, G, T = 4, 9, 3, 8
TEMPERATURE = 0.7


def parts(lm, last_layers=2):
    """A decoder as generation reads it, and split into graph, what trains and what is frozen."""
    lm = divided(lm, lm.spec.layers - last_layers)
    graph, trained, frozen = nnx.split(lm, top_layers, ...)
    trained, frozen = layers.plain(trained), layers.plain(frozen)
    split = [nnx.split(stack) for stack in (lm.lower, lm.upper)]
    blocks, trees = zip(*(decoding_layers(graph, layers.plain(state), lm.dtype) for graph, state in split))
    return generation.Weights((trained, frozen), trees, graph, blocks), graph, trained, frozen


def sample(prompts, mask, key, lm=LM, **change):
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(np.arange(len(prompts)))
    settings = dict(samples=G, max_tokens=T, temperature=TEMPERATURE, ends=EOS, pad=0, keep_hidden=True) | change
    return generation.sample(parts(lm)[0], prompts, mask, jax.random.key_data(keys), generation.Sampling(**settings))


@pytest.fixture(scope="module")
def sampled():
    prompts, mask = left_padded(B, P)
    return prompts, mask, sample(prompts, mask, jax.random.key(3))


def test_profiles_end_with_their_first_eos(sampled):
    tokens, mask, log_probs = (np.asarray(getattr(sampled[2], n)) for n in ("tokens", "mask", "log_probs"))
    ends = np.isin(tokens, EOS)
    first = np.where(ends.any(-1), ends.argmax(-1), T)
    assert (mask == (np.arange(T) <= first[..., None])).all()
    assert len(set(first.flat)) > 3 and (first < T).any()  # the case is worth something
    assert (tokens[~mask] == 0).all() and (log_probs[~mask] == 0).all() and (log_probs[mask] < 0).all()


def test_log_probs_are_those_of_the_scoring_pass_and_of_the_full_model(sampled):
    prompts, mask, profiles = sampled
    _, graph, trained, frozen = parts(LM)
    plan = policy.Plan(graph, optax.identity(), below=1, temperature=TEMPERATURE, chunk=16)
    scored = policy.score(plan, frozen, trained, profiles, mask[:, :-1])
    np.testing.assert_allclose(scored, profiles.log_probs, atol=1e-4)
    scores = full_logits(LM, *joined(prompts, mask, profiles.tokens))[:, P - 1 : -1] / TEMPERATURE
    wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(scores)), np.reshape(profiles.tokens, (-1, T, 1)), -1)
    np.testing.assert_allclose(profiles.log_probs, np.where(profiles.mask, wanted.reshape(B, G, T), 0), atol=1e-4)


def test_samples_differ_and_the_key_repeats_them(sampled):
    prompts, mask, profiles = sampled
    assert all(len({tuple(row) for row in user}) == G for user in np.asarray(profiles.tokens).tolist())
    again = sample(prompts, mask, jax.random.key(3))
    np.testing.assert_array_equal(profiles.tokens, again.tokens)
    other = sample(prompts, mask, jax.random.key(4))
    assert not np.array_equal(profiles.tokens, other.tokens)


def test_positions_are_drawn_independently():
    """A model that likes all tokens alike: no position repeats another's random number."""
    prompts, mask = left_padded(B, P)
    profiles = sample(prompts, mask, jax.random.key(0), lm=changed(LM, jnp.zeros_like))
    np.testing.assert_allclose(np.asarray(profiles.log_probs)[profiles.mask], -np.log(97), rtol=1e-5)
    rows = [row[m] for row, m in zip(profiles.tokens.reshape(-1, T), profiles.mask.reshape(-1, T))]
    assert all(len(set(row.tolist())) > 1 for row in rows if len(row) > 2)
    drawn = np.concatenate(rows)
    assert len(drawn) > 40 and len(np.unique(drawn)) > 0.6 * len(drawn)


def test_greedy_takes_the_likeliest_token_of_the_full_model():
    prompts, mask = left_padded(B, P)
    greedy = sample(prompts, mask, jax.random.key(0), temperature=0.0, samples=1, keep_hidden=False)
    scores = full_logits(LM, *joined(prompts, mask, greedy.tokens))[:, P - 1 : -1]
    wanted = np.where(greedy.mask[:, 0], scores.argmax(-1), 0)
    np.testing.assert_array_equal(greedy.tokens[:, 0], wanted)
    best = np.where(greedy.mask[:, 0], jax.nn.log_softmax(scores).max(-1), 0)
    np.testing.assert_allclose(greedy.log_probs[:, 0], best, atol=1e-4)  # of temperature 1
    assert greedy.hidden is None and greedy.context is None


def test_sampling_stops_when_all_have_ended():
    prompts, mask = left_padded(B, P)
    profiles = sample(prompts, mask, jax.random.key(0), ends=tuple(range(97)))
    assert np.asarray(profiles.mask[..., 0]).all() and not np.asarray(profiles.mask[..., 1:]).any()
    assert not np.asarray(profiles.tokens[..., 1:]).any()
    assert np.asarray(profiles.hidden[:, :, 0]).all() and not np.asarray(profiles.hidden[:, :, 1:]).any()  # no step 2


# ---- the writer

TOKENIZER = tiny_tokenizer()
PROMPTS = [[7 + i] * (3 + i % 5) + [4, 9 + i] for i in range(11)]
ONE_DEVICE = {"data": 1, "fsdp": 1, "model": 1}


def writer(lengths=(8, 16), mesh=ONE_DEVICE, batch=8, start=""):
    """A LanguageModel whose last layer trains, and its weights."""
    lm = divided(random_decoder(DecoderSpec("llama", len(TOKENIZER), 32, 2, 4, 2, 8, 48)), 1)
    lm.source = Source(TOKENIZER, 0, frozenset({TOKENIZER.eos_token_id, 20, 21, 22, 23, 24}))
    count = int(np.prod(list(mesh.values())))
    mesh = devices.make_mesh(mesh, jax.devices()[:count])
    settings = types.SimpleNamespace(batch=batch, max_tokens=6)
    made = generation.LanguageModel(lm, top_layers, mesh, settings, start=start)
    made.lengths = lengths
    return made, made.fresh()


def sample_two(writer_and_weights, prompts, numbers, key):
    made, weights = writer_and_weights
    return made.sample(weights, prompts, numbers, key, made.how(2, 1.0))


def test_a_prompt_is_sampled_alike_in_any_batch_and_padding():
    key, mine = jax.random.key(5), writer()
    together, _ = sample_two(mine, PROMPTS[:8], range(8), key)
    order = [3, 0, 7, 5, 1, 2, 6, 4]
    shuffled, _ = sample_two(mine, [PROMPTS[i] for i in order], order, key)
    np.testing.assert_array_equal(shuffled.tokens, together.tokens[np.array(order)])
    longer, mask = sample_two(writer(lengths=(16,)), [PROMPTS[5], PROMPTS[2]], [5, 2], key)
    assert mask.shape == (2, 16)
    np.testing.assert_array_equal(longer.tokens, together.tokens[np.array([5, 2])])


def test_a_mesh_samples_what_one_device_does():
    key = jax.random.key(5)
    one, _ = sample_two(writer(), PROMPTS[:8], range(8), key)
    many, mask = sample_two(writer(mesh={"data": 2, "fsdp": 2, "model": 2}), PROMPTS[:8], range(8), key)
    assert len(mask.sharding.device_set) == 8
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_allclose(many.log_probs, one.log_probs, atol=1e-5)


def test_of_several_draws_the_chosen_one_is_written():
    """choose() gets every row's texts and ends, and what it says is kept, with its own number of tokens and its own end."""
    (mine, weights), key, kept = writer(lengths=(16,), batch=4), jax.random.key(1), []

    def longest(rows, texts, ended):
        assert ended.shape == (4, 3) and [len(of_row) for of_row in texts] == [3] * 4
        return np.array([np.argmax([len(text) for text in of_row]) for of_row in texts])

    def keep(rows, texts, tokens, ended):
        kept.extend(zip(rows, texts, tokens, ended, strict=True))

    texts = mine.write(weights, PROMPTS[:6], range(6), key, generation.Draws(1.0, 3, longest), keep=keep)
    profiles, _ = mine.sample(weights, PROMPTS[:6], range(6), key, mine.how(3, 1.0))
    drawn, unended = mine.texts(profiles)
    counts = np.asarray(profiles.mask).sum(-1)
    assert texts == [max(of_row, key=len) for of_row in drawn] and len(set(sum(drawn, []))) > 6
    for row, text, tokens, ended in kept:
        best = drawn[row].index(text)
        assert (text, tokens, ended) == (texts[row], counts[row, best], not unended[row, best])
    assert sorted(row for row, *_ in kept) == list(range(6))


def test_write_keeps_order_and_goes_on_where_it_stopped():
    (mine, weights), key, kept = writer(lengths=(16,), batch=4), jax.random.key(1), []
    numbers = np.arange(100, 111)

    def write(rows, temperature, **more):
        return mine.write(
            weights, [PROMPTS[i] for i in rows], numbers[rows], key, generation.Draws(temperature), **more
        )

    def keep(rows, texts, tokens, ended):
        kept.extend(zip(rows, texts, tokens, ended, strict=True))

    every = list(range(11))
    for temperature in (0.0, 1.0):  # in order, and none depends on the others
        texts = write(every, temperature)
        assert texts == [write([i], temperature)[0] for i in every]
    assert len(set(texts)) > 5
    assert write(every, 1.0, known={i: "known" for i in every}) == ["known"] * 11
    # batches are those of prompts sorted by length: 0, 5, 10, 1 are the first
    known = {0: "known 0", 5: "known 5", 7: "known 7"}
    found = write(every, 1.0, known=known, keep=keep)
    assert found == [known.get(i, texts[i]) for i in every]
    assert sorted(row for row, *_ in kept) == [i for i in every if i not in known]
    assert all(text == texts[row] for row, text, *_ in kept)
    assert all(1 <= tokens <= 6 and len(text.split()) <= tokens for _, text, tokens, _ in kept)
    assert all(ended or tokens == 6 for *_, tokens, ended in kept)


def test_texts_and_which_never_ended():
    word = TOKENIZER.convert_tokens_to_ids
    eos, comet, film = word("<|im_end|>"), word("comet"), word("films")
    tokens = np.array([[[comet, film, eos], [comet, film, film]], [[eos, 0, 0], [film, eos, 0]]])
    mask = np.array([[[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]], bool)
    profiles = generation.Profiles(tokens, mask, None)
    plain, started = writer()[0], writer(start="likes ")[0]
    plain.ends = started.ends = (eos,)
    texts, unended = plain.texts(profiles)
    assert texts == [["comet films", "comet films films"], ["", "films"]]
    assert unended.tolist() == [[False, True], [False, False]]
    assert started.texts(profiles)[0] == [["likes comet films", "likes comet films films"], ["", "likes films"]]
