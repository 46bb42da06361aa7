"""Downloads that resume, are checked, and land whole or not at all; and where the known data sets come from."""

import fcntl
import gzip
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

import tqdm

from lpt_jax.errors import InputError

# sha256 as in tensorflow_datasets' list of checksums; ml-latest changes in place and so has none
MOVIELENS = {
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "ml-25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-latest": None,
}
# No hashes of these are published: gzip's CRC and the length are checked, and the hash is kept from then on.
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_"
_RAW = _UCSD + "2023/raw/"
AMAZON = {
    2014: (_SNAP + "reviews_{}_5.json.gz", _SNAP + "meta_{}.json.gz"),
    2018: (_UCSD + "v2/categoryFilesSmall/{}_5.json.gz", _UCSD + "v2/metaFiles2/meta_{}.json.gz"),
    2023: (_RAW + "review_categories/{}.jsonl.gz", _RAW + "meta_categories/meta_{}.jsonl.gz"),
}
BESIDE = ("README", "README.txt", "u.user", "users.dat")  # unpacked where they are there
UNPACKED = ("u.data", "u.item", "ratings.dat", "movies.dat", "ratings.csv", "movies.csv")


def cache(*parts: str) -> pathlib.Path:
    """A folder under $LPT_JAX_CACHE, else under ~/.cache/lpt_jax, made if it is not there."""
    folder = pathlib.Path(os.environ.get("LPT_JAX_CACHE") or "~/.cache/lpt_jax").expanduser()
    try:
        folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error}: set LPT_JAX_CACHE to a folder that can be written.") from None
    return folder.joinpath(*parts)


def dataset(source: str, name: str, year: int) -> pathlib.Path:
    """The cache's folder of a MovieLens or Amazon data set, downloaded if it is not there; InputError if it can't be."""
    if source == "movielens":
        name = folder = name or "ml-100k"
        urls = {f"https://files.grouplens.org/datasets/movielens/{name}.zip": MOVIELENS.get(name)}
        good = name in MOVIELENS
    else:
        folder, good = f"amazon-{year}-{name}", re.fullmatch(r"[\w&-]+", name)
        urls = {url.format(name): None for url in AMAZON[year]}
    if not good:
        what = ", ".join(MOVIELENS) if source == "movielens" else "an Amazon category such as Beauty"
        raise InputError(f"--config.data.name={name!r} won't do: give {what}; or a --config.data.path.")
    folder = cache("data", folder)
    for url, sha256 in urls.items():
        path = folder / url.rpartition("/")[2]
        files = UNPACKED[::2] if path.suffix == ".zip" else [path.name.removesuffix(".gz")]
        unpacked = any((folder / file).exists() for file in files)
        try:
            if path.exists() or not unpacked:
                fetch(url, path, sha256)
        except InputError as error:
            wanted = " and ".join(url.rpartition("/")[2] for url in urls)
            raise InputError(
                f"{error} Put {wanted} (from {' and '.join(urls)}) into {folder}, or name the folder that has them "
                "with --config.data.path; these two need no such download: "
                "`python -m lpt_jax.main --config=configs/beauty.py:tiny` and `make quickstart`."
            ) from None
        if path.suffix == ".zip" and not unpacked:
            _unzip(path)
    return folder


def fetch(url: str, path: pathlib.Path, sha256: str | None = None) -> pathlib.Path:
    """Downloads `url` to `path`, going on from `path`.part, or checks what is there; InputError if it won't do.

    Without a `sha256` the hash found at the download is kept in `path`.sha256 and checked from then on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, kept = path.with_name(path.name + ".part"), path.with_name(path.name + ".sha256")
    with open(path.with_name(".lock"), "w") as lock:  # two runs started together: the second waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            wanted = sha256 or (kept.read_text().split()[0] if kept.exists() else None)
            if wanted and hash_of(path) != wanted:
                raise InputError(f"{path} is damaged (its sha256 is not {wanted}): remove it.")
            return path
        try:
            _transfer(url, part)
        except (OSError, http.client.HTTPException) as error:
            goes_on = "; the same command goes on from what has arrived" if part.exists() else ""
            raise InputError(f"{url} could not be downloaded ({error}){goes_on}.") from None
        got = hash_of(part)
        try:
            if sha256 and got != sha256:
                raise OSError(f"its sha256 is {got}, not {sha256}")
            if path.suffix == ".gz":
                with gzip.open(part) as file:
                    while file.read(1 << 22):
                        pass
            if path.suffix == ".zip" and zipfile.ZipFile(part).testzip():
                raise OSError("a file in it fails its CRC")
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            part.unlink()
            raise InputError(f"{url} arrived damaged ({error}) and was removed.") from None
        kept.write_text(f"{got}  {path.name}\n")
        os.replace(part, path)
    return path


def hash_of(path: pathlib.Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer(url, part):
    """Brings the rest of a file; OSError if the server can't be reached or breaks off."""
    if os.environ.get("LPT_JAX_MIRROR"):
        url = os.environ["LPT_JAX_MIRROR"].rstrip("/") + urllib.parse.urlsplit(url).path
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "lpt_jax"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: the checks tell if it is all there
            return
        raise
    with response:
        start = start if response.status == 206 else 0  # a server without ranges begins anew
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = {"desc": part.stem, "initial": start, "total": total, "mininterval": 1}
        with open(part, "ab" if start else "wb") as file, tqdm.tqdm.wrapattr(file, "write", **bar) as out:
            shutil.copyfileobj(response, out, 1 << 20)
    if total and part.stat().st_size != total:
        raise OSError(f"the connection broke after {part.stat().st_size} of {total} bytes")


def _unzip(path):
    """Takes the known files out of the archive by their base names, so none lands outside the folder."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=path.parent) as new:
        found = {pathlib.PurePosixPath(member).name: member for member in archive.namelist()}
        for name in (*BESIDE, *reversed(UNPACKED)):  # a file of ratings after its films
            if name in found:
                pathlib.Path(new, name).write_bytes(archive.read(found[name]))
                os.replace(pathlib.Path(new, name), path.parent / name)
