"""Checkpoints with orbax: written aside and renamed, so a kill at any moment leaves the last whole one."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from lpt_jax.errors import InputError


class Checkpoints:
    """A folder of numbered checkpoints: a tree of arrays and a JSON note each."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest(self) -> int | None:
        """The newest checkpoint's number, or None."""
        return self.manager.latest_step()

    def save(self, number: int, tree: dict, note: dict, optimiser=None) -> None:
        """Writes a checkpoint under a number; one that is there with this number is replaced.

        optimiser: its state, where training may go on from here; whoever wants the tree alone needn't know of it.
        """
        if number in self.manager.all_steps():
            self.manager.delete(number)
        items = {"state": ocp.args.StandardSave(tree), "note": ocp.args.JsonSave(note | {"arrays": _shapes(tree)})}
        if optimiser is not None:
            items["optimiser"] = ocp.args.StandardSave(optimiser)
        self.manager.save(number, args=ocp.args.Composite(**items), force=True)
        self.manager.wait_until_finished()

    def note(self, number: int) -> dict:
        """The JSON note of a checkpoint."""
        return self.manager.restore(number, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]

    def restore(self, number: int, like: dict) -> dict:
        """The tree of a checkpoint, with the shapes, types and sharding of the tree `like`.

        Raises InputError where the checkpoint holds other arrays than these models have.
        """
        ours, theirs = _shapes(like), self.note(number)["arrays"]
        if differ := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            raise InputError(
                f"The checkpoint {self.manager.directory}/{number} does not fit these models: {len(differ)} arrays "
                f"differ, the first being {differ[0]} (there {theirs.get(differ[0])}, here {ours.get(differ[0])}); use "
                "the config it was trained with, or another --workdir."
            )
        return self._restored(number, "state", like)

    def restore_optimiser(self, number: int, like):
        """The optimiser's state that was saved beside a tree, as `like`."""
        return self._restored(number, "optimiser", like)

    def _restored(self, number: int, item: str, like):
        shaped = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        return self.manager.restore(number, args=ocp.args.Composite(**{item: shaped}))[item]

    def close(self) -> None:
        """Waits for what is being written."""
        self.manager.close()


def _shapes(tree) -> dict[str, list[int]]:
    """The shape of every array by its path."""
    return {jax.tree_util.keystr(p): list(a.shape) for p, a in jax.tree_util.tree_leaves_with_path(tree)}
