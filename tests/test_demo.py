"""The page: what is ranked and why, what is shown of whose text, and an edit in a headless Chromium."""

import os
import shutil
import socket
import sys
import types

import jax
import numpy as np
import pytest

from lpt_jax import demo
from lpt_jax.errors import InputError
from lpt_jax.learning.loop import Part
from lpt_jax.run import Run
from lpt_jax.systems import profiles
from tests.test_recommender import tiny_config

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'> ${window.evil = 1} {{evil}}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A desk of random models, the trained embedder another one than the first; every other title is evil."""
    r = profiles.build(Run(tiny_config(), tmp_path_factory.mktemp("run")))
    r.data.catalogue.titles[::2] = [f"{EVIL} {i}" for i in r.data.catalogue.ids[::2]]
    other = jax.tree.map(lambda a: a + 0.02 * jax.random.normal(jax.random.key(1), a.shape), r.fresh("embedder"))
    return demo.Desk(r, {"embedder": Part(other, None)})


def order(desk, stage, profile, hidden):
    """All items but the hidden ones by the plainest way: sort the cosines."""
    weights, embedder = desk.stages[stage]["embedder"], desk.r.embedder
    items = embedder.embed(weights, desk.catalogue.texts, embedder.item_limit)[0]
    scores = items @ embedder.embed_profiles(weights, [profile])[0][0] + desk.r.bias
    return [i for i in np.argsort(-scores, kind="stable").tolist() if i not in hidden]


def test_sentences_or_the_clauses_of_the_only_one():
    assert demo.parts("Likes slow films. No horror!\nOld ones? ") == ["Likes slow films.", "No horror!", "Old ones?"]
    assert demo.parts("likes Heat, Alien, and tea") == ["likes Heat,", "Alien,", "and tea"]
    assert demo.parts("Likes G.I. Jane. No horror.") == ["Likes G.I. Jane.", "No horror."]
    assert demo.parts("films") == ["films"] and demo.parts("...") == []
    many = demo.parts(". ".join(f"a{i}" for i in range(30)))
    assert len(many) == demo.PARTS and many[-1].startswith("a11. a12.") and many[-1].endswith("a29")


def test_an_edit_is_ranked_with_the_ranks_before(desk):
    hidden = (3, 7)
    rows, base = desk.rank("after", "space films", hidden)
    assert [row.item for row in rows] == order(desk, "after", "space films", hidden)[: demo.K]
    assert all(row.before == row.rank for row in rows) and [row.rank for row in rows] == list(range(1, demo.K + 1))
    edited, _ = desk.rank("after", "western films with a sheriff", hidden, base)
    assert [row.item for row in edited] == order(desk, "after", "western films with a sheriff", hidden)[: demo.K]
    before = order(desk, "after", "space films", hidden)
    assert [row.before for row in edited] == [1 + before.index(row.item) for row in edited]
    assert any(row.before != row.rank for row in edited)


def test_training_is_compared_with_the_untrained_embedders_own_items(desk):
    _, base = desk.rank("before", "space films", ())
    rows, _ = desk.rank("after", "space films", (), base)
    before = order(desk, "before", "space films", ())
    assert [row.before for row in rows] == [1 + before.index(row.item) for row in rows]
    assert [row.item for row in rows] != before[: demo.K]


def test_more_places_than_items(desk):
    hidden = tuple(range(len(desk.catalogue.ids) - 3))
    assert len(desk.rank("after", "films", hidden)[0]) == 3


def test_the_words_that_speak_most_for_an_item(desk):
    first, second = (desk.catalogue.texts[i].replace("\n", " ") for i in (1, 31))
    rows, _ = desk.rank("before", f"{first}. {second}.", ())
    because = {row.item: row.because for row in rows}
    assert because[1] == f"{first}." and because[31] == f"{second}."
    assert {row.because for row in desk.rank("before", "films", ())[0]} == {""}  # nothing to choose from


def test_words_speak_for_an_item_that_is_nearer_to_them_than_items_are(desk):
    said = ["space films and aliens.", "western films with a sheriff.", "a.", "romance in paris."]
    weights, embedder = desk.stages["after"]["embedder"], desk.r.embedder
    items = embedder.embed(weights, desk.catalogue.texts, embedder.item_limit)[0]
    cosines = embedder.embed_profiles(weights, said)[0] @ items.T
    best = ((cosines - cosines.mean(1, keepdims=True)) / cosines.std(1, keepdims=True)).argmax(0)
    rows, _ = desk.rank("after", " ".join(said), (), k=len(items))
    assert [row.because for row in rows] == [said[best[row.item]] for row in rows]
    assert len(set(cosines.argmax(0))) < len(set(best))  # by cosines alone some are never heard


def test_empty_and_too_long_profiles_get_a_sentence(desk):
    for profile in ("", " \n"):
        with pytest.raises(InputError, match="The profile is empty: say in a sentence"):
            desk.rank("after", profile, ())
    limit = desk.r.embedder.profile_limit
    desk.rank("after", "space " * limit, ())
    with pytest.raises(InputError, match=f"has {limit + 1} tokens and the embedder reads {limit}: shorten it"):
        desk.rank("after", "space " * (limit + 1), ())


def test_the_profile_grows_to_what_is_written_at_once(desk):
    session, _ = desk.session(desk.users[0], "")
    pieces = list(desk.write("after", session))
    assert (
        len(pieces) > 1
        and pieces[-1]
        == desk.r.lm.write(desk.stages["after"]["lm"], [desk.r.prompt(session)[0]], [0], desk.r.run.key)[0]
    )
    assert all(later.startswith(piece) for piece, later in zip(pieces, pieces[1:]))


def test_whose_items(desk):
    title, number = desk.catalogue.titles[1], desk.catalogue.ids[3]
    found, notes = desk.session("anyone", f"{title}\n{number}")  # a history goes before a user
    assert (found.history, found.user, notes) == ((1, 3), "", [])
    known = desk.session(desk.users[0], " ,")[0]
    assert known.user == desk.users[0] and known.ratings
    for user, history, message in (
        ("", "", "Choose a user"),
        ("nobody", "", "no user of this id"),
        ("", "qqqq", "is no item"),
    ):
        with pytest.raises(InputError, match=message):
            desk.session(user, history)


def test_all_that_is_not_ours_is_escaped(desk):
    session, _ = desk.session(desk.users[0], "")
    rows, _ = desk.rank("after", "<b>space</b> films. <i>western</i> films.", ())
    shown = desk.history_html(session) + desk.list_html(rows, True) + demo.sentence(InputError(f"--history: {EVIL}"))
    assert "&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown and "<i>w" not in shown
    assert demo.sentence(InputError("--history: 'x' is no item.")).startswith(
        "<p role='status'>History: &#x27;x&#x27; is"
    )
    assert "User: x: no user of" in demo.sentence(InputError("--user=x: no user of this id."))


def test_a_host_that_others_reach_is_told(desk, monkeypatch, capsys):
    page = types.SimpleNamespace(launch=lambda **how: launched.append(how), local_url="http://there")
    monkeypatch.setattr(demo.Page, "blocks", lambda self: page)
    for host, open_to_others in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)):
        launched = []
        demo.serve(desk, host, 7860, block=False)
        assert launched[0]["server_name"] == host and not launched[0]["share"]
        assert ("nothing asks for a password" in capsys.readouterr().out) == open_to_others


def test_what_is_missing_or_wrong_is_told_before_anything_is_loaded(monkeypatch, tmp_path):
    for port in ("abc", "0", "70000", "-1"):
        with pytest.raises(InputError, match=f"--port='{port}' won't do: it must be a number from 1 to 65535"):
            demo.run(profiles, None, tmp_path, port=port)
    asked = []
    for given, used in ((None, "127.0.0.1"), ("::1", "::1")):
        asked.clear()
        monkeypatch.setattr(demo, "Run", lambda *of_run: None)
        monkeypatch.setattr(demo.train, "trained", lambda *of_run: (None, None, None, None))
        monkeypatch.setattr(demo, "Desk", lambda *of_run: types.SimpleNamespace(warm_up=lambda: None))
        monkeypatch.setattr(demo, "serve", lambda desk, *address: asked.append(address))
        demo.run(profiles, None, tmp_path, given)
        assert asked == [(used, 7860)]
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'--mode=demo needs gradio: pip install "lpt_jax\[demo\]"'):
        demo.run(profiles, None, tmp_path)


@pytest.fixture(scope="module")
def page(desk):
    """The page in a headless Chromium; what it asked for and complained of is in .asked and .wrong."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    pytest.importorskip("gradio", reason="no gradio")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if not CHROMIUM:
        pytest.skip("no chromium (Debian: apt-get install chromium)")
    with socket.socket() as free:  # tests may run side by side
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = demo.serve(desk, "127.0.0.1", port, block=False)
    with playwright.sync_playwright() as player:
        page = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page(
            viewport={"width": 1280, "height": 900}
        )
        page.set_default_timeout(60_000)
        page.asked, page.wrong = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.goto(served.local_url)
        page.wait_for_selector("#after ol")
        yield page
    served.close()


def new_list(page, act):
    """Does something and waits for a list that wasn't there."""
    old = page.locator("#list ol").get_attribute("data-number")
    act()
    page.wait_for_function(
        "old => ![undefined, old].includes(document.querySelector('#list ol')?.dataset.number)", arg=old
    )
    return page.locator("#list li b").all_inner_texts()


def test_an_edit_in_the_browser(page, desk, tmp_path):
    profile, written = page.locator("#profile textarea"), page.locator("#profile textarea").input_value()
    first = page.locator("#list li b").all_inner_texts()
    assert len(first) == demo.K and page.locator("#before li").count() == page.locator("#after li").count() == demo.K
    edit = f"{written} . Western films with a sheriff, a saloon and a duel ."
    edited = new_list(page, lambda: profile.fill(edit))  # no key, no click: the edit alone
    assert edited != first and "from" in "".join(page.locator("#list .move").all_inner_texts())
    assert "Western films with a sheriff, a saloon and a duel ." in page.locator("#list q").all_inner_texts()
    assert "without the language model" in page.locator("#list .small").inner_text()
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert new_list(page, lambda: page.click("#again")) == edited
    assert new_list(page, lambda: page.click("#back")) == first and profile.input_value() == written


def test_wrong_input_gets_a_sentence_in_the_browser(page, desk):
    profile, said = page.locator("#profile textarea"), page.locator("#notice [role=status]")
    for text, words in (("", "The profile is empty"), ("space " * 2 * desk.r.embedder.profile_limit, "shorten it")):
        profile.fill(text)
        page.wait_for_function("words => document.querySelector('#notice').innerText.includes(words)", arg=words)
    page.locator("#person textarea").fill("qqqq")
    page.click("#go")
    page.wait_for_function("document.querySelector('#notice').innerText.includes('is no item of this catalogue')")
    assert said.count() == 1
    page.locator("#person textarea").fill(desk.catalogue.titles[1])
    new_list(page, lambda: page.click("#go"))
    assert page.locator("#history li").all_inner_texts() == [desk.catalogue.titles[1]] and said.count() == 0
    page.wait_for_selector("#after ol")


def test_nothing_of_the_catalogue_runs_and_nothing_is_fetched_from_elsewhere(page):
    shown = page.locator("#before").inner_text() + page.locator("#list").inner_text()
    assert EVIL in shown and page.evaluate("window.evil") is None
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {page.url.split("/")[2]}
    assert page.wrong == []


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# ---- what an edit did, in words


def test_an_edit_is_told_by_what_it_moved_in_the_list(desk):
    _, base = desk.rank("after", "space films", ())
    _, now = desk.rank("after", "no space films , likes western films", (), base)
    has, names = desk.catalogue.attributes.has, desk.catalogue.attributes.names
    assert len(now.best) == demo.TOP
    for name, before, after in desk.moves(base, now):
        of_one = has[names.index(name)]
        assert (before, after) == (of_one[list(base.best)].sum(), of_one[list(now.best)].sum()) and before != after
    told = desk.read_html("no space films , likes western films", base, now)
    assert "wanted: <b>western</b>" in told and "rejected: <b>space films</b>" in told and "→" in told
    assert EVIL not in desk.read_html(f"no {EVIL}", None, now)


def test_a_weight_of_the_history_ranks_by_its_items_too(desk):
    history = (1, 6, 11)
    alone, _ = desk.rank("after", "space films", history, k=20)
    both, _ = desk.rank("after", "space films", history, k=20, weight=1.0)
    assert [row.item for row in alone] != [row.item for row in both]
