"""What the README and docs/ say can be typed, what they link to is there, and their Python runs."""

import importlib.util
import json
import re
import runpy
import shlex
import sys
import types

import numpy as np
import pytest
import transformers

from lpt_jax import files, rewards, train
from lpt_jax.data import made_up
from lpt_jax.main import main, parse
from lpt_jax.systems import profiles
from tests.conftest import ROOT
from tests.systems.tiny_run import small_config

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
TYPED = [  # (page, a line of one of its sh blocks, in words and without its comment)
    (page, words)
    for page, text in PAGES.items()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
LPT_JAX = ["python", "-m", "lpt_jax.main"]
COMMANDS = [pytest.param(words, id=f"{page}: {' '.join(words[3:])}") for page, words in TYPED if words[:3] == LPT_JAX]


def links(page):
    """The local targets of a page's links and pictures, from the root: (path, anchor)."""
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if not t.startswith("http")]
    for target in targets:
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        yield place.resolve().relative_to(ROOT).as_posix(), anchor


def anchors(text):
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def python_of(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.M | re.S)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_are_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "my_reward", types.SimpleNamespace(short_and_good=len))
    parse(["main", *words[3:]])


@pytest.mark.parametrize("words", [words for _, words in TYPED if words[1:2] == ["experiments/sweep.py"]], ids=" ".join)
def test_experiments_are_understood(words, monkeypatch, capsys):
    """Asked for its help with the same flags, sweep.py parses them; without --run it says what can start now."""
    monkeypatch.chdir(ROOT)
    sweep = runpy.run_path(words[1])
    first, runs = sweep["orders"](sweep["read"](ROOT / words[2]))
    assert [one.arguments for of_name in (first, *runs.values()) for one in of_name]
    assert sweep["main"]([*words[1:], "--help"]) == 0
    known = re.findall(r"--(?:\[no\])?(\w+)", capsys.readouterr().out)
    assert {word.removeprefix("--") for word in words[3:]} <= set(known)


def test_nothing_else_is_typed_but_what_is_known():
    makefile = (ROOT / "Makefile").read_text()
    for page, words in TYPED:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), (page, words)
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), (page, words)
        elif words[0] == "python":
            script = (ROOT / words[1]).read_text()
            flags = {word.split("=")[0].removeprefix("--") for word in words[2:] if word.startswith("--")}
            assert all(re.search(rf'"(?:--)?{flag}"', script) for flag in flags), (page, words)
        else:
            assert words[:2] in (["pip", "install"], ["source", ".venv/bin/activate"]), (page, words)
    assert {words[1] for page, words in TYPED if words[0] == "make" and page == "README.md"} == {"quickstart", "test"}
    targets = {target for text in PAGES.values() for target in re.findall(r"`make (\w+)", text)}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors(PAGES[path]), f"{path}#{anchor}"


def test_every_page_and_config_is_linked_from_the_readme():
    there = {path for path, _ in links("README.md")}
    assert set(PAGES) - there == {"README.md"}
    assert {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= there


def test_the_tree_names_every_file():
    tree = PAGES["docs/layout.md"].split("```")[1]
    there = {
        path.relative_to(ROOT / "lpt_jax").as_posix()
        for path in (ROOT / "lpt_jax").rglob("*.py")
        if path.stat().st_size
    }
    folder, named = "", set()
    for line in tree[tree.index("lpt_jax/\n") :].splitlines()[1:]:
        depth, name = len(line) - len(line.lstrip()), line.split()[0] if line.strip() else ""
        folder = folder if depth > 2 else name if name.endswith("/") else ""
        named |= {folder + name} if name.endswith(".py") else set()
    assert named == there - {"__init__.py"}


def test_every_metric_is_explained(tmp_path):
    """Of a run in which everything is measured."""
    config = small_config({"contrastive.steps": 1, "policy.steps": 1, "evaluation.bootstrap": 20})
    results = train.train(profiles, config, tmp_path)
    found = {name for record in files.read_jsonl(tmp_path / "metrics.jsonl") for name in record}
    found |= {name for row in results["rows"].values() for name in row}
    found -= {"iteration", "phase", "step", "global_step"}
    explained = set(re.findall(r"`([^`]+)`", PAGES["docs/metrics.md"]))
    explained |= {f"seconds{part}" for part in explained if part.startswith("/")}
    plain = {re.sub(r"@\d+", "@k", name.removeprefix("val/")) for name in found}
    assert {name for name in plain if name not in explained} == set()


def test_the_reward_of_the_docs_works(tmp_path, monkeypatch):
    (code,) = [code for code in python_of("docs/own_model_and_reward.md") if "def short_and_good" in code]
    (tmp_path / "my_reward.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = rewards.Rollout(np.array([[[1], [3]]]), np.zeros((1, 2, 1)), [["a b", "c"]], 9)
    earned = rewards.earned("my_reward:short_and_good + 2*mrr", seen)["metric"]
    assert earned.tolist()[0] == pytest.approx([1 - 0.002 + 2, 0.5 - 0.001 + 2 / 3])
    sys.modules.pop("my_reward")


def test_the_parts_alone_run_as_they_are_shown(tmp_path):
    """The README's lines, with tiny folders in place of the hub's models; docs/ has the same ones."""
    (code,) = python_of("README.md")
    assert code in python_of("docs/own_model_and_reward.md")
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    tokenizer = made_up.tiny_tokenizer()
    one = transformers.Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, max_position_embeddings=64, **shape
    )
    transformers.Qwen3ForCausalLM(one).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    two = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)
    transformers.BertModel(two).save_pretrained(tmp_path / "embedder")
    tokenizer.save_pretrained(tmp_path / "embedder")
    code, replaced = re.subn(r"\"Qwen/.*?\"", repr(str(tmp_path / "lm")), code)
    code, more = re.subn(r"\"BAAI/.*?\"", repr(str(tmp_path / "embedder")), code)
    assert replaced == more == 1
    names = {}
    exec(code, names)
    tokens, mask = names["batch"].input_ids, names["batch"].attention_mask
    assert not mask.all() and names["logits"].shape == (*tokens.shape, len(tokenizer))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    expected = theirs(**names["lm"].tokenizer("Heat", return_tensors="pt")).logits.detach().numpy()
    np.testing.assert_allclose(names["logits"][1, mask[1] == 1], expected[0], atol=1e-4)
    assert np.linalg.norm(names["vectors"], axis=1) == pytest.approx([1.0], abs=1e-5)


def test_ones_own_data_as_the_docs_name_its_columns(tmp_path, monkeypatch):
    """A file with those columns, read by that command, with the tiny models."""
    ((_, words),) = [typed for typed in TYPED if "--config.data.source=table" in typed[1]]
    monkeypatch.chdir(tmp_path)
    rng, lines = np.random.default_rng(0), ["reader,isbn,date,stars,title"]
    for reader in range(40):
        books = enumerate(rng.permutation(30)[:10], 1)
        lines += [f"r{reader},b{b},2020-{1 + reader // 4:02d}-{day:02d},{1 + b % 5},Book {b}" for day, b in books]
    (tmp_path / "ratings.csv").write_text("\n".join(lines) + "\n")
    arguments = [word.replace("configs/movielens.py", f"{ROOT}/configs/movielens.py:tiny") for word in words[3:]]
    small = ["contrastive.steps=1", "policy.steps=1", "evaluation.bootstrap=20", "evaluation.baselines=popularity"]
    assert main(["main", *arguments, *(f"--config.{one}" for one in small), "--workdir=run"]) == 0
    assert (tmp_path / "run/results.json").exists()
    assert "books" in json.loads((tmp_path / "run/results.json").read_text())["protocol"]
