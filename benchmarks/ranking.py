"""Ranking: 64 profiles against 12 thousand, 100 thousand and 1 million items of 384 dimensions.

Ours is ranking.target_ranks: where each profile's next item stands among all items without the history, counted. The
peers: the same counting in torch, torch's product and top 100, and faiss's flat index and its best 100 (which hides
no history). A turn ranks several batches, as a test does. Profiles, items, targets and a history of 128 items for each profile are drawn at random.
"""

import functools

import numpy as np

from benchmarks import harness

SIZES, PROFILES, WIDTH, HISTORY, BEST = (12_000, 100_000, 1_000_000), 64, 384, 128, 100


def drawn(items: int):
    """Unit-length profiles and items, float32; a target [64, 1] and a history [64, 128] without it, int32."""
    rng = np.random.default_rng(0)

    def unit(n):
        found = rng.standard_normal((n, WIDTH), np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    profiles, catalogue = unit(PROFILES), unit(items)
    chosen = np.stack([rng.choice(items, HISTORY + 1, replace=False) for _ in range(PROFILES)]).astype(np.int32)
    return profiles, catalogue, chosen[:, :1], chosen[:, 1:]


def ours(items: int):
    """ranking.target_ranks; returns the ranks."""
    import jax

    from lpt_jax import ranking

    there = [jax.device_put(array) for array in drawn(items)]
    return lambda: np.asarray(ranking.target_ranks(*there))


def in_torch(items: int, options, sort: bool):
    """The product and the history hidden, then counting (returns the ranks), or the top 100."""
    import torch

    from benchmarks import torch_device

    torch_device.use(options)
    profiles, catalogue, targets, hidden = map(torch_device.tensor, drawn(items))
    targets, hidden = targets.long(), hidden.long()

    @torch.no_grad()
    def run():
        scores = profiles @ catalogue.T
        wanted = scores.gather(1, targets)
        scores.scatter_(1, hidden, -torch.inf)
        if sort:
            torch.topk(scores, BEST)
            return torch_device.wait()
        return (1 + (scores > wanted).sum(1, keepdim=True)).cpu().numpy()

    return run


def in_faiss(items: int, threads: int):
    """IndexFlatIP.search."""
    import faiss

    faiss.omp_set_num_threads(threads)
    profiles, catalogue, _, _ = drawn(items)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(catalogue)

    def run():
        index.search(profiles, BEST)

    return run


def needs(options, items: int) -> dict:
    """Floor of the product."""
    from benchmarks import floors

    return {"whole": [floors.ranking(PROFILES, items, WIDTH)]}


def cases(options) -> list[harness.Case]:
    """One for each size of the catalogue."""
    found = []
    for items in (2_000,) if options.tiny else SIZES:
        peers = {
            "torch, counting": functools.partial(in_torch, items, options, False),
            "torch, top 100": functools.partial(in_torch, items, options, True),
            "faiss flat, 100 best": functools.partial(in_faiss, items, options.threads),
        }
        mine, least = functools.partial(ours, items), functools.partial(needs, items=items)
        case = harness.Case(f"ranking-{items}", "float32", mine, peers, least, rounds=15, warm_up=2,
                            repeats=max(2, 200_000 // items), alike=1e-3)  # fmt: skip
        found.append(case)
    return found
