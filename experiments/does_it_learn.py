"""Does each step of LangPTune help on real ratings? CL above zero-shot, and CL + RLSO above CL, over three seeds.

    python experiments/does_it_learn.py                      # trains three seeds one after the other, then pools
    python experiments/does_it_learn.py --collect            # pools what is there

The seeds share the data and its split, so a user's gain is the mean over seeds and intervals come from resampling users.
Writes experiments/does_it_learn.json, .md and .png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lpt_jax import metrics, trackers

HERE = Path(__file__).resolve().parent
SHOWN = ("ndcg", "ndcg@10", "recall@10", "mrr")


def pool(runs: list[Path]) -> dict:
    """Rows as mean ± s.d. over seeds, and pooled gains of every step."""
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    for run, result in zip(runs, results, strict=True):
        if result["config"] | {"seed": 0} != results[0]["config"] | {"seed": 0}:
            sys.exit(f"does_it_learn: {run} was made with other settings than {runs[0]}: remove the older one.")
    arrays = [np.load(run / "per_user.npz") for run in runs]
    rows = {name: {m: [r["rows"][name][m] for r in results] for m in SHOWN} for name in results[0]["rows"]}
    gains = {}
    for step in results[0]["gains"]:
        before, after = step.split("->")
        assert all((a[f"{before}/users"] == arrays[0][f"{before}/users"]).all() for a in arrays)
        gains[step] = metrics.paired_bootstrap(
            [a[f"{before}/ndcg"] for a in arrays], [a[f"{after}/ndcg"] for a in arrays], seed=0, metric="ndcg"
        )
    return {
        "protocol": results[0]["protocol"],
        "seeds": [r["seed"] for r in results],
        "rows": rows,
        "gains": gains,
        "seconds": [r["seconds"] for r in results],
    }


def picture(runs: list[Path], path: Path) -> None:
    """Validation NDCG and mean reward over the policy phase's steps, a line per seed."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    keys = (("contrastive", "val/ndcg"), ("policy", "reward/metric"), ("policy", "val/ndcg"))
    for run in runs:
        seed, records = (
            json.loads((run / "config.json").read_text())["seed"],
            trackers.read_jsonl(run / "metrics.jsonl"),
        )
        for ax, (phase, key) in zip(axes, keys, strict=True):
            points = [(r["step"], r[key]) for r in records if r["phase"] == phase and r.get(key) is not None]
            x, y = np.array(points).T
            if key == "reward/metric":  # a batch's users differ: show the mean of five batches
                y = np.convolve(y, np.ones(5) / 5, "valid")
                x = x[2 : 2 + len(y)]
            ax.plot(x, y, label=f"seed {seed}")
            ax.set_title({"val/ndcg": f"held-out NDCG, {phase}"}.get(key, "reward of rollouts (5 batches)"), fontsize=9)
            ax.set_xlabel("step", fontsize=8)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/movielens.py:long")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--collect", action="store_true", help="only pool the runs that are there")
    options = parser.parse_args()
    runs = [HERE.parent / "runs" / f"does_it_learn-{seed}" for seed in range(options.seeds)]
    for seed, run in enumerate(runs):
        if not options.collect and not (run / "results.json").exists():
            command = [sys.executable, "-m", "lpt_jax.main", f"--config={options.config}", f"--config.seed={seed}"]
            subprocess.run([*command, f"--workdir={run}"], check=True, cwd=HERE.parent)
    runs = [run for run in runs if (run / "results.json").exists()]
    if not runs:
        sys.exit("does_it_learn: no seed has finished: start without --collect (about 45 minutes a seed on 2 cores).")
    found = pool(runs)
    lines = [f"Protocol: {found['protocol']} Seeds {found['seeds']}; mean ± s.d. over seeds.", ""]
    lines += ["| | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, row in found["rows"].items():
        cells = [f"{np.mean(row[m]):.4f} ± {np.std(row[m]):.4f}" for m in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Gains in NDCG over the whole ranking, 95 % intervals pooled over seeds:", ""]
    lines += [f"- {k}: {g['mean']:+.4f} ({g['low']:+.4f} … {g['high']:+.4f})" for k, g in found["gains"].items()]
    trackers.write_file(HERE / "does_it_learn.json", json.dumps(found, indent=1) + "\n")
    trackers.write_file(HERE / "does_it_learn.md", "\n".join(lines) + "\n")
    picture(runs, HERE / "does_it_learn.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
