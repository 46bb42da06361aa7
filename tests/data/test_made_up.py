import numpy as np

from lpt_jax import config
from lpt_jax.data import made_up, prompts, sessions


def test_the_world_is_the_same_every_time_and_its_titles_are_unique():
    one, two, other = made_up.world(1), made_up.world(1), made_up.world(2)
    assert one.items == two.items and one.items != other.items
    assert (one.interactions.item == two.interactions.item).all()
    assert len({i["title"] for i in made_up.world(items=200).items.values()}) == 200
    assert np.isin(one.interactions.rating, range(1, 6)).all()


def test_taste_can_be_learnt_from_the_past():
    """A user's most frequent past genre foretells the next item's far better than one in five."""
    raw = made_up.world(users=300)
    rows, genres = raw.interactions, [item["genres"][0] for item in raw.items.values()]
    hits = []
    for user in range(300):
        own = [genres[i] for i in rows.item[rows.user == user]]
        hits.append(max(set(own[:-1]), key=own[:-1].count) == own[-1])
    assert np.mean(hits) > 0.5


def test_the_tokenizer_knows_every_word_that_tiny_runs_meet():
    c = config.finish(config.tiny(config.default()))
    data = sessions.prepare(c.data)
    tokenizer = made_up.tiny_tokenizer()
    assert len(tokenizer) <= 256 and tokenizer.pad_token_id == 0
    assert tokenizer("Space COMET")["input_ids"] == tokenizer.convert_tokens_to_ids(["space", "comet"])
    for session in data.sessions["train"][:20]:
        ids, kept = prompts.encode_prompt(session, data.catalogue, c.data, c.prompt, tokenizer)
        assert tokenizer.unk_token_id not in ids and kept >= 4
    ids = [i for row in tokenizer(data.catalogue.texts)["input_ids"] for i in row]
    assert tokenizer.unk_token_id not in ids
    assert all(len(data.sessions[split]) > 0 for split in sessions.SPLITS)
