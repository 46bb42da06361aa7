"""Judges: tasks of a run, an endpoint that answers as such servers do, likelihoods against transformers', people's forms."""

import http.server
import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from lpt_jax import judge, study
from lpt_jax.data import catalogue, made_up
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError
from lpt_jax.main import main

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


def config(seed=3):
    data = SimpleNamespace(prompt_fields="title,rating", best_rating=5, kind="movies")
    settings = {"data": data, "seed": seed}
    return SimpleNamespace(**settings, evaluation=SimpleNamespace(bootstrap=50))


def recommender():
    """Three users, one of them with two sessions, of twelve films."""
    films = catalogue.build([str(i) for i in range(12)], {str(i): {"title": f"Film {i}"} for i in range(12)}, "title")
    sessions = [
        Session("ann", (0, 1, 2), (5.0, 4.0, 1.0), None, (3, 4), 0.0),
        Session("bob", (5, 6), (3.0, 3.0), None, (7, 3), 0.0),
        Session("bob", (5, 6, 7), (3.0, 3.0, 3.0), None, (8,), 0.0),
        Session("cat", (9, 10), (2.0, 5.0), None, (11,), 0.0),
    ]
    known = SimpleNamespace(catalogue=films)
    parts = {"kept": lambda session: 2, "parts": lambda session: [session]}
    return SimpleNamespace(config=config(), sessions={"test": sessions}, data=known, **parts)


TEXTS = {
    "summary": ["s0", "s1", "s2", "s3"],
    "zero_shot": ["z0", "x1", "z2", "z3"],
    "cl_rlso": ["x0", "x1", "x2", "x3"],
}


def test_tasks():
    asked = judge.tasks(recommender(), TEXTS, 10)
    assert len({task.id for task in asked}) == len(asked) and {task.user for task in asked} == {"ann", "bob", "cat"}
    describes = [task for task in asked if task.kind == "describes"]
    assert [(t.stage, t.options) for t in describes if t.user == "ann"] == [
        ("summary", ("s0", "x0")),
        ("zero_shot", ("z0", "x0")),
    ]
    assert [t.stage for t in describes if t.user == "bob"] == ["summary"]  # the others' texts are the same
    assert next(t for t in describes if t.user == "ann").given == "- Film 1: rated 4/5\n- Film 2: rated 1/5"
    for task in asked:
        if task.kind == "matches":
            mine = next(s for s in recommender().sessions["test"] if s.user == task.user)
            other, own = (text.split("\n") for text in task.options)
            assert own == [f"Film {i}" for i in mine.targets][: len(own)] and len(own) == len(other)
            assert not set(other) & {f"Film {i}" for i in (*mine.history, *mine.targets)}
    assert (
        judge.tasks(recommender(), TEXTS, 10) == asked
        and len({t.user for t in judge.tasks(recommender(), TEXTS, 2)}) == 2
    )


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("A", "first"),
        (" b.", "second"),
        ("Answer: B", "second"),
        ("**C**", "tie"),
        ("A better fit is B", ""),
        ("Neither", "tie"),
        ("", ""),
        ("Apples", ""),
    ],
)
def test_answers_are_read(text, wanted):
    assert judge.answer_of(text) == wanted


def test_scores_by_hand():
    asked = [judge.Task(f"{u}", "describes", "zero_shot", u, "", ("a", "b")) for u in "wxyz"]
    answers = {
        "w": [["second", "second"]],
        "x": [["second", "first"]],  # contradicts itself
        "y": [["first", "first"]],
        "z": [["second", ""]],  # half an answer is none
    }
    row = judge.scored(asked, answers, config())["describes"]["zero_shot"]
    assert row["score"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3) and row["ties"] == pytest.approx(1 / 3)
    assert row["tasks"] == 3 and row["unanswered"] == 1 and row["agreement"] == pytest.approx(2 / 3)
    assert judge.scored(asked[3:], answers, config())["describes"]["zero_shot"]["unanswered"] == 1
    people = {"w": [["second"], ["second"], ["tie"]]}
    row = judge.scored(asked[:1], people, config())["describes"]["zero_shot"]
    assert row["score"]["mean"] == pytest.approx((1 + 1 + 0.5) / 3) and row["agreement"] == pytest.approx(1 / 3)


# ---- an endpoint


class Server:
    """A chat-completions server; it prefers the text with an x in it, else whatever is first. fails: statuses that come first."""

    def __init__(self, fails=(), body=None, dies_after=10**9):
        self.requests, self.fails, self.dies_after = [], list(fails), dies_after
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), asked))
                status = outer.fails.pop(0) if outer.fails else 200
                if len(outer.requests) > outer.dies_after:
                    status = 401
                text = asked["messages"][0]["content"]
                first, second = text.split("A:")[1].split("B:")
                second = second.split("Answer")[0]
                answer = "B" if "x" in second and "x" not in first else "A"
                found = {
                    "choices": [{"message": {"content": answer}}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 1},
                }
                content = json.dumps(found).encode() if body is None else body
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.web.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.web.shutdown()
        self.web.server_close()


def describing():
    return [task for task in judge.tasks(recommender(), TEXTS, 10) if task.kind == "describes"]


def test_an_endpoint_is_asked_twice_with_places_swapped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LPT_JAX_JUDGE_KEY", "secret")
    asked = judge.tasks(recommender(), TEXTS, 10)
    with Server(fails=[429, 503]) as server:
        found = judge.run(
            config(), tmp_path, asked, judge.Endpoint(server.url, "m/1", "movies", wait=0.01), (1.0, 10.0)
        )
        assert len(server.requests) == 2 * len(asked) + 2  # two came again
        path, key, body = server.requests[0]
        assert (
            path == "/v1/chat/completions"
            and key == "Bearer secret"
            and body["model"] == "m/1"
            and body["temperature"] == 0
        )
    scores = found["scores"]["describes"]
    assert (
        scores["summary"]["score"]["mean"] == 1.0 == scores["zero_shot"]["agreement"]
    )  # it always prefers the last stage's
    lists = found["scores"]["matches"]["cl_rlso"]
    assert (
        lists["score"]["mean"] == 0.5 and lists["ties"] == 1.0 and lists["agreement"] == 0.0
    )  # it says A twice: a tie
    assert found["tokens"] == {"asked": 200 * len(asked), "answered": 2 * len(asked)}
    assert found["dollars"] == pytest.approx((200 + 20) * len(asked) / 1e6)
    assert json.loads((tmp_path / "judge/m_1.json").read_text())["scores"] == found["scores"]
    assert "dollars" in capsys.readouterr().out


def test_a_judge_that_breaks_off_goes_on(tmp_path):
    asked = describing()
    with Server(dies_after=4) as server:
        endpoint = judge.Endpoint(server.url, "m", "movies", wait=0.01)
        with pytest.raises(InputError, match="HTTP 401 .*the same command goes on"):
            judge.run(config(), tmp_path, asked, endpoint)
        server.dies_after, count = 10**9, len(server.requests)
        with open(tmp_path / "judge/m.jsonl", "a") as file:
            file.write('{"id": "cut off by a k')
        judge.run(config(), tmp_path, asked, endpoint)
        assert len(server.requests) - count == 2 * (len(asked) - 2)
        changed = [asked[0]._replace(given="another history"), *asked[1:]]  # an answer to another question is none
        judge.run(config(), tmp_path, changed, endpoint)
        assert len(server.requests) - count == 2 * (len(asked) - 1)
    with Server() as server:  # nor is another server's
        judge.run(config(), tmp_path, asked, judge.Endpoint(server.url, "m", "movies"))
        assert len(server.requests) == 2 * len(asked)


def test_endpoints_that_will_not_do(tmp_path):
    with pytest.raises(InputError, match="--judge=ftp://x won't do"):
        judge.Endpoint("ftp://x", "m", "movies")
    with pytest.raises(InputError, match="--judge_model is missing"):
        judge.Endpoint("http://x", "", "movies")
    with Server(body=b"<html>") as server, pytest.raises(InputError, match="not that of a chat completion"):
        judge.run(config(), tmp_path, describing(), judge.Endpoint(server.url, "m", "movies"))
    with pytest.raises(InputError, match="doesn't answer"):
        judge.Endpoint("http://127.0.0.1:9", "m", "movies", wait=0.001).ask("?")
    for prices in ("1", "a,b", "-1,2"):
        with pytest.raises(InputError, match="--judge_price"):
            judge.main(config(), tmp_path, list, "http://x", "m", prices)
    with pytest.raises(InputError, match="--judge is missing"):
        judge.main(config(), tmp_path, list, None, None, None)


# ---- a local model


def test_likelihoods_are_those_of_transformers(tmp_path):
    tokenizer = made_up.tiny_tokenizer()
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, head_dim=8)
    spec = transformers.Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=64, **shape
    )
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(spec).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    contexts, texts = (
        ["likes space", "likes", "films of horror", "a b", "x"],
        ["item0003", "item0001 item0002", "space", "c", "y z"],
    )
    values, counts = judge.log_likelihoods(str(tmp_path))(contexts, texts)
    for context, text, value, count in zip(contexts, texts, values, counts, strict=True):
        head = tokenizer(context)["input_ids"]
        tail = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            found = torch.log_softmax(theirs(torch.tensor([head + tail])).logits[0, :-1], -1)
        wanted = sum(float(found[len(head) - 1 + i, token]) for i, token in enumerate(tail))
        assert value == pytest.approx(wanted, abs=1e-4) and count == len(tail)


def test_the_likelier_is_preferred():
    """Of two profiles that after which the history is likelier; of two lists the one that gains more by the profile."""

    def fake(contexts, texts):  # x makes everything likelier, and Film 11 is likely without it
        values = [-4.0 + 2 * ("x" in c) + 3 * ("Film 11" in t and "x" not in c) for c, t in zip(contexts, texts)]
        return np.array(values), np.array([2] * len(texts))

    local = judge.Likelihood("a/model", "movies", fake)
    asked = judge.tasks(recommender(), TEXTS, 10)
    answers = {task.id: found["answers"] for task, found in zip(asked, local.judge(asked), strict=True)}
    assert {tuple(answers[t.id]) for t in asked if t.kind == "describes"} == {("second",)}
    cat = next(t for t in asked if t.kind == "matches" and t.user == "cat" and t.stage == "cl_rlso")
    assert answers[cat.id] == ["first"] and local.name == "a_model"


# ---- people


def test_a_form_says_nothing_of_where_texts_are_from(tmp_path):
    asked = [task._replace(given="<script>alert(1)</script>") for task in describing()]
    page = study.write(config(), tmp_path, asked)
    text = page.read_text()
    assert "alert(1)</script>" not in text and "&lt;script&gt;alert(1)" in text
    assert "zero_shot" not in text and "cl_rlso" not in text and "http" not in text
    firsts = [part.split('value="')[1].split('"')[0] for part in text.split('class="options">')[1:]]
    assert set(firsts) == {"first", "second"} or len(firsts) < 4
    with pytest.raises(InputError, match="nothing to ask"):
        study.write(config(), tmp_path, [])


def saved(folder, asked, name, answers, **more):
    record = {"study": study.name_of(asked), "who": name, "answers": answers} | more
    (folder / f"answers-{name}.json").write_text(json.dumps(record))


def test_files_of_people_are_scored(tmp_path, capsys):
    asked = describing()
    study.write(config(), tmp_path, asked)
    numbers = [study.number(row) for row in range(len(asked))]
    saved(tmp_path, asked, "eve", dict.fromkeys(numbers, "second"))
    saved(tmp_path, asked, "dan", dict.fromkeys(numbers[:1], "tie") | {"task9999": "first"})
    found = study.collect(config(), tmp_path, str(tmp_path / "answers-*.json"))
    row = found["scores"]["describes"][asked[0].stage]
    of_stage = [task for task in asked if task.stage == asked[0].stage]
    assert row["score"]["mean"] == pytest.approx((0.75 + len(of_stage) - 1) / len(of_stage)) and row["agreement"] == 0.0
    assert found["people"] == 2 and found["answers to unknown tasks"] == 1
    saved(
        tmp_path, asked, "eve2", dict.fromkeys(numbers[:1], "first"), person="eve"
    )  # what eve saved before she was done
    saved(tmp_path, asked, "eve", dict.fromkeys(numbers, "second"), person="eve")
    assert study.collect(config(), tmp_path, str(tmp_path / "answers-*.json"))["scores"] == found["scores"]
    assert "2 people" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file"):
        study.collect(config(), tmp_path, str(tmp_path / "none-*.json"))
    saved(tmp_path, asked, "odd", {"task0000": "third"})
    with pytest.raises(InputError, match="has the answer 'third'"):
        study.collect(config(), tmp_path, str(tmp_path / "answers-odd.json"))
    saved(tmp_path, asked, "far", {}, study="0" * 16)
    with pytest.raises(InputError, match="a study that .* didn't make"):
        study.collect(config(), tmp_path, str(tmp_path / "answers-far.json"))
    saved(tmp_path, asked, "far", {}, study="../../etc/passwd")
    with pytest.raises(InputError, match="names no study"):
        study.collect(config(), tmp_path, str(tmp_path / "answers-far.json"))
    (tmp_path / "answers-bad.json").write_text("[]")
    with pytest.raises(InputError, match="no file that the study's form saved"):
        study.collect(config(), tmp_path, str(tmp_path / "answers-bad.json"))


def test_the_form_in_a_browser(tmp_path):
    """All tasks answered with the first box, one changed, saved, and scored."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if not CHROMIUM:
        pytest.skip("no chromium (Debian: apt-get install chromium)")
    asked = judge.tasks(recommender(), TEXTS, 10)
    page_file = study.write(config(), tmp_path, asked)
    with playwright.sync_playwright() as player:
        page = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        for done in range(len(asked)):
            assert page.locator(".task.now").count() == 1
            assert page.inner_text("#count") == f"{done} of {len(asked)} answered"
            page.locator(".task.now .options button").first.click()
        page.click("#back")
        page.locator('.task.now button[value="tie"]').click()
        page.reload()
        assert page.is_visible("#end")  # what was answered is still there
        page.fill("#who", "Zoë 1")
        with page.expect_download() as download:
            page.click("#end .save")
        download.value.save_as(tmp_path / "answers-zoe.json")
    assert not errors
    record = json.loads((tmp_path / "answers-zoe.json").read_text())
    assert len(record["answers"]) == len(asked) and list(record["answers"].values()).count("tie") == 1
    found = study.collect(config(), tmp_path, str(tmp_path / "answers-zoe.json"))
    assert found["answers"] == len(asked) and found["people"] == 1


# ---- a run


def test_a_run_is_judged_and_studied(tmp_path, capsys):
    """By an endpoint, from the command line; stages that wrote the same texts are one."""
    small = ["contrastive.steps=1", "policy.steps=1", "evaluation.bootstrap=20", "evaluation.baselines=popularity"]
    run = ["main", "--config=configs/movielens.py:tiny", *(f"--config.{one}" for one in small), f"--workdir={tmp_path}"]
    assert main([*run, "--mode=judge", "--judge=http://x", "--judge_model=m"]) == 2  # not trained yet
    assert main(run) == 0
    with Server() as server:
        assert main([*run, "--mode=judge", f"--judge={server.url}", "--judge_model=m", "--tasks=4"]) == 0
    found = json.loads((tmp_path / "judge/m.json").read_text())
    assert {"summary", "best", "zero_shot", "sft"} >= set(found["scores"]["describes"]) and found["last"] in (
        "sft",
        "sft_cl_rlso",
    )
    assert main([*run, "--mode=study", "--tasks=3"]) == 0
    assert len(list((tmp_path / "study").glob("study-*.html"))) == 1
    assert main([*run, "--mode=judge", "--answers=x"]) == 2
    assert "--answers is for --mode=study" in capsys.readouterr().err
