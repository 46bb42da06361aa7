"""Runs phases one after the other: steps, validation, the best state, checkpoints, and a way back after a kill."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lpt_jax import devices
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a phase trains and how; state is a dict of trees, of which a phase changes `part` and its optimiser.

    begin(state, position) prepares the phase (again after a resume); step(state, step) -> (state, metrics) is one
    update and depends on nothing else than its arguments and what begin prepared; validate(state) -> metrics.
    """

    name: str  # contrastive | policy | control
    iteration: int
    part: str  # the key of state that is trained; f"{part}_optimiser" is its optimiser's
    settings: object  # steps, evaluate_every, keep_best
    begin: Callable
    step: Callable
    validate: Callable


class Stop(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved its state."""


class Interrupt:
    """Remembers SIGTERM and SIGINT, so that a run stops between two steps; a second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def due(self) -> bool:
        """Whether a signal has come, to this process or another (all ask)."""
        return devices.any_process(self.asked)

    def check(self, saved: str = "what is done so far") -> None:
        """Raises Stop if a signal has come, to this process or another."""
        if self.due():
            self.stop(saved)

    def stop(self, saved: str) -> None:
        """Says what is saved, and stops."""
        print(f"lpt_jax: stopped as asked; saved {saved}. The same command goes on from there.", flush=True)
        raise Stop(143)

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


def stage_folder(workdir: Path, position: int, phase: Phase) -> Path:
    """Where the result of the phase at this place of the schedule is kept: its best state, or its last."""
    return Path(workdir) / "checkpoints" / f"{position}-{phase.name}"


def run(schedule: list[Phase], state: dict, config, workdir: Path, tracker, interrupt: Interrupt) -> tuple[dict, dict]:
    """Trains through the schedule and returns the final state and {"seconds": per phase name}.

    Resumes from the newest checkpoint under workdir/checkpoints/last: its note holds the place in the schedule,
    the step and the best validation so far, so that an interrupted run does exactly what an uninterrupted one does.
    """
    last = Checkpoints(Path(workdir) / "checkpoints" / "last", config.checkpoint.keep)
    note = {"position": 0, "step": 0, "global_step": 0, "best": None, "best_step": 0, "seconds": {}}
    number = last.latest()
    if number is None:
        tracker.resume({})
    else:
        note = last.note(number)
        state = last.restore(number, state)
        place = schedule[min(note["position"], len(schedule) - 1)]
        tracker.resume(note["written"], note["global_step"])
        print(f"lpt_jax: going on from checkpoint {number} ({place.name}, step {note['step']})", flush=True)

    def save():
        note["written"] = tracker.written()
        last.save(note["global_step"] + note["position"], state, note)  # a new number at a phase's end too

    for position, phase in enumerate(schedule):
        if position < note["position"]:
            continue
        settings, started = phase.settings, time.monotonic()
        best = Checkpoints(stage_folder(workdir, position, phase), 1)

        def log(step, values, phase=phase):
            tracker.log(phase.iteration, phase.name, step, note["global_step"], values)

        def validate(state, step, phase=phase, best=best):
            values = phase.validate(state)
            value = values[f"val/{config.evaluation.metric}"]
            if note["best"] is None or value > note["best"]:
                note.update(best=value, best_step=step)
                if phase.settings.keep_best:
                    best.save(step, {phase.part: state[phase.part]}, {"step": step, "validation": value})
            return values

        unknown = note["best"] is not None and best.latest() not in (None, note["best_step"])
        if settings.keep_best and unknown:  # killed after the best's save and before the run's
            note.update(best=best.note(best.latest())["validation"], best_step=best.latest())
        phase.begin(state, position)
        if note["step"] == 0:
            note["best"] = None
            log(0, validate(state, 0))
        bar = tqdm(total=settings.steps, initial=note["step"], unit="step", disable=not devices.first(),
                   desc=f"{phase.name} {phase.iteration + 1}/{config.iterations}")  # fmt: skip
        for step in range(note["step"], settings.steps):
            state, values = phase.step(state, step)
            values = {name: float(v) for name, v in devices.fetch(values).items()}
            bad = [n for n in ("loss", "grad_norm") if not math.isfinite(values.get(n, 0.0))]
            if bad:
                bar.close()
                log(step + 1, values)
                raise InputError(
                    f"{phase.name}: {bad[0]} is not finite at step {step + 1} of iteration {phase.iteration + 1}: the "
                    f"run stops and its last good checkpoint ({last.latest()}) is kept; a smaller learning_rate helps."
                )
            note["step"], note["global_step"] = step + 1, note["global_step"] + 1
            if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
                values |= validate(state, step + 1)
            log(step + 1, values)
            bar.update()
            bar.set_postfix({k: f"{values[k]:.4g}" for k in ("loss", "reward", "val/ndcg") if k in values})
            if (due := interrupt.due()) or (step + 1) % config.checkpoint.every == 0:
                note["seconds"][phase.name] = note["seconds"].get(phase.name, 0.0) + time.monotonic() - started
                started = time.monotonic()
                save()
            if due:
                interrupt.stop(f"step {step + 1} of {phase.name}")
        bar.close()
        if settings.keep_best and note["best_step"] != settings.steps:
            state |= best.restore(note["best_step"], {phase.part: state[phase.part]})
            print(f"lpt_jax: {phase.name} ends with its best state by validation, step {note['best_step']}", flush=True)
        elif not settings.keep_best:
            best.save(settings.steps, {phase.part: state[phase.part]}, {"step": settings.steps})
        best.close()
        spent = note["seconds"].get(phase.name, 0.0) + time.monotonic() - started
        note.update(position=position + 1, step=0, best=None, seconds=note["seconds"] | {phase.name: spent})
        save()
    last.close()
    return state, note
