"""How much of a batch shall be edits, and what obeys a dislike: the embedder, or the score that subtracts what is rejected?

    python experiments/edits.py [--shares=0,0.25] [--seeds=0,1,2] [--steps=160]

Contrastive learning on summaries alone, so that no language model is needed: 5 to 8 minutes a share and seed on 2 CPU cores,
with the sessions of configs/movielens.py:long. What is subtracted and how far the weights go is compared on the validation
users; the configs' own setting (all the way, .4) is tested too. edits.json and edits.md are written as each run ends.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from lpt_jax import audit, evaluate, files, metrics, train
from lpt_jax.config import load
from lpt_jax.run import Run
from lpt_jax.systems import profiles

HERE = Path(__file__).parent
REJECTED = (0.0, 0.4)  # score.rejected: nothing is subtracted; as the configs have it
SHOWN = ("ndcg", "ndcg@10")
CHOSEN = 1.0, 0.4  # trained and rejected, of the configs
BETWEEN = (0.0, 0.5, 1.0)  # weights on the way from the untrained embedder to the trained one


def trained(share: float, seed: int, steps: int):
    """A recommender, and its embedder's weights before and after contrastive learning on summaries with so many edits."""
    changes = {"contrastive.edits": share, "contrastive.steps": steps, "contrastive.texts": "summaries", "seed": seed}
    changes |= {"phases": "contrastive", "evaluation.max_users": 0, "evaluation.baselines": evaluate.UNTRAINED}
    config = load(str(HERE.parent / "configs/movielens.py:long"), {name: str(value) for name, value in changes.items()})
    r = profiles.build(Run(config, HERE / "runs" / f"edits-{share}-{seed}"))
    (phase,) = profiles.schedule(r)
    state = train.initial_state(r, [phase])
    phase.begin(state)
    for step in range(steps):
        state, report = phase.step(state, step)
        if (step + 1) % 20 == 0:
            print(f"edits {share}, seed {seed}, step {step + 1}: loss {float(report.metrics['loss']):.3f}", flush=True)
    return r, r.fresh("embedder"), state["embedder"].weights


def measured(r, weights, rejected: float, split: str = "validation") -> dict:
    """Accuracy, by user too, and audit of a split's summaries."""
    with r.config.unlocked():
        r.config.score.rejected = rejected
    texts = r.summaries(split)
    ranks = r.rank(split, *r.scored(weights, texts))
    users, values = metrics.per_user(ranks, [s.user for s in r.sessions[split]], SHOWN)
    row = {name: float(of_users.mean()) for name, of_users in values.items()}
    row["audit"] = audit.audit(r, audit.Audited(weights, r.catalogue(weights), texts), split)
    return row | {"users": dict(zip(users, values["ndcg"].tolist()))} if split == "test" else row


def reference(r) -> dict[str, float]:
    """The NDCG of each test user by the rule that trains nothing."""
    (row,) = evaluate.baseline_rows(r, r.fresh("embedder"))
    users, values = metrics.per_user(r.rank("test", *row.scored), [s.user for s in r.sessions["test"]], SHOWN)
    return dict(zip(users, values["ndcg"].tolist()))


HEAD = ["edits", "seed", "trained", "rejected", "NDCG", "@10", "like: change", "right"]
HEAD += ["dislike: change", "right", "wrong", "obeyed", "kept"]


def cells(row: dict) -> list[str]:
    """A row of HEAD's table."""
    like, dislike = row["audit"]["like"], row["audit"]["dislike"]
    return [
        *(f"{row[name]:g}" for name in ("edits", "seed", "trained", "rejected")),
        *(f"{row[name]:.4f}" for name in SHOWN),
        f"{like['change']:+.3f}",
        f"{like['right']:.2f}",
        f"{dislike['change']:+.3f}",
        f"{dislike['right']:.2f}",
        f"{dislike['wrong']:.2f}",
        f"{dislike['obeyed']}/{dislike['attributes']}",
        f"{dislike['kept']:.2f}",
    ]


def markdown(lines: list[list[str]]) -> str:
    """Lines, the first of them the head, as a table."""
    lines = [lines[0], ["--:"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def gains(rows: list[dict]) -> str:
    """Test gains over no edits, and over the rule that trains nothing; a user counts once however many seeds there are."""
    tested, lines = [row for row in rows if "test" in row], [["summaries", "seeds", "over", "NDCG", "95 % interval"]]
    of_share = {}
    for row in tested:
        of_share.setdefault(row["edits"], {})[row["seed"]] = row["test"]["users"], row["reference"]
    for share, seeds in sorted(of_share.items()):
        others = {"items' mean + popularity": {seed: rule for seed, (_, rule) in seeds.items()}}
        if share and 0 in of_share:
            others["no edits"] = {seed: of_one[0] for seed, of_one in of_share[0].items()}
        for name, other in others.items():
            both = sorted(seeds.keys() & other.keys())
            users = list(seeds[both[0]][0])
            after = np.array([[seeds[seed][0][user] for user in users] for seed in both])
            before = np.array([[other[seed][user] for user in users] for seed in both])
            gain = metrics.paired_bootstrap(before, after, 0)
            interval = f"{gain['low']:+.4f} … {gain['high']:+.4f}"
            lines.append([f"{share:g} edits", str(len(both)), name, f"{gain['mean']:+.4f}", interval])
    return markdown(lines)


def report(rows: list[dict]) -> str:
    """All tables."""
    tested = [row | row["test"] for row in rows if "test" in row]
    parts = ["Validation users:", markdown([HEAD, *map(cells, rows)])]
    parts += ["Test users, the configs' setting:", markdown([HEAD, *map(cells, tested)])]
    return "\n".join([*parts, "Gains on the test users:", gains(rows)])


def main(shares: list[float], seeds: list[int], steps: int) -> None:
    """Runs what edits.json lacks, and writes both files."""
    file = HERE / "edits.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    done = {(row["edits"], row["seed"], row["steps"]) for row in rows}
    for seed, share in ((seed, share) for seed in seeds for share in shares):
        if (share, seed, steps) in done:
            continue
        r, before, after = trained(share, seed, steps)
        for part in BETWEEN if seed == seeds[0] else (1.0,):
            weights = jax.tree.map(lambda a, b, part=part: (1 - part) * a + part * b, before, after)
            for rejected in REJECTED:
                row = {"edits": share, "seed": seed, "steps": steps, "trained": part, "rejected": rejected}
                row |= measured(r, weights, rejected)
                if (part, rejected) == CHOSEN:
                    row |= {"test": measured(r, weights, rejected, "test"), "reference": reference(r)}
                rows.append(row)
        files.write_file(file, json.dumps(files.plain(rows), indent=1) + "\n")
        files.write_file(HERE / "edits.md", report(rows))
    print(report(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", default="0,0.25")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=160)
    given = parser.parse_args()
    main([float(s) for s in given.shares.split(",")], [int(s) for s in given.seeds.split(",")], given.steps)
