"""The mesh: its sizes, where weights, batches and item embeddings lie on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from lpt_jax import devices, ranking
from lpt_jax.config import default
from lpt_jax.errors import InputError
from lpt_jax.models import decoder, layers, low_rank


def mesh(data=-1, fsdp=1, model=1):
    return devices.make_mesh({"data": data, "fsdp": fsdp, "model": model})


@pytest.mark.parametrize(
    ("sizes", "shape"), [((-1, 1, 1), (8, 1, 1)), ((2, 2, 2), (2, 2, 2)), ((1, -1, 2), (1, 4, 2))], ids=str
)
def test_the_mesh_has_all_devices(sizes, shape):
    assert tuple(mesh(*sizes).shape.values()) == shape and mesh(*sizes).axis_names == devices.AXES
    assert devices.make_mesh(default().mesh).size == len(jax.devices()) == 8


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, 16, 1), (-1, -1, 1)], ids=str)
def test_sizes_that_do_not_fit_are_told(sizes):
    asked = "data={}, fsdp={}, model={}".format(*sizes)
    with pytest.raises(InputError, match=rf"--config.mesh \({asked}\) does not fit 8 device\(s\)"):
        mesh(*sizes)


@pytest.fixture(scope="module")
def axes():
    """The mesh axes that a decoder's parameters carry, LoRA's among them."""
    lm = decoder.Decoder(decoder.DecoderSpec("llama", 100, 64, 2, 2, 1, 16, 128), nnx.Rngs(0))
    low_rank.attach(lm, "q|down", 4, 8.0, jax.random.key(0))
    return layers.axes_of(lm)


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("upper.attention.q.kernel", (2, 64, 32), P(None, "fsdp", "model")),
        ("upper.attention.o.kernel", (2, 32, 64), P(None, "model", "fsdp")),
        ("upper.attention.q.kernel", (2, 63, 32), P(None, None, "model")),  # 63 rows don't divide by 2
        ("embed.table", (100, 64), P("model", "fsdp")),
        ("head.kernel", (64, 101), P("fsdp", None)),
        ("upper.mlp.down.lora.a", (2, 128, 4), P(None, "model", "fsdp")),  # the rank takes what the side leaves
        ("upper.mlp.down.lora.b", (2, 4, 64), P(None, None, "fsdp")),
        ("upper.attention.q.lora.a", (2, 64, 4), P(None, "fsdp", None)),
        ("upper.attention.q.lora.b", (2, 4, 32), P(None, "fsdp", "model")),
        ("upper.attn_norm.scale", (2, 64), P()),
    ],
    ids=str,
)
def test_a_matrix_is_spread_as_its_parameter_says(axes, path, shape, wanted):
    assert devices.weight_partition(axes[tuple(path.split("."))], shape, mesh(2, 2, 2)) == wanted


def test_weights_and_their_optimiser_lie_alike(axes):
    """A quarter of q on each device, and of Adam's moments; norms and counts on all."""
    weights = {
        "upper": {"attention": {"q": {"kernel": jnp.ones((2, 64, 32))}}, "attn_norm": {"scale": jnp.ones((2, 64))}}
    }
    spread = mesh(2, 2, 2)
    placed = devices.place(weights, spread, axes)
    state = devices.place(optax.adamw(1e-3).init(weights), spread, axes)
    for tree in (placed["upper"], state[0].mu["upper"]):
        assert tree["attention"]["q"]["kernel"].addressable_shards[0].data.shape == (2, 32, 16)
        assert tree["attn_norm"]["scale"].sharding.is_fully_replicated
    assert state[0].count.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, weights)


def test_a_batch_is_spread_over_data_and_fsdp_where_it_divides():
    spread = mesh(2, 2, 2)
    eight, six, scalar = devices.split_batch((np.zeros((8, 3)), np.zeros((6, 3)), np.float32(1)), spread)
    assert eight.addressable_shards[0].data.shape == (2, 3)
    assert six.sharding.is_fully_replicated and scalar.sharding.is_fully_replicated


def test_padding_of_the_item_embeddings_never_counts_as_items():
    """13 items on 8 devices: three rows of zeros follow, whose cosine 0 would beat every item's."""
    rng = np.random.default_rng(0)
    items, profiles = rng.normal(size=(2, 13, 4)).astype(np.float32)
    items, profiles = -np.abs(items), np.abs(profiles)
    spread = mesh(2, 2, 2)
    embedded = devices.split_rows(items, spread)
    assert embedded.shape == (16, 4) and embedded.addressable_shards[0].data.shape == (2, 4)
    targets, hidden = np.arange(13)[:, None], np.full((13, 1), -1)
    ranks = np.asarray(ranking.target_ranks(profiles, embedded, targets, hidden, 13))[:, 0]
    scores = profiles @ items.T
    wanted = 1 + (scores > np.diagonal(scores)[:, None]).sum(1)
    assert ranks.tolist() == wanted.tolist() and ranks.max() <= 13
    ids, _ = ranking.top_k(profiles, embedded, hidden, 15, 13)
    assert np.asarray(ids)[:, :13].min() == 0 and np.asarray(ids)[:, :13].max() == 12
    assert (np.asarray(ids)[:, 13:] == -1).all()
