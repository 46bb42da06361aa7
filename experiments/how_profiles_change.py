"""How do profiles change by RLSO: their length, what they copy from the history, how much they differ between users?

    python experiments/sweep.py experiments/reward.py --run
    python experiments/how_profiles_change.py                 # reads those runs; or name workdirs

Compares the greedy profiles of a run's test users before and after training. Writes how_profiles_change.json, .md and .png.
"""

import argparse
import json
import re
from pathlib import Path

import ml_collections
import numpy as np
import sweep  # of this folder
from matplotlib.figure import Figure

from lpt_jax import files, report
from lpt_jax.data import sessions
from lpt_jax.recommender import used_sessions

HERE = Path(__file__).resolve().parent
COMMON = set("this person likes movies such as and the a of in to with also that".split())
MEASURES = {
    "words": "words",
    "ended": "share that ended by itself",
    "copied": "share of its words that stand in the history's titles and genres",
    "titles": "titles of the history that it names",
    "others": "titles that it names and that are not in the history",
    "different": "share of texts that no other user has",
    "pairs": "distinct pairs of words among all (distinct-2)",
}

WORDS = """RLSO makes profiles denser, not more abstract: they drop the closing phrase about taste ("but their preferences
are more diverse"), add years to the titles, as the items' own texts have them, and run on to the limit. More of their words
are the history's, as many titles are named as before, and profiles stay different from user to user. One reading: the
embedder matches texts, and titles as the items have them come closest. Who wants prose must ask for it, by the reward or by
the KL term."""


def words_of(text: str) -> list[str]:
    """Lower-case words, without those of the given start and the commonest.

    >>> words_of("This person likes movies such as Alien, and sci-fi")
    ['alien', 'sci-fi']
    """
    return [word for word in re.findall(r"[\w'-]+", text.lower()) if word not in COMMON]


def bare(title: str) -> str:
    """A title as a profile would name it: without year, and the article at the front."""
    title = re.sub(r"\s*\(\d{4}\)$", "", title)
    return re.sub(r"^(.*), (the|an?)$", r"\2 \1", title, flags=re.IGNORECASE).lower()


def measure(profiles: list[dict], found: list, catalogue, shown: int) -> dict[str, float]:
    """MEASURES of a stage's profiles, lines of a run's profiles/*-test.jsonl."""
    titles = [bare(title) for title in catalogue.titles]
    long_enough = {i for i, title in enumerate(titles) if len(title) > 5}  # "Heat" is a word too
    texts, values, pairs = [line["profile"] for line in profiles], {name: [] for name in MEASURES}, []
    for line in profiles:
        text, history = line["profile"], found[line["row"]].history
        words, read = words_of(text), set(words_of(" ".join(catalogue.texts[i] for i in history[-shown:])))
        named = {i for i in long_enough if titles[i] in text.lower()}
        values["words"].append(len(text.split()))
        values["ended"].append(line["ended"])
        values["copied"].append(np.mean([word in read for word in words]) if words else 0.0)
        values["titles"].append(len(named & set(history)))
        values["others"].append(len(named - set(history)))
        values["different"].append(texts.count(text) == 1)
        pairs += zip(words, words[1:])
    return {name: float(np.mean(of)) for name, of in values.items() if of} | {
        "pairs": len(set(pairs)) / max(1, len(pairs))
    }


def read(workdir: Path) -> dict:
    """A run's measures before and after, and a few users with both profiles and the ranks of their next items."""
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    config = ml_collections.ConfigDict(results["config"])
    data = sessions.prepare(config.data)
    found, stages = used_sessions(data, config.evaluation)["test"], list(results["gains"])[-1].split("->")
    written = [next((workdir / "profiles").glob(f"{stage}-*-test.jsonl"), None) for stage in stages]
    if None in written:
        raise SystemExit(f"how_profiles_change: {workdir} has no policy phase, its profiles stay the same.")
    lines = [files.read_jsonl(file) for file in written]
    sides = [measure(of, found, data.catalogue, config.prompt.history_items) for of in lines]
    return {
        "workdir": str(workdir),
        "before": sides[0],
        "after": sides[1],
        "examples": examples(lines, found, data.catalogue),
    }


def examples(lines, found, catalogue, number: int = 4) -> list[dict]:
    """Users spread over the test: their latest items, and both profiles."""
    before, after = ({line["row"]: line["profile"] for line in side} for side in lines)
    rows = np.linspace(0, len(found) - 1, number).astype(int).tolist()
    return [{"user": found[row].user, "history": [catalogue.titles[i] for i in found[row].history[-6:]],
             "before": before[row], "after": after[row]} for row in rows]  # fmt: skip


def picture(alike: dict[str, list[dict]]) -> bytes:
    """A PNG: for each reward some measures before (grey) and after, means over its runs."""
    shown = {"words": "Words", "ended": "Ended by itself", "copied": "Words from the history", "pairs": "distinct-2"}
    figure = Figure(figsize=(12, 0.9 + 0.4 * len(alike)), layout="constrained")
    for place, (name, title) in enumerate(shown.items(), 1):
        axes = report.axes_of(figure, 1, len(shown), place)
        for row, runs in enumerate(alike.values()):
            before, after = (np.mean([one[side][name] for one in runs]) for side in ("before", "after"))
            axes.plot([before, after], [row, row], color=report.FAINT, linewidth=2, zorder=1)
            axes.scatter([before], [row], color=report.GREY, label="before" if row == 0 else None)
            axes.scatter([after], [row], color=report.ACCENT, label="after" if row == 0 else None)
        axes.set_title(title, fontsize=10, color=report.INK, loc="left")
        axes.set_yticks(range(len(alike)), list(alike) if place == 1 else [""] * len(alike))
        axes.set_ylim(len(alike) - 0.5, -0.5)
    axes.legend(fontsize=8, frameon=False)
    return report.png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="*", type=Path, help="finished runs; default: those of experiments/reward.py")
    given = parser.parse_args().workdirs
    if not given:
        _, runs = sweep.orders(sweep.read(HERE / "reward.py"))
        given = [one.workdir for of_name in runs.values() for one in of_name if sweep.finished(one)]
    if not given:
        parser.error(
            "none of experiments/reward.py's runs has finished: python experiments/sweep.py experiments/reward.py --run"
        )
    found = [read(workdir) for workdir in given]
    to, alike = report.Markdown(HERE), {}
    for one in found:
        name = re.sub(r"^\w+?-|,?(begin_from|phases|seed)=[^,]*|policy\.reward=", "", Path(one["workdir"]).name)
        alike.setdefault(name.strip(",") or "ndcg", []).append(one)
    rows = []
    for name, measures in MEASURES.items():
        cells = [f"{np.mean([one['before'][name] for one in found]):.2f}"]
        for runs in alike.values():
            values = [one["after"][name] for one in runs]
            cells.append(f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""))
        rows.append([to.text(measures), *cells])
    blocks = [__doc__.strip(), to.table(["", "before", *(f"after, {to.text(name)}" for name in alike)], rows)]
    seeds = max(map(len, alike.values()))
    blocks += [WORDS, "![Before and after, by reward](how_profiles_change.png)"]
    blocks += [f"Means over test users{', ± s.d. over seeds' * (seeds > 1)}. Four users of the first run:"]
    for example in found[0]["examples"]:
        blocks += [to.text(f"User {example['user']}, latest: {'; '.join(example['history'])}")]
        blocks += [to.quotes({"Before": example["before"], "After": example["after"]})]
    files.write_file(HERE / "how_profiles_change.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    files.write_file(HERE / "how_profiles_change.png", picture(alike))
    files.write_file(HERE / "how_profiles_change.md", "\n\n".join(blocks) + "\n")
    print("\n\n".join(blocks[:3]))


if __name__ == "__main__":
    main()
