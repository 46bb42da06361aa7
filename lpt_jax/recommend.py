"""Items for a user, a history or a profile: who is asked for -> the profile -> the best items as a table."""

import difflib
import functools
import hashlib
import json
import pathlib
import re
import textwrap

import numpy as np

from lpt_jax import config as config_lib
from lpt_jax import devices, files, ranking, train
from lpt_jax.data import prompts
from lpt_jax.data.sessions import Session, known_session
from lpt_jax.errors import InputError
from lpt_jax.journeys import in_common
from lpt_jax.rewarder import BestOf
from lpt_jax.run import Run
from lpt_jax.systems.profiles_settings import HANDED_OUT


def asked(user=None, history=None, profile=None, profile_file=None) -> tuple[str, str]:
    """("user" | "history" | "profile", its text): the one of the four flags that was given; InputError else."""
    given = {"user": user, "history": history, "profile": profile, "profile_file": profile_file}
    given = {name: text for name, text in given.items() if text is not None}
    if len(given) != 1:
        raise InputError("--mode=recommend takes one of --user, --history, --profile and --profile_file.")
    ((name, text),) = given.items()
    if name == "profile_file":
        try:
            text = pathlib.Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"--profile_file={profile_file} can't be read: {reason}.") from None
    if not text.strip(" ,\t\n"):
        raise InputError(f"--{name} is empty: say who or what to recommend to.")
    return name.removesuffix("_file"), text.strip()


def find_items(text: str, catalogue, flag: str = "history") -> tuple[tuple[int, ...], list[str]]:
    """Catalogue indices of item ids or titles with commas between them, and a note on each that was guessed.

    Of "Godfather, The, Heat" the longest run of parts that names an item is taken, an id before a title; case, a year
    in brackets at the end and an article don't matter. A part that names none is read as the title most like it.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    ids, titles, bare = {_spaced(item): [i] for i, item in enumerate(catalogue.ids)}, {}, {}
    most = 1 + max(name.count(",") for name in (*catalogue.ids, *catalogue.titles))
    for i, title in enumerate(catalogue.titles):
        titles.setdefault(_plain(title), []).append(i)
        bare.setdefault(_bare(title), []).append(i)
    found, notes = [], []
    while parts:
        for take in range(min(most, len(parts)), 0, -1):
            name = ", ".join(parts[:take])
            hits = ids.get(name) or titles.get(_plain(name)) or bare.get(_bare(name))
            if hits:
                break
        else:  # none: take is 1
            near = difflib.get_close_matches(_bare(name), list(bare), 3, 0.6)
            if not near or difflib.SequenceMatcher(None, _bare(name), near[0]).ratio() < 0.85:
                nearest = "; ".join(catalogue.titles[bare[n][0]] for n in near)
                known = f"the nearest titles are: {nearest}" if near else "no title is like it"
                raise InputError(f"--{flag}: {name!r} is no item of this catalogue; {known}.")
            hits = bare[near[0]]
            notes.append(f"{name!r} is read as {catalogue.titles[hits[0]]!r}.")
        if len(hits) > 1:
            named = ", ".join(catalogue.ids[i] for i in hits[:5])
            raise InputError(f"--{flag}: {name!r} is the title of {len(hits)} items: give an id ({named}).")
        found += hits
        del parts[:take]
    return tuple(dict.fromkeys(found)), notes


def _spaced(name):
    return re.sub(r"\s*,\s*", ", ", name)  # "20,000 Leagues Under the Sea"


def _plain(title):
    return " ".join(_spaced(title).casefold().split())


def _bare(title):
    """Without case, year and article: "Godfather, The (1972)" and "the godfather" are both "godfather"."""
    text = re.sub(r"\s*\(\d{4}\)$", "", _plain(title))
    return re.sub(r"^(the|an?) |, (the|an?)$", "", text) or text


def table(catalogue, ids, scores) -> str:
    """Rank, score, item id and title of the items, best first and -1 for none, in columns."""
    best = zip(np.asarray(ids).tolist(), np.asarray(scores).tolist())
    best = [(i, score) for i, score in best if i >= 0]
    width = max([len(catalogue.ids[i]) for i, _ in best] + [len("item")])
    lines = [f"rank  score  {'item':{width}}  title"]
    for rank, (i, score) in enumerate(best, 1):
        title = "".join(letter for letter in catalogue.titles[i] if letter.isprintable())
        lines.append(f"{rank:4d}  {score:5.3f}  {catalogue.ids[i]:{width}}  {title}")
    return "\n".join(lines)


def recommend(r, state, kind: str, text: str, k: int, write=None, weight: float = 0.0) -> str:
    """The answer in words to asked()'s kind and text: a profile, and the best k items by the embedder of a state.

    write(session) gives the profile; None: the language model of the state does. The history is not recommended; weight:
    of its latest items beside the profile.
    """
    catalogue, session, notes = r.data.catalogue, None, []
    if kind == "user":
        session = known_session(r.data, text)
    elif kind == "history":
        history, notes = find_items(text, catalogue)
        session = Session("", history, None, None, (), float("nan"))
    profile = text
    if session:
        profile = write(session) if write else written(r, models(r, state), session)
    length, limit = r.length(profile), r.embedder.profile_limit
    if length > limit and not session:
        raise too_long(length, limit)
    if length > limit:
        notes.append(f"The profile has {length} tokens, of which the embedder reads {limit}.")
    hidden, weights = ranking.padded([session.history if session else ()]), r.weights(state, "embedder")
    items = r.catalogue(weights, keep=True)
    items = r.with_terms(items, state["residuals"].weights) if "residuals" in state else items
    queries = r.with_history(r.queries(weights, [profile])[0], items, [session.history if session else ()], weight)
    ids, scores = devices.fetch(ranking.top_k(queries, items, hidden, k, r.run.count))
    of_items, several = table(catalogue, ids[0], scores[0]), queries.ndim == 3
    if r.by_journey and session:
        notes += named_journeys(r, session)
    lines, rejected = prompts.read_lines(profile.split("\n"), "", bool(r.config.score.rejected))
    if rejected:
        notes.append(f"Read as rejected: {', '.join(rejected)}.")
    shown = "\n".join(textwrap.fill(line, 100) for line in profile.splitlines()) or "(empty)"
    if several:
        of_items = with_speakers(of_items, devices.fetch(items[np.maximum(ids[0], 0)]) @ queries[0].T, list(lines))
    return "\n".join([*notes, f"Profile: {shown}", "", of_items])


def with_speakers(of_items: str, scores: np.ndarray, numbers: list[int] | None = None) -> str:
    """A table of items with a column before it: the number of the journey that speaks for each, by scores [k, queries].

    numbers: of the journeys, from 0, that the queries are of; None: one for each, in order.
    """
    speaks = scores.argmax(1) if numbers is None else np.array(numbers)[np.minimum(scores.argmax(1), len(numbers) - 1)]
    column = ["journey", *(f"{number + 1:7d}" for number in speaks)]
    return "\n".join(f"{number}  {line}" for number, line in zip(column, of_items.splitlines(), strict=True))


def named_journeys(r, session: Session) -> list[str]:
    """A session's journeys, a line each: a name, and the titles of its items."""
    catalogue, groups = r.data.catalogue, [part.history for part in r.parts(session)]
    return [
        journey_line(number, in_common(group, catalogue), [catalogue.titles[item] for item in group])
        for number, group in enumerate(groups, 1)
    ]


def journey_line(number: int, name: str, titles: list[str]) -> str:
    """A journey on a line of a terminal."""
    line = f"Journey {number}: {name}" + (f" ({'; '.join(titles)})" if titles else "")
    return textwrap.shorten("".join(filter(str.isprintable, line)), 160, placeholder=" …)")


def too_long(length: int, limit: int) -> InputError:
    """What is said of a profile that the embedder can't read to its end."""
    return InputError(f"The profile has {length} tokens and the embedder reads {limit}: shorten it.")


def models(r, state) -> dict[str, dict]:
    """The weights of both models in a state."""
    return {part: r.weights(state, part) for part in ("lm", "embedder")}


def written(r, weights: dict, session: Session, best: BestOf | None = None, longest: int = 0) -> str:
    """A session's profile by the "lm" of such weights, as it is handed out; the "embedder" chooses where there are several.

    best: that with this embedder, if it is there already; longest: of the histories, so that few shapes compile.
    """
    asked = [r.prompt(part)[0] for part in r.parts(session)]
    draws = (best or BestOf(r, weights["embedder"])).draws([session], longest)
    texts = r.lm.write(weights["lm"], asked, [0] * len(asked), r.run.key, draws)
    return "\n".join(map(r.line, texts))


def kept(r, state, step: int, session: Session) -> str:
    """written(), kept in the workdir for the next call: then the language model needn't be loaded.

    step: the last of training; the same session at the same step has the same profile.
    """
    file = r.run.workdir / "profiles/recommend.jsonl"
    how = config_lib.digest(r.config, HANDED_OUT)
    name = hashlib.sha256(repr((step, session, how)).encode()).hexdigest()
    for line in files.read_jsonl(file):
        if line["session"] == name:
            return line["profile"]
    profile = written(r, models(r, state), session)
    if devices.first():
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps({"session": name, "profile": profile}, ensure_ascii=False) + "\n")
    return profile


def run(system, config, workdir, kind: str, text: str, k: int, weight: float = 0.0, of=("", "")) -> str:
    """recommend() with the models and data of the run in `workdir`, or what another system has for it.

    of: an item whose stars, and one of which reasons are told, by a system that has tell().
    """
    if any(of):
        if not hasattr(system, "tell") or kind != "user":
            raise InputError(
                "--rate and --explain are for --user, and for systems that learn to: knowledge and peapod."
            )
        return system.tell(system, config, workdir, text, *of)
    if hasattr(system, "recommend"):
        if weight:
            raise InputError("--history_weight is for profiles: this system ranks by the history alone.")
        return system.recommend(system, config, workdir, kind, text, k)
    r, state, step = train.ready(system, Run(config, workdir))
    return recommend(r, state, kind, text, k, functools.partial(kept, r, state, step), weight)
