import numpy as np
import pytest

from lpt_jax.data import batches, made_up
from lpt_jax.errors import InputError


def test_padding():
    tokens, mask = batches.pad_left([[7, 8], [9]], 3, 0)
    assert tokens.tolist() == [[0, 7, 8], [0, 0, 9]] and tokens.dtype == np.int32
    assert mask.tolist() == [[False, True, True], [False, False, True]]
    tokens, mask = batches.pad_left([[7, 8], []], 3, 5)
    assert tokens.tolist() == [[5, 7, 8], [5, 5, 5]]
    assert mask.tolist() == [[False, True, True], [False, False, False]]
    with pytest.raises(ValueError, match="Row 1 has 2 tokens"):
        batches.pad_left([[1], [1, 2]], 1, 0)


@pytest.mark.parametrize("most", [1, 3, 16])
def test_packed_lines_hold_every_row_once(most):
    rng = np.random.default_rng(most)
    rows = [rng.integers(1, 99, n).tolist() for n in (*rng.integers(1, 33, 200), 32, 1)]
    lines = batches.packed([len(row) for row in rows], 32, most)
    assert sorted(sum(lines, [])) == list(range(len(rows))) and max(map(len, lines)) <= most
    assert all(sum(len(rows[i]) for i in line) <= 32 for line in lines)
    tokens, texts, packed_rows, places = batches.pack(rows, lines, len(lines) + 2, 32, most, 0)
    assert packed_rows.tolist() == sum(lines, [])
    assert tokens.shape == texts.shape == (len(lines) + 2, 32)
    for row, place in zip(sum(lines, []), places, strict=True):
        line, number = divmod(int(place), most)
        assert tokens[line][texts[line] == number + 1].tolist() == rows[row]
    assert (texts > 0).sum() == sum(map(len, rows)) and not tokens[texts == 0].any()
    if most == 16:
        assert (texts > 0)[: len(lines)].mean() > 0.97  # hardly any padding


@pytest.mark.parametrize("batch", [None, 1, 7])
def test_packs_hold_every_row_once_in_lines_of_static_numbers(batch):
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 99, n).tolist() for n in rng.integers(1, 33, 50)]
    seen = {}
    for packed in batches.packs(rows, 32, 5, 0, lambda lines, alone: lines + 1, batch):
        assert len(packed.tokens) - 1 <= (batch or 50) and not packed.texts[-1].any()
        for row, place in zip(packed.rows, packed.places, strict=True):
            line, number = divmod(int(place), 5)
            seen[int(row)] = packed.tokens[line][packed.texts[line] == number + 1].tolist()
        if batch is None:
            assert [packed.places.tolist().index(p) for p in packed.places_of_rows()] == np.argsort(
                packed.rows
            ).tolist()
    assert [seen[row] for row in range(50)] == rows
    assert list(batches.packs([[1, 2]], 4, 2, 0, lambda lines, alone: 3 if alone else 9))[0].tokens.shape == (3, 4)


def test_buckets_are_few_multiples_that_hold_all():
    lengths = [3, 5, 17, 18, 40, 90]
    assert batches.bucket_lengths(lengths, 1) == (96,)
    assert batches.bucket_lengths(lengths, 3) == (16, 32, 96)  # two rows in each
    assert batches.bucket_lengths([], 3) == ()
    assert [batches.bucket(n, (16, 32, 96)) for n in (1, 16, 17, 96)] == [16, 16, 32, 96]
    with pytest.raises(ValueError, match="97 tokens fit none"):
        batches.bucket(97, (16, 32, 96))


@pytest.mark.parametrize("size", [1, 4, 10, 23])
def test_every_epoch_holds_every_row_once_and_batches_are_full(size):
    n = 10
    stream = np.concatenate([batches.indices(n, size, 3, step) for step in range(40)])
    assert len(stream) == 40 * size
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert (epochs[0] != epochs[1]).any()


def test_a_step_alone_decides_its_rows():
    assert batches.indices(50, 8, 1, 17).tolist() == batches.indices(50, 8, 1, 17).tolist()
    assert batches.indices(50, 8, 1, 17).tolist() != batches.indices(50, 8, 2, 17).tolist()
    with pytest.raises(InputError, match="no rows are left"):
        batches.indices(0, 8, 1, 0)


def test_tokenise_cuts_and_flags_by_the_true_length():
    tokenizer = made_up.tiny_tokenizer()
    texts = ["space comet", "", "comet comet comet", "comet comet comet comet"]
    rows, overlong = batches.tokenise(tokenizer, texts, 3)
    comet = tokenizer.convert_tokens_to_ids("comet")
    assert rows[1] == [tokenizer.pad_token_id] and rows[2] == rows[3] == [comet] * 3
    assert overlong.tolist() == [False, False, False, True]
    assert len(batches.tokenise(tokenizer, texts, 9)[0][3]) == 4  # the cut does not stay set
    assert batches.tokenise(tokenizer, [], 3)[0] == []
