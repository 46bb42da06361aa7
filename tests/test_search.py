"""The beam over a trie, of a T5 and of a decoder-only model: all items one by one, transformers' constrained search, hidden items, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from lpt_jax import search
from lpt_jax.data import codes
from lpt_jax.models import layers, weights
from lpt_jax.models.decoder import Decoder, DecoderSpec
from lpt_jax.models.item_decoder import ItemDecoder
from lpt_jax.models.t5 import T5, T5Spec

LEVELS, WIDTH, ITEMS = 3, 4, 37
SPEC = T5Spec(
    vocab=23, width=16, layers=2, decoder_layers=2, heads=2, head_dim=8, hidden=24, levels=LEVELS, digits=WIDTH
)


DECODER = DecoderSpec("llama", vocab=23, width=16, layers=3, heads=4, kv_heads=2, head_dim=4, hidden=24)


def decoder_only() -> ItemDecoder:
    """Two layers of three are apart, as where the last one trains."""
    lm = Decoder(DECODER, nnx.Rngs(0))
    lm.divide(2)
    return ItemDecoder(lm, LEVELS, WIDTH, nnx.Rngs(0))


@pytest.fixture(scope="module", params=["t5", "decoder"])
def lm(request):
    """A random model, with weights large enough that probabilities differ."""
    graph, state = nnx.split(T5(SPEC, nnx.Rngs(0)) if request.param == "t5" else decoder_only())
    rng = np.random.default_rng(0)

    def make(path, leaf):
        middle = float(path[-1].key == "scale")
        return jnp.asarray(middle + 0.4 * rng.standard_normal(leaf.shape), jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(make, layers.plain(state)))


@pytest.fixture(scope="module")
def known():
    found = codes.shuffled(ITEMS, LEVELS, WIDTH, 3)
    return found, tuple(map(jnp.asarray, codes.trie(found).next_of))


def texts():
    rng = np.random.default_rng(1)
    mask = np.arange(9) < np.array([[9], [6], [3]])
    return np.where(mask, rng.integers(1, 23 + LEVELS * WIDTH, (3, 9)), 0).astype(np.int32), mask


def split(lm):
    graph, state = nnx.split(lm)
    return graph, layers.plain(state)


def one_by_one(lm, tokens, mask, digits):
    """log p of every item for every text, by whole passes over one code each."""
    scores = np.empty((len(tokens), len(digits)))
    for item, code in enumerate(digits):
        words = SPEC.vocab + WIDTH * np.arange(LEVELS) + code
        written = np.broadcast_to(np.r_[0, words[:-1]], (len(tokens), 1, LEVELS))
        states = np.asarray(lm.decode(lm.encode(tokens, mask), mask, written))[:, 0]
        logits = states @ np.asarray(lm.code_head.kernel[...])
        for level, digit in enumerate(code):
            own = logits[:, level, WIDTH * level : WIDTH * (level + 1)].astype(np.float64)
            chances = own - np.log(np.exp(own).sum(1, keepdims=True))
            scores[:, item] = chances[:, digit] + (scores[:, item] if level else 0)
    return scores


def test_a_beam_of_all_is_scoring_one_by_one(lm, known):
    (tokens, mask), (found, tables) = texts(), known
    expected = one_by_one(lm, tokens, mask, found.digits)
    hidden = np.array([[3, 5], [0, -1], [-1, -1]], np.int32)
    ids, scores = map(np.asarray, search.beam(*split(lm), tokens, mask, tables, hidden, 64))
    for row, line in enumerate(expected):
        left = [item for item in np.argsort(-line) if item not in hidden[row]]
        assert ids[row][: len(left)].tolist() == left and set(ids[row][len(left) :]) == {-1}
        np.testing.assert_allclose(scores[row][: len(left)], line[left], atol=1e-4)
        assert np.isneginf(scores[row][len(left) :]).all()
    np.testing.assert_allclose(np.exp(expected).sum(1) <= 1 + 1e-6, True)


@pytest.mark.parametrize("levels, width", [(1, ITEMS), (2, 7)])
def test_a_beam_of_all_over_codes_of_another_shape(levels, width):
    """Of a word for each item, and of fewer words than beams: all items, by their likelihoods, most likely first."""
    graph, weights = split(T5(dataclasses.replace(SPEC, levels=levels, digits=width), nnx.Rngs(2)))
    (tokens, mask), found = texts(), codes.shuffled(ITEMS, levels, width, 4)
    digits = np.broadcast_to(found.digits, (3, ITEMS, levels)).astype(np.int32)
    expected = np.asarray(search.likelihoods(graph, weights, tokens, mask, digits))
    np.testing.assert_allclose(np.exp(expected).sum(1) <= 1 + 1e-5, True)
    tables, nothing = tuple(map(jnp.asarray, codes.trie(found).next_of)), np.full((3, 1), -1, np.int32)
    ids, scores = map(np.asarray, search.beam(graph, weights, tokens, mask, tables, nothing, 64))
    for row, line in enumerate(expected):
        assert sorted(ids[row][:ITEMS]) == list(range(ITEMS)) and set(ids[row][ITEMS:]) == {-1}
        np.testing.assert_allclose(scores[row][:ITEMS], np.sort(line)[::-1], atol=1e-5)
        np.testing.assert_allclose(line[ids[row][:ITEMS]], scores[row][:ITEMS], atol=1e-5)


def test_candidates_are_scored_as_one_by_one(lm, known):
    (tokens, mask), (found, _) = texts(), known
    chosen = np.array([[1, 30, 7], [2, 2, 36], [0, 5, 9]])
    expected = np.take_along_axis(one_by_one(lm, tokens, mask, found.digits), chosen, 1)
    got = search.likelihoods(*split(lm), tokens, mask, found.digits[chosen].astype(np.int32))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_no_row_changes_with_its_company(lm, known):
    (tokens, mask), (_, tables) = texts(), known
    nothing = np.full((3, 1), -1, np.int32)
    ids, scores = search.beam(*split(lm), tokens, mask, tables, nothing, 5)
    for row, length in enumerate(mask.sum(1)):
        alone = search.beam(
            *split(lm), tokens[row : row + 1, :length], mask[row : row + 1, :length], tables, nothing[:1], 5
        )
        np.testing.assert_array_equal(alone[0][0], ids[row])
        np.testing.assert_allclose(alone[1][0], scores[row], atol=1e-4)


class OfLevel(transformers.LogitsProcessor):
    """What transformers' search needs to score as ours: each step's softmax over that digit's words, of real codes alone."""

    def __init__(self, digits, before):
        self.codes, self.before = {tuple(code) for code in digits.tolist()}, before

    def __call__(self, ids, scores):
        level = ids.shape[1] - self.before
        first = SPEC.vocab + WIDTH * level
        own = torch.log_softmax(scores[:, first : first + WIDTH], -1)
        out = torch.full_like(scores, -float("inf"))
        for row, prefix in enumerate((ids[:, self.before :] - SPEC.vocab - WIDTH * torch.arange(level)).tolist()):
            for digit in range(WIDTH):
                if any(code[: level + 1] == (*prefix, digit) for code in self.codes):
                    out[row, first + digit] = own[row, digit]
        return out


def theirs_of(lm):
    """transformers' model of the same weights, whose vocabulary holds the code words."""
    named = layers.plain(nnx.state(lm))
    if isinstance(lm, ItemDecoder):
        codes, head = named["codes"]["table"], named["code_head"]["kernel"].T
        named = weights.named_tensors(named["lm"], weights.decoder_keys(False, model="model."))
        for key, rows in (("model.embed_tokens.weight", codes), ("lm_head.weight", head)):
            named[key] = np.concatenate([named[key], rows])
        shape = dict(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24
        )
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=SPEC.vocab + LEVELS * WIDTH, rms_norm_eps=1e-6, eos_token_id=None, bos_token_id=None, pad_token_id=0, **shape
            )
        ).eval()  # fmt: skip
        model.load_state_dict({key: torch.tensor(np.array(tensor)) for key, tensor in named.items()})
        return model
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=SPEC.vocab + LEVELS * WIDTH, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0, decoder_start_token_id=0, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    named = weights.named_tensors(named, weights.t5_keys(True))
    named["shared.weight"] = np.concatenate([named["shared.weight"], named.pop("codes.weight")])
    named["lm_head.weight"] = np.concatenate([named["lm_head.weight"], named.pop("code_head.weight")])
    model.lm_head.weight = torch.nn.Parameter(torch.tensor(named.pop("lm_head.weight")))
    missing, unexpected = model.load_state_dict({k: torch.tensor(np.array(v)) for k, v in named.items()}, strict=False)
    assert not unexpected and all("embed_tokens" in key or key == "lm_head.weight" for key in missing)
    return model


def test_it_finds_what_transformers_search_finds(lm, known):
    """By num_beams and a processor that allows real codes. A decoder-only model reads texts with the mark at their end."""
    (tokens, mask), (found, tables) = texts(), known
    read, seen, before = tokens, mask, 1
    if isinstance(lm, ItemDecoder):
        rows = [[*row[of_row], 0] for row, of_row in zip(tokens, mask)]
        before = max(map(len, rows))
        seen = np.array([[0] * (before - len(row)) + [1] * len(row) for row in rows])
        read = np.array([[0] * (before - len(row)) + row for row in rows])
    theirs = theirs_of(lm).generate(
        torch.tensor(read.astype(np.int64)), attention_mask=torch.tensor(seen.astype(np.int64)), num_beams=4, num_return_sequences=4,
        min_new_tokens=LEVELS, max_new_tokens=LEVELS, do_sample=False, length_penalty=0.0, logits_processor=[OfLevel(found.digits, before)],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    items = {tuple(code): item for item, code in enumerate(found.digits.tolist())}
    written = (theirs.sequences[:, before:] - SPEC.vocab - WIDTH * torch.arange(LEVELS)).tolist()
    expected = np.array([items[tuple(code)] for code in written]).reshape(3, 4)
    ids, scores = search.beam(*split(lm), tokens, mask, tables, np.full((3, 1), -1, np.int32), 4)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, theirs.sequences_scores.numpy().reshape(3, 4), atol=1e-4)


def test_first_words_are_a_softmax_over_the_words_asked_for(lm):
    tokens, mask = texts()
    words = jnp.array([4, 9, 2])
    start = np.zeros((3, 1, 1), np.int32)
    logits = np.asarray(lm.logits(lm.decode(lm.encode(tokens, mask), mask, start)))[:, 0, 0][:, [4, 9, 2]].astype(
        np.float64
    )
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(search.first_words(*split(lm), tokens, mask, words), expected, rtol=1e-4)
