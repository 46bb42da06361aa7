"""Every English sentence the models read: Session -> chat messages -> token ids within a budget."""

import functools
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


def _blocks(session, catalogue, data_config, keep, control):
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
    blocks = _blocks(session, catalogue, data_config, keep, control)
    items = ("\n" if set(chosen) <= ONE_LINE else "\n\n").join(blocks)
    rated = "rating" in chosen and bool(session.ratings)
    did = DID[rated, "review" in chosen and bool(session.reviews)].format(best=data_config.best_rating)
    text = INSTRUCTIONS[prompt_config.style].format(kind=data_config.kind, did=did, items=items)
    system = [{"role": "system", "content": prompt_config.system}] if prompt_config.system else []
    return [*system, {"role": "user", "content": text.strip()}]


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
    return prompt_config.start.replace("{kind}", data_config.kind)


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
    keep, blocks = 0, _blocks(session, catalogue, data_config, most, control)
    if blocks:  # an estimate from the items' own lengths, newest first, then exact steps down or up
        rows = tokenizer(blocks, add_special_tokens=False, verbose=False)["input_ids"]
        while keep < most and (total := total + len(rows[most - 1 - keep]) + 1) <= budget:
            keep += 1
    ids = render(keep)
    while len(ids) > budget:
        keep, ids = keep - 1, render(keep - 1)
    while keep < most and len(longer := render(keep + 1)) <= budget:
        keep, ids = keep + 1, longer
    return ids, keep


def history_text(session, catalogue, n: int) -> str:
    """The texts of the history's last n items, latest first: a cut to fit loses the oldest."""
    return "\n\n".join(catalogue.texts[i] for i in session.history[::-1][:n])
