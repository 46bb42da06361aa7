"""How much of a batch shall be edits, and what obeys a dislike: the embedder, or the score that subtracts what is rejected?

    python experiments/edits.py [--shares=0,0.25,0.5] [--seeds=0] [--steps=160]

Contrastive learning on summaries alone, so that no language model is needed: 5 to 7 minutes a share and seed on 2 CPU cores.
All figures are of the validation users of configs/movielens.py; edits.json and edits.md are written as each run ends.
"""

import argparse
import json
from pathlib import Path

import jax

from lpt_jax import audit, files, train
from lpt_jax.config import load
from lpt_jax.run import Run
from lpt_jax.systems import profiles

HERE = Path(__file__).parent
REJECTED = (0.0, 0.4)  # score.rejected: nothing is subtracted; as the configs have it
BETWEEN = (0.0, 0.5, 1.0)  # weights on the way from the untrained embedder to the trained one


def trained(share: float, seed: int, steps: int):
    """A recommender, and its embedder's weights before and after contrastive learning on summaries with so many edits."""
    changes = {"contrastive.edits": share, "contrastive.steps": steps, "contrastive.texts": "summaries", "seed": seed}
    changes |= {"phases": "contrastive", "evaluation.max_users": 0, "evaluation.baselines": "popularity"}
    config = load(str(HERE.parent / "configs/movielens.py"), {name: str(value) for name, value in changes.items()})
    r = profiles.build(Run(config, HERE / "runs" / f"edits-{share}-{seed}"))
    (phase,) = profiles.schedule(r)
    state = train.initial_state(r, [phase])
    phase.begin(state)
    for step in range(steps):
        state, report = phase.step(state, step)
        if (step + 1) % 20 == 0:
            print(f"edits {share}, seed {seed}, step {step + 1}: loss {float(report.metrics['loss']):.3f}", flush=True)
    return r, r.fresh("embedder"), state["embedder"].weights


def measured(r, weights, rejected: float) -> dict:
    """Accuracy and audit of the validation users' summaries."""
    with r.config.unlocked():
        r.config.score.rejected = rejected
    texts = r.summaries("validation")
    found = r.validation(r.rank("validation", *r.scored(weights, texts)))
    return {name: found[f"val/{name}"] for name in ("ndcg", "ndcg@10")} | {
        "audit": audit.audit(r, audit.Audited(weights, r.catalogue(weights), texts), "validation")
    }


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    head = ["edits", "seed", "trained", "rejected", "NDCG", "@10"]
    lines = [[*head, "like: change", "right", "dislike: change", "right", "wrong", "obeyed", "kept"]]
    lines.append(["--:"] * len(lines[0]))
    for row in rows:
        like, dislike = row["audit"]["like"], row["audit"]["dislike"]
        lines.append(
            [
                *(f"{row[name]:g}" for name in ("edits", "seed", "trained", "rejected")),
                *(f"{row[name]:.4f}" for name in ("ndcg", "ndcg@10")),
                *(
                    f"{like['change']:+.3f}",
                    f"{like['right']:.2f}",
                    f"{dislike['change']:+.3f}",
                    f"{dislike['right']:.2f}",
                ),
                *(f"{dislike['wrong']:.2f}", f"{dislike['obeyed']}/{dislike['attributes']}", f"{dislike['kept']:.2f}"),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(shares: list[float], seeds: list[int], steps: int) -> None:
    """Runs what edits.json lacks, and writes both files."""
    file = HERE / "edits.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    done = {(row["edits"], row["seed"], row["steps"]) for row in rows}
    for share, seed in ((share, seed) for seed in seeds for share in shares):
        if (share, seed, steps) in done:
            continue
        r, before, after = trained(share, seed, steps)
        for part in BETWEEN:
            weights = jax.tree.map(lambda a, b, part=part: (1 - part) * a + part * b, before, after)
            for rejected in REJECTED:
                row = {"edits": share, "seed": seed, "steps": steps, "trained": part, "rejected": rejected}
                rows.append(row | measured(r, weights, rejected))
        files.write_file(file, json.dumps(files.plain(rows), indent=1) + "\n")
        files.write_file(HERE / "edits.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", default="0,0.25,0.5")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=160)
    given = parser.parse_args()
    main([float(s) for s in given.shares.split(",")], [int(s) for s in given.seeds.split(",")], given.steps)
