"""A form for people: the judge's tasks as one HTML file that needs no server, and the scores of the files it saves.

The form shows one task after another in a random order, which option stands first by chance, and says nothing of where a text
is from. Answers stay in the browser until they are saved as a file; --answers scores one or many of these files.
"""

import html
import json
import re
from pathlib import Path

import numpy as np

from lpt_jax import files, judge
from lpt_jax.errors import InputError

STYLE = """
body { font: 17px/1.55 Charter, Georgia, "Noto Serif", serif; color: #1d2430; max-width: 46rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; font-weight: 600; } h2 { font-size: 1.1rem; font-weight: 600; margin: 1.6rem 0 .4rem; }
.task { display: none; } .task.now { display: block; } .text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.given { border-left: 3px solid #d9dde3; padding-left: 1rem; }
.options { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: 1rem 0; }
button { font: inherit; text-align: left; padding: .8rem 1rem; border: 1.5px solid #aeb6c2; border-radius: 6px; background: #fff; color: inherit; cursor: pointer; }
button:hover, button:focus-visible { border-color: #1f6f8b; outline: none; box-shadow: 0 0 0 2px #1f6f8b33; }
button[aria-pressed=true] { border-color: #1f6f8b; background: #eaf3f6; }
nav, .small { font: 14px/1.5 system-ui, "Noto Sans", sans-serif; color: #5b6573; } nav button { padding: .3rem .8rem; }
progress { width: 100%; } label { display: block; margin: .6rem 0; } input { font: inherit; padding: .3rem; }
@media (max-width: 38rem) { .options { grid-template-columns: 1fr; } }
"""
SCRIPT = """
const tasks = [...document.querySelectorAll('.task')], key = 'study-' + STUDY;
let kept = {}, person = Math.random().toString(36).slice(2) + Date.now().toString(36);
try { kept = JSON.parse(localStorage.getItem(key)) || {}; person = localStorage.getItem(key + '-person') || person;
  localStorage.setItem(key + '-person', person); } catch (e) {}
let at = tasks.findIndex(task => !(task.dataset.id in kept)); if (at < 0) at = tasks.length;
function keep() { try { localStorage.setItem(key, JSON.stringify(kept)); } catch (e) {} }
function show() {
  tasks.forEach((task, i) => task.classList.toggle('now', i === at));
  document.getElementById('end').hidden = at < tasks.length;
  document.getElementById('bar').value = Object.keys(kept).length;
  document.getElementById('count').textContent = `${Object.keys(kept).length} of ${tasks.length} answered`;
  document.getElementById('back').disabled = at === 0;
  tasks.forEach(task => task.querySelectorAll('button').forEach(b => b.setAttribute('aria-pressed', kept[task.dataset.id] === b.value)));
}
tasks.forEach(task => task.querySelectorAll('button').forEach(b => b.addEventListener('click', () => {
  kept[task.dataset.id] = b.value; keep(); at += 1; show(); window.scrollTo(0, 0); })));
document.getElementById('back').addEventListener('click', () => { at -= 1; show(); });
document.querySelectorAll('.save').forEach(b => b.addEventListener('click', () => {
  const who = document.getElementById('who').value.trim();
  const blob = new Blob([JSON.stringify({ study: STUDY, person: person, who: who, answers: kept }, null, 1)], { type: 'application/json' });
  const link = document.createElement('a'); link.href = URL.createObjectURL(blob);
  link.download = 'answers-' + (who.replace(/[^A-Za-z0-9_-]+/g, '_') || 'anonymous') + '.json';
  document.body.append(link); link.click(); link.remove(); }));
show();
"""
ASKED = {
    "describes": (
        "A person has chosen these {kind}:",
        "Which description fits this person better?",
        "Neither is better",
    ),
    "matches": (
        "This is said of a person’s taste in {kind}:",
        "Which list is more likely what this person chose next?",
        "I can’t tell",
    ),
}


def form(asked: list[judge.Task], kind: str, seed: int) -> str:
    """The form's HTML; which option stands first, and the tasks' order, are drawn by the seed."""
    rng, blocks = np.random.default_rng((seed, 17)), []
    for place in rng.permutation(len(asked)):
        task, swapped = asked[place], rng.random() < 0.5
        given, question, neither = ASKED[task.kind]
        values = (
            [("second", task.options[1]), ("first", task.options[0])]
            if swapped
            else list(zip(("first", "second"), task.options))
        )
        options = "".join(
            f'<button value="{value}"><p class="text">{html.escape(text)}</p></button>' for value, text in values
        )
        blocks.append(
            f'<section class="task" data-id="{number(place)}"><h2>{html.escape(given.format(kind=kind))}</h2>'
            f'<p class="text given">{html.escape(task.given)}</p><h2>{question}</h2><div class="options">{options}</div>'
            f'<button value="tie">{neither}</button></section>'
        )
    study = json.dumps(name_of(asked))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>A study of profiles</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>A study of profiles</h1><p>Each page asks one question; there are {len(asked)}. Answer by choosing a box; nothing is sent "
        f"anywhere. You can stop at any time, come back later in this browser, and save what you have answered as a file at the end, "
        f"to be sent to whoever gave you this form.</p>"
        f'<progress id="bar" max="{len(asked)}" value="0"></progress><nav><button id="back">← Back</button> '
        f'<span id="count"></span> <button class="save">Save what I have</button></nav>'
        f'{"".join(blocks)}<section id="end" hidden><h2>Thank you: that was all.</h2><label>A name or number, if you were given one: '
        f'<input id="who" maxlength="40"></label><button class="save">Save my answers as a file</button></section>'
        f"<script>const STUDY = {study};{SCRIPT}</script></body></html>\n"
    )


def number(row: int) -> str:
    """What the form calls a task, so that nobody reads where a text is from."""
    return f"task{row:04d}"


def name_of(asked: list[judge.Task]) -> str:
    """A study's name: a hash of all its tasks."""
    return files.hash_of_text(json.dumps(asked, ensure_ascii=False))[:16]


def write(config, workdir: Path, asked: list[judge.Task]) -> Path:
    """--mode=study: writes study.html, and study.json, which says where the texts are from and scores the answers."""
    if not asked:
        raise InputError(
            "There is nothing to ask: the run's stages wrote the same profiles, and no session has items next."
        )
    folder = workdir / "study"
    folder.mkdir(parents=True, exist_ok=True)
    page, key = folder / f"study-{name_of(asked)}.html", folder / f"study-{name_of(asked)}.json"
    files.write_file(key, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    files.write_file(page, form(asked, config.data.kind, config.seed))
    print(
        f"lpt_jax: {len(asked)} tasks in {page}: give people this one file. It saves their answers as files, which "
        f"--mode=study --answers='answers-*.json' scores; {key.name} beside it says where the texts are from: keep it.",
        flush=True,
    )
    return page


def collect(config, workdir: Path, names: str) -> dict:
    """--mode=study --answers=FILES: the scores of people's answers; prints and writes them."""
    paths = [path for name in names.split(",") for path in found(name.strip())]
    people, studies = {}, set()
    for path in paths:
        study, person, answers = answers_of(path)
        studies.add(study)
        if len(answers) >= len(people.get(person, {})):  # of two files of one person the fuller
            people[person] = answers
    if len(studies) != 1:
        raise InputError(f"--answers={names} has answers to {len(studies)} different studies: collect each alone.")
    key = workdir / "study" / f"study-{next(iter(studies))}.json"
    if not key.is_file():
        raise InputError(
            f"--answers={names} are to a study that {workdir} didn't make: name the workdir of --mode=study."
        )
    asked = [judge.Task(*row[:5], tuple(row[5])) for row in json.loads(key.read_text(encoding="utf-8"))]
    tasks = {number(row): task for row, task in enumerate(asked)}
    of_tasks = {
        task.id: [[of_one[name]] for of_one in people.values() if name in of_one] for name, task in tasks.items()
    }
    unknown = sum(name not in tasks for of_one in people.values() for name in of_one)
    results = {"people": len(people), "answers": sum(map(len, people.values())), "last": judge.last_of(asked)}
    results |= {"answers to unknown tasks": unknown, "scores": judge.scored(asked, of_tasks, config)}
    text = json.dumps(files.plain(results), indent=1, ensure_ascii=False)
    files.write_file(key.with_name(f"{key.stem}-results.json"), text + "\n")
    print(f"\n{judge.table(results['scores'], results['last'])}\n")
    print(
        f"{results['answers']} answers of {len(people)} people; the scores are in {key.stem}-results.json", flush=True
    )
    return results


def found(name: str) -> list[Path]:
    """The files of a name with or without *."""
    path = Path(name).expanduser()
    paths = sorted(path.parent.glob(path.name)) if re.search(r"[*?\[]", path.name) else [path]
    if not paths or not paths[0].is_file():
        raise InputError(f"--answers={name} can't be read: there is no such file.")
    return paths


def answers_of(path: Path) -> tuple[str, str, dict[str, str]]:
    """The study's name, whose it is, and the answers by task, of a file that the form saved."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        answers = {str(task): answer for task, answer in record["answers"].items()}
        study, person = str(record["study"]), str(record.get("person") or path.resolve())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{path} is no file that the study's form saved.") from None
    if wrong := next((answer for answer in answers.values() if answer not in ("first", "second", "tie")), None):
        raise InputError(f"{path} has the answer {str(wrong)[:40]!r}: it must be first, second or tie.")
    if not re.fullmatch(r"[0-9a-f]{16}", study):
        raise InputError(f"{path} names no study.")
    return study, person, answers
