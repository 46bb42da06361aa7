"""The page of a trained run: a person's items, the profile that the model writes of them, and a list that follows edits.

The language model writes once, and its words are shown as they come, or at once where the best of several is chosen. From then
on only the embedder works: the edited profile and its sentences are embedded in one packed call, and the catalogue is ranked anew.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lpt_jax import devices, ranking, recommend, report, train
from lpt_jax.data import prompts
from lpt_jax.data.sessions import Session
from lpt_jax.errors import InputError
from lpt_jax.journeys import in_common
from lpt_jax.recommender import ProfileRecommender
from lpt_jax.rewarder import BestOf
from lpt_jax.run import Run

K, TOP, PARTS = 10, 20, 12  # items of a list, items whose attributes are counted, parts of a profile
MOVES = 5  # attributes whose counts are told
USERS, SHOWN, LONGEST = 300, 60, 20_000  # users to choose from, items of a history, letters that a visitor may send
SHOWN_OF_JOURNEY, LOUDEST = 6, 2.0  # items of a journey, and the most that it can weigh
STYLE = Path(__file__).with_name("page.css")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
text = report.Html().text  # everything that comes from data, models or people is escaped by it


@dataclasses.dataclass(frozen=True)
class Row:
    """A recommended item: its rank now and by the profile that is compared with, and the words that speak most for it:
    those to which it is nearest, compared with the average item and in standard deviations over the catalogue."""

    item: int
    score: float
    rank: int
    before: int
    because: str


class Ranking(NamedTuple):
    """What a later ranking is compared with: the profile's query, the items' rows, and the best TOP items."""

    query: np.ndarray
    items: jax.Array
    best: tuple[int, ...]


def parts(profile: str) -> list[str]:
    """A profile's sentences, or the clauses of its only one; at most PARTS, of which the last has all the rest.

    >>> parts("Likes slow films. No horror!"), parts("likes Heat, Alien, and tea")
    (['Likes slow films.', 'No horror!'], ['likes Heat,', 'Alien,', 'and tea'])
    """
    found = re.split(r"(?<=[^A-Z][.!?])\s+|\s*\n\s*", profile.strip())  # no sentence ends with "G.I."
    found = found if len(found) > 1 else re.split(r"(?<=[,;:])\s+", found[0])
    found = [part for part in found if re.search(r"\w", part)]
    return found if len(found) <= PARTS else [*found[: PARTS - 1], " ".join(found[PARTS - 1 :])]


@functools.partial(jax.jit, static_argnames="k")
def best(profile, items, base, base_items, hidden, k: int, valid: int):
    """The best k items by a query [1, D]: ids, scores, their ranks by `base` [1, D] in its own items, embeddings."""
    ids, scores = ranking.top_k(profile, items, hidden, k, valid)
    ranks = ranking.ranks(ranking.score(base, base_items), ids, hidden, valid)
    return ids[0], scores[0], ranks[0], items[ids[0], :-1]


class Desk:
    """What the page asks of a run's models, as they were before training and are after it."""

    def __init__(self, r: ProfileRecommender, state: dict):
        self.r, self.catalogue, self.config = r, r.data.catalogue, r.config
        fresh = {part: r.fresh(part) for part in ("lm", "embedder")}
        after = {part: state[part].weights if part in state else fresh[part] for part in fresh}
        self.stages = {"before": fresh, "after": after}
        self.items = {name: r.catalogue(stage["embedder"], keep=name == "after") for name, stage in self.stages.items()}
        self.best = {name: BestOf(r, stage["embedder"]) for name, stage in self.stages.items()}
        for name, items in self.items.items():
            self.best[name].items = items  # the next stage's would push them out, and they would be made again
        if "residuals" in state:
            self.items["after"] = r.with_terms(self.items["after"], state["residuals"].weights)
        self.usual = {
            name: devices.fetch(ranking.mean_and_covariance(items, r.run.count)) for name, items in self.items.items()
        }
        self.width = 1 << int(np.bincount(r.data.rows.user).max()).bit_length()  # of the hidden items: one shape again
        self.users = list(dict.fromkeys(s.user for s in r.sessions["test"]))[:USERS]
        results = r.run.workdir / "results.json"
        self.audits = json.loads(results.read_text(encoding="utf-8")).get("audit", {}) if results.exists() else {}
        self.numbers = itertools.count(1)  # of the lists, so that a new one is told from the last

    def warm_up(self) -> None:
        """Compiles everything that a visitor would wait for."""
        session, _ = self.session(self.users[0], "")
        for stage in self.stages:
            list(self.write(stage, session))
            for words in (1, self.r.embedder.profile_limit // 2 - 4):  # one line of tokens and two
                lines = range(1, 1 + (self.config.profile.journeys if self.r.by_journey else 1))
                for count in lines:
                    with contextlib.suppress(
                        InputError
                    ):  # a tokenizer may make more of it: the first such edit compiles
                        self.rank(stage, "\n".join(["a, " * words] * count), session.history)

    def session(self, user: str, history: str) -> tuple[Session, list[str]]:
        """Whose items are shown, and what was guessed; a history of ids or titles goes before a user's id."""
        if history and len(history) > LONGEST:
            raise InputError(f"These are more than {LONGEST:,} letters: give fewer titles.")
        if history and history.strip(" ,\n\t"):
            found, notes = recommend.find_items(history.replace("\n", ","), self.catalogue)
            return Session("", found, None, None, (), float("nan")), notes
        if not user:
            raise InputError("Choose a user, or give a history of titles.")
        return recommend.known_session(self.r.data, str(user).strip()), []

    def write(self, stage: str, session: Session):
        """The profile by a stage's language model, ever longer, or the best of several; that of each journey is a line."""
        weights, done = self.stages[stage], []
        if self.config.profile.samples > 1:
            yield recommend.written(self.r, weights, session, self.best[stage], self.width)
            return
        for part in self.r.parts(session):
            for words in self.r.lm.grow(weights["lm"], self.r.prompt(part)[0], self.r.run.key):
                yield "\n".join([*done, line := self.r.line(words)])
            done.append(line)

    def rank(
        self,
        stage: str,
        profile: str,
        history,
        base: Ranking | None = None,
        k: int = K,
        weight: float = 0.0,
        journeys=(),
    ) -> tuple[list[Row], Ranking]:
        """The best k items without the history, and what a later call takes as `base`: the ranking to compare with.

        weight: of the history's latest items beside the profile. journeys: of each of the profile's lines its name and its
        weight, where they are of journeys: the name of the one that ranks an item is then the words that speak for it.
        InputError if the profile is empty or longer than the embedder reads.
        """
        embedder, limit = self.r.embedder, self.r.embedder.profile_limit
        if not profile.strip():
            raise InputError("The profile is empty: say in a sentence what this person likes.")
        if (length := self.r.length(profile)) > limit:
            raise recommend.too_long(length, limit)
        said = [part for part in parts(profile) if not prompts.rejected_thing(part)]
        weights, items = self.stages[stage]["embedder"], self.items[stage]
        loud = [[of_line for _, of_line in journeys]] if journeys else None
        query = self.r.with_history(self.r.queries(weights, [profile], loud=loud)[0], items, [history], weight)
        base = base or Ranking(query, items, ())
        hidden = ranking.padded([history], max(self.width, len(history)))
        found = best(query, items, base.query, base.items, hidden, max(k, TOP), len(self.catalogue.ids))
        ids, scores, before, vectors = devices.fetch(found)
        own = Ranking(query, items, tuple(i for i in ids[:TOP].tolist() if i >= 0))
        ids, scores, before, vectors = ids[:k], scores[:k], before[:k], vectors[:k]
        if journeys:
            lines, _ = prompts.read_lines(profile.split("\n"), "", bool(self.config.score.rejected))
            names = [journeys[number][0] for number in lines] or [""]
            speaks = (query.reshape(-1, query.shape[-1])[:, :-1] @ vectors.T).argmax(0)
            rows = zip(
                ids.tolist(), scores.tolist(), range(1, len(ids) + 1), before.tolist(), (names[i] for i in speaks)
            )
            return [Row(*row) for row in rows if row[0] >= 0], own
        (mean, covariance), words = self.usual[stage], embedder.embed_profiles(weights, said or [profile])[0]
        nearer = words @ (vectors - mean).T  # in standard deviations: else words near to all items spoke for each
        nearer /= np.sqrt(np.maximum(np.sum(words @ covariance * words, 1, keepdims=True), 1e-12))
        because = [said[i] for i in nearer.argmax(0)] if len(said) > 1 else [""] * len(ids)
        rows = zip(ids.tolist(), scores.tolist(), range(1, len(ids) + 1), before.tolist(), because)
        return [Row(*row) for row in rows if row[0] >= 0], own

    def moves(self, before: Ranking, now: Ranking) -> list[tuple[str, int, int]]:
        """The attributes whose number among the best TOP items an edit changed most: name, number before and now."""
        attributes = self.catalogue.attributes
        counts = [attributes.has[:, list(ranked.best)].sum(1) for ranked in (before, now)]
        order = np.argsort(-np.abs(counts[1] - counts[0]), kind="stable")[:MOVES]
        return [
            (attributes.names[a], int(counts[0][a]), int(counts[1][a])) for a in order if counts[0][a] != counts[1][a]
        ]

    def journeys(self, session: Session) -> list[tuple[str, str]]:
        """A session's journeys, as the profile's lines are: the name of each, and it with its items as HTML."""
        found = []
        for part in self.r.parts(session) if self.r.by_journey else ():
            name, titles = (
                in_common(part.history, self.catalogue),
                [self.catalogue.titles[i] for i in part.history[::-1]],
            )
            shown = " · ".join(titles[:SHOWN_OF_JOURNEY]) + (
                f" and {len(titles) - SHOWN_OF_JOURNEY} more" if len(titles) > SHOWN_OF_JOURNEY else ""
            )
            found.append((name, f"<h3>{text(name)}</h3><p class='small'>{text(shown)}</p>"))
        return found

    # ---- what is shown, as HTML

    def read_html(self, profile: str, before: Ranking | None, now: Ranking) -> str:
        """How a profile is read, and what an edit did, in words."""
        affirmed, rejected = prompts.read_lines(profile.split("\n"), "", True)
        affirmed = "\n".join(affirmed.values())
        names = [
            name for name in self.catalogue.attributes.names if re.search(rf"\b{re.escape(name)}\b", affirmed, re.I)
        ]
        read = {"wanted": names, "rejected": rejected if self.config.score.rejected else []}
        lines = [f"{what}: <b>{text(', '.join(words))}</b>" for what, words in read.items() if words]
        said = f"<p class='read'>Read as {'; '.join(lines)}.</p>" if lines else ""
        moved = self.moves(before, now) if before and before.best else []
        told = " · ".join(f"{text(name)}: {old} of {len(now.best)} → <b>{new}</b>" for name, old, new in moved)
        return said + (f"<p class='moves'>{told}</p>" if told else "")

    def control_html(self) -> str:
        """What the run's audit says of edits, a sentence; nothing without one."""
        found = list(self.audits.values())[-1] if self.audits else {}
        if not (found.get("like") and found.get("dislike")):
            return ""
        like, dislike = found["like"], found["dislike"]
        return (
            f"<p class='small'>Audited on {found['profiles']} test profiles: a like appended raises the share of what it names "
            f"in the top {TOP} by {like['change']:+.2f} ({like['obeyed']} of {like['attributes']} names obeyed), a dislike "
            f"changes it by {dislike['change']:+.2f} ({dislike['obeyed']} of {dislike['attributes']}).</p>"
        )

    def history_html(self, session: Session) -> str:
        """A person's items with their ratings, newest first; those that the model doesn't read are paler."""
        n, read = len(session.history), set(self.r.shown(session))
        ratings, best, lines = session.ratings or [None] * n, self.config.data.best_rating, []
        for item, rating in zip(session.history[::-1], ratings[::-1]):
            rated = "" if rating is None or rating != rating else f"<b title='of {best:g}'>{rating:g}<i>★</i></b>"
            lines.append(
                f"<li class='{'read' if item in read else ''}'>{text(self.catalogue.titles[item])}{rated}</li>"
            )
        head = f"{n} {self.config.data.kind}, newest first; the model reads {'' if self.r.by_journey else 'the latest '}{len(read)}"
        return f"<p class='small'>{text(head)}.</p><ul class='history' tabindex=0>{''.join(lines[:SHOWN])}</ul>"

    def list_html(self, rows: list[Row], moves: bool, note: str = "") -> str:
        """The list; moves: with each item's rank before."""
        lines = []
        for row in rows:
            fields = [line.partition(": ") for line in self.catalogue.texts[row.item].splitlines()]
            more = " · ".join(value for name, _, value in fields if name != "Title" and value)[:120]
            said = f"<q>{text(row.because)}</q>" if row.because else ""
            moved = {0: "as before", 1: f"▲ from {row.before}", -1: f"▼ from {row.before}"}
            sign = int(np.sign(row.before - row.rank))
            lines.append(
                f"<li><span class='rank'>{row.rank}</span><div class='what'><b>{text(self.catalogue.titles[row.item])}</b>"
                f"<small>{text(more)}</small>{said}</div><span class='move {('same', 'up', 'down')[sign]}'>{moved[sign] if moves else ''}</span>"
                f"<span class='score'>{row.score:.3f}</span></li>"
            )
        number = next(self.numbers)
        return f"<ol class='list' data-number={number}>{''.join(lines)}</ol><p class='small'>{text(note)}</p>"


def sentence(error: InputError | str) -> str:
    """An InputError, or a note, as the page says it: without the command line's dashes."""
    words = re.sub(r"^--(\w+)[:=]\s*", r"\1: ", str(error))
    return f"<p role='status'>{text(words[:1].upper() + words[1:])}</p>"


def quote(words: str) -> str:
    """A profile as the page shows one that isn't edited."""
    return f"<blockquote>{text(words or '(empty)')}</blockquote>"


class Card(NamedTuple):
    """The components of a profile, or of a journey's, which has a name with its items, and may be muted and weighed, too."""

    words: object
    all: object = None
    head: object = None
    mute: object = None
    loud: object = None


class Page:
    """What is shown, and what happens on a click or an edit: handlers give {component: its new content}."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self.count, self.kind = len(desk.catalogue.ids), desk.config.data.kind

    # ---- what happens

    def rank(self, state: dict | None, weight: float, *given):
        """After an edit, or another weight; given: of all cards the words, then which are muted, and their weights."""
        if not state:
            return {self.notice: ""}
        started = time.perf_counter()
        profile, journeys = self.said(state["names"], given)
        try:
            rows, now = self.desk.rank("after", profile, state["history"], state["base"], K, weight or 0.0, journeys)
        except InputError as error:
            return {self.notice: sentence(error)}
        weighed = weight or any(loud != 1 for _, loud in journeys)
        edited = state["base"] is not None and (weighed or profile.strip() != state["written"].strip())
        took = f"{1000 * (time.perf_counter() - started):.0f} ms, without the language model."
        listed = self.desk.list_html(rows, edited, f"{self.count:,} {self.kind} ranked in {took}")
        return {self.notice: "", self.ranked: self.desk.read_html(profile, state["base"], now) + listed}

    def said(self, names: list[str], given: tuple) -> tuple[str, list[tuple[str, float]]]:
        """The profile of the cards that aren't muted, and of each of its lines the journey's name and weight."""
        if not names:
            return given[0], []
        words, mutes, weights = (given[start : start + len(names)] for start in range(0, len(given), len(self.cards)))
        cards = zip(names, words, mutes, weights, strict=True)
        said = [(name, loud, " ".join(text.split())) for name, text, muted, loud in cards if text.strip() and not muted]
        return "\n".join(line for *_, line in said), [(name, loud) for name, loud, _ in said]

    def lines(self, profile: str) -> list[str]:
        """What of a profile stands on each card."""
        lines = profile.split("\n") if self.desk.r.by_journey else [profile]
        return lines + [""] * (len(self.cards) - len(lines))

    def restore(self, state: dict | None):
        """The model's own words again, and nothing beside them."""
        if not state:
            return {self.notice: ""}
        lines = self.lines(state["written"])
        untouched = [False] * len(lines) + [1.0] * len(lines) if state["names"] else []
        shown = dict(zip(self.values(), [*lines, *untouched], strict=True)) | {self.weight: 0.0}
        return shown | self.rank(state, 0.0, *lines, *untouched)

    def values(self) -> list:
        """What the handlers are given of the cards: all words, then which are muted, then the weights."""
        columns = zip(*((card.words, card.mute, card.loud) for card in self.cards), strict=True)
        return [component for column in columns for component in column if component is not None]

    def write(self, user: str, history: str):
        """The person's items, the profile while it is written, its list; then the same as before training."""
        try:
            session, notes = self.desk.session(user, history)
            yield self.emptied(session, notes)
            written, bases, lists = {}, {}, {}
            for stage in ("after", "before"):
                for words in self.desk.write(stage, session):
                    written[stage] = words
                    yield self.growing(words) if stage == "after" else {self.before: quote(words)}
                lists[stage], bases[stage] = self.listed(stage, written[stage], session)
                if stage == "after":
                    yield self.written(session, written[stage], lists[stage], bases[stage])
            compared = {self.before: quote(written["before"]) + lists["before"]}
            if bases["before"] and bases["after"]:
                rows, _ = self.desk.rank("after", written["after"], session.history, bases["before"])
                compared[self.after] = quote(written["after"]) + self.desk.list_html(rows, True)
            yield compared
            self.desk.r.forget(session)
        except InputError as error:
            yield {self.notice: sentence(error)}

    def emptied(self, session: Session, notes: list[str]) -> dict:
        """A new person, and nothing else yet."""
        shown = {self.people: self.desk.history_html(session), self.state: None}
        shown[self.notice] = sentence(" ".join(notes)) if notes else ""
        journeys = self.desk.journeys(session)
        for number, card in enumerate(self.cards):
            shown[card.words] = self.update(value="", interactive=False)
            if card.all is not None:
                there = number < len(journeys)
                shown |= {card.all: self.update(visible=there), card.head: journeys[number][1] if there else ""}
                shown |= {card.mute: False, card.loud: 1.0}
        return shown | {self.weight: 0.0, self.ranked: "", self.before: "", self.after: ""}

    def growing(self, profile: str) -> dict:
        """A profile that is not finished yet."""
        return {card.words: line for card, line in zip(self.cards, self.lines(profile), strict=True)}

    def listed(self, stage: str, profile: str, session: Session) -> tuple[str, tuple | None]:
        """A stage's list, or why there is none, and what others are compared with."""
        try:
            names = [name for name, _ in self.desk.journeys(session)]
            rows, base = self.desk.rank(stage, profile, session.history, journeys=[(name, 1.0) for name in names])
        except InputError as error:
            return sentence(error), None
        return self.desk.list_html(rows, False), base

    def written(self, session: Session, profile: str, listed: str, base: tuple | None) -> dict:
        """A finished profile, which may now be edited, and its list."""
        kept = {"history": session.history, "written": profile, "base": base}
        kept["names"] = [name for name, _ in self.desk.journeys(session)]
        boxes = zip(self.cards, self.lines(profile), strict=True)
        finished = {card.words: self.update(value=line, interactive=True) for card, line in boxes}
        return finished | {self.state: kept, self.ranked: listed}

    def of_user(self, user: str):
        """Another user is chosen."""
        yield {self.history: ""}
        yield from self.write(user, "")

    # ---- what is shown

    def blocks(self):
        """The page as gradio Blocks, not yet served."""
        import gradio as gr

        self.update, self.show = gr.update, functools.partial(gr.HTML, apply_default_css=False)
        with gr.Blocks(title="lpt_jax", analytics_enabled=False) as page:
            self.state = gr.State()
            self.show(HEADER.format(count=f"{self.count:,}", kind=text(self.kind)), elem_id="top")
            with gr.Row(elem_id="main"):
                with gr.Column(scale=4, min_width=280, elem_id="person"):
                    go = self.person(gr)
                with gr.Column(scale=9, min_width=320, elem_id="work"):
                    again, back = self.work(gr)
            self.show("<h2>What training changed</h2>" + self.desk.control_html(), elem_id="training")
            with gr.Row(elem_id="stages"):
                with gr.Column(min_width=320):
                    self.show("<h3>Before training</h3>")
                    self.before = self.show(elem_id="before")
                with gr.Column(min_width=320):
                    self.show("<h3>After training</h3>")
                    self.after = self.show(elem_id="after")
            self.connect(gr, page, go, again, back)
        return page

    def person(self, gr):
        """The left column; its button."""
        users = self.desk.users
        self.show("<h2>The person</h2>")
        self.user = gr.Dropdown(users, value=users[0], label="A user", allow_custom_value=True)
        label = "or titles, oldest first, with commas"
        self.history = gr.Textbox(label=label, max_lines=4, max_length=LONGEST)
        go = gr.Button("Write the profile", elem_id="go")
        self.people = self.show(elem_id="history")
        return go

    def work(self, gr):
        """The right column; its buttons."""
        self.show("<h2>The profile <span>yours to change</span></h2>")
        many = self.desk.config.profile.journeys if self.desk.r.by_journey else 0
        self.cards = [self.journey(gr, number) for number in range(many)] or [Card(self.box(gr, "profile"))]
        self.notice = self.show(elem_id="notice")
        label = "Weight of the latest items beside the profile (0: the profile alone)"
        self.weight = gr.Slider(0.0, 2.0, 0.0, step=0.1, label=label, elem_id="weight")
        with gr.Row(elem_id="buttons"):
            again = gr.Button("Rank again", elem_id="again", variant="primary")
            back = gr.Button("Back to the model’s words", elem_id="back")
        self.show("<h2>What it recommends</h2>")
        self.ranked = self.show(elem_id="list")
        return again, back

    def box(self, gr, name: str, lines: int = 3):
        """Where a profile stands."""
        size = {"lines": lines, "max_lines": 9, "max_length": LONGEST}
        return gr.Textbox(label="Profile", show_label=False, elem_id=name, elem_classes="profile", **size)

    def journey(self, gr, number: int) -> Card:
        """The card of a journey."""
        with gr.Group(elem_classes="journey", visible=False) as card:
            head, words = self.show(elem_classes="head"), self.box(gr, f"profile-{number}", 2)
            with gr.Row():
                mute = gr.Checkbox(label="Mute", min_width=90, elem_id=f"mute-{number}")
                loud = gr.Slider(0.0, LOUDEST, 1.0, step=0.1, label="Weight", elem_id=f"loud-{number}")
        return Card(words, card, head, mute, loud)

    def connect(self, gr, page, go, again, back) -> None:
        """Which click or edit calls which handler."""
        shown = [
            self.notice,
            self.people,
            *(part for card in self.cards for part in card if part is not None),
            self.weight,
            self.ranked,
            self.before,
            self.after,
            self.history,
        ]
        quick = {"outputs": [self.state, *shown], "show_progress": "hidden", "api_visibility": "private"}
        slow = quick | {"concurrency_limit": 1, "concurrency_id": "language model", "trigger_mode": "always_last"}
        newest = quick | {"queue": False, "trigger_mode": "always_last"}
        gr.on([page.load, go.click, self.history.submit], self.write, [self.user, self.history], **slow)
        self.user.input(self.of_user, self.user, **slow)
        by = [self.state, self.weight, *self.values()]
        edits = [again.click, self.weight.release, *(card.words.submit for card in self.cards)]
        edits += [edit for card in self.cards if card.all for edit in (card.mute.input, card.loud.release)]
        gr.on(edits, self.rank, by, **newest)
        back.click(self.restore, self.state, queue=False, **quick)


def serve(desk: Desk, host: str, port: int, block: bool = True):
    """Serves the page; returns gradio's Blocks once it is closed, or at once where block is False."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    import gradio as gr

    fonts = {"font": ["system-ui", "Noto Sans", "sans-serif"], "font_mono": ["monospace"]}  # none is fetched
    page = Page(desk).blocks()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            theme=gr.themes.Base(**fonts),
            css_paths=STYLE,
            js=SCRIPT,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
        )
    except OSError:
        raise InputError(f"--host={host} --port={port}: the address is taken or not this machine's.") from None
    print(f"lpt_jax: the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    if host not in LOOPBACK:
        print(f"lpt_jax: whoever can reach {host} can read the data's users there; nothing asks for a password.")
    if block:
        page.block_thread()
    return page


def run(system, config, workdir, host: str | None = None, port: str | None = None) -> None:
    """Loads the run in `workdir`, compiles what the page needs, and serves it (127.0.0.1, 7860) until Ctrl-C."""
    host, port = host or "127.0.0.1", port or "7860"
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(f"--port={port!r} won't do: it must be a number from 1 to 65535.")
    if importlib.util.find_spec("gradio") is None:
        raise InputError('--mode=demo needs gradio: pip install "lpt_jax[demo]".')
    r, _, state, _ = train.trained(system, Run(config, workdir))
    desk = Desk(r, state)
    desk.warm_up()
    serve(desk, host, int(port))


HEADER = """<header><p class="mark">lpt_jax</p><h1>A profile you can read, and correct</h1>
<p>A language model reads what a person chose and writes a profile; a text embedder ranks {count} {kind} by it. Change the
profile: the list follows at once, without the language model.</p></header>"""
SCRIPT = """() => { document.body.classList.remove("dark"); let soon;  // any edit, pasted ones too, presses the button
  document.addEventListener("input", event => { if (event.target.closest(".profile")) { clearTimeout(soon);
    soon = setTimeout(() => document.querySelector("#again").click(), 120); } }); }"""
