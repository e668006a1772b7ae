"""The language model's part of the recipe: windows of words, annealing by the validation loss, continuations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data import text_files
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.samples import Texts
from cambrian.errors import ConfigError
from cambrian.worlds import stdlib

SUMMED = 128  # the paper's batch, over which losses are summed
ANNEAL = 1.5
CLIP = 50.0


def is_text(source: Source) -> bool:
    """Whether a source holds text, not stories. `ConfigError` for a world that is neither."""
    if source.kind == "world" and source.value not in ("babi", "stdlib"):
        raise ConfigError(
            f"memn2n has the worlds babi and stdlib, not {source.value}; or give a bAbI folder or a text file"
        )
    if source.kind == "path":
        stories = any(source.path.glob("**/qa*_train.txt"))
        return source.path.is_file() or (not stories and any(source.path.glob("*.txt")))
    return source.value == "stdlib"


def load(source: Source, memory: int, predict: int, words: int) -> Data:
    """Windows of memory + predict words, `predict` apart."""
    settings: dict[str, Any] = {
        "length": memory + predict - 1,
        "level": "words",
        "vocabulary": words,
        "stride": predict,
    }
    return stdlib.load(**settings) if source.kind == "world" else text_files.load(source, **settings)


def _loss(run: Any, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the words that have a full memory before them."""
    memory = run.config.memory
    logits, _ = run.net(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, memory:].flatten())


def step(run: Any, batch: Batch) -> dict[str, Tensor | float]:
    """One step; after an epoch without a better validation loss the rate falls by 1.5."""
    for group in run.optim.param_groups:
        group["lr"] = run.extra["lr"]
    loss = _loss(run, batch["tokens"])
    run.minimise(loss * SUMMED, run.optim, clip_norm=CLIP)
    if (run.iteration + 1) % (len(run.data.split("train")) // run.config.batch) == 0:
        with torch.no_grad():
            found = _mean(run, "valid")
        if found > run.extra["best"]:
            run.extra["lr"] /= ANNEAL
        run.extra["best"] = min(found, run.extra["best"])
    return {"loss": loss.detach(), "lr": run.extra["lr"]}


def _mean(run: Any, split: str) -> float:
    parts = [(float(_loss(run, b["tokens"])), len(b["tokens"])) for b in run.batches(split, 64)]
    return sum(loss * n for loss, n in parts) / sum(n for _, n in parts)


def evaluate(run: Any, split: str) -> dict[str, float]:
    """Nats a word and perplexity."""
    nats = _mean(run, split)
    return {"error": nats, "nats": nats, "perplexity": math.exp(min(nats, 50.0))}


def sample(run: Any, n: int, generator: torch.Generator, length: int = 40) -> Texts:
    """Continuations of test windows, drawn word by word."""
    memory, symbols = run.config.memory, run.data.info["symbols"]
    split = run.data.split("test")
    tokens = split[torch.arange(n) % len(split)]["tokens"][:, :memory].to(run.device)
    for _ in range(length):
        logits, _ = run.net(tokens[:, -memory:])
        p = logits[:, -1].softmax(-1).cpu()
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator).to(run.device)], 1)
    return Texts([text_files.joined(row[-length:].tolist(), symbols, "words") for row in tokens])
