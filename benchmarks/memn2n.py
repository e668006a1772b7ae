"""A training step of a memory network: embeddings shared between hops, and restarts trained as one stack.

Run with `python benchmarks/memn2n.py`. The literal version looks words up and adds them twice a hop (once for A, once for C), as
the equations are written, though with adjacent tying C of a hop is A of the next. Ours embeds with all tables in one product of
the sentences' features; in training it embeds each different sentence once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data import babi_files
from cambrian.inspect.bench import compare
from cambrian.studies.many import Stacked
from cambrian.systems.language.memn2n.model import MemN2N, ages, word_features
from cambrian.worlds.babi import tales

BATCH, RESTARTS = 32, 3


def literal(model: MemN2N, stories: Tensor, query: Tensor) -> Tensor:
    """Logits by 2K lookups, word by word."""
    age = ages(stories)
    exists, clock = age >= 0, age.clamp(min=0)
    k = torch.arange(1, model.d + 1) / model.d

    def encode(words: Tensor, table: Tensor) -> Tensor:
        j = torch.arange(1, words.shape[-1] + 1)
        share = (j / (words != 0).sum(-1, keepdim=True).clamp(min=1))[..., None]
        weight = ((1 - share) - k * (1 - 2 * share)) * (words != 0)[..., None]
        return (F.embedding(words, table) * weight).sum(-2)

    u = encode(query, model.table("B"))
    for hop in range(model.hops):
        m = encode(stories, model.table("A", hop)) + model.clock("A", hop)[clock]
        c = encode(stories, model.table("C", hop)) + model.clock("C", hop)[clock]
        p = (m * u[:, None]).sum(-1).masked_fill(~exists, -1e9).softmax(-1) * exists
        u = u + (p[..., None] * c).sum(1)
    return u @ model.table("W").T


def main() -> None:
    """Check equality of logits and gradients, then time forward and backward on task 3."""
    torch.manual_seed(0)
    told = tales.generate(3, "train", 200)
    words = babi_files.vocabulary(told)
    made = babi_files.arrays(told, words, 50)
    stories, query, answer = (made[name][100 : 100 + BATCH].long() for name in ("story", "query", "answer"))
    different, number = torch.unique(stories.flatten(0, 1), dim=0, return_inverse=True)
    number, age = number.view(stories.shape[:2]), ages(stories)
    models = [MemN2N(vocab=len(words)) for _ in range(RESTARTS)]
    sentences, asked = (word_features(w, len(words), "position") for w in (different, query))
    off = torch.tensor(False)

    def gradient(logits: Tensor, model: torch.nn.Module) -> list[Tensor]:
        loss = F.cross_entropy(
            logits.reshape(-1, len(words)), answer.repeat(logits.numel() // (BATCH * len(words))), reduction="sum"
        )
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def numbered(model: MemN2N) -> Tensor:
        return model.answer_from(sentences, number, age, asked, off)[0]

    stack = Stacked(models)

    def stacked() -> list[Tensor]:
        logits, _ = stack.call("answer_from", sentences, number, age, asked, off, shared=(0, 1, 2, 3, 4))
        return gradient(logits, stack)

    first = models[0]
    expected = literal(first, stories, query)
    for logits in (first(stories, query)[0], numbered(first)):
        torch.testing.assert_close(logits[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)
    reference = gradient(numbered(first), first)
    for ours, theirs in zip(gradient(first(stories, query)[0], first), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(stacked(), reference, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=1e-3, atol=1e-4)
    print(compare({
        "one product for all hops": lambda: gradient(first(stories, query)[0], first),
        "2K lookups": lambda: gradient(literal(first, stories, query), first),
        "different sentences once": lambda: gradient(numbered(first), first),
    }, threads=1))  # fmt: skip
    print(compare({
        "three restarts stacked": stacked, "one by one": lambda: [gradient(numbered(m), m) for m in models],
    }, threads=1))  # fmt: skip


if __name__ == "__main__":
    main()
