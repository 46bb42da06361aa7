"""Judges of profiles: pairwise and matching tasks, put to a model behind a URL, to a local language model, or to people.

    describes  which of two profiles describes this history better: each stage's against the last one's
    matches    which of two lists of items is this profile's person's: what the user chose next, or what another user did

A judge that answers is asked twice, the places swapped: where the two answers differ, it is a tie. A local language model is
not asked but measured: the profile after which the history is likelier, the list that gains more likelihood by the profile.
People fill in a form (study.py). Every score is a mean over users with its 95 % interval; a tie counts half.
"""

import collections
import http.client
import itertools
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from lpt_jax import devices, files, metrics
from lpt_jax.data import batches, prompts
from lpt_jax.errors import InputError

KEY = "LPT_JAX_JUDGE_KEY"  # of the environment
TRIES, WAIT, LONGEST = 6, 2.0, 60.0  # of a request; seconds before the second, doubled for each further, at most
LISTED = 5  # items of a list at most


class Task(NamedTuple):
    """One question: kind, stage, user, what is given, and two options: of describes this stage's profile and the last stage's,
    of matches another user's items and one's own.
    """

    id: str
    kind: str
    stage: str
    user: str
    given: str
    options: tuple[str, str]


def tasks(r, texts: dict[str, list[str]], count: int, split: str = "test") -> list[Task]:
    """The tasks of `count` users at most, drawn by the run's seed; texts: by stage, in order, one for each of the sessions."""
    sessions, catalogue, data = r.sessions[split], r.data.catalogue, r.config.data
    firsts = list({session.user: row for row, session in reversed(list(enumerate(sessions)))}.values())
    rng = np.random.default_rng((r.config.seed, 16))
    rows = sorted(rng.permutation(firsts)[:count].tolist())
    last, made = list(texts)[-1], []
    for row in rows:
        session, other = sessions[row], sessions[rng.choice([n for n in rows if n != row] or [row])]
        shown = (prompts.blocks(part, catalogue, data, r.kept(part)) for part in r.parts(session))
        history = "\n".join(itertools.chain(*shown))
        known = {*session.history, *session.targets}
        foreign = [item for item in other.targets if item not in known]
        long = min(len(session.targets), len(foreign), LISTED)  # a list's length tells nothing
        lists = tuple("\n".join(catalogue.titles[i] for i in items[:long]) for items in (foreign, session.targets))
        for stage, of_stage in texts.items():
            profile, after = of_stage[row], texts[last][row]
            if stage != last and profile != after:
                made.append(
                    Task(f"describes-{stage}-{row}", "describes", stage, session.user, history, (profile, after))
                )
            if long:
                made.append(Task(f"matches-{stage}-{row}", "matches", stage, session.user, profile, lists))
    return made


def question(task: Task, kind: str, swapped: bool = False) -> str:
    """A task as a judge reads it; kind: what items are called."""
    first, second = task.options[::-1] if swapped else task.options
    return prompts.JUDGED[task.kind].format(kind=kind, given=task.given, first=first, second=second)


def answer_of(text: str) -> str:
    """ "first", "second" or "tie" of a judge's answer, "" if it is none.

    >>> answer_of("B"), answer_of("**A**: it names ..."), answer_of("Neither"), answer_of("A better fit is B")
    ('second', 'first', 'tie', '')
    """
    found = re.match(
        r"\W*(?:(?:answer|option)\W*)?(?:(a|b|c)(?=\W*$|[\W_]*[.:,;)\n*-])|(tie|neither|both)\b)",
        text.strip(),
        re.IGNORECASE,
    )
    return {"a": "first", "b": "second"}.get((found[1] or "").lower(), "tie") if found else ""


# ---- who judges


class Endpoint:
    """A model behind an OpenAI-compatible URL, such as http://localhost:8000/v1; the key comes from the environment."""

    def __init__(self, url: str, model: str, kind: str, wait: float = WAIT):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"--judge={url} won't do: give an http(s) URL such as https://host/v1, or local:MODEL.")
        if not model:
            raise InputError("--judge_model is missing: name the model that the endpoint is to use.")
        self.url, self.model, self.kind, self.wait = url.rstrip("/"), model, kind, wait
        self.key = os.environ.get(KEY, "").strip()
        self.name = re.sub(r"[^\w.-]+", "_", model)

    def mark(self, task: Task) -> str:
        """What an answer was an answer to, and whose it is."""
        return files.hash_of_text(json.dumps([self.url, self.model, question(task, self.kind)]))

    def judge(self, waiting: list[Task]) -> Iterable[dict]:
        """For each task {"answers": two of them, the second with the places swapped back, "tokens": [asked, answered]}."""
        for task in waiting:
            answers, tokens = [], [0, 0]
            for swapped in (False, True):
                text, used = self.ask(question(task, self.kind, swapped))
                answer = answer_of(text)
                if swapped:
                    answer = {"first": "second", "second": "first"}.get(answer, answer)
                answers.append(answer)
                tokens = [a + b for a, b in zip(tokens, used, strict=True)]
            yield {"answers": answers, "tokens": tokens}

    def ask(self, text: str) -> tuple[str, list[int]]:
        """The endpoint's answer and the tokens it counted; asks again when it is busy or breaks off."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 16,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "lpt_jax"}
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")  # to this host alone
        for attempt in range(TRIES):
            asked = ""
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    found = json.loads(response.read())
                used = found.get("usage") or {}
                tokens = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
                return str(found["choices"][0]["message"]["content"] or ""), tokens
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(500).decode("utf-8", "replace").split())[:200]
                why, again = f"HTTP {error.code} {said}".strip(), error.code in (408, 429) or error.code >= 500
                asked = error.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException) as error:
                why, again = str(error) or type(error).__name__, not isinstance(error, http.client.InvalidURL)
            except (ValueError, LookupError, TypeError, AttributeError):
                why, again = "its answer is not that of a chat completion", False
            if not again or attempt + 1 == TRIES:
                raise InputError(
                    f"--judge={self.url} doesn't answer ({why}): what was answered is kept, and once that is mended the same "
                    "command goes on."
                )
            time.sleep(min(float(asked) if asked.replace(".", "", 1).isdecimal() else self.wait * 2**attempt, LONGEST))


class Likelihood:
    """A local language model: what it holds more likely. There is no place to swap, so it never contradicts itself."""

    def __init__(self, source: str, kind: str, log_likelihood: Callable | None = None):
        """log_likelihood(contexts, texts): log P of each text after its context, and the texts' tokens; None: the model's."""
        self.kind, self.name = kind, re.sub(r"[^\w.-]+", "_", source)
        self.log_likelihood = log_likelihood or log_likelihoods(source)

    def mark(self, task: Task) -> str:
        """What an answer was an answer to."""
        return files.hash_of_text(json.dumps([task.given, *task.options, self.after("")]))

    def judge(self, waiting: list[Task]) -> Iterable[dict]:
        """For each task {"answers": one}."""
        for task in waiting:
            if task.kind == "describes":
                contexts, texts = [self.after(option) for option in task.options], [task.given] * 2
                values, _ = self.log_likelihood(contexts, texts)
            else:
                contexts = [self.after(task.given)] * 2 + [self.after("")] * 2
                values, counts = self.log_likelihood(contexts, list(task.options) * 2)
                values = (values / counts)[:2] - (values / counts)[2:]
            yield {"answers": ["tie" if values[0] == values[1] else ("first", "second")[int(np.argmax(values))]]}

    def after(self, profile: str) -> str:
        """What stands before the items that the profile's person chose."""
        return prompts.LIKELIER.format(profile=profile, kind=self.kind)


def log_likelihoods(source: str, multiple: int = 32) -> Callable:
    """log_likelihood(contexts, texts) by the language model of a source, in float32; rows are padded to a multiple of tokens."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lpt_jax.models.decoder import Decoder

    lm = Decoder.load(source)

    @nnx.jit
    def of_rows(lm, tokens, mask, own):
        found = jax.nn.log_softmax(lm(tokens, mask)[:, :-1])
        return jnp.sum(jnp.take_along_axis(found, tokens[:, 1:, None], -1)[..., 0] * own[:, 1:], -1)

    def log_likelihood(contexts, texts):
        heads = lm.tokenizer(list(contexts))["input_ids"]
        tails = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        width = -(-max(map(len, rows)) // multiple) * multiple
        tokens, mask = batches.pad_left(rows, width, 0)
        counts = np.array([len(tail) for tail in tails])
        own = np.arange(width) >= width - counts[:, None]
        return np.asarray(of_rows(lm, tokens, mask, own)), np.maximum(counts, 1)

    return log_likelihood


# ---- scores


def settled(answers: list[str]) -> float | None:
    """What the second option gets of the answers to a task: 1, 0, or 1/2 for a tie; None where an answer is missing.

    >>> settled(["second", "second"]), settled(["second", "first"]), settled(["first"]), settled(["second", ""])
    (1.0, 0.5, 0.0, None)
    """
    values = {{"first": 0.0, "second": 1.0, "": None}.get(answer, 0.5) for answer in answers}
    return None if None in values or not values else values.pop() if len(values) == 1 else 0.5


def scored(asked: list[Task], answers: dict[str, list[list[str]]], config) -> dict:
    """The scores of judges' answers: {kind: {stage: numbers}}; answers: by task, those of each judge.

    "score": of describes, how often the last stage's profile is preferred to this stage's; of matches, how often the right
    list is found; with "ties", "tasks" and "unanswered". "agreement": how often two answers to a task are the same, a judge's
    own two or those of two people.
    """
    found = collections.defaultdict(dict)
    for kind, stage in dict.fromkeys((task.kind, task.stage) for task in asked):
        values, same, missing = {}, [], 0
        for task in asked:
            if (task.kind, task.stage) == (kind, stage):
                of_task = [v for v in map(settled, answers.get(task.id, [])) if v is not None]
                missing += not of_task
                if of_task:
                    values[task.user] = float(np.mean(of_task))
                same += agreements(answers.get(task.id, []))
        numbers = np.array(list(values.values()))
        found[kind][stage] = {
            "score": metrics.mean_interval(numbers, config.seed, config.evaluation.bootstrap) if values else None,
            "ties": float((numbers == 0.5).mean()) if values else None,
            "tasks": len(numbers),
            "unanswered": missing,
            "agreement": float(np.mean(same)) if same else None,
        }
    return dict(found)


def agreements(answers: list[list[str]]) -> list[bool]:
    """For each two answers to one task whether they are the same: a judge's own two, else those of every two judges."""
    if len(answers) == 1:
        own = [answer for answer in answers[0] if answer]
        return [own[0] == own[1]] if len(own) == 2 else []
    first = [of_one[0] for of_one in answers if of_one and of_one[0]]
    return [a == b for i, a in enumerate(first) for b in first[i + 1 :]]


def table(found: dict, last: str) -> str:
    """The scores for a terminal."""
    lines = [f"{'':44}{'score (95 %)':>24}{'ties':>7}{'tasks':>7}{'unanswered':>12}{'agreement':>11}"]
    for kind, stages in found.items():
        for stage, row in stages.items():
            what = f"{last} describes better than {stage}" if kind == "describes" else f"{stage}: the right list"
            score, shares = row["score"], (row["ties"], row["agreement"])
            cell = f"{score['mean']:.3f} ({score['low']:.2f} … {score['high']:.2f})" if score else "–"
            ties, agreed = ("–" if share is None else f"{share:.2f}" for share in shares)
            lines.append(f"{what:44}{cell:>24}{ties:>7}{row['tasks']:>7}{row['unanswered']:>12}{agreed:>11}")
    return "\n".join(lines)


def run(config, workdir: Path, asked: list[Task], judge, prices: tuple[float, float] | None = None) -> dict:
    """Puts all tasks to a judge; answers are kept line by line in the workdir's judge/ as they come, so a killed run goes on.

    prices: dollars per million tokens asked and answered. Prints and writes judge/<name>.json.
    """
    folder = workdir / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    file, marks = folder / f"{judge.name}.jsonl", {task.id: judge.mark(task) for task in asked}
    lines = {line["id"]: line for line in files.read_jsonl(file) if line.get("task") == marks.get(line["id"])}
    lines = {name: line for name, line in lines.items() if all(line["answers"])}  # what had none is asked again
    files.write_file(file, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()))
    waiting = [task for task in asked if task.id not in lines]
    with (
        open(file, "a", encoding="utf-8") as out,
        tqdm(total=len(asked), initial=len(lines), desc=judge.name, unit="task") as bar,
    ):
        for task, found in zip(waiting, judge.judge(waiting), strict=True):
            lines[task.id] = {"id": task.id, "task": marks[task.id]} | found
            out.write(json.dumps(lines[task.id], ensure_ascii=False) + "\n")
            out.flush()
            bar.update()
    answers = {name: [line["answers"]] for name, line in lines.items()}
    results = {"judge": judge.name, "last": last_of(asked), "scores": scored(asked, answers, config)}
    tokens = np.sum([line["tokens"] for line in lines.values() if "tokens" in line] or [[0, 0]], 0)
    if tokens.any():
        results["tokens"] = {"asked": int(tokens[0]), "answered": int(tokens[1])}
        if prices:
            results["dollars"] = float(tokens @ np.array(prices) / 1e6)
    files.write_file(
        folder / f"{judge.name}.json", json.dumps(files.plain(results), indent=1, ensure_ascii=False) + "\n"
    )
    print(f"\n{table(results['scores'], results['last'])}\n")
    if "tokens" in results:
        cost = f", {results['dollars']:.4f} dollars" if "dollars" in results else ""
        print(f"{tokens[0]:,} tokens asked and {tokens[1]:,} answered{cost}")
    print(f"{len(lines)} answers in {file}, the scores in {judge.name}.json beside it", flush=True)
    return results


def last_of(asked: list[Task]) -> str:
    """The stage that the others' profiles are compared with."""
    return list(dict.fromkeys(task.stage for task in asked))[-1] if asked else ""


def main(config, workdir: Path, make: Callable, url: str | None, model: str | None, prices: str | None) -> dict:
    """--mode=judge; make() gives the tasks."""
    if not url:
        raise InputError("--judge is missing: an OpenAI-compatible endpoint such as https://host/v1, or local:MODEL.")
    paid = None
    if prices:
        parts = prices.split(",")
        try:
            paid = tuple(float(part) for part in parts)
        except ValueError:
            paid = ()
        if len(paid) != 2 or min(paid) < 0:
            raise InputError(
                f"--judge_price={prices} won't do: dollars per million tokens asked and answered, as 0.15,0.6."
            )
    local = url.removeprefix("local:") if url.startswith("local:") else ""
    judge = None if local else Endpoint(url, model, config.data.kind)
    asked = make()
    found = {}
    if devices.first():
        found = run(config, workdir, asked, judge or Likelihood(local, config.data.kind), paid)
    devices.wait_for_all("the judge's answers")
    return found
