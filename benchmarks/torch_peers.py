"""The PyTorch side: transformers' models as a user would call them; nothing of jax is imported here."""

import time

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, CompileConfig

from benchmarks import torch_device
from lpt_jax.data import batches

# how generate may keep its cache; the last runs each prompt once and repeats its cache for the samples
CACHES = ("dynamic cache", "static cache", "static cache, compiled", "prompts prefilled once")


def decoder(folder, dtype: str):
    """The language model in one type throughout, as from_pretrained gives it, ready to write."""
    return (
        AutoModelForCausalLM.from_pretrained(folder / "decoder", dtype=getattr(torch, dtype))
        .eval()
        .to(torch_device.device())
    )


def positions(mask):
    """Positions of left-padded tokens, counted from the first real one."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def left_padded(rows, length: int, pad: int):
    """Prompts and mask, int64 tensors [B, length]."""
    return tuple(torch_device.tensor(a.astype(np.int64)) for a in batches.pad_left(rows, length, pad))


@torch.no_grad()
def generate(model, prompts, mask, cache: str, samples: int, max_tokens: int, temperature: float, eos, pad: int):
    """The tokens [B * samples, T] that transformers' generate adds; T is less than max_tokens where all have ended."""
    given = {"max_new_tokens": max_tokens, "eos_token_id": list(eos), "pad_token_id": pad, "do_sample": temperature > 0}
    if temperature:
        given |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    if cache.startswith("static"):
        given["cache_implementation"] = "static"
    if cache.endswith("compiled"):
        given["compile_config"] = CompileConfig(mode="default")
        given["compile_config"]._compile_all_devices = True  # else generate compiles on accelerators only
    if cache == CACHES[-1]:
        before = mask[:, :-1]
        kept = model(input_ids=prompts[:, :-1], attention_mask=before, position_ids=positions(before), use_cache=True,
                     logits_to_keep=1).past_key_values  # fmt: skip
        kept.batch_repeat_interleave(samples)
        given["past_key_values"] = kept
        prompts, mask = prompts.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    elif samples > 1:
        given["num_return_sequences"] = samples
    return model.generate(prompts, attention_mask=mask, **given)[:, prompts.shape[1] :]


_best = {}


def best_cache(model, prompts, mask, *others) -> str:
    """The fastest of CACHES for these arguments of generate, each tried once; measured once for a type of weights."""
    if model.dtype not in _best:
        seconds = {}
        for cache in CACHES:
            try:
                compiles = cache.endswith("compiled") or torch_device.device().type == "cuda"
                for _ in range(2 if compiles else 1):  # the first time compiles
                    started = time.perf_counter()
                    generate(model, prompts, mask, cache, *others)
                    torch_device.wait()
                    seconds[cache] = time.perf_counter() - started
            except Exception as error:  # a compiler that is missing or fails
                seconds.pop(cache, None)
                print(f"  generate with {cache} does not run here: {' '.join(str(error).split())[:200]}", flush=True)
        print("  generate:", ", ".join(f"{cache} {s:.2f} s" for cache, s in seconds.items()), flush=True)
        _best[model.dtype] = min(seconds, key=seconds.get)
    return _best[model.dtype]


class Encoder:
    """MiniLM in PyTorch alone: tokens to unit-length mean-pooled embeddings."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
        self.model = (
            BertModel.from_pretrained(folder / "encoder", add_pooling_layer=False, dtype=torch.float32)
            .eval()
            .to(torch_device.device())
        )

    def tokens(self, texts: list[str], limit: int) -> dict:
        """Padded to the longest text."""
        found = self.tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt",
            return_token_type_ids=False,
        )  # fmt: skip
        return found.to(torch_device.device())

    def embed(self, tokens: dict):
        """Embeddings [B, D]."""
        mask = tokens["attention_mask"][..., None]
        hidden = self.model(**tokens)[0]
        return torch.nn.functional.normalize((hidden * mask).sum(1).float() / mask.sum(1).clamp(min=1), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str], limit: int, batch: int = 64):
        """Embeddings of texts in their order, like lengths together, as SentenceTransformer.encode has it."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [[texts[i] for i in order[at : at + batch]] for at in range(0, len(texts), batch)]
        found = torch.cat([self.embed(self.tokens(part, limit)) for part in parts])
        return torch.empty_like(found).index_copy_(0, torch.tensor(order, device=found.device), found)
