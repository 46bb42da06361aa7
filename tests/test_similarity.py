"""Embedding, several texts to a line, gives every text what it gets alone, in order, on one device or eight."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lpt_jax import devices, similarity
from lpt_jax.config import default
from lpt_jax.data import batches
from lpt_jax.data.made_up import tiny_tokenizer
from lpt_jax.models import encoder, layers
from lpt_jax.models.weights import Source

TOKENIZER = tiny_tokenizer()
SPEC = encoder.EncoderSpec(vocab=len(TOKENIZER), width=16, layers=2, heads=2, hidden=24, positions=64, max_tokens=40)


def made() -> similarity.DualEncoder:
    graph, state = nnx.split(encoder.TextEncoder(SPEC, nnx.Rngs(params=jax.random.key(0))))
    text_encoder = nnx.merge(graph, jax.tree.map(lambda a: 10 * a, layers.plain(state)))
    text_encoder.source = Source(TOKENIZER, TOKENIZER.pad_token_id)
    return similarity.DualEncoder(text_encoder)


DUAL = made()
GRAPH, WEIGHTS = nnx.split(DUAL)
WEIGHTS = layers.plain(WEIGHTS)
embed_texts = functools.partial(similarity.embed_texts, GRAPH, WEIGHTS, DUAL.encoder)
WORDS = sorted(set(TOKENIZER.get_vocab()) - set(TOKENIZER.all_special_tokens))
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, n)) for n in (3, 30, 0, 17, 1, 60, 9, 25, 2, 12, 5)]


@jax.jit
def embed(tokens, mask):
    return nnx.merge(GRAPH, WEIGHTS).encoder(tokens, mask)


def expected(texts):
    """All texts in one batch, padded to the limit."""
    rows = [TOKENIZER(text)["input_ids"][:40] or [TOKENIZER.pad_token_id] for text in texts]
    rows += [[1]] * (len(TEXTS) - len(rows))
    tokens, mask = (a[:, ::-1] for a in batches.pad_left([row[::-1] for row in rows], 40, TOKENIZER.pad_token_id))
    return np.asarray(embed(tokens, mask))[: len(texts)]


@pytest.mark.parametrize("batch", [4, 64])
def test_every_text_gets_its_own_embedding_in_order(batch):
    found, cut = embed_texts(TEXTS, batch)
    assert found.shape == (11, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert cut.tolist() == [len(text.split()) > 40 for text in TEXTS]


def test_prefix_and_limit():
    prefix = f"{WORDS[3]} {WORDS[4]} "
    found, cut = embed_texts([prefix + text for text in TEXTS[:2]], limit=8)
    cut_texts = [prefix + TEXTS[0], " ".join((prefix + TEXTS[1]).split()[:8])]
    np.testing.assert_allclose(found, expected(cut_texts), atol=1e-5)
    assert cut.tolist() == [False, True]


def test_no_texts():
    found, cut = embed_texts([])
    assert found.shape == (0, 16) and cut.shape == (0,)


def test_few_shapes_are_compiled():
    similarity.embed_batch.clear_cache()
    for count in (11, 9, 500, 300):
        embed_texts((TEXTS * 50)[:count], batch=8)
    assert similarity.embed_batch._cache_size() <= 8


def test_eight_devices_equal_one():
    mesh = devices.make_mesh({"data": 4, "fsdp": 2, "model": 1})
    dual = made()
    dual.set_attributes(mesh=mesh)
    spread = devices.place(WEIGHTS, mesh, layers.axes_of(dual))
    found, _ = similarity.embed_texts(nnx.graphdef(dual), spread, dual.encoder, TEXTS, batch=8, mesh=mesh)
    np.testing.assert_allclose(found, expected(TEXTS), atol=1e-5)


def test_the_dual_encoder_alone():
    np.testing.assert_allclose(DUAL.embed(TEXTS), expected(TEXTS), atol=1e-5)
    prefixed = made()
    prefixed.encoder.spec = dataclasses.replace(SPEC, query_prefix=f"{WORDS[3]} ")
    profiles = prefixed.embed(TEXTS[:2], profiles=True)
    np.testing.assert_allclose(profiles, expected([f"{WORDS[3]} {text}" for text in TEXTS[:2]]), atol=1e-5)
    assert DUAL.tokenizer is TOKENIZER


def test_the_catalogue_is_kept_by_weights_and_texts(tmp_path):
    """A second process reads it; other weights or texts make it anew, and the old one goes."""
    settings = default().embedder

    def items(weights, texts):
        embedder = similarity.Embedder(
            made(), settings, devices.make_mesh({"data": -1, "fsdp": 1, "model": 1}), tmp_path
        )
        return np.asarray(embedder.catalogue(embedder.place(weights), texts, keep=True))[: len(texts), :-1]

    np.testing.assert_allclose(items(WEIGHTS, TEXTS), expected(TEXTS), atol=1e-5)
    (file,) = tmp_path.rglob("*.npy")
    np.save(file, np.load(file) + 1)  # to see that it is read
    np.testing.assert_allclose(items(WEIGHTS, TEXTS), expected(TEXTS) + 1, atol=1e-5)
    np.testing.assert_allclose(items(WEIGHTS, TEXTS[::-1]), expected(TEXTS)[::-1], atol=1e-5)
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    other = items(jax.tree.map(lambda a: 0.9 * a, WEIGHTS), TEXTS[::-1])
    assert np.abs(other - expected(TEXTS)[::-1]).max() > 1e-4
