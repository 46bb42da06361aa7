"""Does our SASRec reach the published figures on Amazon Beauty, and do item ids in order of appearance leak the answer?

    python experiments/sasrec_beauty.py --data FOLDER     # three seeds of each loss; FOLDER/raw/sequential.txt

    python experiments/sasrec_beauty.py --data FOLDER --block=bert --seeds=1      # as in the published figures' repository

    python experiments/sasrec_beauty.py --data FOLDER --block=bert --b2=0.999 --losses=bce    # and with its optimiser

The figures' repository (S³-Rec) builds SASRec of BERT's blocks: a norm after each part and on the embeddings, two heads, an
output matrix, GELU in four times the width, batches of 256. --block=bert is that; --block=paper, the library's. Its Adam
is PyTorch's, whose second moments fade more slowly: a rare item's step is then several times as long.
The benchmark's protocol: leave one out (a user's last item tests, the one before it validates), all items are ranked
without the history, item ids shuffled. Writes experiments/sasrec_beauty.md and .json after every seed, and goes on from there.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import files, metrics, ranking
from lpt_jax.baselines import sasrec, simple
from lpt_jax.data.sessions import Session

HERE = Path(__file__).resolve().parent
SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
PUBLISHED = ".0387 | .0249 | .0605 | .0318"  # SASRec of the S³-Rec repository


def read(path: Path) -> tuple[list[np.ndarray], int]:
    """Every user's items in order, numbered from 0 as in the file, and how many items there are."""
    users = [np.array(line.split()[1:], int) - 1 for line in path.read_text().splitlines()]
    return users, 1 + max(int(u.max()) for u in users)


def session(user: int, items: np.ndarray) -> Session:
    """The last item is the target, all before it the history."""
    items = items.tolist()
    return Session(str(user), tuple(items[:-1]), None, None, (items[-1],), float("nan"))


class InOrder:
    """Scores by ids alone: the item after the history's greatest id, then the one after that, ..."""

    def __init__(self, sessions, items):
        self.after, self.items = np.array([max(s.history) for s in sessions]), items

    def __getitem__(self, rows):
        return -((np.arange(self.items) - self.after[rows][:, None] - 1) % self.items).astype(np.float32)


def values(sessions, profiles, items) -> dict[str, float]:
    """The shown metrics of a ranking."""
    row = metrics.table_row(
        metrics.per_user(ranking.session_ranks(profiles, items, sessions), [s.user for s in sessions])[1]
    )
    return {name: row[name] for name in SHOWN}


def bert_weights(items, settings, seed):
    """As sasrec.init_weights, of BERT's blocks."""
    rng, d, blocks = np.random.default_rng(seed), settings.width, settings.blocks
    shapes = {
        "item": (items, d),
        "position": (settings.max_items, d),
        "up": (blocks, d, 4 * d),
        "down": (blocks, 4 * d, d),
    }
    shapes |= {name: (blocks, d, d) for name in "qkvo"}
    zeros = {f"{name}_bias": (*shape[:1], shape[-1]) for name, shape in shapes.items() if len(shape) == 3}
    found = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    found |= {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    norms = {"norm": (d,), "attention_norm": (blocks, d), "feed_norm": (blocks, d)}
    for name, shape in norms.items():
        found |= {name: np.ones(shape, np.float32), f"{name}_bias": np.zeros(shape, np.float32)}
    return found


def bert_forward(w, tokens, texts, positions, heads=1, dropout=0.0, key=None):
    """As sasrec.forward, of BERT's blocks."""
    numbers = iter(range(99))

    def drop(x):
        if key is None or not dropout:
            return x
        kept = jax.random.bernoulli(jax.random.fold_in(key, next(numbers)), 1 - dropout, x.shape)
        return jnp.where(kept, x / (1 - dropout), 0)

    (b, t), d = tokens.shape, w["item"].shape[1]
    seen = (texts[:, :, None] == texts[:, None, :]) & jnp.tril(jnp.ones((t, t), bool))
    x = drop(sasrec._norm(w["item"][tokens] + w["position"][positions], w["norm"], w["norm_bias"]))
    for i in range(len(w["q"])):
        linear = lambda x, name, i=i: x @ w[name][i] + w[f"{name}_bias"][i]  # noqa: E731
        q, k, v = (linear(x, name).reshape(b, t, heads, d // heads) for name in "qkv")
        scores = jnp.where(seen[:, None], jnp.einsum("bqhd,bkhd->bhqk", q, k) / (d // heads) ** 0.5, -1e30)
        y = jnp.einsum("bhqk,bkhd->bqhd", drop(jax.nn.softmax(scores)), v).reshape(b, t, d)
        x = sasrec._norm(x + drop(linear(y, "o")), w["attention_norm"][i], w["attention_norm_bias"][i])
        y = drop(linear(jax.nn.gelu(linear(x, "up"), approximate=False), "down"))
        x = sasrec._norm(x + y, w["feed_norm"][i], w["feed_norm_bias"][i])
    return x


def table(found: dict) -> str:
    """The report in Markdown."""
    lines = ["# SASRec on Amazon Beauty 2014 (5-core)", "", found["protocol"], ""]
    lines += [
        "| | HR@5 | NDCG@5 | HR@10 | NDCG@10 | minutes |",
        "|---|---|---|---|---|---|",
        f"| published | {PUBLISHED} | |",
    ]
    runs = found["runs"]
    for loss in dict.fromkeys(run["loss"] for run in runs):
        same = [run for run in runs if run["loss"] == loss]
        for run in same:
            cells = [f"{run['test'][m]:.4f}" for m in SHOWN] + [f"{run['minutes']:.1f}, {run['device']}"]
            lines.append(
                f"| {loss}, seed {run['seed']} (best of {run['epochs']} epochs: {run['best_epoch']}) | {' | '.join(cells)} |"
            )
        if len(same) > 1:
            of = ([r["test"][m] for r in same] for m in SHOWN)
            spread = [f"**{np.mean(v):.4f}** ± {np.std(v, ddof=1):.4f}" for v in of]
            lines.append(f"| **{loss}, mean ± s.d. of {len(same)} seeds** | {' | '.join(spread)} | |")
    for name, row in found["rules"].items():
        lines.append(f"| {name} | {' | '.join(f'{row[m]:.4f}' for m in SHOWN)} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HERE.parent.parent / "shared/data/amazon_beauty_2014_5core", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", default="bce,softmax")
    parser.add_argument("--block", default="paper", choices=["paper", "bert"])
    parser.add_argument("--b2", default=0.98, type=float, help="Adam's; PyTorch's own default is 0.999")
    parser.add_argument(
        "--held_out", action="store_true", help="held-out items are no negatives, as in S3-Rec's repository"
    )
    options = parser.parse_args()
    users, items = read(options.data / "raw/sequential.txt")
    shuffled = np.random.default_rng(0).permutation(items)
    place = {"in order of appearance": np.arange(items), "shuffled": shuffled}
    rules = {}
    for name, ids in place.items():
        test = [session(u, ids[taken]) for u, taken in enumerate(users)]
        rules[f"rule: the ids after the history's greatest, ids {name}"] = values(test, InOrder(test, items), None)
    train = [shuffled[taken[:-2]].tolist() for taken in users]
    validation = [session(u, shuffled[taken[:-1]]) for u, taken in enumerate(users)]
    counts = np.bincount(np.concatenate(train), minlength=items)
    rules["popularity"] = values(test, *simple.popularity(test, counts))
    settings = config_lib.default().sasrec
    if options.block == "bert":
        settings.update(heads=2, batch=256)
        sasrec.init_weights, sasrec.forward = bert_weights, bert_forward
        sasrec._forward = jax.jit(bert_forward, static_argnames=("heads",))
    if options.held_out:
        known = np.unique(np.concatenate([shuffled[taken] + u * items for u, taken in enumerate(users)]))
        sasrec.negatives = lambda users, _, *rest, draw=sasrec.negatives: draw(users, known, *rest)
    path = HERE / "sasrec_beauty.json"
    found = json.loads(path.read_text()) if path.exists() else {"runs": []}
    settled = {"rules": rules, "protocol": (
        f"{len(users)} users, {items} items, {sum(map(len, users))} interactions; leave one out, early stopping on the item "
        f"before the last (NDCG@10), all {items} items ranked without the history, ids shuffled. SASRec: "
        + ", ".join(f"{name} {value}" for name, value in config_lib.default().sasrec.items() if name != "loss")
        + "; with BERT's blocks: batch 256, heads 2."
    )}  # fmt: skip
    found |= settled
    for loss in options.losses.split(","):
        for seed in range(options.seeds):
            row = (
                loss
                + ", BERT's blocks" * (options.block == "bert")
                + f", Adam's b2 {options.b2}" * (options.b2 != 0.98)
                + ", no negatives of the held-out" * options.held_out
            )
            if any((run["loss"], run["seed"]) == (row, seed) for run in found["runs"]):
                continue
            started, settings.loss = time.monotonic(), loss
            weights, note = sasrec.train(train, items, validation, settings, seed, b2=options.b2)
            minutes = (time.monotonic() - started) / 60
            test_values = values(test, sasrec.states(weights, test, settings.heads), weights["item"])
            found = json.loads(path.read_text()) | settled if path.exists() else found  # another call may have written
            found["runs"].append(
                {
                    "loss": row,
                    "seed": seed,
                    "test": test_values,
                    "minutes": minutes,
                    "device": jax.devices()[0].device_kind,
                }
                | note
            )
            files.write_file(path, json.dumps(found, indent=1) + "\n")
            files.write_file(path.with_suffix(".md"), table(found))
    print(table(found))


if __name__ == "__main__":
    main()
