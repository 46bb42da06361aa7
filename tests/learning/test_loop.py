"""The loop with phases of tiny arrays: places, best states, stops, and kills at every event."""

import os
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from lpt_jax import checkpoints, files, trackers
from lpt_jax.config import default
from lpt_jax.errors import InputError
from lpt_jax.learning import loop
from lpt_jax.run import Interrupt, Stop
from tests.conftest import ROOT

STEPS = {"contrastive": 4, "policy": 3}


class Killed(BaseException):
    """Stands for kill -9: nothing of the loop may catch it."""


def nothing(*event):
    pass


class Made(loop.Phase):
    """A phase whose state depends on the order of all its steps; validation n is values[n]."""

    optimiser = None

    def __init__(self, name, part, happens=nothing, steps=0, values=None, keep_best=True, evaluate_every=1, **wrong):
        steps = steps or STEPS[name]
        self.name, self.part, self.iteration, self.place = name, part, 0, 0
        self.happens, self.values, self.wrong = happens, values or range(steps + 1), wrong
        self.settings = types.SimpleNamespace(steps=steps, evaluate_every=evaluate_every, keep_best=keep_best)

    def begin(self, state):
        self.happens("begin", self.place)

    def step(self, state, step):
        self.happens("step", self.name, step)
        weights, optimiser = state[self.part]
        part = loop.Part({"w": weights["w"] * 1.5 + step}, {"count": optimiser["count"] + 1})
        value = self.wrong.get("value") if step == self.wrong.get("at") else float(part.weights["w"][0])
        metrics = {"loss": 1.0, "grad_norm": 1.0} | {self.wrong.get("metric", "loss"): value}
        sample = {"loss_of": step} if self.name == "policy" else None
        return state | {self.part: part}, loop.Report(metrics, sample)

    def validate(self, state):
        done = int(state[self.part].optimiser["count"])
        self.happens("validate", self.name, done)
        return {"val/ndcg": float(self.values[done])}


def placed(phases):
    """Phases by their places in the schedule."""
    for place, phase in enumerate(phases):
        phase.place = place
    return phases


def fresh_state():
    start = {"embedder": jnp.ones(3), "lm": jnp.arange(2.0), "control": jnp.ones(1)}
    return {part: loop.Part({"w": w}, {"count": jnp.zeros((), jnp.int32)}) for part, w in start.items()}


def settings(every=1):
    config = default()
    config.checkpoint.every = every
    return config


def run(workdir, phases, every=1, happens=nothing):
    """One start of the command."""
    tracker, interrupt = trackers.Tracker(workdir), Interrupt()
    log = tracker.log
    tracker.log = lambda *a: (happens("log", *a[1:3]), log(*a))
    try:
        return loop.Loop(placed(phases), settings(every), workdir, tracker, interrupt).run(fresh_state())
    finally:
        tracker.close()
        interrupt.close()


def two_phases(happens=nothing, **options):
    return [Made("contrastive", "embedder", happens, **options), Made("policy", "lm", happens, **options)]


def records(workdir):
    return files.read_jsonl(workdir / "metrics.jsonl")


def arrays(state):
    """All numbers of a state, its optimisers' too, by part and name."""
    named = {part: tree.weights | tree.optimiser for part, tree in state.items()}
    return {(part, name): np.asarray(a).tolist() for part, tree in named.items() for name, a in tree.items()}


def after(start, steps):
    """The weights after these steps."""
    w = np.asarray(start, np.float32)
    for step in range(steps):
        w = w * 1.5 + step
    return w.tolist()


def test_a_part_that_trains_again_has_its_best_states_optimiser(tmp_path):
    """Best after one step; the next phase's four steps go on from that one's weights and optimiser."""
    seen = []
    first = Made("contrastive", "embedder", values=[0.1, 0.5, 0.3, 0.5, 0.2])
    again = Made("contrastive", "embedder", values=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    begin = again.begin
    again.begin = lambda state: (seen.append(arrays(state)), begin(state))
    state, _ = run(tmp_path, [first, again])
    assert seen[0]["embedder", "w"] == after(np.ones(3), 1) and seen[0]["embedder", "count"] == 1
    assert arrays(state)["embedder", "count"] == 5


def test_runs_all_phases_and_keeps_their_places(tmp_path):
    state, note = run(tmp_path, two_phases())
    places = [(r["phase"], r["step"], r["global_step"]) for r in records(tmp_path)]
    assert places == [("contrastive", s, s) for s in range(5)] + [("policy", s, 4 + s) for s in range(4)]
    samples = files.read_jsonl(tmp_path / "samples.jsonl")
    places = [(s["iteration"], s["phase"], s["step"], s["loss_of"]) for s in samples]
    assert places == [(0, "policy", s + 1, s) for s in range(3)]
    assert (note["position"], note["step"], note["global_step"]) == (2, 0, 7)
    assert set(note["seconds"]) == {"contrastive", "policy"} and min(note["seconds"].values()) > 0
    assert arrays(state)["embedder", "w"] == after(np.ones(3), 4)
    assert arrays(state)["lm", "w"] == after(np.arange(2.0), 3)


def test_a_phase_ends_with_its_best_state(tmp_path, capsys):
    """Of validations .1 .5 .3 .5 .2 the first .5 is best; the optimiser's state, which nothing needs any more, stays the last."""
    phases = [Made("contrastive", "embedder", values=[0.1, 0.5, 0.3, 0.5, 0.2])]
    state, _ = run(tmp_path, phases)
    assert arrays(state)["embedder", "w"] == after(np.ones(3), 1)
    assert arrays(state)["embedder", "count"] == 4
    assert "best state by validation, step 1" in capsys.readouterr().out
    kept = checkpoints.Checkpoints(loop.stage_folder(tmp_path, phases[0]), 1)
    assert kept.latest() == 1 and kept.note(1)["validation"] == 0.5
    last = checkpoints.Checkpoints(tmp_path / "checkpoints" / "last", 2)
    assert arrays(last.restore(last.latest(), fresh_state())) == arrays(state)


def test_the_state_before_the_first_step_can_be_best(tmp_path):
    state, _ = run(tmp_path, [Made("contrastive", "embedder", values=[0.9, 0.5, 0.3, 0.5, 0.2])])
    assert arrays(state)["embedder", "w"] == [1.0, 1.0, 1.0]


def test_without_keep_best_a_phase_ends_with_its_last_state(tmp_path):
    phases = [Made("contrastive", "embedder", values=[0.9, 0.5, 0.3, 0.5, 0.2], keep_best=False)]
    state, _ = run(tmp_path, phases)
    assert arrays(state)["embedder", "w"] == after(np.ones(3), 4)
    kept = checkpoints.Checkpoints(loop.stage_folder(tmp_path, phases[0]), 1)
    assert kept.latest() == 4  # what the test's row of this phase is made from


def test_validates_on_its_period_and_at_the_end(tmp_path):
    run(tmp_path, [Made("contrastive", "embedder", evaluate_every=3)])
    assert [r["step"] for r in records(tmp_path) if "val/ndcg" in r] == [0, 3, 4]


def test_without_validation_a_phase_ends_with_its_last_state(tmp_path):
    state, _ = run(tmp_path, [Made("contrastive", "embedder", evaluate_every=0, keep_best=False)])
    assert arrays(state)["embedder", "w"] == after(np.ones(3), 4)
    assert not [r for r in records(tmp_path) if "val/ndcg" in r] and len(records(tmp_path)) == 4


@pytest.mark.parametrize(
    ("every", "keep_best", "validates"),
    [(1, True, 1), (2, True, 1), (100, True, 1), (2, False, 1), (2, False, 0)],
    ids=str,
)
def test_killed_at_every_event_ends_as_if_never_killed(tmp_path, every, keep_best, validates):
    """Each start dies at the first event at which none has died before: in steps, validations, logs, begins."""
    options = {"values": [0.1, 0.5, 0.3, 0.2, 0.4], "keep_best": keep_best, "evaluate_every": validates}
    wanted, note = run(tmp_path / "whole", two_phases(**options), every)
    died = set()

    def happens(*event):
        if event not in died:
            died.add(event)
            raise Killed

    starts, state = 0, None
    while state is None:
        starts += 1
        assert starts < 60
        try:
            state, found = run(tmp_path / "killed", two_phases(happens, **options), every, happens=happens)
        except Killed:
            pass
    assert starts > (20 if validates else 10)
    assert arrays(state) == arrays(wanted)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    places = ("position", "step", "global_step", "best")
    assert [found[k] for k in places] == [note[k] for k in places]


@pytest.mark.parametrize("keep_best", [True, False])
def test_killed_after_every_single_save_ends_as_if_never_killed(tmp_path, monkeypatch, keep_best):
    """Also between the save of a phase's best or last state and the run's own."""
    options = {"values": [0.1, 0.5, 0.3, 0.2, 0.4], "keep_best": keep_best}
    wanted, _ = run(tmp_path / "whole", two_phases(**options), 2)
    save, saves, kill_at = checkpoints.Checkpoints.save, 0, 0

    def dies(*arguments):
        nonlocal saves
        save(*arguments)
        saves += 1
        if saves == kill_at:
            raise Killed

    monkeypatch.setattr(checkpoints.Checkpoints, "save", dies)
    state, kills = None, 0
    while state is None:
        kill_at, saves = kills + 1, 0  # the first save of the first start, the second of the second, …
        try:
            state, _ = run(tmp_path / "killed", two_phases(**options), 2)
        except Killed:
            kills += 1
    assert kills > (3 if keep_best else 2)  # validations save nothing where the last state is what is kept
    for number in range(1, 12):  # and each save of a run that began anew
        kill_at, saves, workdir = number, 0, tmp_path / f"killed{number}"
        try:
            run(workdir, two_phases(**options), 2)
        except Killed:
            kill_at = 0
            state, _ = run(workdir, two_phases(**options), 2)
            assert arrays(state) == arrays(wanted) and records(workdir) == records(tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def killed_at_rename(workdir, target):
    """Starts the run in a process that kills itself just before a checkpoint's temporary folder is renamed."""
    code = (
        "import os, signal, sys, pathlib; from tests.learning import test_loop as t\n"
        "workdir, target = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "def hook(event, args):\n"
        "    if event == 'os.rename' and str(args[1]).endswith(target): os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook); t.run(workdir, t.two_phases(values=[.1, .5, .3, .2, .4]))"
    )
    command = [sys.executable, "-c", code, workdir, target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("target", ["last/3", "0-contrastive/1"])
def test_killed_inside_a_checkpoint(tmp_path, target):
    done = killed_at_rename(tmp_path / "killed", target)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    folder, _, number = target.partition("/")
    left = os.listdir(tmp_path / "killed" / "checkpoints" / folder)
    assert number not in left and [name for name in left if name.startswith(f"{number}.")]
    options = {"values": [0.1, 0.5, 0.3, 0.2, 0.4]}
    state, _ = run(tmp_path / "killed", two_phases(**options))
    wanted, _ = run(tmp_path / "whole", two_phases(**options))
    assert arrays(state) == arrays(wanted)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


@pytest.mark.parametrize(("metric", "value"), [("loss", float("nan")), ("grad_norm", float("inf"))])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, metric, value):
    """The third of five steps breaks; the checkpoint of the second can be gone on from, with a smaller rate."""
    broken = Made("contrastive", "embedder", at=2, metric=metric, value=value)
    with pytest.raises(InputError, match=f"contrastive: {metric} is not finite at step 3 of iteration 1"):
        run(tmp_path, [broken])
    assert records(tmp_path)[-1]["step"] == 3 and records(tmp_path)[-1]["not_finite"] == [metric]
    last = checkpoints.Checkpoints(tmp_path / "checkpoints" / "last", 2)
    assert last.latest() == 2 and last.note(2)["step"] == 2
    assert arrays(last.restore(2, fresh_state()))["embedder", "w"] == after(np.ones(3), 2)
    state, _ = run(tmp_path, [Made("contrastive", "embedder")])
    assert arrays(state)["embedder", "w"] == after(np.ones(3), 4)
    assert [r["step"] for r in records(tmp_path)] == [0, 1, 2, 3, 4]


def test_asked_to_stop_saves_and_says_so(tmp_path, capsys):
    """SIGTERM in the third step: that step is finished and saved, although checkpoints are due every 100."""

    def happens(*event):
        if event == ("step", "contrastive", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", two_phases(happens), every=100)
    assert stopped.value.code == 143
    said = "lpt_jax: stopped as asked; saved step 3 of contrastive. The same command goes on from there.\n"
    assert said in capsys.readouterr().out
    seen = []
    state, _ = run(tmp_path / "stopped", two_phases(lambda *e: seen.append(e)), every=100)
    assert [e for e in seen if e[:2] == ("step", "contrastive")] == [("step", "contrastive", 3)]
    wanted, _ = run(tmp_path / "whole", two_phases(), every=100)
    assert arrays(state) == arrays(wanted) and records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_signals_are_given_back_and_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt = Interrupt()
    interrupt.check()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stop):
        interrupt.check()
    interrupt.close()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_resumes_in_a_control_that_comes_after_all_iterations(tmp_path):
    """Its iteration 0 comes later than the other phases' iteration 1, whose records must stay."""

    def phases(happens=nothing):
        pairs = [("contrastive", "embedder"), ("policy", "lm")] * 2 + [("control", "control")] * 2
        made = [Made(name, part, happens, steps=2, values=range(9)) for name, part in pairs]
        for phase, iteration in zip(made, (0, 0, 1, 1, 0, 1)):
            phase.iteration = iteration
        return made

    def happens(*event):
        if event == ("step", "control", 1):
            raise Killed

    whole = run(tmp_path / "whole", phases())
    with pytest.raises(Killed):
        run(tmp_path / "killed", phases(happens))
    assert arrays(run(tmp_path / "killed", phases())[0]) == arrays(whole[0])
    assert records(tmp_path / "killed") == records(tmp_path / "whole") and len(records(tmp_path / "whole")) == 18
