"""A synthetic world with learnable taste, and its tokenizer: tests and :tiny download nothing."""

import itertools
import re

import numpy as np
import tokenizers

from lpt_jax.data import prompts
from lpt_jax.data.reviews import Interactions, Raw

GENRES = {  # genre -> the words its titles are made of
    "space": "rocket comet orbit galaxy alien lunar nebula cosmic meteor pilot",
    "crime": "detective heist alibi gangster suspect verdict vault forgery badge witness",
    "romance": "wedding kiss letter sweetheart bouquet dance valentine lovers moonlight promise",
    "horror": "haunted crypt zombie scream coffin vampire curse midnight ghoul shadow",
    "western": "cowboy saloon sheriff prairie outlaw canyon wagon frontier ranch duel",
}
OTHER_WORDS = (  # what prompts, item texts and profiles need besides the world's own words
    "name the genres of films movies items books this user person likes like liked loves and or a "
    "an is in to by title genre rated rating review from profile system assistant high low most "
    "many no not also who would recommend next chosen one two other good bad 0 1 2 3 4 5 10 20 "
    ". , : ; - / ( ) ! ? ' \""
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>")
DAY = 86_400.0
START = 1_577_836_800.0  # 2020-01-01 UTC
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


SAID = "a dull {genre} film.", "a wonderful {genre} film."  # of reviews: not liked, liked


def world(seed: int = 0, users: int = 96, items: int = 60, reviews: bool = False) -> Raw:
    """Users who arrive one a day and take 8-12 items, nine in ten of one or two genres they like.

    An item has one genre and a unique title of two or three of its words; users rate items of the
    genres they like 4-5, others 1-3. reviews: say the genre, and whether it was liked.
    """
    rng = np.random.default_rng(seed)
    genres = list(GENRES)
    titles = {}
    for genre, words in GENRES.items():
        pairs = [p for length in (2, 3) for p in itertools.permutations(words.split(), length)]
        titles[genre] = [" ".join(pairs[i]) for i in rng.permutation(len(pairs))[: -(-items // len(genres))]]
    of_item = np.arange(items) % len(genres)
    table = {
        f"item{i:04d}": {"title": titles[genres[g]][i // len(genres)], "genres": [genres[g]]}
        for i, g in enumerate(of_item)
    }
    user, item, order, rating = [], [], [], []
    for u in range(users):
        likes = rng.choice(len(genres), size=rng.integers(1, 3), replace=False)
        liked = np.isin(of_item, likes)
        n = min(int(rng.integers(8, 13)), items)
        weights = np.where(liked, 0.9 / max(liked.sum(), 1), 0.1 / max((~liked).sum(), 1))
        taken = rng.choice(items, size=n, replace=False, p=weights / weights.sum())
        user += [u] * n
        item += taken.tolist()
        order += (START + u * DAY + np.cumsum(rng.uniform(0.05, 0.4, n)) * DAY).tolist()
        rating += np.where(liked[taken], rng.integers(4, 6, n), rng.integers(1, 4, n)).tolist()
    interactions = Interactions(
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        user_ids=[f"user{u:04d}" for u in range(users)],
        item_ids=list(table),
        order=np.array(order, np.float64),
        has_time=True,
        rating=np.array(rating, np.float32),
        review=None,
    )
    if reviews:
        said = [SAID[star > 3].format(genre=genres[of_item[i]]) for i, star in zip(item, rating, strict=True)]
        interactions.review = lambda rows: np.array(said, object)[rows]
    return Raw(interactions=interactions, items=table, counts={})


def tiny_tokenizer():
    """A lower-casing word tokenizer of the world's and tiny prompts' words, with a chat template.

    [PAD] is 0; it adds no special tokens by itself; "<|im_end|>" ends a turn and is its eos token.
    """
    import transformers  # here, as its import is slow

    phrases = [
        phrase for kind in (prompts.LIKES, prompts.DISLIKES, prompts.BOTH, prompts.NEUTRAL) for phrase in kind["train"]
    ]
    said = [word.lower() for phrase in phrases for word in re.findall(r"\w+", re.sub(r"\{\w+\}", "", phrase))]
    words = [*" ".join([*GENRES, *GENRES.values(), OTHER_WORDS]).split(), *said]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation()]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
