"""What do rows that only count reach on Amazon Beauty's benchmark (2014, 5-core; a user's last item tests)?

    python experiments/counts_beauty.py --data FOLDER     # FOLDER/raw/sequential.txt; half a minute

Fitted on all but each user's last item, the test's input; all items are ranked without the history, equal scores by popularity.
Writes experiments/counts_beauty.json and .md.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from lpt_jax import files, metrics, ranking
from lpt_jax.baselines import counts, simple
from lpt_jax.data.sessions import Session

HERE = Path(__file__).resolve().parent
SHOWN = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def main(folder: str) -> dict[str, dict[str, float]]:
    """The shown metrics of each row."""
    lines = Path(folder, "raw/sequential.txt").read_text(encoding="utf-8").splitlines()
    users = [[int(item) - 1 for item in line.split()[1:]] for line in lines]
    items, inputs = 1 + max(map(max, users)), [user[:-1] for user in users]
    people = [Session(str(i), tuple(user[:-1]), None, None, (user[-1],), 0.0) for i, user in enumerate(users)]
    popularity = np.bincount(np.concatenate(inputs), minlength=items)
    rows = {
        "popularity": simple.popularity(people, popularity),
        "transitions": counts.transitions(people, inputs, popularity),
        "item_knn": counts.item_knn(people, inputs, popularity),
    }
    found = {}
    for name, scored in rows.items():
        ranks = ranking.session_ranks(*scored, people)
        of_users = metrics.per_user(ranks, [person.user for person in people], SHOWN)[1]
        found[name] = metrics.table_row(of_users)
        print(name, {metric: round(value, 4) for metric, value in found[name].items()}, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    results = main(parser.parse_args().data)
    files.write_file(HERE / "counts_beauty.json", json.dumps(results, indent=1) + "\n")
    body = [f"| {name} | " + " | ".join(f"{row[m]:.4f}" for m in SHOWN) + " |" for name, row in results.items()]
    head = [
        "# Rows that count, Amazon Beauty 2014 (5-core)",
        "",
        "| row | HR@5 | NDCG@5 | HR@10 | NDCG@10 |",
        "|---|--:|--:|--:|--:|",
    ]
    files.write_file(HERE / "counts_beauty.md", "\n".join([*head, *body]) + "\n")
