"""Checkpoints: what goes in comes out, whole, on any mesh, or there is one clear sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lpt_jax import devices
from lpt_jax.checkpoints import Checkpoints
from lpt_jax.errors import InputError


def tree(scale=1.0):
    weights = {"q": scale * jnp.arange(16.0).reshape(2, 8), "norm": jnp.full(3, scale, jnp.bfloat16)}
    optimiser = optax.adamw(1e-3)
    _, state = optimiser.update(weights, optimiser.init(weights), weights)
    return {"policy": weights, "policy_optimiser": state}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_what_goes_in_comes_out(tmp_path):
    """Weights of two types, an optimiser's state (named tuples, a count) and the note."""
    saved, note = tree(), {"step": 3, "best": None, "seconds": {"policy": 0.5}}
    Checkpoints(tmp_path / "last", 2).save(7, saved, note)
    again = Checkpoints(tmp_path / "last", 2)
    assert again.latest() == 7
    assert_equal(again.restore(7, jax.tree.map(jnp.zeros_like, saved)), saved)
    found = again.note(7)
    assert {name: found[name] for name in note} == note and found["arrays"]["['policy']['q']"] == [2, 8]


def test_keeps_the_newest_and_replaces_a_number(tmp_path):
    kept = Checkpoints(tmp_path, 2)
    assert kept.latest() is None
    for number in (1, 2, 3):
        kept.save(number, tree(number), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    kept.save(3, tree(5.0), {"new": True})
    assert_equal(kept.restore(3, tree()), tree(5.0))
    assert kept.note(3)["new"] and sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_a_best_state_may_have_a_lower_number_than_the_one_before(tmp_path):
    """After a kill a phase begins again at step 0 while its folder holds the best of a later step."""
    Checkpoints(tmp_path, 1).save(4, tree(4.0), {})
    kept = Checkpoints(tmp_path, 1)
    kept.save(0, tree(0.0), {})
    assert_equal(kept.restore(0, tree()), tree(0.0))


def test_what_a_kill_left_is_no_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path, 2)
    kept.save(1, tree(), {})
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    again = Checkpoints(tmp_path, 2)
    assert again.latest() == 1
    again.save(2, tree(2.0), {})
    assert again.latest() == 2


def test_other_models_are_told_by_name_and_shape(tmp_path):
    kept = Checkpoints(tmp_path, 1)
    kept.save(1, {"policy": {"q": jnp.zeros((2, 8)), "old": jnp.zeros(1)}}, {})
    with pytest.raises(
        InputError, match=r"2 arrays differ, the first being \['policy'\]\['old'\] \(there \[1\], here None\)"
    ):
        kept.restore(1, {"policy": {"q": jnp.zeros((2, 4))}})
    with pytest.raises(InputError, match=r"\['policy'\]\['q'\] \(there \[2, 8\], here \[2, 4\]\).*another --workdir"):
        kept.restore(1, {"policy": {"q": jnp.zeros((2, 4)), "old": jnp.zeros(1)}})


def test_restores_onto_another_mesh(tmp_path):
    """Saved in parts from two devices per row, restored over eight, with the values and the new places."""
    sizes = {"data": -1, "fsdp": 1, "model": 1}
    before, after = (devices.make_mesh(sizes | change) for change in ({"fsdp": 2}, {"fsdp": 8}))
    array = np.arange(128.0, dtype=np.float32).reshape(8, 16)
    placed = jax.device_put(array, NamedSharding(before, PartitionSpec("fsdp")))
    Checkpoints(tmp_path, 1).save(1, {"w": placed}, {})
    like = {"w": jax.device_put(np.zeros_like(array), NamedSharding(after, PartitionSpec("fsdp")))}
    found = Checkpoints(tmp_path, 1).restore(1, like)["w"]
    np.testing.assert_array_equal(found, array)
    assert found.sharding == like["w"].sharding and found.addressable_shards[0].data.shape == (1, 16)


def test_the_note_is_json_anyone_can_read(tmp_path):
    Checkpoints(tmp_path, 1).save(1, tree(), {"position": 1})
    assert json.loads(next((tmp_path / "1" / "note").glob("metadata*")).read_text())["position"] == 1
