"""The embedder: a contrastive step of 64 pairs, and embedding a catalogue.

Ours are contrastive.update and similarity.embed_texts. The peers: sentence-transformers as it comes (float32) and
under bfloat16 autocast, and the same in PyTorch with transformers' BertModel alone. The step is InfoNCE over the
batch at temperature 0.05, which is MultipleNegativesRankingLoss at its scale of 20, with AdamW on all weights; texts
are tokenised beforehand, dropout is off. Embedding begins with the texts.
"""

import contextlib
import functools
import math

import numpy as np

from benchmarks import harness, inputs

TEMPERATURE, RATE, LIMITS, BATCH = 0.05, 1e-5, (96, 64), 64  # LIMITS: of profiles and items, in tokens
AUTOCAST = " under bfloat16 autocast"


def pairs(options) -> tuple[list[str], list[str]]:
    """Profiles and the items chosen next."""
    given = inputs.read(options.folder)
    return given["profiles"], given["chosen"]


def our_encoder(options, dtype: str):
    """The folder's DualEncoder, its graph, and its weights on the device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lpt_jax import devices, similarity
    from lpt_jax.models import layers

    dual = similarity.DualEncoder.load(str(options.folder / "encoder"))
    dual.set_attributes(dtype=devices.product_type(dtype))
    graph, weights = nnx.split(dual)
    return dual, graph, jax.tree.map(jnp.array, layers.plain(weights))


def our_step(options, dtype: str):
    """contrastive.update; returns the loss."""
    import jax
    import jax.numpy as jnp
    import optax

    from lpt_jax import similarity
    from lpt_jax.data import batches
    from lpt_jax.learning import contrastive
    from lpt_jax.learning.loop import Part

    dual, graph, weights = our_encoder(options, dtype)
    tokenizer, optimiser = dual.tokenizer, optax.adamw(RATE, weight_decay=0.0)
    part = Part(weights, optimiser.init(weights))
    rows = sum((batches.tokenise(tokenizer, texts, limit)[0] for texts, limit in zip(pairs(options), LIMITS)), [])
    (room, most), count = similarity.line_of(max(map(len, rows))), len(rows) // 2
    size = math.ceil(1.1 * sum(map(len, rows)) / room)  # as a contrastive phase has it
    size_of = lambda lines, _: max(size, lines)  # noqa: E731
    (packed,) = batches.packs(rows, room, most, dual.encoder.source.pad_id, size_of)
    where = packed.places_of_rows()
    batch = {
        "tokens": packed.tokens,
        "texts": packed.texts,
        "profiles": where[:count],
        "items": where[count:],
        "correction": np.zeros(count, np.float32),
        "excluded": np.zeros((count, count), bool),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    plan = contrastive.Plan(graph, optimiser, TEMPERATURE, most, remat=False)

    def run():
        nonlocal part
        part, found = contrastive.update(plan, part, batch)
        jax.block_until_ready(part)
        return float(found["loss"])

    return run


def _stepper(weights, loss_of):
    """A PyTorch step of AdamW on the loss that loss_of() computes; returns the loss."""
    import torch

    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)

    def run():
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        optimiser.step()
        return loss.item()  # waits for a GPU

    return run


def _casting(cast: bool):
    from benchmarks import torch_device

    return torch_device.autocast() if cast else contextlib.nullcontext()


def sentence_step(options, cast: bool):
    """MultipleNegativesRankingLoss of sentence-transformers: forward, backward and AdamW, a step of its trainer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from benchmarks import torch_device

    torch_device.use(options)
    model = SentenceTransformer(str(options.folder / "encoder"), device=options.device).eval()
    objective, columns = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE), []
    for texts, limit in zip(pairs(options), LIMITS):
        model.max_seq_length = limit
        columns.append({k: v.to(options.device) if hasattr(v, "to") else v for k, v in model.preprocess(texts).items()})

    def loss():
        with _casting(cast):
            return objective([dict(column) for column in columns], None)  # a forward pass writes into the dicts

    return _stepper(model.parameters(), loss)


def torch_step(options, cast: bool):
    """The same loss with BertModel."""
    import torch

    from benchmarks import torch_device, torch_peers

    torch_device.use(options)
    encoder = torch_peers.Encoder(options.folder)
    columns = [encoder.tokens(texts, limit) for texts, limit in zip(pairs(options), LIMITS)]

    def loss():
        with _casting(cast):
            profiles, items = (encoder.embed(column) for column in columns)
            scores = profiles @ items.T / TEMPERATURE
            return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    return _stepper(encoder.model.parameters(), loss)


# ---- a catalogue


def our_catalogue(options, dtype: str):
    """similarity.embed_texts, in the folder's own order; returns the embeddings."""
    from lpt_jax import similarity

    dual, graph, weights = our_encoder(options, dtype)
    texts = inputs.read(options.folder)["catalogue"]

    def run():
        return similarity.embed_texts(graph, weights, dual.encoder, texts, BATCH, LIMITS[1])[0]

    return run


def sentence_catalogue(options, cast: bool):
    """SentenceTransformer.encode."""
    from sentence_transformers import SentenceTransformer

    from benchmarks import torch_device

    torch_device.use(options)
    model, texts = (
        SentenceTransformer(str(options.folder / "encoder"), device=options.device),
        inputs.read(options.folder)["catalogue"],
    )
    model.max_seq_length = LIMITS[1]

    def run():
        with _casting(cast):
            return model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    return run


def torch_catalogue(options, cast: bool):
    """The same batches with BertModel."""
    from benchmarks import torch_device, torch_peers

    torch_device.use(options)
    encoder, texts = torch_peers.Encoder(options.folder), inputs.read(options.folder)["catalogue"]

    def run():
        with _casting(cast):
            return encoder.embed_texts(texts, LIMITS[1], BATCH).float().cpu().numpy()

    return run


# ---- floors


def _lengths(options, texts: list[str], limit: int) -> list[int]:
    from transformers import AutoTokenizer

    from lpt_jax.data import batches

    tokenizer = AutoTokenizer.from_pretrained(options.folder / "encoder")
    return [len(row) for row in batches.tokenise(tokenizer, texts, limit)[0]]


def step_needs(options, dtype: str) -> dict:
    """Floor of the step, of both sides' real tokens."""
    from benchmarks import floors
    from lpt_jax import devices

    lengths = sum((_lengths(options, texts, limit) for texts, limit in zip(pairs(options), LIMITS)), [])
    spec = inputs.specs(options.folder)[1]
    return {"whole": [floors.contrastive(spec, lengths, devices.product_type(dtype))]}


def catalogue_needs(options, dtype: str) -> dict:
    """Floor of the embedding, of real tokens; tokenising is left out."""
    from benchmarks import floors
    from lpt_jax import devices

    texts = inputs.read(options.folder)["catalogue"]
    spec = inputs.specs(options.folder)[1]
    return {"whole": [floors.embedding(spec, _lengths(options, texts, LIMITS[1]), devices.product_type(dtype))]}


def cases(options) -> list[harness.Case]:
    """Both parts, in the type this machine has and in float32."""
    parts = {
        "contrastive": (our_step, sentence_step, torch_step, step_needs, 0.05),
        "catalogue": (our_catalogue, sentence_catalogue, torch_catalogue, catalogue_needs, 0.05),
    }
    found = []
    for part, (ours, sentences, plain, needs, alike) in parts.items():
        libraries = {"sentence-transformers": sentences, "PyTorch": plain}
        peers = {
            name + AUTOCAST * cast: functools.partial(make, options, cast)
            for name, make in libraries.items()
            for cast in (False, True)
        }
        for dtype in ("auto", "float32"):
            name = f"embedding-{part}" + "-float32" * (dtype == "float32")
            mine, least = functools.partial(ours, options, dtype), functools.partial(needs, dtype=dtype)
            repeats = 3 if part == "contrastive" else 1
            found.append(harness.Case(name, dtype, mine, peers, least, rounds=7, repeats=repeats, alike=alike))
    return found
