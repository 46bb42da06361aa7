"""What a run writes while it goes on: metrics.jsonl, samples.jsonl, TensorBoard events, W&B and trackio."""

import importlib
import json
import os
import secrets
from pathlib import Path

from lpt_jax.errors import InputError
from lpt_jax.files import plain, write_file


class Silent:
    """Stands in for the tracker in processes that write nothing."""

    def log(self, *record):
        """Nothing."""

    sample = resume = written = close = log


def online(name: str, workdir: Path, config: dict):
    """A run of W&B or trackio, whose id lies in the workdir, so that a resumed run goes on as the same one.

    Where it goes is the services' own matter (wandb login, WANDB_MODE, WANDB_PROJECT, TRACKIO_SPACE_ID, ...). InputError
    if the package is missing or the run can't be started.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(f'--config.trackers={name} needs its package: pip install "lpt_jax[{name}]".') from None
    file = workdir / "run_id.txt"
    number = file.read_text(encoding="utf-8").strip() if file.exists() else secrets.token_hex(4)
    project = os.environ.get("WANDB_PROJECT", "lpt_jax")
    label = f"{workdir.resolve().name}-{number}"  # by which trackio knows a run
    own = {"wandb": {"id": number, "dir": str(workdir)}, "trackio": {"embed": False}}[name]
    try:
        run = module.init(project=project, name=label, config=config, resume="allow", **own)
        if name == "wandb":  # whose own count of steps would refuse those that a resumed run repeats
            run.define_metric("*", step_metric="global_step")
    except Exception as error:  # of any kind: no network, no login, no such project
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} can't start its run ({reason}): log in, or say WANDB_MODE=offline, or take it out of --config.trackers."
        ) from None
    write_file(file, number + "\n")
    return run


class Tracker:
    """Appends records to metrics.jsonl and samples.jsonl of a workdir, and hands the numbers to `names`, as
    config.trackers has them: tensorboard, wandb, trackio.

    Every record begins with its place, {"iteration", "phase", "step" (within the phase), and in
    metrics.jsonl "global_step"}. A number that is not finite is written as null and named in "not_finite".
    """

    def __init__(self, workdir, names=(), config: dict | None = None):
        self.workdir, self.tensorboard = Path(workdir), "tensorboard" in names
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.online = [online(name, self.workdir, config or {}) for name in names if name != "tensorboard"]
        self._open(purge_step=0)

    def _open(self, purge_step: int):
        self.files = {}
        for name in ("metrics", "samples"):  # lone surrogates, which UTF-8 can't hold, as JSON's \\u
            path = self.workdir / f"{name}.jsonl"
            self.files[name] = open(path, "a", encoding="utf-8", errors="backslashreplace")
        self.events, self.purge_step = None, purge_step  # TensorBoard opens with the first record

    def _write(self, name, place, values):
        place = dict(zip(("iteration", "phase", "step", "global_step"), place))  # a sample's has three
        self.files[name].write(json.dumps(place | values, ensure_ascii=False) + "\n")
        self.files[name].flush()

    def log(self, iteration: int, phase: str, step: int, global_step: int, values: dict):
        """Writes one record of numbers, scalars of any kind."""
        numbers = plain(values)
        bad = [name for name in numbers if numbers[name] is None]
        extra = {"not_finite": bad} if bad else {}
        self._write("metrics", (iteration, phase, step, global_step), numbers | extra)
        if self.tensorboard and not self.events:
            from tensorboardX import SummaryWriter

            folder, start = str(self.workdir / "tensorboard"), self.purge_step
            self.events = SummaryWriter(folder, purge_step=start, filename_suffix=f".{start}")
        good = {f"{phase}/{name}": number for name, number in numbers.items() if number is not None}
        for name in good if self.events else ():
            self.events.add_scalar(name, good[name], global_step)
        for run in self.online:
            run.log(good | {"global_step": global_step})

    def sample(self, iteration: int, phase: str, step: int, values: dict):
        """Writes one sample: a user's history, profile, ranks and reward parts."""
        self._write("samples", (iteration, phase, step), plain(values))

    def written(self) -> dict[str, int]:
        """The bytes of either file that lie on the disk by now, whatever happens to the power: what resume() goes back to."""
        for file in self.files.values():
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self.files.items()}

    def resume(self, written: dict[str, int], global_step: int = -1):
        """Cuts the files back to what was `written` up to that global step, so that a resumed run writes nothing twice."""
        sizes = self.written()
        self._close()
        for name, size in sizes.items():
            os.truncate(self.workdir / f"{name}.jsonl", min(size, written.get(name, 0)))
        self._open(purge_step=global_step + 1)

    def close(self):
        """Closes files and runs; a closed tracker logs no more."""
        self._close()
        for run in self.online:
            run.finish()

    def _close(self):
        for file in self.files.values():
            file.close()
        if self.events:
            self.events.close()
