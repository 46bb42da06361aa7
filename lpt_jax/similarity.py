"""Texts to unit-length embeddings, whose dot products are cosines."""

import functools
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from lpt_jax import devices
from lpt_jax.data import batches
from lpt_jax.models import layers
from lpt_jax.models.encoder import TextEncoder

ROOM = 128  # tokens of a line, where no text is longer
FEWEST = 16  # texts that a line can have, or a 16th of its tokens
SHARD = 1 << 16  # items whose embeddings are one file, where the catalogue is larger


def line_of(longest: int) -> tuple[int, int]:
    """Tokens of a line that holds texts of up to so many, and how many texts it can have."""
    room = max(ROOM, -(-longest // 16) * 16)
    return room, max(FEWEST, room // 16)


class DualEncoder(nnx.Module):
    """The profile side and the item side of a recommender, which share one TextEncoder, as in LangPTune.

    A profile is read with the encoder's query prefix, an item as it is.
    """

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder

    @classmethod
    def load(cls, source: str) -> "DualEncoder":
        """Reads a text encoder: a folder, "org/name[@revision]" or "carrier:<name>"."""
        return cls(TextEncoder.load(source))

    @property
    def tokenizer(self):
        """The transformers tokenizer it was loaded with."""
        return self.encoder.source.tokenizer

    def embed(self, texts: Sequence[str], profiles: bool = False, batch: int = 64) -> np.ndarray:
        """Texts to Embeddings [n, D]; of items, or of profiles."""
        graph, weights = nnx.split(self)
        prefix = self.encoder.spec.query_prefix if profiles else ""
        return embed_texts(graph, layers.plain(weights), self.encoder, [prefix + text for text in texts], batch)[0]


@functools.partial(jax.jit, static_argnames=("graph", "most"))
def embed_batch(graph, weights: dict, tokens, texts, most: int) -> jax.Array:
    """Embeddings [R, most, D] of the texts 1 … most of each of R lines; graph and weights: a split DualEncoder's."""
    return nnx.merge(graph, weights).encoder.packed(tokens, texts, most)


def embed_texts(
    graph, weights, encoder: TextEncoder, texts, batch=64, limit=None, mesh=None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds texts, several to a line, `batch` lines at once (the last ones: fewer, of at most eight static sizes).

    Args:
      graph, weights: of a DualEncoder, split.
      encoder: for its spec and tokenizer.
      limit: longer texts are cut, as at spec.max_tokens.
      mesh: where given, the batches are spread over its devices.

    Returns:
      Embeddings [n, D] in the texts' order (float32, unit length), and Bool [n]: the text was cut.
    """
    spec, source = encoder.spec, encoder.source
    limit = min(limit or spec.max_tokens, spec.max_tokens)
    rows, cut = batches.tokenise(source.tokenizer, texts, limit)
    room, most = line_of(limit)
    weights = weights if mesh else jax.device_put(weights)  # once, not once per batch
    step, parts = max(-(-batch // 8), 1), []

    def size(lines, alone):
        return 1 if alone else -(-lines // step) * step

    for packed in batches.packs(rows, room, most, source.tokenizer.pad_token_id or 0, size, batch):
        put = (packed.tokens, packed.texts)
        put = devices.split_batch(put, mesh) if mesh else put
        parts.append((packed, embed_batch(graph, weights, *put, most=most)))  # runs while the next batch is packed
    vectors = np.zeros((len(rows), spec.width), np.float32)
    for packed, embedded in parts:
        vectors[packed.rows] = devices.fetch(embedded).reshape(-1, spec.width)[packed.places]
    return vectors, cut


class Embedder:
    """The DualEncoder of a run: embeds texts, profiles and the catalogue with given weights."""

    def __init__(self, dual: DualEncoder, settings, mesh, folder: Path, interrupt=None):
        """settings: config.embedder; folder: where the catalogue's embeddings are kept; interrupt: asked between shards."""
        dual.set_attributes(mesh=mesh)
        dual.set_attributes(dtype=devices.product_type(settings.dtype))
        self.encoder, self.spec, self.tokenizer = dual.encoder, dual.encoder.spec, dual.encoder.source.tokenizer
        self.settings, self.mesh, self.folder, self.interrupt = settings, mesh, Path(folder), interrupt
        self.axes = layers.axes_of(dual)
        self.graph, weights = nnx.split(dual)
        self.loaded = layers.plain(weights)  # as read
        self.begin_with = self.loaded  # as the run begins
        self.profile_limit = min(settings.max_profile_tokens, self.spec.max_tokens)
        self.item_limit = min(settings.max_item_tokens, self.spec.max_tokens)
        self._for, self._items = None, None

    def place(self, tree):
        """A tree of its weights, or of an optimiser's state, on the mesh."""
        return devices.place(tree, self.mesh, self.axes)

    def fresh(self, loaded: bool = False) -> dict:
        """The weights as the run begins with them (or as loaded), on the mesh, as float32 masters."""
        return self.place(layers.masters(self.loaded if loaded else self.begin_with))

    def embed(self, weights: dict, texts: list[str], limit: int, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Texts to (Embeddings, Bool[n] over-long: cut to `limit` tokens)."""
        texts = [prefix + text for text in texts]
        return embed_texts(self.graph, weights, self.encoder, texts, self.settings.batch, limit, self.mesh)

    def embed_profiles(self, weights: dict, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Profiles to (Embeddings, Bool[n] valid: neither empty nor longer than the window)."""
        vectors, overlong = self.embed(weights, texts, self.profile_limit, self.spec.query_prefix)
        return vectors, ~overlong & np.array([bool(t.strip()) for t in texts], bool)

    def length(self, profile: str) -> int:
        """A profile's tokens."""
        return len(self.tokenizer(self.spec.query_prefix + profile, verbose=False)["input_ids"])

    def catalogue(self, weights: dict, texts: list[str], bias: np.ndarray | float = 0.0, keep=False) -> jax.Array:
        """ItemEmbeddings [N, D + 1], padded and spread over the mesh; asked twice for the same weights, it embeds once.

        bias: Float[N], the last column, which is added to the cosines of queries whose own last column is 1.

        keep: they also stay in the folder, under a name made of weights and texts, for a later process. Those of a large
        catalogue always do, shard by shard, so that a killed run goes on.
        """
        if self._for is not weights:  # an update makes new ones
            kept = keep or len(texts) > SHARD
            vectors = self.kept(weights, texts) if kept else self.embed(weights, texts, self.item_limit)[0]
            column = np.broadcast_to(np.asarray(bias, np.float32), len(vectors))
            vectors = np.concatenate([vectors, column[:, None]], 1)
            self._for, self._items = weights, devices.split_rows(vectors, self.mesh)
        return self._items

    def kept(self, weights: dict, texts: list[str], where: Path | None = None) -> np.ndarray:
        """Embeddings [N, D] from the files of a folder (`where`, or the embedder's), a shard each; those that lack are made, those of
        other weights go."""
        where = where or self.folder
        folder, shards = where / self._name(weights, texts), []
        if devices.first():
            for old in where.glob("*"):
                shutil.rmtree(old) if old != folder else None
            folder.mkdir(parents=True, exist_ok=True)
        devices.wait_for_all("the catalogue's folder")
        done = {file.name for file in folder.iterdir()} if folder.exists() else set()
        starts = range(0, len(texts), SHARD)
        for start in tqdm(starts, "catalogue", unit="shard", disable=len(starts) == 1 or not devices.first()):
            file = folder / f"{start}-{SHARD}.npy"
            if not devices.any_process(file.name not in done):
                shards.append(np.load(file, allow_pickle=False))
                continue
            shards.append(self.embed(weights, texts[start : start + SHARD], self.item_limit)[0])
            if devices.first():
                np.save(part := file.with_suffix(".part.npy"), shards[-1])
                os.replace(part, file)
            if self.interrupt:
                self.interrupt.check(f"the embeddings of {start + len(shards[-1])} items")
        return np.concatenate(shards)

    def _name(self, weights: dict, texts: list[str]) -> str:
        """A name for what the embeddings depend on."""
        parts = [np.ascontiguousarray(a) for a in jax.tree.leaves(devices.fetch(weights))]
        parts += [
            f"{self.item_limit} {devices.product_type(self.settings.dtype)} {len(texts)}".encode(),
            "\n".join(texts).encode(),
        ]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
