"""Text tasks: what is read and asked for, no leak, packing that changes nothing, losses against NumPy, gradients, a mix that learns."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpt_jax.config import default, finish, tiny
from lpt_jax.data import made_up, tasks
from lpt_jax.errors import InputError
from lpt_jax.item_writer import ItemWriter, scratch_tokenizer
from lpt_jax.learning import optimisers
from lpt_jax.learning import tasks as learning
from lpt_jax.models import layers
from lpt_jax.run import Run
from lpt_jax.systems import knowledge
from tests.systems.tiny_run import small_world


def config_of(changes=()):
    config = tiny(default("knowledge"))
    config.trackers = ""
    for name, value in dict(changes).items():
        *groups, key = name.split(".")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    return finish(config)


@pytest.fixture(scope="module")
def r(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "world", small_world())
        yield knowledge.build(Run(config_of(), tmp_path_factory.mktemp("run")))


def read(r, ids):
    """Token ids as words; code words as [level.digit]."""
    spec, tokenizer = r.lm.spec, r.lm.tokenizer
    return " ".join(
        f"[{(i - spec.vocab) // spec.digits}.{(i - spec.vocab) % spec.digits}]"
        if i >= spec.vocab
        else tokenizer.convert_ids_to_tokens(i)
        for i in ids
    )


def item(r, number):
    """An item as it reads: its code, and two words of its title."""
    code = " ".join(f"[{level}.{digit}]" for level, digit in enumerate(r.codes.digits[number]))
    return f"{code} {' '.join(r.data.catalogue.titles[number].split()[:2])}"


def test_a_history_reads_as_codes_and_titles(r):
    assert read(r, r.tasks.retrieval([3, 8])) == f"bought , oldest first : {item(r, 3)} {item(r, 8)} next item : </s>"
    rated = read(r, r.tasks.rating([3, 8], [4.0, 1.4], 5))
    assert rated == f"bought , with stars : {item(r, 3)} 4 {item(r, 8)} 1 stars for {item(r, 5)} 1 to 5 : </s>"
    last = r.config.tasks.history_items
    assert r.tasks.retrieval(list(range(20))) == r.tasks.retrieval(list(range(20 - last, 20)))


def examples(r, task, count=60):
    rng = np.random.default_rng(0)
    return [r.tasks.draw(task, rng) for _ in range(count)]


def where(r, example):
    """The training users and places of whom an example may be: (user, item asked for)."""
    code = {tuple(digits): number for number, digits in enumerate(r.codes.digits.tolist())}
    return code[example.digits]


def test_what_is_asked_for_is_never_read(r):
    """Retrieval: the items before the next one, in order; ranking: it stands among the candidates; MIM: in its place a mark."""
    by_text = {}  # what follows what is read, of all users
    for user in r.tasks.users:
        for at in range(1, len(user.items)):
            by_text.setdefault(tuple(r.tasks.retrieval(user.items[:at])), set()).add(user.items[at])
    for example in examples(r, "retrieval"):
        assert where(r, example) in by_text[tuple(example.tokens)]
    for example in examples(r, "ranking", 20):
        text = read(r, example.tokens)
        before, after = text.split(" candidates : ")
        asked = item(r, where(r, example))
        assert asked in after and asked not in before and after.count("[0.") == r.config.tasks.candidates
    places = set()
    for example in examples(r, "hidden_item"):
        text = read(r, example.tokens)
        assert text.count("<extra_id_0>") == 1 and item(r, where(r, example)) not in text
        places.add(text.split("<extra_id_0>")[0].count("[0."))
    assert len(places) > 2


def test_hidden_words_give_the_titles_back(r):
    for example in examples(r, "hidden_words", 20):
        assert example.words[-1] == r.tasks.end and len(example.words) <= r.config.tasks.max_words
        spans, current = {}, None
        for word in example.words[:-1]:
            if word in r.tasks.sentinels:
                current = spans.setdefault(word, [])
            else:
                current.append(word)
        filled = [x for i in example.tokens for x in (spans[i] if i in spans else [i])]
        text = read(r, filled)
        assert any(
            text == read(r, r.tasks.fill("hidden_words", items=r.tasks.history(user.items[:at])))
            for user in r.tasks.users
            for at in range(1, len(user.items))
        )


def test_preferences_are_of_a_next_item_and_one_that_the_user_has_not(r):
    firsts = set()
    for example in examples(r, "preference", 40):
        text = read(r, example.tokens)
        one, other = text.split(" ( a ) ")[1].split(" ( b ) ")
        other = other.removesuffix(" ? </s>")
        answer = example.words[0]
        firsts.add(r.tasks.either.index(answer))
        chosen, rejected = (one, other) if answer == r.tasks.either[0] else (other, one)
        by_text = {item(r, number): number for number in range(r.run.count)}
        assert (
            any(by_text[chosen] in user.items and by_text[rejected] not in user.items for user in r.tasks.users)
            and by_text[chosen] != by_text[rejected]
        )
    assert firsts == {0, 1}


def test_no_example_knows_what_comes_after_training(r):
    """Of every task: whom it is about trains, and what is read and asked for are that user's training items, or negatives."""
    users = {user.id: user for user in r.tasks.users}
    held = {session.user for split in ("validation", "test") for session in r.sessions[split]}
    assert not held & users.keys()
    code = {tuple(digits): number for number, digits in enumerate(r.codes.digits.tolist())}
    for task in r.tasks.weights():
        for example in examples(r, task, 15):
            name, items = example.about
            assert set(items) <= set(users[name].items)
            if example.digits:
                assert code[example.digits] in users[name].items and code[example.digits] not in items


def test_ratings_that_lack_and_other_scales(r):
    tasks_of = r.tasks
    assert (
        tasks.none_or_float(None) is None
        and tasks.none_or_float(float("nan")) is None
        and tasks.none_or_float(3) == 3.0
    )
    words = [read(r, [tasks_of.star(rating)]) for rating in (0.2, 1.4, 2.5, 5.0, 9.0)]
    assert words == ["1", "1", "3", "5", "5"]
    of_ten = tasks.Tasks(
        [tasks.User("a", [1, 2, 3], [None, 10.0, None], None)], r.codes, r.lm.tokenizer, r.lm.spec.vocab, config_of({"data.best_rating": 10.0}), r.data.catalogue.titles
    )  # fmt: skip
    assert [read(r, [of_ten.star(rating)]) for rating in (2.0, 5.0, 10.0)] == ["1", "3", "5"]
    assert of_ten.eligible == {"rating": [(0, 1)], "explanation": []}
    example = of_ten.draw("rating", np.random.default_rng(0))
    assert read(r, example.words) == "5 </s>" and example.about == ("a", (1,))


def test_nobody_to_learn_from_gets_a_sentence(r):
    data = dataclasses.replace(r.data, part=np.full_like(r.data.part, 2))
    with pytest.raises(InputError, match="No user has two training interactions"):
        tasks.users_of(data)


def test_weights_of_tasks_without_data_are_spread(r):
    assert r.tasks.weights() == pytest.approx({n: w for n, w in r.config.tasks.weights.items() if w})
    plain = knowledge.build(Run(config_of({"tasks.title_words": 0}), r.run.workdir))
    weights = plain.tasks.weights()
    assert "hidden_words" not in weights and sum(weights.values()) == pytest.approx(1)
    assert weights["retrieval"] == pytest.approx(0.4 / 0.9)
    nothing = {f"tasks.weights.{task}": 0.0 for task in tasks.TASKS if task != "hidden_words"} | {
        "tasks.title_words": 0
    }
    with pytest.raises(
        InputError, match=r"None of the tasks .* has its data here \(lacking: explanation, hidden_words\)"
    ):
        knowledge.build(Run(config_of(nothing), r.run.workdir)).tasks.weights()


def test_too_little_room_gets_a_sentence(r):
    with pytest.raises(InputError, match=r"tasks\.max_tokens=6 won't do: the task \w+ takes \d+ tokens"):
        knowledge.build(Run(config_of({"tasks.max_tokens": 6}), r.run.workdir)).tasks.retrieval([1, 2])


# ---- learning


def of_arrays(r, batch, weights):
    """The loss of a batch, and its gradients."""

    def value(tree):
        return learning.loss(nnx.merge(r.graph, tree), batch)

    return jax.value_and_grad(value)(weights)


def test_the_items_after_the_next_are_asked_for_too(r):
    """In order, as many as there are; what is read ends before them."""
    several = knowledge.build(Run(config_of({"tasks.next_items": 3}), r.run.workdir))
    code = {tuple(digits): number for number, digits in enumerate(r.codes.digits.tolist())}
    lengths = set()
    for example in examples(several, "retrieval"):
        levels = r.codes.digits.shape[1]
        asked = [code[example.digits[at : at + levels]] for at in range(0, len(example.digits), levels)]
        name, before = example.about
        (items,) = (user.items for user in several.tasks.users if user.id == name)
        assert asked == items[len(before) : len(before) + 3] and tuple(items[: len(before)]) == before
        assert example.tokens == several.tasks.retrieval(before)
        lengths.add(len(asked))
    assert lengths == {1, 2, 3} and several.tasks.longest("retrieval") == 3 * levels


@pytest.mark.parametrize(
    "task, next_items", [("retrieval", 1), ("retrieval", 3), ("hidden_words", 1), ("preference", 1)]
)
def test_several_texts_in_a_line_change_nothing(r, task, next_items):
    """The packed batch's loss and gradients are those of one text a line, by whole passes in NumPy's hands."""
    r = knowledge.build(Run(config_of({"tasks.next_items": next_items}), r.run.workdir))
    batch, weights, words = examples(r, task, 7), r.fresh("lm"), r.tasks.longest(task)
    packed = learning.arrays(batch, r.config.tasks.max_tokens, words, r.code_shape[0])
    assert (packed["texts"].max(1) > 1).any()
    lm = nnx.merge(r.graph, weights)
    losses = []
    for example in batch:
        tokens = np.array([example.tokens])
        mask = np.ones_like(tokens, bool)
        if example.digits:
            levels = np.arange(len(example.digits)) % lm.spec.levels
            ids = lm.spec.vocab + lm.spec.digits * levels + example.digits
            states = np.asarray(lm.decode(lm.encode(tokens, mask), mask, np.r_[0, ids[:-1]][None, None]))[0, 0]
            logits = states @ np.asarray(lm.code_head.kernel[...])
            for place, (level, digit) in enumerate(zip(levels, example.digits)):
                own = logits[place, lm.spec.digits * level : lm.spec.digits * (level + 1)]
                losses.append(np.log(np.exp(own).sum()) - own[digit])
        else:
            logits = np.asarray(lm(tokens, mask, np.r_[0, example.words[:-1]][None, None]))[0, 0]
            losses += [np.log(np.exp(row).sum()) - row[word] for row, word in zip(logits, example.words)]
    value, gradients = of_arrays(r, packed, weights)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)
    few = learning.arrays(batch[:3], r.config.tasks.max_tokens, words, r.code_shape[0])
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(weights)
    direction = structure.unflatten([jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])
    slope = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(of_arrays(r, few, weights)[1]), jax.tree.leaves(direction))
    )
    ends = [
        float(of_arrays(r, few, jax.tree.map(lambda a, b, step=step: a + step * b, weights, direction))[0])
        for step in (1e-3, -1e-3)
    ]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-2, abs=2e-3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_an_update_moves_every_weight_and_dropout_depends_on_its_key(r):
    phase = learning.TasksPhase(r, optimisers.of(r.config.tasks, 10)).at(0, 0)
    phase.begin({})
    _, batch = phase.batch(0)
    weights = r.fresh("lm")
    model = nnx.merge(r.graph, weights)
    keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
    same, again, other = (float(learning.loss(model, batch, 0.3, key)) for key in keys)
    assert same == again != other
    tasks_seen = {phase.batch(number)[0] for number in range(60)}
    assert tasks_seen == set(r.tasks.weights())
    one, two = phase.batch(5), phase.batch(5)
    assert one[0] == two[0] and all(np.array_equal(one[1][k], two[1][k]) for k in one[1])


def test_updates_of_so_many_tokens_are_as_large_whatever_the_task(r):
    """Each has the last example that it takes to reach them; without a number as many examples as a batch has."""
    several = knowledge.build(Run(config_of({"tasks.tokens": 400}), r.run.workdir))
    phase = learning.TasksPhase(several, optimisers.of(several.config.tasks, 10)).at(0, 0)
    counts = {}
    for task in several.tasks.weights():
        found = phase.examples(task, np.random.default_rng(0))
        sizes = [len(example.tokens) + len(example.digits) + len(example.words) for example in found]
        assert sum(sizes) >= 400 > sum(sizes[:-1])
        counts[task] = len(found)
    assert counts["hidden_item"] > counts["ranking"]
    phase.begin({})
    _, batch = phase.batch(0)
    assert 400 <= learning.read_and_written(batch) < 400 + r.config.tasks.max_tokens + 8
    plain = learning.TasksPhase(r, optimisers.of(r.config.tasks, 10)).at(0, 0)
    assert len(plain.examples("retrieval", np.random.default_rng(0))) == r.config.tasks.batch


def test_the_tokenizer_of_a_model_from_scratch():
    tokenizer = scratch_tokenizer(["Red lipstick red", "Blue lipstick"], 60)
    known = tokenizer.get_vocab()
    assert known["<pad>"] == 0 and known["</s>"] == 1 and len(known) <= 60
    assert tokenizer("red LIPSTICK 5").input_ids == [known["red"], known["lipstick"], known["5"]]
    assert tokenizer("mauve").input_ids == [known["<unk>"]]
    small = scratch_tokenizer(["Red lipstick"], 1)
    assert "red" not in small.get_vocab() and "bought" in small.get_vocab()
    assert tasks.sentinels(tokenizer) == [known[f"<extra_id_{i}>"] for i in range(16)]


def test_marks_of_other_tokenizers_are_special_tokens_without_another_use():
    tokenizer = copy.deepcopy(made_up.tiny_tokenizer())
    assert tokenizer.convert_ids_to_tokens(tasks.sentinels(tokenizer)) == ["[CLS]", "[SEP]"]
    tokenizer.chat_template += "[CLS][SEP]"
    with pytest.raises(InputError, match="has no marks for what is hidden"):
        tasks.sentinels(tokenizer)


def test_codes_of_every_kind(r):
    assert knowledge.build(Run(config_of({"codes.levels": 1, "codes.width": 0}), r.run.workdir / "one")).code_shape == (
        1,
        r.run.count,
    )
    for kind in ("together", "shuffled", "ordered", "text"):
        writer = ItemWriter(Run(config_of({"codes.kind": kind}), r.run.workdir / kind))
        assert len(np.unique(writer.codes.digits, axis=0)) == r.run.count
        again = ItemWriter(Run(config_of({"codes.kind": kind, "seed": 5}), r.run.workdir / kind))
        np.testing.assert_array_equal(again.codes.digits, writer.codes.digits)  # those of the workdir
    assert layers.masters(r.fresh("lm"))["codes"]["table"].shape == (16, 32)
