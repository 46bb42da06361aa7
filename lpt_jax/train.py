"""The life of a run, whatever its system: train, go on, test, test again, write.

A system is a module of lpt_jax/systems with build(run), schedule(r), test(r, stages, state, note, trec) and write(r, state, split,
file); TRAINS, STEPS and SAME: what its phases train, what they are called in results, and which settings models share; WRITES,
WRITTEN_BY and COLUMNS: what write() writes, in words, the settings beside the models that it depends on, and a table's columns.
"""

import collections.abc
import json
from pathlib import Path

import jax
import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import devices, evaluate, files, judge, study, trackers
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.data.sessions import everyone
from lpt_jax.errors import InputError
from lpt_jax.learning.loop import Loop, Part, Phase, stage_folder
from lpt_jax.run import Interrupt, Run


def train(system, config, workdir: Path) -> dict:
    """Trains by the system's schedule, tests once at the end and writes results and report; the results."""
    interrupt = Interrupt()
    try:
        r = started(system, Run(config, workdir, interrupt))
        r.prepare()
        r.run.print_data()
        tracker = trackers.Silent()
        if devices.first():
            tracker = trackers.Tracker(workdir, config_lib.listed(config.trackers), config.to_dict())
        phases = system.schedule(r)
        state, note = Loop(phases, config, workdir, tracker, interrupt).run(initial_state(r, phases))
        tracker.close()
        return test(system, r, phases, state, note)
    finally:
        interrupt.close()


def test_again(system, config, workdir: Path, trec_run: str | None = None) -> dict:
    """The test of a trained workdir once more, from its checkpoints, with TREC files; or of another system's TREC run."""
    if trec_run:
        return evaluate.score_run(config, workdir, trec_run)
    return test(*finished(system, config, workdir), trec=True)


def finished(system, config, workdir: Path, tested: bool = False) -> tuple:
    """What a test needs of a trained workdir: system, recommender, phases, state, note; InputError unless all phases are done.

    tested: its results must be there too.
    """
    r, phases, state, note = trained(system, Run(config, workdir))
    left = note["position"] < len(phases)
    if left or tested and not (workdir / "results.json").is_file():
        where = f" ({phases[note['position']].name}, step {note['step']})" if left else ""
        raise InputError(
            f"The run in {workdir} has not finished{where}: go on with --mode=train first, the test is at its end."
        )
    return system, r, phases, state, note


def audit_again(system, config, workdir: Path) -> dict:
    """The audit of a tested workdir's edits once more (lpt_jax/audit.py)."""
    system, r, phases, state, note = finished(system, config, workdir, tested=True)
    r.prepare()
    of_stages = stages(system, r, phases, state)
    return evaluate.audit_alone(r, system.rows(r, of_stages, state, note), system.untrained(r, of_stages))


def questions(system, config, workdir: Path, count: int) -> list[judge.Task]:
    """Tasks for judges of the profiles that a trained workdir's stages and rules wrote, of `count` test users at most."""
    system, r, phases, state, note = finished(system, config, workdir)
    r.prepare()
    rows = system.rows(r, stages(system, r, phases, state), state, note)
    texts = {row.name: row.audited.texts for row in rows if row.ended is not None}
    first = "summary", "best"  # no stages: all are compared with the last one
    names = sorted(texts, key=lambda name: name not in first)
    different = {tuple(texts[name]): name for name in reversed(names)}  # of stages with one text the first
    return judge.tasks(r, {name: texts[name] for name in names if name in different.values()}, count)


def judged(system, config, workdir: Path, count: int, url: str, model: str, prices: str) -> dict:
    """Puts tasks about a trained workdir's profiles to a judge (lpt_jax/judge.py)."""
    return judge.main(config, workdir, lambda: questions(system, config, workdir, count), url, model, prices)


def studied(system, config, workdir: Path, count: int, answers: str) -> object:
    """Writes the same tasks as a form for people, or scores their answers (lpt_jax/study.py)."""
    if answers:
        return study.collect(config, workdir, answers)
    return study.write(config, workdir, questions(system, config, workdir, count))


def write_profiles(system, config, workdir: Path, output: Path, split: str) -> list[str]:
    """Writes what the system writes of every session of a split ("all": of each user's whole history), as JSON lines or, named
    .parquet, a table.

    All of the split's sessions, whatever config.evaluation caps. While it is written the file is JSON lines, called after
    the checkpoint, so that a killed call goes on where it was and never mixes two models; a file that is there is not
    overwritten.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--output={output} won't do: its name must end in .jsonl or .parquet.")
    if output.exists():
        raise InputError(f"{output} is there already: name another --output, or move it away.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        (part := output.with_name(f"{output.name}.part")).touch()
        part.unlink(missing_ok=True)  # another process may have been here
    except OSError as error:
        raise InputError(f"--output={output} can't be written ({error.strerror}): name another file.") from None
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.update(max_users=0, max_test_sessions=0)
    r, state, step = ready(system, Run(config, workdir))
    if split == "all":
        r.sessions["all"] = everyone(r.data)
    how = config_lib.digest(config, system.WRITTEN_BY)
    part = output.with_name(f"{output.name}.{split}-{step}-{how}.part")
    written = system.write(r, state, split, part)
    if devices.first() and output.suffix == ".parquet":
        files.write_parquet(output, part, system.COLUMNS)
        part.unlink()
    elif devices.first():
        part.rename(output)
    print(f"lpt_jax: {len(written)} {system.WRITES} of {split} users in {output}")
    return written


# ---- states


def started(system, run: Run):
    """The system's recommender, with the weights of the run that config.begin_from names, if any."""
    r = system.build(run)
    if run.config.begin_from:
        for part, weights in begun(system, r, Path(run.config.begin_from)).items():
            r.begin_with(part, weights)
    return r


def initial_state(r, phases: list[Phase]) -> dict[str, Part]:
    """Fresh parts, all that the phases train, with their optimisers' states."""
    state = {}
    for phase in phases:
        if phase.part not in state:
            weights = r.fresh(phase.part)
            state[phase.part] = Part(weights, r.place(phase.part, phase.optimiser.init(weights)))
    return state


def trained(system, run: Run):
    """A finished (or still going) run as it stands: recommender, phases, state and note of its last checkpoint."""
    r = started(system, run)
    phases = system.schedule(r)
    last = Checkpoints(run.workdir / "checkpoints" / "last", run.config.checkpoint.keep)
    if last.latest() is None:
        raise InputError(f"{run.workdir} holds no checkpoint: train first, with the same --config and --workdir.")
    note = last.note(last.latest())
    return r, phases, last.restore(last.latest(), initial_state(r, phases)), note


class Ended(collections.abc.Mapping):
    """The parts of a finished run, each read when it is asked for: what the last phase that trained it ended with."""

    def __init__(self, system, r, workdir: Path, phases: list[str]):
        self.r, self.folders, self.parts = r, {}, {}
        for name in phases:
            ends = sorted(workdir.glob(f"checkpoints/*-{name}"), key=lambda folder: int(folder.name.partition("-")[0]))
            if not ends:
                raise InputError(f"{workdir} has results but not their models: there is no checkpoints/*-{name}.")
            self.folders[system.TRAINS[name]] = ends[-1]

    def __getitem__(self, part: str) -> Part:
        if part not in self.parts:
            kept = Checkpoints(self.folders[part], 1)
            weights = kept.restore(kept.latest(), {part: self.r.fresh(part)})[part]
            kept.close()
            self.parts[part] = Part(weights, None)
        return self.parts[part]

    def __contains__(self, part: str) -> bool:
        return part in self.folders

    def __iter__(self):
        return iter(self.folders)

    def __len__(self):
        return len(self.folders)


def ready(system, run: Run):
    """A run for use: recommender, state and the number of its last step. Of a finished one no more is read than is used."""
    if not (run.workdir / "results.json").is_file():
        r, _, state, note = trained(system, run)
        return r, state, note["global_step"]
    r = started(system, run)
    return r, Ended(system, r, run.workdir, config_lib.listed(run.config.phases)), -1


def begun(system, r, workdir: Path) -> dict[str, dict]:
    """What another, finished run on the same data and models ended with: weights by part, whichever it trained."""
    if not (workdir / "results.json").is_file():
        raise InputError(f"--config.begin_from={workdir} holds no finished run: name the workdir of one.")
    theirs, ours = json.loads((workdir / "config.json").read_text(encoding="utf-8")), r.config.to_dict()
    config_lib.refuse_old(theirs, f"--config.begin_from={workdir}", "name the workdir of a run of this version")
    shared = config_lib.flat({name: config_lib.get(ours, name) for name in system.SAME}).values()
    by_seed = {"tiny", "shuffled"} & set(shared) or "scratch" in shared and {"lora", "last_layers"} & set(shared)
    same = ("system", *system.SAME) + (
        ("seed",) if by_seed else ()
    )  # codes, titles or frozen weights are made by the seed
    defaults = config_lib.default(r.config.system).to_dict()  # of settings that are newer than the other run
    for name in same:  # of other data, users who are tested here may have been trained on there
        if (there := config_lib.get(theirs, name, defaults)) != config_lib.get(ours, name):
            raise InputError(
                f"--config.begin_from={workdir} has another {name} ({there!r}): a run can only "
                "begin from one on the same data and models."
            )
    before = begun(system, r, Path(theirs["begin_from"])) if theirs.get("begin_from") else {}
    ended = Ended(system, r, workdir, config_lib.listed(theirs["phases"]))
    return before | {part: jax.tree.map(np.array, devices.fetch(ended[part].weights)) for part in ended}


# ---- the test


def test(system, r, phases: list[Phase], state: dict[str, Part], note: dict, trec: bool = False) -> dict:
    """The system's test of all stages of training."""
    r.prepare()
    return system.test(r, stages(system, r, phases, state), state, note, trec)


def stages(system, r, phases: list[Phase], state: dict[str, Part]) -> dict[str, dict[str, dict]]:
    """The steps of training, in order: name -> the weights of every part at that time.

    zero_shot (or start, of a run that begins from another); the phases of the first iteration, as "cl" and "cl_rlso"; of
    several iterations the last's end, "cl_rlso_x5".
    """
    parts = list(dict.fromkeys(system.TRAINS.values()))
    now = {part: r.fresh(part) for part in parts}
    stages_by_name, name = {"start" if r.config.begin_from else "zero_shot": dict(now)}, []
    for phase in phases:
        if phase.iteration or phase.part not in parts:
            continue
        kept = Checkpoints(stage_folder(r.run.workdir, phase), 1)
        now |= kept.restore(kept.latest(), {phase.part: state[phase.part].weights})
        name.append(system.STEPS[phase.name])
        stages_by_name["_".join(name)] = dict(now)
    if r.config.iterations > 1:
        last = {part: state[part].weights for part in parts if part in state}
        stages_by_name[f"{'_'.join(name)}_x{r.config.iterations}"] = now | last
    return stages_by_name
