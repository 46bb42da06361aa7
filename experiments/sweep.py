"""One question, many runs: python experiments/sweep.py experiments/FILE.py [--run | --collect]

FILE.py asks a question in its docstring and answers it by runs: CONFIG (a config of configs/), SEEDS, CHANGES (settings
of all runs, {"policy.steps": 40}), RUNS (name -> what it changes besides; the first is what the others are compared
with); where all begin from the same models, FIRST (the settings of the runs that train those, one for each seed); ROW, if
the last row is not what is compared; PART, if the rows are not results.json's "rows" (journeys: "naming"); METRIC, if it is
not NDCG over the whole ranking; and WORDS, what was learned.
Without a flag one command is printed for each run that can start now, for bash, xargs or a SLURM array: those of FIRST,
and once they have finished the others. Runs that have finished are not repeated, and experiments that ask for the same
run share it. Flags:"""

import dataclasses
import json
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from lpt_jax import config as config_lib
from lpt_jax import files, metrics, report
from lpt_jax.errors import InputError

SHOWN = ("ndcg", "ndcg@10", "recall@10", "mrr", "top1", "cosine", "chrf", "bleu")
MEASURES = {"ndcg": "NDCG over the whole ranking", "ndcg@10": "NDCG@10", "top1": "the share of names found at once"}
CURVES = {"reward/metric": "Reward of rollouts", "profile_tokens": "Profile length, tokens"}
UNITS = {"naming": "names", "extraction": "mixes"}  # of the intervals, by part of the results
READ = ("ended", "clean", "supported", "telling")  # shares of the text audit
ENDS = {"kl": "KL to the reference", "profile_tokens": "profile's tokens"}
SMOOTH = 5  # steps whose mean a curve shows: a batch's users differ


@dataclasses.dataclass(frozen=True)
class Order:
    """A run: lpt_jax.main's arguments, its workdir, and all its settings by dotted names."""

    arguments: list[str]
    workdir: Path
    settings: dict


def read(file: Path) -> dict:
    """What an experiment's file says, in full; InputError naming what is missing."""
    if not file.is_file():
        raise InputError(f"There is no file {file}: name an experiment, such as experiments/reward.py.")
    found = {
        "SEEDS": (0,),
        "CHANGES": {},
        "FIRST": None,
        "ROW": "",
        "METRIC": "ndcg",
        "PART": "rows",
        "WORDS": "",
        "__doc__": "",
    } | runpy.run_path(str(file))
    if missing := [name for name in ("CONFIG", "RUNS") if not found.get(name)]:
        raise InputError(f"{file} has no {missing[0]}: python experiments/sweep.py --help says what it must have.")
    return found


def order(config: str, settings: dict, after: str = "") -> Order:
    """A run of a config with settings; `after` stands in its workdir's name for the run that it begins from.

    InputError for settings that won't do.
    """
    settings = {name: str(value) for name, value in settings.items()}
    made = config_lib.load(config, settings)
    arguments = [f"--config={config}", *(f"--config.{name}={value}" for name, value in settings.items())]
    workdir = config_lib.default_workdir(made, settings | ({"begin_from": after} if after else {}))
    return Order(arguments + [f"--workdir={workdir}"] * bool(after), workdir, config_lib.flat(made.to_dict()))


def orders(experiment: dict) -> tuple[list[Order], dict[str, list[Order]]]:
    """The runs that come first, and those of each of RUNS, one for each seed."""
    first, runs = [], {name: [] for name in experiment["RUNS"]}
    for seed in experiment["SEEDS"]:
        begin, after = {}, ""
        if experiment["FIRST"] is not None:
            after = "+".join(map(str, experiment["FIRST"].values())) or "default"
            first.append(order(experiment["CONFIG"], experiment["FIRST"] | {"seed": seed}))
            begin = {"begin_from": first[-1].workdir}
        for name, changes in experiment["RUNS"].items():
            settings = experiment["CHANGES"] | begin | changes | {"seed": seed}
            runs[name].append(order(experiment["CONFIG"], settings, after))
    workdirs = [one.workdir for of_name in (first, *runs.values()) for one in of_name]
    if twice := [workdir for workdir in workdirs if workdirs.count(workdir) > 1]:
        raise InputError(
            f"Two of its runs would share the workdir {twice[0]}: let their settings differ in more than signs."
        )
    return first, runs


def finished(one: Order) -> bool:
    """Whether a run has been tested; InputError if its workdir holds one with other settings."""
    if not all((one.workdir / name).exists() for name in ("results.json", "per_user.npz")):
        return False
    there = config_lib.flat(json.loads((one.workdir / "config.json").read_text(encoding="utf-8")))
    if config_lib.differing(there, one.settings):
        raise InputError(f"{one.workdir} holds a run that was made with other settings: remove it, or move it away.")
    return True


def run(asked: list[Order]) -> None:
    """Runs what has not finished, one after the other; InputError at the first that fails or is stopped."""
    for number, one in enumerate(asked, 1):
        if finished(one):
            continue
        print(f"[{number} of {len(asked)}] {one.workdir}", flush=True)
        with subprocess.Popen([sys.executable, "-m", "lpt_jax.main", *one.arguments]) as child:
            # a terminal's Ctrl-C reaches the child too, which saves its state; SIGTERM is handed on
            before = (
                signal.signal(signal.SIGINT, signal.SIG_IGN),
                signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
            )
            code = child.wait()
            signal.signal(signal.SIGINT, before[0]), signal.signal(signal.SIGTERM, before[1])
        if code:
            raise InputError(f"{one.workdir}: the run ended with status {code}; the same command goes on from there.")


def collect(runs: dict[str, list[Order]], row: str = "", metric: str = "ndcg", part: str = "rows") -> dict:
    """What the finished runs show, by name: seeds, the rows' metrics by seed, each step's gain, how much more was gained
    than by the first name (by a row; or by the last one, in all or since `start`, if all have one: the same CL, trained
    again elsewhere, is not quite the same), and how long the profiles and how far from the reference the policy were at the end of training.
    InputError where none has finished, or where they were tested differently.
    """
    found, users, protocols = {}, {}, {}

    def gain(before: list, after: list) -> dict:  # each of users' values by seed; intervals by resampling users
        return metrics.paired_bootstrap(before, after, seed=0, metric=metric)

    for name, asked in runs.items():
        done = [one.workdir for one in asked if finished(one)]
        if not done:
            continue
        results = [json.loads((workdir / "results.json").read_text(encoding="utf-8")) for workdir in done]
        results = [result | {"rows": result[part]} for result in results]
        protocols |= {result["protocol"]: None for result in results}
        values = [dict(np.load(workdir / "per_user.npz", allow_pickle=False)) for workdir in done]
        if metric not in next(iter(results[0]["rows"].values())):
            raise InputError(f"Its runs have no {metric}: set METRIC to one of their metrics, such as ndcg@10.")
        steps_of = [step for step in results[0]["gains"] if set(step.split("->")) <= set(results[0]["rows"])]
        shown = [m for m in SHOWN if m in next(iter(results[0]["rows"].values()))]
        of_row = {row: [arrays[f"{row}/{metric}"] for arrays in values] for row in results[0]["rows"]}
        users[name] = {r["seed"]: {row: of_row[row][i] for row in of_row} for i, r in enumerate(results)}
        records = [files.read_jsonl(workdir / "metrics.jsonl") for workdir in done]
        steps = [[r for r in of_run if "reward" in r] for of_run in records]  # of the policy phases, all iterations
        ends = {key: [[r[key] for r in of_run if key in r][-1:] for of_run in steps] for key in ENDS}
        found[name] = {
            "seeds": list(users[name]),
            "rows": {row: {m: [r["rows"][row][m] for r in results] for m in shown} for row in of_row},
            "gains": {step: gain(*(of_row[row] for row in step.split("->"))) for step in steps_of},
            "end": {key: sum(of_runs, []) for key, of_runs in ends.items()},
            "texts": texts_of(results),
            "seconds": [r["seconds"] for r in results],
            "peak_memory_gib": [r["peak_memory_gib"] for r in results],
            "curves": {key: mean_curve([[r[key] for r in of_run] for of_run in steps]) for key in CURVES},
        }
    if not found:
        raise InputError("None of its runs has finished: start with --run.")
    if len(protocols) > 1:
        raise InputError("Its runs were tested in different ways: " + " / ".join(protocols))
    since = all(
        "start" in of_seed for of_run in users.values() for of_seed in of_run.values()
    )  # else they began differently

    def reached(rows: dict) -> np.ndarray:
        return rows[row] if row else rows[list(rows)[-1]] - (rows["start"] if since else 0.0)

    base = users[next(iter(found))]
    for name in list(found)[1:]:
        if seeds := [seed for seed in users[name] if seed in base]:
            found[name]["over"] = gain(
                [reached(base[seed]) for seed in seeds], [reached(users[name][seed]) for seed in seeds]
            )
    return {"protocol": next(iter(protocols)), "metric": metric, "runs": found}


def texts_of(results: list[dict]) -> dict[str, dict[str, list[float]]]:
    """The text audit's shares, and the number of words, of each stage whose profiles were audited, by seed."""
    stages = [name for name, of in (results[0].get("audit") or {}).items() if "text" in of]
    found = {}
    for name in stages:
        texts = [result["audit"][name]["text"] for result in results]
        means = [text | {"supported": text["supported"]["claims"]} for text in texts]
        found[name] = {what: [of[what]["mean"] for of in means if of.get(what)] for what in READ}
        found[name]["words"] = [text["words"] for text in texts]
    return found


def mean_curve(curves: list[list[float]]) -> list[list[float]]:
    """The mean of several seeds' values by step, from 1 on, each point the mean of SMOOTH steps: [steps, values].

    >>> mean_curve([[2.0, 4.0], [4.0, 6.0, 9.0]])
    [[1.0, 2.0], [3.0, 5.0]]
    """
    shortest = min(map(len, curves), default=0)
    if not shortest:
        return [[], []]
    values = np.mean([curve[:shortest] for curve in curves], 0)
    width = SMOOTH if shortest >= 4 * SMOOTH else 1
    return [np.convolve(a, np.ones(width) / width, "valid").tolist() for a in (np.arange(1.0, shortest + 1), values)]


def _spread(values) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def _interval(g: dict) -> str:
    return f"{g['mean']:+.4f} ({g['low']:+.4f} … {g['high']:+.4f})"


def shared_rows(runs: dict[str, dict]) -> dict[str, dict[int, dict]]:
    """The rows that all runs have and agree on: row -> seed -> metrics, of all seeds that any of them has."""
    found = {}
    for row in set.intersection(*(set(one["rows"]) for one in runs.values())):
        all_seeds = [(seed, {m: of[i] for m, of in one["rows"][row].items()})
                     for one in runs.values() for i, seed in enumerate(one["seeds"])]  # fmt: skip
        by_seed = dict(sorted(all_seeds, key=lambda pair: pair[0]))
        if all(by_seed[seed] == metrics_of for seed, metrics_of in all_seeds):
            found[row] = by_seed
    return found


def table(experiment: dict, found: dict, to) -> str:
    """The answer as Markdown: the question, the rows that all runs share and those that differ, the gains, the words."""
    runs, base = found["runs"], next(iter(found["runs"]))
    shared, shown = shared_rows(runs), list(next(iter(runs[base]["rows"].values())))
    rows = [(to.text(row), list(shared[row]), {m: [of[m] for of in shared[row].values()] for m in shown})
            for row in runs[base]["rows"] if row in shared]  # fmt: skip
    rows += [(to.text(f"{name}: {row}" if len(runs) > 1 else row), one["seeds"], values)
             for name, one in runs.items() for row, values in one["rows"].items() if row not in shared]  # fmt: skip
    rows = [[label, ", ".join(map(str, seeds)), *(_spread(of[m]) for m in shown)] for label, seeds, of in rows]
    gains = []
    for name, one in runs.items():
        over = _interval(one["over"]) if "over" in one else "–"
        end = [f"{np.mean(values):.3g}" if values else "–" for values in one["end"].values()]
        minutes = f"{np.mean(one['seconds']) / 60:.1f}"
        peaks = [gib for gib in one["peak_memory_gib"] if gib]  # unknown on some machines
        gib = f"{max(peaks):.1f}" if peaks else "–"
        whole = [over, *end, minutes, gib]  # of the run, and so beside its last gain alone
        for step, g in one["gains"].items():
            last = step == list(one["gains"])[-1]
            gains.append(
                [to.text(name), to.text(step.replace("->", " → ")), _interval(g), *(of * last for of in whole)]
            )
    ends = [f"{title} at the end" for title in ENDS.values()]
    head = ["", "step", "its gain", f"over {to.text(base)}", *ends, "minutes", "GiB"]
    read = [
        [to.text(name), to.text(stage), *(f"{np.mean(of[what]):.2f}" if of[what] else "–" for what in READ)]
        + [f"{np.mean(of['words']):.0f}"]
        for name, one in runs.items()
        for stage, of in one["texts"].items()
    ]
    return "\n\n".join([
        (experiment["__doc__"] or "").strip(),
        to.paragraph(found["protocol"]),
        f"Means ± s.d. over seeds. Gains are in {MEASURES.get(found['metric'], found['metric'])}, pooled over seeds, with 95 % "
        f"intervals by resampling {UNITS.get(experiment['PART'], 'users')}.",
        to.table(["", "seeds", *shown], rows), to.table(head, gains),
        *([to.table(["", "profiles", *READ, "words"], read)] * bool(read)), *filter(None, [experiment["WORDS"].strip()]),
    ]) + "\n"  # fmt: skip


def picture(found: dict) -> bytes:
    """A PNG: each run's gain over the first (of one run alone, each step's), and the policy phase's curves, if they have any."""
    runs, base = found["runs"], next(iter(found["runs"]))
    curves = {key: title for key, title in CURVES.items() if any(one["curves"][key][0] for one in runs.values())}
    figure = Figure(figsize=(6 + 3 * len(curves), 3.4), layout="constrained")
    axes = report.axes_of(figure, 1, len(curves) + 1, 1)
    gains = {name: one["over"] for name, one in runs.items() if "over" in one} or runs[base]["gains"]
    report.draw_gains(axes, gains)
    what = found["metric"].upper()
    axes.set_title(
        f"{what} over {base}" if len(runs) > 1 else f"Gain in {what}", fontsize=10, color=report.INK, loc="left"
    )
    for place, (key, title) in enumerate(curves.items(), 2):
        axes = report.axes_of(figure, 1, len(curves) + 1, place)
        for name, one in runs.items():
            if one["curves"][key][0]:
                axes.plot(*one["curves"][key], label=name.replace("$", r"\$"), linewidth=1.5)
        axes.set_title(title, fontsize=10, color=report.INK, loc="left")
        axes.set_xlabel("step", fontsize=9, color=report.INK)
    if curves:
        axes.legend(fontsize=8, frameon=False)
    return report.png(figure)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; its exit status: 0, or 2 for wrong input."""
    f = flags.FlagValues()
    f.set_gnu_getopt(True)
    flags.DEFINE_bool("run", False, "run what has not finished, one after the other, then collect", f)
    flags.DEFINE_bool(
        "collect", False, "write FILE.json, FILE.md and FILE.png beside it from the runs that have finished", f
    )
    argv = sys.argv if argv is None else argv
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv):
        return print(__doc__, f.get_help(), sep="\n") or 0
    try:
        try:
            names = f(argv)[1:]
        except flags.Error as error:
            raise InputError(f"{error}; --help lists the flags.") from None
        if len(names) != 1:
            raise InputError("Name one experiment, such as python experiments/sweep.py experiments/reward.py.")
        file = Path(names[0])
        experiment = read(file)
        first, runs = orders(experiment)
        asked = [one for group in (first, *zip(*runs.values(), strict=True)) for one in group]  # seed by seed
        bare = [one.workdir for one in first if finished(one) and not (one.workdir / "checkpoints").is_dir()]
        if bare and (f.run or not f.collect):
            raise InputError(
                f"{bare[0]} has results but not their models (checkpoints/): remove it, to train it again."
            )
        if f.run:
            run(asked)
        if f.run or f.collect:
            found = collect(runs, experiment["ROW"], experiment["METRIC"], experiment["PART"])
            text = table(experiment, found, report.Markdown(file.parent))
            text += f"\n![Gains, and learning curves, means over seeds]({file.stem}.png)\n"
            files.write_file(file.with_suffix(".json"), json.dumps(files.plain(found), indent=1) + "\n")
            files.write_file(file.with_suffix(".png"), picture(found))
            files.write_file(file.with_suffix(".md"), text)
            print(text)
        else:
            later = not all(map(finished, first))
            for one in first if later else asked[len(first) :]:
                if not finished(one):
                    print(shlex.join(["python", "-m", "lpt_jax.main", *one.arguments]))
            if later:
                left = len(asked) - len(first)
                print(f"lpt_jax: {left} runs begin from these: ask again once they have finished.", file=sys.stderr)
    except InputError as error:
        return print(f"lpt_jax: error: {error}", file=sys.stderr) or 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
