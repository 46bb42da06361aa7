"""Every English sentence the models read: Session -> chat messages -> token ids within a budget."""

import collections
import functools
import itertools
import re

import jinja2

from lpt_jax.data import catalogue as catalogue_lib
from lpt_jax.errors import InputError

# style -> the user's turn; {kind}: what items are, {did}: what the user did, {items}: the history
INSTRUCTIONS = {
    "paper": "Below are the {kind} that one user has {did}, in chronological order. From them, "
    "summarise this user's preferences at a high level and in detail: what the user likes and "
    "dislikes, and which other {kind} would suit.\n\n{items}",
    "short": "Here are the {kind} a person has {did}, oldest first. In one sentence, describe this "
    "person's taste, keeping to what the list shows, and which kinds of {kind} to recommend next."
    "\n\n{items}",
    "genres": "A person has {did} these {kind}:\n\n{items}\n\nIn one sentence, name the genres, "
    "eras and moods of {kind} this person likes.",
    "kinds": "A person has {did} these {kind}:\n\n{items}\n\nIn one sentence, name the brands and kinds of {kind} "
    "this person likes.",
    "taste": "A person has {did} these {kind}:\n\n{items}\n\nIn one or two short sentences, say which {kind} this person "
    "likes, naming two or three of the list, and what they avoid.",
    "tiny": "Name the genres of {kind} this user likes.\n\n{items}",
}
DID = {  # (ratings are shown, reviews are shown) -> the verb
    (True, True): "rated (out of {best:g}) and reviewed",
    (True, False): "rated (out of {best:g})",
    (False, True): "reviewed",
    (False, False): "chosen",
}
NO_TEMPLATE = "{text}\n\nProfile:"  # the prompt of a model without a chat template
USER_FIELDS = ("rating", "review")
# What people say of what they like or reject: {a}: "horror movies", {n}: "horror", {t}: a title, {kind}: "movies". The audit's
# phrases are never trained on.
LIKES = {
    "train": (
        "Likes {a}.",
        "Loves {n}.",
        "I like {a} best.",
        "I enjoy {a}.",
        "A fan of {n}.",
        "Wants more {a}.",
        "More {n}!",
        "Recommend {a}.",
        "They are into {n}.",
        "The user is fond of {a}.",
        "Show me {n}.",
        "Mostly {a}.",
        "{n} makes me happy.",
        "Favourites: {a}.",
        "Can't get enough of {n}.",
        "In the mood for {a}.",
    ),
    "audit": ("They enjoy {a} a lot.", "This person likes {a}.", "I love {n}!", "Some {a} would be great."),
}
DISLIKES = {
    "train": (
        "Dislikes {a}.",
        "Avoids {a}.",
        "I don't like {a}.",
        "I can't stand {n}.",
        "Hates {n}.",
        "Wants less {n}.",
        "Less {a}.",
        "No more {a}.",
        "Not {n}.",
        "Never {a}.",
        "Without {n}.",
        "The user is tired of {a}.",
        "They do not want {n}.",
        "Not interested in {a}.",
        "Finds {n} dull.",
        "{n} is a waste of time.",
        "{n} annoys me.",
        "Please leave out {a}.",
        "Stop showing me {n}.",
        "Anything but {a}.",
        "{n} is not for me.",
        "{n} leaves them cold.",
        "{n}? No thanks.",
        "I have seen enough {n}.",
    ),
    "audit": (
        "No {n}, please.",
        "I hate {a}.",
        "This person doesn't care for {a}.",
        "They would rather skip {n}.",
        "{n} bores them.",
    ),
}
BOTH = {
    "train": ("Likes {a}, but not {other}.", "I enjoy {n} and dislike {other}.", "More {n}, less {other}."),
    "audit": ("I love {a}, and I hate {other}.",),
}
TITLES = ("More like {t}.", "Likes {t}.", "Something similar to {t}.", "I loved {t}.")
NEUTRAL = {
    "train": ("A person who chooses {kind}.", "Looks for {kind}.", "This user has no profile yet."),
    "audit": ("Someone who would like to find good {kind}.",),
}
SUMMARIES = (  # of what a history shows: {liked}: "crime and drama movies of the 1990s", {titles}: two or three of them
    ("Likes {liked}, for example {titles}.", "Avoids {n}."),
    ("This person enjoys {liked}, such as {titles}.", "Dislikes {n}."),
    ("A fan of {liked}. Favourites are {titles}.", "Not a fan of {n}."),
    ("I like {liked}. I loved {titles}.", "I don't like {n}."),
)
LIKED_THING = "Likes {n}."  # against which what a profile rejects is scored
CHOSEN = "Has chosen {titles}."  # where none was rated well
LONG_TITLES = 60  # characters of the titles that are named: fewer where they are more
LIKED, DISLIKED = 0.8, 0.4  # of the best rating: at least, at most
JUDGED = {  # what a judge is asked (lpt_jax/judge.py); {first} and {second}: the options
    "describes": "Here are {kind} that a person has rated or chosen:\n\n{given}\n\nWhich of these two descriptions fits this "
    "person better?\n\nA: {first}\n\nB: {second}\n\nAnswer with one letter: A, B, or C if neither is better.",
    "matches": "Here is a description of a person's taste in {kind}:\n\n{given}\n\nWhich of these two lists is more likely what this "
    "person chose next?\n\nA:\n{first}\n\nB:\n{second}\n\nAnswer with one letter: A, B, or C if you can't tell.",
}
NAMING = (  # what a language model is asked for a group of items, where it is shown their frequent words and where not
    "These {kind} belong together:\n\n{items}\n\nName what they have in common, in two or three words.",
    "These {kind} belong together:\n\n{items}\n\nWords of their titles: {words}.\n\nName what they have in common, in two or three "
    "words.",
)
KNOWLEDGE = {  # what a model that names items by their codes is asked (data/tasks.py)
    "retrieval": "Bought, oldest first: {items} Next item:",
    "ranking": "Bought, oldest first: {items} Candidates: {candidates} Most likely next:",
    "rating": "Bought, with stars: {items} Stars for {item} 1 to 5:",
    "hidden_item": "Bought, oldest first: {items} The hidden item:",
    "hidden_words": "Bought, oldest first: {items} The hidden words:",
    "preference": "Bought, oldest first: {items} Which would they choose: (A) {first} (B) {second} ?",
    "explanation": "Why would they choose {item} ?",
}
LIKELIER = "{profile}\n\nThis person has chosen these {kind}:\n"
# What turns a clause into a rejection, what only seems to, and where one clause ends and another begins.
REJECTS = (
    r"(?:no|not|nothing|never|nor|hates?|hated|dislikes?|disliked|avoids?|without|less|fewer|except|skip|skips|leave out|stop|(?:seen|had) enough|enough of|tired of|sick of|"
    r"fed up with|bores?|bored|boring|dull|annoys?|annoying|awful|terrible|worst|waste of|puts? me off|stays? away from|cannot|can't|won't|isn't|aren't|don't|doesn't|didn't)\b"
)
AFFIRMS = r"(?:likes?|loves?|enjoys?|prefers?|wants?|more)\b"
SEEMS = re.compile(r"\b(?:not only|not just|no doubt|no matter|nothing but|(?:can't|cannot|never) get enough)\b")
LEAD = r"(?:(?:I|i|they|he|she|we|who|also|just|please|am|is|are|do|does|would|rather|really)\s+)*"
JOINT = re.compile(
    r"(?<=[^A-Z][.!?])\s+|\s*\n\s*|\s*[,;]?\s+but\s+|"  # a sentence's end, a "but", or a comma or an "and" before a verb
    rf"(?:\s*[,;]\s*(?:(?:and|though|yet)\s+)?|\s+(?:and|though|yet)\s+)(?={LEAD}(?:{REJECTS}|{AFFIRMS}))"
)
EMPTY = re.compile(  # words of a rejection that do not say what is rejected
    r"\b(i|i'm|they|he|she|we|you|the|this|that|person|user|someone|am|is|are|was|be|been|do|does|did|will|would|rather|really|"
    r"want|wants|like|likes|care|cares|for|to|any|anything|more|much|so|too|at all|please|stand|see|watch|read|buy|interested in|"
    r"of|with|me|show|showing|time|thanks|finds?|have|has|seen|had|recommend|but|and|it|just|into|fan|enjoys?|loves?|a|an|my|thing|cup of tea)\b",
    re.IGNORECASE,
)
ONE_LINE = {"title", "year", "genres", "rating"}  # with no other fields an item is one line


def item_block(
    fields: dict, chosen: list[str], rating: float | None = None, review: str | None = None, best: float = 5
) -> str:
    """One item of the history: a line where only short fields are chosen, else labelled lines."""
    rated = "" if rating is None or "rating" not in chosen else f"{rating:g}/{best:g}"
    own = [name for name in chosen if name not in USER_FIELDS]
    if set(chosen) <= ONE_LINE:
        texts = ", ".join(text for _, text in catalogue_lib.values(fields, own))
        return f"- {texts}" + (f": rated {rated}" if rated else "")
    lines = catalogue_lib.lines(fields, own)
    text = " ".join((review or "").split()) if "review" in chosen else ""
    if text:
        lines.append(f"Review from the user{f' (rating {rated})' if rated else ''}: {text}")
    elif rated:
        lines.append(f"Rating from the user: {rated}")
    return "\n".join(lines)


def _chosen(data_config):
    known = catalogue_lib.FIELDS + USER_FIELDS
    return catalogue_lib.names(data_config.prompt_fields, "data.prompt_fields", known)


def blocks(session, catalogue, data_config, keep, control=None) -> list[str]:
    """The session's `keep` latest items, oldest first, as the prompt shows them."""
    chosen, n = _chosen(data_config), len(session.history)
    nothing = [None] * n
    ratings, reviews = session.ratings or nothing, session.reviews or nothing
    return [
        neutralise(item_block(catalogue.fields[item], chosen, rating, review, data_config.best_rating), control)
        for item, rating, review in list(zip(session.history, ratings, reviews))[max(n - keep, 0) :]
    ]


def messages(session, catalogue, data_config, prompt_config, keep: int, control=None) -> list[dict]:
    """The chat that asks for a profile, showing the history's `keep` latest items, oldest first.

    `control` (see control_tokens) is what must not occur in the items' text.
    """
    if prompt_config.style not in INSTRUCTIONS:
        known = ", ".join(INSTRUCTIONS)
        raise InputError(f"--config.prompt.style={prompt_config.style!r} won't do: it must be one of {known}.")
    chosen = _chosen(data_config)
    shown = blocks(session, catalogue, data_config, keep, control)
    items = ("\n" if set(chosen) <= ONE_LINE else "\n\n").join(shown)
    rated = "rating" in chosen and bool(session.ratings)
    did = DID[rated, "review" in chosen and bool(session.reviews)].format(best=data_config.best_rating)
    text = INSTRUCTIONS[prompt_config.style].format(kind=data_config.kind, did=did, items=items)
    return chat_of(text, prompt_config)


def chat_of(text: str, prompt_config) -> list[dict]:
    """The chat that asks a text."""
    system = [{"role": "system", "content": prompt_config.system}] if prompt_config.system else []
    return [*system, {"role": "user", "content": text.strip()}]


def encode_question(text: str, prompt_config, tokenizer) -> list[int]:
    """The token ids of a prompt that asks a text."""
    return list(_encode(chat_of(text, prompt_config), tokenizer))


@functools.lru_cache(maxsize=4)
def control_tokens(tokenizer) -> re.Pattern | None:
    """What users' text must not hold: special tokens, and added ones shaped like <…> or […]."""
    added = tokenizer.added_tokens_decoder.values()
    found = {t.content for t in added if t.special or re.fullmatch(r"<.+>|\[.+\]", t.content)}
    found = filter(str.strip, found | set(tokenizer.all_special_tokens))
    pattern = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
    return re.compile(pattern, re.IGNORECASE) if pattern else None


def neutralise(text: str, control: re.Pattern | None) -> str:
    """The text without control tokens, also without those that removing others would form."""
    while control and (cleaned := control.sub("", text)) != text:
        text = cleaned
    return text


def _encode(chat, tokenizer):
    joined = "\n\n".join(message["content"] for message in chat)
    if not tokenizer.chat_template:
        return tokenizer(NO_TEMPLATE.format(text=joined), verbose=False)["input_ids"]
    ask = {"add_generation_prompt": True, "return_dict": False}
    ask["enable_thinking"] = False  # Qwen 3: answer at once
    try:
        return tokenizer.apply_chat_template(chat, **ask)
    except jinja2.TemplateError:
        if len(chat) == 1:
            raise  # else: Gemma's template knows no system turn, so the user's begins with it
        return tokenizer.apply_chat_template([{"role": "user", "content": joined}], **ask)


def start_of(data_config, prompt_config) -> str:
    """The words every profile begins with."""
    return prompt_config.get("start", "").replace("{kind}", data_config.kind)


def encode_prompt(session, catalogue, data_config, prompt_config, tokenizer):
    """A session's prompt -> (token ids with chat template and start of the answer, items shown).

    Of the `prompt.history_items` latest items the oldest are dropped until `prompt.max_tokens` hold
    the whole prompt; items are never cut. 0 items shown: not even the latest fits. `prompt.start` stands
    after the chat template: the model goes on from there, and the profile's text begins with it.
    """
    control, budget = control_tokens(tokenizer), prompt_config.max_tokens
    most = min(prompt_config.history_items, len(session.history))

    def render(keep):
        chat = messages(session, catalogue, data_config, prompt_config, keep, control)
        return list(_encode(chat, tokenizer)) + start

    words = start_of(data_config, prompt_config)
    start = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
    total = len(render(0))
    if total > budget:
        raise InputError(
            f"--config.prompt.max_tokens={budget} won't do: instruction {prompt_config.style!r} "
            f"and the chat template alone take {total} tokens."
        )
    keep, shown = 0, blocks(session, catalogue, data_config, most, control)
    if shown:  # an estimate from the items' own lengths, newest first, then exact steps down or up
        rows = tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"]
        while keep < most and (total := total + len(rows[most - 1 - keep]) + 1) <= budget:
            keep += 1
    ids = render(keep)
    while len(ids) > budget:
        keep, ids = keep - 1, render(keep - 1)
    while keep < most and len(longer := render(keep + 1)) <= budget:
        keep, ids = keep + 1, longer
    return ids, keep


def naming(titles: list[str], words: list[str], kind: str, title_words: int, control=None) -> str:
    """What a language model is asked to name a group of items by: their titles, of so many words at most, and frequent words."""
    lines = (" ".join(neutralise(title, control).split()[:title_words]) for title in titles)
    items, shown = "\n".join(f"- {line}" for line in lines), neutralise(", ".join(words), control)
    return NAMING[bool(words)].format(kind=kind, items=items, words=shown)


def encode_naming(group, examples: list, data_config, prompt_config, tokenizer) -> tuple[list[int], int, int]:
    """The prompt that asks for a group's name -> (token ids, examples shown, titles shown).

    group: (titles, frequent words); examples: (titles, words, name) of others, which are answered before it. Where
    prompt.max_tokens don't hold all, examples are left out, the first first, and then titles, the oldest first.
    """
    control, (titles, words) = control_tokens(tokenizer), group
    ask = functools.partial(naming, kind=data_config.kind, title_words=prompt_config.title_words, control=control)
    system = [{"role": "system", "content": prompt_config.system}] if prompt_config.system else []

    def render(shots, kept):
        chat = list(system)
        for of_titles, of_words, name in examples[len(examples) - shots :]:
            answer = {"role": "assistant", "content": neutralise(name, control)}
            chat += [{"role": "user", "content": ask(of_titles, of_words)}, answer]
        chat.append({"role": "user", "content": ask(titles[len(titles) - kept :], words)})
        return list(_encode(chat, tokenizer))

    shots, kept = len(examples), len(titles)
    while len(ids := render(shots, kept)) > prompt_config.max_tokens:
        if not shots and not kept:
            raise InputError(
                f"--config.prompt.max_tokens={prompt_config.max_tokens} won't do: the question alone takes {len(ids)} tokens."
            )
        shots, kept = (shots - 1, kept) if shots else (0, kept - 1)
    return ids, shots, kept


def written_name(text: str) -> str:
    """What a language model wrote as a name: its first line, without quotes and a full stop.

    >>> written_name('"Nail polish."\\nThese are')
    'Nail polish'
    """
    line = (text.strip().splitlines() or [""])[0]
    return line.removeprefix("Name:").strip(" \t\"'“”‘’.*")


def history_text(session, catalogue, n: int) -> str:
    """The texts of the history's last n items, latest first: a cut to fit loses the oldest."""
    return "\n\n".join(catalogue.texts[i] for i in session.history[::-1][:n])


# ---- summaries


def summary(session, catalogue, data_config, last: int, wording: int = 0) -> str:
    """What a session's latest items show, made of their fields and ratings: a profile that no model wrote.

    Liked and rejected attributes by rating (all items count as liked where there are no ratings), the decade of most of
    the liked ones, and the latest titles of them, three at most; nothing else, so nothing that isn't so.
    """
    items, ratings = session.history[-last:], (session.ratings or ())[-last:]
    best, attributes = data_config.best_rating, catalogue.attributes
    rated = [LIKED * best if r is None or r != r else r for r in ratings or [None] * len(items)]
    liked = [item for item, rating in zip(items, rated) if rating >= LIKED * best]
    disliked = [item for item, rating in zip(items, rated) if rating <= DISLIKED * best]
    of_liked = collections.Counter(a for item in liked for a in attributes.of(item))
    of_disliked = collections.Counter(a for item in disliked for a in attributes.of(item))
    titles = [catalogue.titles[item] for item in liked[::-1][:3] or items[::-1][:3]]
    while len("".join(titles)) > LONG_TITLES and len(titles) > 1:
        titles.pop()
    titles = listed(titles)
    sentences, (likes, avoids) = [], SUMMARIES[wording % len(SUMMARIES)]
    ranked = [a for a, _ in of_liked.most_common() if attributes.fields[a] != "decade"][:3]
    if liked and ranked:
        spoken = listed([attributes.names[a] for a in ranked]) + f" {data_config.kind}"
        era = [
            attributes.names[a]
            for a, n in of_liked.most_common()
            if n > len(liked) / 2 and attributes.fields[a] == "decade"
        ]
        sentences.append(likes.format(liked=spoken + (f" of the {era[0]}" if era else ""), titles=titles))
    else:
        sentences.append(
            (likes.format(liked=data_config.kind, titles=titles)) if liked else CHOSEN.format(titles=titles)
        )
    rejected = [a for a, _ in of_disliked.most_common() if a not in of_liked and attributes.fields[a] != "decade"][:2]
    if rejected:
        sentences.append(avoids.format(n=listed([attributes.names[a] for a in rejected])))
    return " ".join(sentences)


def listed(words: list[str]) -> str:
    """Words as an English list.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


# ---- what people say of items


def called(name: str, field: str, kind: str) -> str:
    """An attribute as sentences name it: "horror movies", "nail polish".

    >>> called("horror", "genres", "movies"), called("nail polish", "categories", "beauty products")
    ('horror movies', 'nail polish')
    """
    return name if field in ("categories", "title") else f"{name} {kind}"


def said(phrase: str, name: str, field: str, kind: str, other: str = "") -> str:
    """A phrase of LIKES, DISLIKES or BOTH about an attribute, as a sentence."""
    return phrase.format(n=name, a=called(name, field, kind), other=other)


def clauses(text: str) -> tuple[str, list[str]]:
    """A profile without what it rejects, and what it rejects.

    >>> clauses("I love old romances, and I hate horror.")
    ('I love old romances', ['horror'])
    >>> clauses("Likes westerns. No musicals or war movies, please!")
    ('Likes westerns.', ['musicals or war movies'])
    """
    kept, rejected, start, before = "", [], 0, ""
    for joint in [*JOINT.finditer(text), None]:
        clause = text[start : joint and joint.start()]
        thing = rejected_thing(clause)
        if thing:
            rejected.append(thing)
        else:
            kept += (before if kept else "") + clause
        start, before = joint and joint.end(), joint and joint[0]
    return kept.strip(), rejected


def read_lines(lines: list[str], neutral: str, rejects: bool) -> tuple[dict[int, str], list[str]]:
    """What each of a profile's lines affirms, by its number, or a neutral sentence; and what all of them reject.

    >>> read_lines(["Likes war films.", "No horror!"], "Anyone.", rejects=True)
    ({0: 'Likes war films.'}, ['horror'])
    """
    if not rejects:
        return {number: line for number, line in enumerate(lines) if line.strip()} or {0: lines[0]}, []
    read = [clauses(line) for line in lines]
    things = list(itertools.chain(*(of_line for _, of_line in read)))
    affirmed = {
        number: text if of_line else line
        for number, (line, (text, of_line)) in enumerate(zip(lines, read, strict=True))
        if text
    }
    return affirmed or {0: neutral if things else ""}, things


def rejected_thing(clause: str) -> str:
    """What a clause rejects; empty if it rejects nothing.

    >>> rejected_thing("Horror is not my thing"), rejected_thing("They can't get enough of Alien")
    ('Horror', '')
    """
    marker = re.search(rf"\b{REJECTS}", clause[:1].lower() + clause[1:])
    if not marker or SEEMS.search(clause.lower()):
        return ""
    sides = clause[marker.end() :], clause[: marker.start()]
    things = (" ".join(EMPTY.sub(" ", side).split()).strip(" .,;:!?'") for side in sides)
    return next(filter(None, things), "")
