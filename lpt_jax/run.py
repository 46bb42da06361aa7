"""What every system's run has before any model: its config, data, sessions, mesh, random key, and a way to stop it."""

import signal
from pathlib import Path

import jax
import numpy as np

from lpt_jax import devices
from lpt_jax.data import sessions


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


class Run:
    """One run: config, workdir, data, sessions by split, mesh and key; `interrupt` where it may be stopped."""

    def __init__(self, config, workdir: Path, interrupt: Interrupt | None = None):
        self.config, self.workdir, self.interrupt = config, Path(workdir), interrupt
        self.data = sessions.prepare(config.data)
        self.sessions = used_sessions(self.data, config.evaluation)
        self.mesh = devices.make_mesh(config.mesh)
        self.key = jax.random.key(config.seed)

    @property
    def count(self) -> int:
        """N, the number of items that are ranked."""
        return len(self.data.catalogue.ids)

    def print_data(self) -> None:
        """What was read, dropped and kept, the protocol, and what is odd about them."""
        width = max(map(len, self.data.counts))
        print(*(f"  {name:<{width}}  {count:>9,}" for name, count in self.data.counts.items()), sep="\n")
        print(f"protocol: {self.data.protocol}", flush=True)
        for warning in self.data.warnings:
            print(f"lpt_jax: warning: {warning}", flush=True)


def used_sessions(data: sessions.Dataset, settings) -> dict[str, list[sessions.Session]]:
    """The sessions by split, of validation and test no more than config.evaluation says, which data then tells too."""
    used = dict(data.sessions)
    for split, cap in {"validation": settings.max_users, "test": settings.max_test_sessions}.items():
        if 0 < cap < (n := len(used[split])):
            rows = np.sort(np.random.default_rng(0).permutation(n)[:cap])  # the same for every seed of the run
            used[split] = [used[split][i] for i in rows]
            data.counts[f"{split} sessions left out by config.evaluation"] = n - cap
            data.protocol += f" Of {n} {split} sessions a fixed sample of {cap} is used."
    return used
