"""Metrics of names by hand, and against the library's own calls."""

import sys

import numpy as np
import pytest
import sacrebleu

from lpt_jax import text_metrics

NAMES = ["Nail Polish", "Hair Color", "Shampoo"]
WHERE = {"nail polish": 0, "hair color": 1, "shampoo": 2, "nails": 0.4, "": 1}


def embed(texts):
    """Angles: a name's, or one between two."""
    angles = np.array([WHERE[text.lower()] for text in texts], float)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_the_nearest_of_all_names_and_the_cosine_with_the_true_one():
    found = text_metrics.nearness(["nails", "Shampoo", "nails", ""], [0, 2, 1, 1], NAMES, embed)
    assert found["top1"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(found["cosine"], [np.cos(0.4), 1.0, np.cos(0.6), 0.0], atol=1e-12)
    assert found["chrf"][1] == pytest.approx(100) and 0 < found["chrf"][0] < 100 and found["bleu"][3] == 0


def test_chrf_and_bleu_are_the_librarys():
    pairs = [("Nail polish remover", ["Nail Polish"]), ("hair", ["Hair Color"])]
    found = text_metrics.by_sacrebleu(pairs)
    for i, (text, (reference,)) in enumerate(pairs):
        text, reference = text.lower(), reference.lower()
        assert found["chrf"][i] == sacrebleu.CHRF().sentence_score(text, [reference]).score
        assert found["bleu"][i] == sacrebleu.BLEU(effective_order=True).sentence_score(text, [reference]).score


def test_without_the_library_they_are_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert set(text_metrics.nearness(["nails"], [0], NAMES, embed)) == {"top1", "cosine"}


def test_a_name_that_is_everybodys_is_not_special():
    groups = embed(NAMES)
    alike = text_metrics.others_share(["nails", "Nails", "nails"], embed(["nails"] * 3), groups)
    assert alike.tolist() == [1, 1, 1]
    own = text_metrics.others_share(NAMES, embed(NAMES), groups)
    assert own.tolist() == [0, 0, 0]
