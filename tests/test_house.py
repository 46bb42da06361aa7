"""How large and how plain the house is: what is measured may shrink, and grow only by raising a ceiling here.

    python tests/test_house.py [CHECKOUT]

prints the measures as Markdown. Lines are those of `ruff format` at 120 columns, as if there were no comment that switches
it off, so that nothing is gained by writing several thoughts in one line.
"""

import ast
import io
import pathlib
import re
import subprocess
import sys
import tempfile
import tokenize

ROOT = pathlib.Path(__file__).resolve().parent.parent
CEILINGS = {  # measure -> the most there may be: what there was when this was last changed, lines to the next hundred
    "lines of lpt_jax": 17_600,  # the programs of text tasks for --mode=check (200); decoder-only models that name items (200); prompts made of profiles (150), questions by titles as a warm start (150), SVD and BPR (100); biased matrix factorisation; the best of several profiles handed out; PeaPOD (430); T5 (320), codes, search, text tasks, recommendation knowledge (1,300 in all); profiles by journey, with their cards and audit (420); interest journeys, a second system, and soft prompts (1,850); judges and the study; edits, summaries, residuals, counts, audits of edits and texts; halves of matrices; imitation
    "lines of the way": 5_400,  # questions by titles, answers of several items; text tasks and their system; profiles by journey; the recipe of journeys with its settings and uses, what two systems share; keep_best with its optimiser, the row of shuffled profiles; imitation; sums of rewards
    "lines of the longest function": 91,
    "arguments of the function that takes most": 8,
    "`# fmt: skip` in lpt_jax": 0,
    "lines of README.md": 150,
    "`monkeypatch.setattr` in tests": 17,
}
WAY = """data/sessions.py data/catalogue.py data/prompts.py data/batches.py generation.py similarity.py ranking.py rewards.py
rewarder.py recommender.py learning/*.py systems/*.py""".split()  # from interactions to a trained model: what a researcher reads
SWITCH = re.compile(r"\s*#\s*fmt:\s*(skip|off|on)\b.*")
KERNELS = ("models/", "ranking.py")  # their functions take arrays by the dozen


def formatted(root):
    """{path within lpt_jax: its text as ruff formats it without being switched off}."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((root / "lpt_jax").rglob("*.py")):
            copy = pathlib.Path(folder, path.relative_to(root / "lpt_jax"))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(without_switches(path.read_text(encoding="utf-8")), encoding="utf-8")
        settings = ["--config", str(ROOT / "pyproject.toml"), "--line-length=120"]
        subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", "--no-cache", *settings, folder], check=True)
        copies = sorted(pathlib.Path(folder).rglob("*.py"))
        return {str(copy.relative_to(folder)): copy.read_text(encoding="utf-8") for copy in copies}


def comments(text):
    """(line, column, text) of each comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT]


def without_switches(text):
    """A module without the comments that switch its formatting off or on."""
    lines = text.splitlines(keepends=True)
    for line, column, comment in comments(text):
        if SWITCH.fullmatch(comment):
            lines[line - 1] = lines[line - 1][:column].rstrip() + "\n"
    return "".join(lines)


def functions(modules):
    """(lines, arguments without self, "file:name") of every function."""
    for path, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x]
                taken = len([name for name in names if name not in ("self", "cls")])
                yield node.end_lineno - node.lineno + 1, taken, f"{path}:{node.name}"


def patches(root):
    """How often tests replace what is inside."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (root / "tests").rglob("*.py")]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sum(ast.unparse(call) == "monkeypatch.setattr" for call in calls)


def measure(root):
    """{measure: (number, where)} of a checkout."""
    modules = formatted(root)
    lines = {path: len(text.splitlines()) for path, text in modules.items()}
    way = {path for path in lines if any(pathlib.PurePath(path).match(pattern) for pattern in WAY)}
    found = list(functions(modules))
    longest = max(f for f in found if f[2] != "config.py:default")
    most = max((f for f in found if not f[2].startswith(KERNELS)), key=lambda f: f[1])
    texts = [path.read_text(encoding="utf-8") for path in (root / "lpt_jax").rglob("*.py")]
    skips = [c for text in texts for _, _, c in comments(text) if SWITCH.fullmatch(c)]
    readme = (root / "README.md").read_text(encoding="utf-8")
    numbers = (
        (sum(lines.values()), f"{len(lines)} files"),
        (sum(lines[path] for path in way), f"{len(way)} files"),
        (longest[0], longest[2]),
        (most[1], most[2]),
        (len(skips), ""),
        (len(readme.splitlines()), ""),
        (patches(root), ""),
    )
    return dict(zip(CEILINGS, numbers, strict=True))


def table(measured):
    """The measures as Markdown."""
    rows = [f"| {name} | {number:,} | {CEILINGS[name]:,} | {where} |" for name, (number, where) in measured.items()]
    return "\n".join(["| measure | is | at most | where |", "|---|---:|---:|---|", *rows])


def test_what_is_measured(tmp_path):
    (tmp_path / "lpt_jax/models").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "README.md").write_text("one\ntwo\n")
    (tmp_path / "tests/test_a.py").write_text(
        "def test(monkeypatch):\n    monkeypatch.setattr(a, 'b', 'monkeypatch.setattr')\n"
    )
    (tmp_path / "lpt_jax/config.py").write_text("def default():\n" + "    f()\n" * 9)
    (tmp_path / "lpt_jax/models/a.py").write_text("def kernel(a, b, c, d, e): pass\n")  # two lines
    (tmp_path / "lpt_jax/ranking.py").write_text("x = 1; y = 2  # fmt: skip\ns = '# fmt: skip'\n")  # three
    (tmp_path / "lpt_jax/rewards.py").write_text(
        "# fmt: off\nclass A:\n def f(self, a, *b): c(); d()\n# fmt: on\n"
    )  # four
    numbers = [number for number, _ in measure(tmp_path).values()]
    assert numbers == [19, 7, 3, 2, 3, 2, 1]


def test_the_house_gets_no_worse():
    measured = measure(ROOT)
    print(table(measured))
    above = [f"{name}: {n:,} {where}" for name, (n, where) in measured.items() if n > CEILINGS[name]]
    assert not above, "make it plainer, or raise the ceiling in tests/test_house.py and say why: " + "; ".join(above)


if __name__ == "__main__":
    print(table(measure(pathlib.Path(sys.argv[1]) if sys.argv[1:] else ROOT)))
