"""Embedding, several texts to a line, gives every text what it gets alone, in order, on one device or eight."""

import jax
import numpy as np
import pytest

from lpt_jax import devices, similarity
from lpt_jax.data import batches
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.models import encoder

TOKENIZER = tiny_tokenizer()
SPEC = encoder.EncoderSpec(vocab=len(TOKENIZER), width=16, layers=2, heads=2, hidden=24, positions=64, max_tokens=40)
WEIGHTS = jax.tree.map(lambda a: 10 * a, encoder.init_weights(SPEC, jax.random.key(0)))
WORDS = sorted(set(TOKENIZER.get_vocab()) - set(TOKENIZER.all_special_tokens))
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, n)) for n in (3, 30, 0, 17, 1, 60, 9, 25, 2, 12, 5)]


embed = jax.jit(encoder.embed, static_argnums=0)


def expected(texts):
    """All texts in one batch, padded to the limit."""
    rows = [TOKENIZER(text)["input_ids"][:40] or [TOKENIZER.pad_token_id] for text in texts]
    rows += [[1]] * (len(TEXTS) - len(rows))
    tokens, mask = (a[:, ::-1] for a in batches.pad_left([row[::-1] for row in rows], 40, TOKENIZER.pad_token_id))
    return np.asarray(embed(SPEC, WEIGHTS, tokens, mask))[: len(texts)]


@pytest.mark.parametrize("batch", [4, 64])
def test_every_text_gets_its_own_embedding_in_order(batch):
    found, cut = similarity.embed_texts(SPEC, WEIGHTS, TOKENIZER, TEXTS, batch)
    assert found.shape == (11, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert cut.tolist() == [len(text.split()) > 40 for text in TEXTS]


def test_prefix_and_limit():
    prefix = f"{WORDS[3]} {WORDS[4]} "
    found, cut = similarity.embed_texts(SPEC, WEIGHTS, TOKENIZER, TEXTS[:2], max_tokens=8, prefix=prefix)
    cut_texts = [prefix + TEXTS[0], " ".join((prefix + TEXTS[1]).split()[:8])]
    np.testing.assert_allclose(found, expected(cut_texts), atol=1e-5)
    assert cut.tolist() == [False, True]


def test_no_texts():
    found, cut = similarity.embed_texts(SPEC, WEIGHTS, TOKENIZER, [])
    assert found.shape == (0, 16) and cut.shape == (0,)


def test_few_shapes_are_compiled():
    similarity.embed_batch.clear_cache()
    for count in (11, 9, 500, 300):
        similarity.embed_texts(SPEC, WEIGHTS, TOKENIZER, (TEXTS * 50)[:count], batch=8)
    assert similarity.embed_batch._cache_size() <= 8


def test_eight_devices_equal_one():
    mesh = devices.make_mesh({"data": 4, "fsdp": 2, "model": 1})
    spread = devices.place(WEIGHTS, mesh)
    found, _ = similarity.embed_texts(SPEC, spread, TOKENIZER, TEXTS, batch=8, mesh=mesh)
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-5)
