"""How near written names are to true ones: found among all true names, cosine, chrF, BLEU; and how special they are.

chrF and BLEU are sacrebleu's (`pip install "lpt_jax[text]"`), which leaves them out where it is not installed. On names of two
words BLEU says little.
"""

import numpy as np


def nearness(written: list[str], true: list[int], names: list[str], embed) -> dict[str, np.ndarray]:
    """For each written name its metrics, Float[n], by which of `names` is the true one.

    top1: 1 where of all names the true one is the nearest by embed(texts), unit vectors Float[n, D], as the first of equals; cosine:
    with the true one; chrf, bleu: 0 to 100. An empty name has 0 of all.
    """
    vectors, known, true = embed(written), embed(names), np.asarray(true)
    cosines = vectors @ known.T
    said = np.array([bool(text.strip()) for text in written])
    found = {
        "top1": (cosines.argmax(1) == true) & said,
        "cosine": np.where(said, cosines[np.arange(len(true)), true], 0.0),
    }
    pairs = [(text, [names[of]]) for text, of in zip(written, true, strict=True)]
    return {name: np.asarray(values, np.float64) for name, values in (found | by_sacrebleu(pairs)).items()}


def by_sacrebleu(pairs: list[tuple[str, list[str]]]) -> dict[str, list[float]]:
    """chrF and BLEU of each (text, its references), in lower case; {} without sacrebleu."""
    try:
        import sacrebleu  # here, as it is an extra
    except ImportError:
        return {}
    pairs = [(text.lower(), [reference.lower() for reference in references]) for text, references in pairs]
    return {
        "chrf": [sacrebleu.sentence_chrf(*pair).score for pair in pairs],
        "bleu": [sacrebleu.sentence_bleu(*pair, use_effective_order=True).score for pair in pairs],
    }


def others_share(written: list[str], vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each written name the share of the other groups for which it is the nearest name, Float[n]: less is more special.

    vectors, groups: unit vectors Float[n, D] of the names and of what they name. A group is nobody's own: one called alike
    counts too.

    >>> others_share(["a", "b"], np.eye(2), np.array([[0.9, 0.1], [0.8, 0.2]])).tolist()
    [1.0, 0.0]
    """
    nearest = (groups @ vectors.T).argmax(1)
    said = np.array([text.lower().strip() for text in written])
    alike = said[:, None] == said[nearest][None]
    np.fill_diagonal(alike, False)
    return alike.sum(1) / max(len(written) - 1, 1)
