"""Runs phases one after the other: steps, validation, the best state, checkpoints, and a way back after a kill."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import optax
from tqdm import tqdm

from lpt_jax import devices
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.errors import InputError


class Part(NamedTuple):
    """What trains of one model, and its optimiser's state; the state of a run is a dict of them, {"lm", "embedder", …}."""

    weights: dict
    optimiser: object


class Report(NamedTuple):
    """What a step has to say: numbers for metrics.jsonl, and sometimes a sample for samples.jsonl."""

    metrics: dict
    sample: dict | None = None


class Phase:
    """A stretch of training that changes one part of the state.

    A phase can be called alone: begin(state) prepares it (again after a resume), step(state, step) is one update, which
    depends on nothing but its arguments and what begin prepared, validate(state) measures.
    """

    name: str  # contrastive | policy | control
    part: str  # of the state, which it trains
    iteration: int
    place: int  # in the schedule
    settings: object  # steps, evaluate_every (0: never), keep_best
    optimiser: optax.GradientTransformation

    def begin(self, state: dict[str, Part]) -> None:
        """Prepares what the steps need."""
        raise NotImplementedError

    def step(self, state: dict[str, Part], step: int) -> tuple[dict[str, Part], Report]:
        """One update."""
        raise NotImplementedError

    def validate(self, state: dict[str, Part]) -> dict[str, float]:
        """Metrics on the validation users, by names that begin with val/."""
        raise NotImplementedError


def validates_after(settings, step: int) -> bool:
    """Whether validation follows the step, counted from 0: every so many steps and after the last; never if evaluate_every is 0."""
    every = settings.evaluate_every
    return every > 0 and ((step + 1) % every == 0 or step + 1 == settings.steps)


def stage_folder(workdir: Path, phase: Phase) -> Path:
    """Where the result of a phase is kept: its best state, or its last."""
    return Path(workdir) / "checkpoints" / f"{phase.place}-{phase.name}"


class Loop:
    """Trains through a schedule.

    The note of every checkpoint under workdir/checkpoints/last holds the place in the schedule, the step and the best
    validation so far, so that an interrupted run does exactly what an uninterrupted one does.
    """

    def __init__(self, schedule: list[Phase], config, workdir: Path, tracker, interrupt):
        self.schedule, self.config, self.workdir = schedule, config, Path(workdir)
        self.tracker, self.interrupt = tracker, interrupt
        self.last = Checkpoints(self.workdir / "checkpoints" / "last", config.checkpoint.keep)
        self.note = {"position": 0, "step": 0, "global_step": 0, "best": None, "best_step": 0, "seconds": {}}

    def run(self, state: dict[str, Part]) -> tuple[dict[str, Part], dict]:
        """The final state and note, with the seconds by phase name; goes on from the newest checkpoint where there is one."""
        state = self.resumed(state)
        for phase in self.schedule[self.note["position"] :]:
            state = self.run_phase(phase, state)
        self.last.close()
        return state, self.note

    def resumed(self, state: dict[str, Part]) -> dict[str, Part]:
        """The state of the newest checkpoint, or the one given."""
        number = self.last.latest()
        if number is None:
            self.tracker.resume({})
            return state
        self.note = self.last.note(number)
        self.tracker.resume(self.note["written"], self.note["global_step"])
        place = self.schedule[min(self.note["position"], len(self.schedule) - 1)]
        print(f"lpt_jax: going on from checkpoint {number} ({place.name}, step {self.note['step']})", flush=True)
        return self.last.restore(number, state)

    def run_phase(self, phase: Phase, state: dict[str, Part]) -> dict[str, Part]:
        """The state after a phase: its best by validation, or its last."""
        note, settings, self.started = self.note, phase.settings, time.monotonic()
        best = Checkpoints(stage_folder(self.workdir, phase), 1)
        unknown = note["best"] is not None and best.latest() not in (None, note["best_step"])
        if settings.keep_best and unknown:  # killed after the best's save and before the run's
            note.update(best=best.note(best.latest())["validation"], best_step=best.latest())
        phase.begin(state)
        if note["step"] == 0:
            note["best"] = None
        if note["step"] == 0 and settings.evaluate_every:
            self.log(phase, 0, self.validate(phase, state, best, 0))
        title = f"{phase.name} {phase.iteration + 1}/{self.config.iterations}"
        shown = {"total": settings.steps, "initial": note["step"], "unit": "step", "desc": title}
        with tqdm(**shown, disable=not devices.first()) as bar:
            for step in range(note["step"], settings.steps):
                state = self.step(phase, state, best, step, bar)
        if settings.keep_best and note["best_step"] != settings.steps:
            state = state | {phase.part: self.best_part(phase, state[phase.part], best)}
            print(f"lpt_jax: {phase.name} ends with its best state by validation, step {note['best_step']}", flush=True)
        elif not settings.keep_best:
            best.save(settings.steps, {phase.part: state[phase.part].weights}, {"step": settings.steps})
        best.close()
        self.count_seconds(phase)
        note.update(position=phase.place + 1, step=0, best=None)
        self.save(state)
        return state

    def step(self, phase: Phase, state: dict[str, Part], best: Checkpoints, step: int, bar) -> dict[str, Part]:
        """One step of a phase, with all that is due after it: validation, log, checkpoint."""
        note, settings = self.note, phase.settings
        state, report = phase.step(state, step)
        values = {name: float(v) for name, v in devices.fetch(report.metrics).items()}
        if report.sample:
            self.tracker.sample(phase.iteration, phase.name, step + 1, report.sample)
        bad = [n for n in ("loss", "grad_norm") if not math.isfinite(values.get(n, 0.0))]
        if bad:
            bar.close()
            self.log(phase, step + 1, values)
            raise InputError(
                f"{phase.name}: {bad[0]} is not finite at step {step + 1} of iteration {phase.iteration + 1}: the "
                f"run stops and its last good checkpoint ({self.last.latest()}) is kept; a smaller learning_rate helps."
            )
        note["step"], note["global_step"] = step + 1, note["global_step"] + 1
        if validates_after(settings, step):
            values |= self.validate(phase, state, best, step + 1)
        self.log(phase, step + 1, values)
        bar.update()
        bar.set_postfix({k: f"{values[k]:.4g}" for k in ("loss", "reward", "val/ndcg") if k in values})
        if (due := self.interrupt.due()) or (step + 1) % self.config.checkpoint.every == 0:
            self.count_seconds(phase)
            self.save(state)
        if due:
            self.interrupt.stop(f"step {step + 1} of {phase.name}")
        return state

    def validate(self, phase: Phase, state: dict[str, Part], best: Checkpoints, step: int) -> dict[str, float]:
        """The phase's validation; where it is the best so far its weights are kept."""
        values = phase.validate(state)
        judge = (
            "val/reward" if "val/reward" in values else f"val/{self.config.evaluation.metric}"
        )  # what it is trained for
        value = values[judge]
        if self.note["best"] is None or value > self.note["best"]:
            self.note.update(best=value, best_step=step)
            if phase.settings.keep_best:
                weights, optimiser = state[phase.part]
                kept = {phase.part: weights}, {"step": step, "validation": value}
                best.save(step, *kept, optimiser if self.trains_again(phase) else None)
        return values

    def trains_again(self, phase: Phase) -> bool:
        """Whether a later phase trains the same part."""
        return any(later.part == phase.part for later in self.schedule[phase.place + 1 :])

    def best_part(self, phase: Phase, part: Part, best: Checkpoints) -> Part:
        """The part as it was at the phase's best step, its optimiser too where it trains again."""
        number = self.note["best_step"]
        weights = best.restore(number, {phase.part: part.weights})[phase.part]
        again = self.trains_again(phase)
        return Part(weights, best.restore_optimiser(number, part.optimiser) if again else part.optimiser)

    def log(self, phase: Phase, step: int, values: dict) -> None:
        self.tracker.log(phase.iteration, phase.name, step, self.note["global_step"], values)

    def count_seconds(self, phase: Phase) -> None:
        """Adds the time since the last call to the phase's."""
        seconds, now = self.note["seconds"], time.monotonic()
        seconds[phase.name] = seconds.get(phase.name, 0.0) + now - self.started
        self.started = now

    def save(self, state: dict[str, Part]) -> None:
        """A checkpoint; a phase's end has a number of its own."""
        self.note["written"] = self.tracker.written()
        self.last.save(self.note["global_step"] + self.note["position"], state, self.note)
