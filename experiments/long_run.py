"""An experiment's runs side by side on one accelerator that has no network, within a limit of minutes.

    python -m experiments.long_run --pack=FOLDER                      # where there is a network: the models and data, in pieces
    python -m experiments.long_run --take=FOLDER                      # over there, for each piece that has arrived
    python -m experiments.long_run experiments/after_imitation_long.py --minutes=9 --at_once=3 --out=FOLDER

Pieces are of 48 MiB, so that they can be carried one by one where a transfer has a limit; --take keeps each, checks its hash and,
when all are there, puts the folders together in the cache. The runs start seed by seed, `at_once` of them at a time (they share the
accelerator), those that others begin from first. When the minutes are over, what runs is asked to save itself and stop; the same
command goes on from there. Results, curves, configs and logs of all runs are copied to --out, whatever happens; when all have
finished, sweep.py collects them.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from absl import flags

from experiments import sweep
from lpt_jax.data import carriers, downloads
from lpt_jax.errors import InputError

PIECE = 48 << 20  # bytes
KEPT = ("results.json", "metrics.jsonl", "samples.jsonl", "config.json", "per_user.npz")  # of a run
GRACE = 40  # seconds to save in, of the minutes


def pack(folder: Path, size: int = PIECE) -> list[str]:
    """Writes the carriers as pieces and pieces.json, with each one's sha256; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, names = folder / "whole.tar", []
    with tarfile.open(whole, "w") as archive:
        for name in carriers.QUICKSTART:
            place = carriers.carrier(name)
            archive.add(place, place.name)
    with open(whole, "rb") as file:
        while part := file.read(size):
            names.append(f"{hashlib.sha256(part).hexdigest()}.piece")
            (folder / names[-1]).write_bytes(part)
    whole.unlink()
    (folder / "pieces.json").write_text(json.dumps(names))
    return names


def take(folder: Path) -> list[str]:
    """Keeps the pieces that are in the folder; the names of those still missing. With the last one the carriers are unpacked."""
    kept = downloads.cache("pieces")
    for file in folder.glob("*.piece"):
        if downloads.hash_of(file) != file.stem:
            raise InputError(f"{file} is damaged (its sha256 is not its name): carry it again.")
        shutil.copy(file, kept / file.name)
    if (folder / "pieces.json").exists():
        shutil.copy(folder / "pieces.json", kept / "pieces.json")
    if not (kept / "pieces.json").exists():
        return ["pieces.json"]
    names = json.loads((kept / "pieces.json").read_text(encoding="utf-8"))
    missing = [name for name in names if not (kept / name).exists()]
    if not missing:
        whole = kept / "whole.tar"
        with open(whole, "wb") as out:
            for name in names:
                out.write((kept / name).read_bytes())
        with tarfile.open(whole) as archive:
            archive.extractall(downloads.cache("carriers"), filter="data")
        shutil.rmtree(kept)
    return missing


def run(file: Path, minutes: float, at_once: int) -> int:
    """Runs an experiment's orders until they are done or the minutes are over; how many have not finished.

    A run that fails lets the others end; those that would begin from it don't start.
    """
    began = time.monotonic()
    ends = began + 60 * minutes - GRACE
    first, runs = sweep.orders(sweep.read(file))
    groups = [first, [one for of_seed in zip(*runs.values(), strict=True) for one in of_seed]]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for group in groups:
        waiting, running = [one for one in group if not sweep.finished(one)], []
        while (waiting and time.monotonic() < ends) or running:
            while waiting and len(running) < at_once and time.monotonic() < ends:
                one = waiting.pop(0)
                print(f"{time.monotonic() - began:6.0f} s  {one.workdir}", flush=True)
                with open(log_of(one), "a", encoding="utf-8") as log:
                    command = [sys.executable, "-m", "lpt_jax.main", *one.arguments]
                    running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            if time.monotonic() > ends:
                stop(running)
            running = [child for child in running if child.poll() is None]
            time.sleep(0.2)
        if not all(map(sweep.finished, group)):
            break
    return sum(not sweep.finished(one) for group in groups for one in group)


def stop(running: list[subprocess.Popen]) -> None:
    """Asks runs to save themselves, and ends those that take too long."""
    for child in running:
        child.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE / 2
    for child in running:
        try:
            child.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def log_of(one: sweep.Order) -> Path:
    """Where a run prints."""
    one.workdir.parent.mkdir(parents=True, exist_ok=True)
    return one.workdir.with_name(f"{one.workdir.name}.log")


def copy(file: Path, out: Path) -> None:
    """What the experiment's runs measured, into a folder each."""
    first, runs = sweep.orders(sweep.read(file))
    for one in (*first, *(one for of_name in runs.values() for one in of_name)):
        for source in (log_of(one), *(one.workdir / name for name in KEPT)):
            if source.exists():
                (out / one.workdir.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, out / one.workdir.name / source.name)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; its exit status: 0, 1 if runs are left, or 2 for wrong input."""
    f = flags.FlagValues()
    f.set_gnu_getopt(True)
    flags.DEFINE_string("pack", "", "a folder for the pieces", f)
    flags.DEFINE_string("take", "", "a folder with pieces", f)
    flags.DEFINE_float("minutes", 9.0, "for all runs", 0.0, flag_values=f)
    flags.DEFINE_integer("at_once", 3, "runs that share the accelerator", 1, flag_values=f)
    flags.DEFINE_string("out", "", "a folder for what was measured", f)
    try:
        try:
            names = f(sys.argv if argv is None else argv)[1:]
        except flags.Error as error:
            raise InputError(f"{error}; --help lists the flags.") from None
        if f.pack:
            print(*pack(Path(f.pack)), sep="\n")
        elif f.take:
            missing = take(Path(f.take))
            print(f"{len(missing)} pieces are missing: {', '.join(missing)}" if missing else "All pieces are there.")
        elif len(names) == 1:
            try:
                left = run(Path(names[0]), f.minutes, f.at_once)
            finally:
                if f.out:
                    copy(Path(names[0]), Path(f.out))
            print(f"{left} runs have not finished: their logs say why." if left else "All runs have finished.")
            return 1 if left else sweep.main(["sweep", names[0], "--collect"])
        else:
            raise InputError("Name one experiment, or --pack or --take a folder.")
    except InputError as error:
        return print(f"lpt_jax: error: {error}", file=sys.stderr) or 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
