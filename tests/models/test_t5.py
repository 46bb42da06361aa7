"""T5 v1.0 and v1.1 / FLAN against transformers: logits, gradients, padding, cached decoding, folders both ways."""

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from lpt_jax.data import made_up
from lpt_jax.errors import InputError
from lpt_jax.models import layers, t5, weights
from lpt_jax.models.personal_prompts import PersonalPrompt, PersonalSpec
from lpt_jax.models.t5 import T5

SHAPE = dict(d_model=32, d_kv=6, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4, dropout_rate=0.0)
SHAPE |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=0)
KINDS = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},  # and a head of its own, as in its files
}


def theirs(kind, vocab):
    """A random tiny T5 of transformers, with weights large enough that all parts matter."""
    config = transformers.T5Config(vocab_size=vocab, **SHAPE, **KINDS[kind])
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            middle = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(middle + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=list(KINDS))
def both(request, tmp_path_factory):
    """(transformers' model, ours that was read from its folder, the folder)."""
    folder, tokenizer = tmp_path_factory.mktemp(request.param), made_up.tiny_tokenizer()
    model = theirs(request.param, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if request.param == "flan":
        tensors = load_file(folder / "model.safetensors")
        head = np.random.default_rng(7).standard_normal(tensors["shared.weight"].shape).astype(np.float32)
        save_file(tensors | {"lm_head.weight": 0.2 * head}, folder / "model.safetensors", {"format": "pt"})
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        assert not torch.equal(model.lm_head.weight, model.shared.weight)
    return model, T5.load(folder), folder


def batch(vocab, seed=0):
    """Texts [3, 11] with padding on the right, and two continuations [3, 2, 5] of each, beginning with padding."""
    rng = np.random.default_rng(seed)
    tokens, written = rng.integers(1, vocab, (3, 11)), rng.integers(1, vocab, (3, 2, 5))
    mask = np.arange(11) < np.array([[11], [7], [4]])
    written[..., 0] = 0
    return np.where(mask, tokens, 0), mask, written


def logits_of(model, tokens, mask, written):
    """transformers' logits of every continuation."""
    texts, masks = (torch.tensor(np.repeat(a, written.shape[1], 0)) for a in (tokens, mask))
    flat = torch.tensor(written.reshape(-1, written.shape[2]))
    found = model(input_ids=texts, attention_mask=masks, decoder_input_ids=flat).logits
    return found.reshape(*written.shape, -1)


def test_logits_are_those_of_transformers(both):
    model, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)
    expected = logits_of(model, tokens, mask, written).detach().numpy()
    np.testing.assert_allclose(lm(tokens, mask, written), expected, atol=1e-5 * np.abs(expected).max())


def test_padding_and_company_change_nothing(both):
    _, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)
    whole = lm(tokens, mask, written)
    for row, length in enumerate(mask.sum(1)):
        alone = lm(tokens[row : row + 1, :length], mask[row : row + 1, :length], written[row : row + 1, 1:])
        np.testing.assert_allclose(alone[0, 0], whole[row, 1], atol=1e-4)


def test_gradients_are_those_of_transformers(both):
    model, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)
    slope = np.random.default_rng(1).standard_normal((*written.shape, lm.spec.vocab)).astype(np.float32)
    graph, state = nnx.split(lm)

    def value(tree):
        return jnp.sum(nnx.merge(graph, tree)(tokens, mask, written) * slope)

    ours = jax.tree.map(np.asarray, jax.grad(value)(layers.plain(state)))
    model.zero_grad()
    (logits_of(model, tokens, mask, written) * torch.tensor(slope)).sum().backward()
    theirs_by_key = {name: p.grad.numpy() for name, p in model.named_parameters()}
    named = weights.named_tensors(ours, weights.t5_keys(lm.spec.gated))
    assert set(named) == set(theirs_by_key)
    for key, expected in theirs_by_key.items():
        np.testing.assert_allclose(named[key], expected, atol=2e-4 * np.abs(expected).max(), err_msg=key)


def test_recomputed_activations_change_no_gradient(both):
    _, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)

    def slopes(remat):
        lm.remat = remat
        graph, state = nnx.split(lm)
        merged = jax.grad(lambda tree: jnp.sum(nnx.merge(graph, tree)(tokens, mask, written) ** 2))
        recomputes = "remat" in str(jax.make_jaxpr(merged)(layers.plain(state)))
        assert recomputes == remat
        return jax.tree.leaves(merged(layers.plain(state)))

    try:
        for a, b in zip(slopes(False), slopes(True), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1))
    finally:
        lm.remat = False


def test_cached_decoding_is_the_whole_pass(both):
    _, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)
    text = lm.encode(tokens, mask)
    whole, caches = lm.decode(text, mask, written), lm.begin(text, mask, 2, 5)
    for t in range(5):
        states, caches = lm.step(caches, mask, written[..., t], jnp.int32(t))
        np.testing.assert_allclose(states, whole[:, :, t], atol=1e-4)


def test_a_folder_goes_both_ways(both, tmp_path):
    model, lm, _ = both
    weights.save_t5(tmp_path, lm, 20)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert again.generation_config.max_new_tokens == 20 and again.config.decoder_start_token_id == 0
    assert T5.load(tmp_path).spec == lm.spec


def test_code_words_are_kept_and_begin_as_large_as_others(both, tmp_path):
    _, plain, folder = both
    lm = T5.load(folder, levels=2, digits=3)
    assert lm.codes.table.shape == (6, 32) and lm.spec.levels == 2
    assert 0.5 < np.std(lm.codes.table[...]) / np.std(plain.embed.table[...]) < 2
    tokens, mask, written = batch(lm.spec.vocab)
    np.testing.assert_allclose(lm(tokens, mask, written), plain(tokens, mask, written), atol=1e-5)
    ids = np.array([[3, lm.spec.vocab + 4]])
    np.testing.assert_array_equal(lm.embed_tokens(ids)[0, 1], lm.codes.table[...][4])
    np.testing.assert_array_equal(lm.embed_tokens(ids)[0, 0], lm.embed.table[...][3])
    x = np.random.default_rng(0).standard_normal((2, 2, 32)).astype(np.float32)
    scores = x @ np.asarray(lm.code_head.kernel[...])
    np.testing.assert_allclose(lm.code_logits(x), np.stack([scores[:, 0, :3], scores[:, 1, 3:]], 1), atol=1e-5)
    weights.save_t5(tmp_path, lm)
    again = T5.load(tmp_path, levels=2, digits=3)
    np.testing.assert_array_equal(again.codes.table[...], lm.codes.table[...])
    np.testing.assert_array_equal(again.code_head.kernel[...], lm.code_head.kernel[...])


def test_places_of_a_personal_prompt_are_read_as_its_vectors(both):
    """Of two texts in a line, each has its own: as if these vectors were embeddings of tokens."""
    _, plain, folder = both
    lm, spec = T5.load(folder), PersonalSpec("own", tasks=2, task_tokens=1, tokens=2, size=4)
    lm.personal = PersonalPrompt(spec, 32, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    who = {"task": np.array([[0, 1]]), "user": rng.standard_normal((1, 2, 4)).astype(np.float32)}
    slots = list(range(lm.slot, lm.slot + 3))
    rows = [[*slots, 5, 7], [*slots, 9]]
    tokens, texts = np.array([rows[0] + rows[1] + [0]]), np.array([[1] * 5 + [2] * 4 + [0]])
    packed = lm.encode(tokens, texts, who=who)
    vectors = np.asarray(lm.personal(who))
    table = np.concatenate([np.asarray(plain.embed.table[...]), vectors.reshape(6, 32)])
    plain.embed.table.set_value(jnp.asarray(table))
    plain.spec = dataclasses.replace(lm.spec, vocab=len(table))
    first = len(table) - 6
    for number, (row, at) in enumerate(zip(rows, (slice(0, 5), slice(5, 9)))):
        ids = np.array([[first + 3 * number + i - lm.slot if i >= lm.slot else i for i in row]])
        np.testing.assert_allclose(plain.encode(ids, np.ones_like(ids, bool))[0], packed[0, at], atol=1e-4)
    plain.embed.table.set_value(jnp.asarray(table[:first]))
    plain.spec = lm.spec


def test_dropout_hides_a_share_and_keeps_the_mean(both):
    _, lm, _ = both
    tokens, mask, written = batch(lm.spec.vocab)
    plain, key = lm.encode(tokens, mask), jax.random.key(0)
    one, other = (lm.encode(tokens, mask, dropout=0.3, key=jax.random.fold_in(key, i)) for i in range(2))
    assert not np.allclose(one, other) and not np.allclose(one, plain)
    np.testing.assert_array_equal(lm.encode(tokens, mask, dropout=0.3), plain)
    many = t5.dropped(jnp.ones(10_000), 0.3, key, 0)
    assert abs(float((many == 0).mean()) - 0.3) < 0.02 and abs(float(many.mean()) - 1) < 0.02
    assert not np.allclose(lm.decode(plain, mask, written, 0.3, key), lm.decode(plain, mask, written))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model_type": "llama"}, "model_type 'llama' is no T5"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu' is not supported"),
    ],
)
def test_other_families_get_a_sentence(changes, told):
    with pytest.raises(InputError, match=told):
        t5.spec_from_hf({"model_type": "t5"} | changes, True)


def test_docstrings():
    assert doctest.testmod(t5).failed == 0
