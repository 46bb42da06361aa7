"""What a run writes while it goes on: metrics.jsonl, samples.jsonl and TensorBoard events."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import json as pa_json
from pyarrow import parquet

from lpt_jax.errors import InputError


def write_file(path, content: str | bytes | Iterable[str]) -> None:
    """Writes a file (or its lines, one after another) whole or not at all, by one that is renamed; text is UTF-8."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if isinstance(content, bytes):
        part.write_bytes(content)
    else:
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines([content] if isinstance(content, str) else content)
    os.replace(part, path)


def read_jsonl(path) -> list[dict]:
    """The records of a .jsonl file, [] without one; a last line cut short by a kill is left out."""
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:  # not JSON, or not UTF-8
            if number < len(lines) or line.endswith(b"\n"):
                raise InputError(f"{path}:{number} is not JSON: remove that line.") from None
    return records


def write_parquet(path, lines, types: dict[str, str]) -> None:
    """Writes a .parquet file of the records of a .jsonl file, whole or not at all; types: the columns and Arrow's names."""
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    part = Path(path).with_name(Path(path).name + ".part")
    parquet.write_table(pa_json.read_json(lines, parse_options=options), part)
    os.replace(part, path)


def plain(value):
    """What JSON can hold: scalar arrays as numbers, and None for those that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, str) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


class Silent:
    """Stands in for the tracker in processes that write nothing."""

    def log(self, *record):
        """Nothing."""

    sample = resume = close = log


class Tracker:
    """Appends records to metrics.jsonl and samples.jsonl of a workdir, and to TensorBoard.

    Every record begins with its place, {"iteration", "phase", "step" (within the phase), and in
    metrics.jsonl "global_step"}. A number that is not finite is written as null and named in "not_finite".
    """

    def __init__(self, workdir, tensorboard: bool = True):
        self.workdir, self.tensorboard = Path(workdir), tensorboard
        self.workdir.mkdir(parents=True, exist_ok=True)
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
        if self.events:
            for name in numbers.keys() - set(bad):
                self.events.add_scalar(f"{phase}/{name}", numbers[name], global_step)

    def sample(self, iteration: int, phase: str, step: int, values: dict):
        """Writes one sample: a user's history, profile, ranks and reward parts."""
        self._write("samples", (iteration, phase, step), plain(values))

    def resume(self, iteration: int = -1, phase: str = "", step: int = -1):
        """Drops what was written after that step, so that a resumed run writes nothing twice.

        Without arguments everything goes. What came before is read from metrics.jsonl, which is in the order of time:
        an iteration may come after a later one's (the control's), and a phase may have no samples.
        """
        self.close()
        metrics, place = read_jsonl(self.workdir / "metrics.jsonl"), (iteration, phase)

        def at(record):
            return record["iteration"], record["phase"]

        end = max([i + 1 for i, record in enumerate(metrics) if at(record) == place], default=0)
        begun, purge_step = {at(record) for record in metrics[:end]}, 0
        for name in self.files:
            path = self.workdir / f"{name}.jsonl"
            records = metrics[:end] if name == "metrics" else read_jsonl(path)
            kept = [r for r in records if at(r) in begun and (at(r) != place or r["step"] <= step)]
            write_file(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
            purge_step = max([purge_step] + [r["global_step"] + 1 for r in kept if name == "metrics"])
        self._open(purge_step)

    def close(self):
        """Closes the files; a closed tracker logs no more."""
        for file in self.files.values():
            file.close()
        if self.events:
            self.events.close()
