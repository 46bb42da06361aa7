"""A decoder-only model that names items: its passes are the Decoder's, cached steps the whole pass's, a folder goes both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from lpt_jax import search
from lpt_jax.errors import InputError
from lpt_jax.item_writer import scratch_tokenizer
from lpt_jax.models.decoder import Decoder, DecoderSpec
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.models.weights import Source

LEVELS, WIDTH = 2, 3


def made(**changes):
    tokenizer = scratch_tokenizer(["red blue"], 80)
    shape = dict(width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24) | changes
    lm = Decoder(DecoderSpec("llama", len(tokenizer), **shape), nnx.Rngs(0))
    lm.source = Source(tokenizer, tokenizer.pad_token_id, frozenset({tokenizer.eos_token_id}))
    return ItemDecoder(lm, LEVELS, WIDTH, nnx.Rngs(1))


def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(7) < np.array([[7], [4]])
    return np.where(mask, rng.integers(1, 40, (2, 7)), 0), mask, rng.integers(1, 40, (2, 3, 4))


def test_a_pass_is_the_decoder_s_over_text_and_answer():
    lm, (tokens, mask, written) = made(), batch()
    found = lm.logits(lm.decode(lm.encode(tokens, mask), mask, written))
    for row, (text, of_row) in enumerate(zip(tokens, mask)):
        for answer in range(3):
            line = np.r_[text[of_row], written[row, answer]][None]
            alone = lm.lm(line, np.ones_like(line, bool))[0, of_row.sum() :]
            np.testing.assert_allclose(found[row, answer], alone, atol=1e-5)


def test_steps_are_the_whole_pass_and_follow_their_parents():
    lm, (tokens, mask, written) = made(), batch()
    text = lm.encode(tokens, mask)
    parent = np.array([[2, 0, 0], [1, 1, 2]])
    moved = np.take_along_axis(written, parent[..., None], 1)
    whole, other = (
        lm.decode(text, mask, written),
        lm.decode(text, mask, np.concatenate([moved[..., :2], written[..., 2:]], -1)),
    )
    caches = lm.begin(text, mask, 3, 4)
    for t in range(4):
        if t == 2:
            caches = lm.of_parents(caches, jnp.asarray(parent))
        states, caches = lm.step(caches, mask, written[..., t], jnp.int32(t))
        np.testing.assert_allclose(states, (whole if t < 2 else other)[:, :, t], atol=1e-5)


def test_code_words_are_read_and_scored_as_words_of_their_own():
    lm, (tokens, mask, _) = made(), batch()
    size = np.std(lm.codes.table[...]) / np.std(lm.lm.embed.table[...])
    assert 0.5 < size < 2
    ids = np.array([[3, lm.spec.vocab + 4]])
    np.testing.assert_array_equal(lm.embed_tokens(ids)[0, 1], lm.codes.table[...][4])
    np.testing.assert_array_equal(lm.embed_tokens(ids)[0, 0], lm.lm.embed.table[...][3])
    digits = np.array([[[0, 2]], [[1, 1]]])
    text = lm.encode(tokens, mask)
    found = search.chances(lm, search.states(lm, text, mask, digits), digits)
    states = np.asarray(lm.decode(text, mask, np.stack([[[0, lm.spec.vocab + d[0][0]]] for d in digits])))
    for row in range(2):
        for level in range(LEVELS):
            own = states[row, 0, level] @ np.asarray(lm.code_head.kernel[...])[:, level * WIDTH : (level + 1) * WIDTH]
            wanted = own[digits[row, 0, level]] - np.log(np.exp(own).sum())
            assert float(found[row, 0, level]) == pytest.approx(wanted, abs=1e-5)


def test_recomputed_activations_change_no_gradient():
    lm, (tokens, mask, _) = made(), batch()
    digits = np.array([[[0, 2]], [[1, 1]]])

    def slopes(remat):
        lm.remat = remat
        graph, state = nnx.split(lm)

        def loss(state):
            model = nnx.merge(graph, state)
            states = search.states(model, model.encode(tokens, mask), mask, digits)
            return search.chances(model, states, digits).sum()

        return jax.tree.leaves(jax.grad(loss)(state))

    for a, b in zip(slopes(False), slopes(True), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_folder_goes_both_ways(tmp_path):
    lm, (tokens, mask, written) = made(), batch()
    lm.save(tmp_path)
    again = ItemDecoder.load(tmp_path, LEVELS, WIDTH)
    for found, wanted in (
        (again.decode(again.encode(tokens, mask), mask, written), lm.decode(lm.encode(tokens, mask), mask, written)),
        (again.codes.table[...], lm.codes.table[...]),
        (again.code_head.kernel[...], lm.code_head.kernel[...]),
    ):
        np.testing.assert_array_equal(found, wanted)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 16
    with pytest.raises(InputError, match="has 6 code words, not 2 times 4"):
        ItemDecoder.load(tmp_path, LEVELS, 4)
    (tmp_path / "code_words.safetensors").unlink()
    with pytest.raises(InputError, match="no code_words.safetensors"):
        ItemDecoder.load(tmp_path, LEVELS, WIDTH)
