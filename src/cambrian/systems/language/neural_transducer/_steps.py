"""All steps of an alignment under teacher forcing: what each reads, in which block, and what it should write.

Shapes: B batch, N blocks, M steps a block, S symbols, L steps of an alignment, W frames of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError

if TYPE_CHECKING:
    from cambrian.systems.language.neural_transducer.model import Encoded, NeuralTransducer


@dataclass(frozen=True)
class Steps:
    """Rows of steps: `previous` and `target` symbols int64, `block` int64 and `valid` bool, all [R, L].

    A row is an utterance, or a block where blocks are independent (`per_block`).
    """

    previous: Tensor
    target: Tensor
    block: Tensor
    valid: Tensor
    per_block: bool

    @classmethod
    def of(cls, model: NeuralTransducer, y: Tensor, counts: Tensor, encoded: Encoded) -> Steps:
        """The steps of targets y [B, S] (-1 after the last) written as counts [B, N] say. Raises `ShapeError`."""
        blocks = encoded.blocks
        _check(model, y, counts, blocks)
        counts = nn.functional.pad(counts, (0, encoded.mask.shape[1] - counts.shape[1]))
        previous, target, valid = _table(model, y, counts, blocks)
        if model.independent:
            rows = (t.flatten(0, 1) for t in (previous, target))
            return cls(*rows, torch.zeros_like(target).flatten(0, 1), valid.flatten(0, 1), True)
        before = valid.flatten(1).cumsum(1)
        length = int(before[:, -1].max())
        # steps that count move to the front, the others to a last column that is cut off
        to = torch.where(valid.flatten(1), before - 1, length)
        block = torch.arange(counts.shape[1], device=y.device)[:, None].expand(-1, target.shape[2]).expand_as(target)
        front = [
            t.flatten(1).new_zeros(len(y), length + 1).scatter(1, to, t.flatten(1))[:, :length]
            for t in (previous, target, block)
        ]
        return cls(*front, torch.arange(length, device=y.device) < before[:, -1:], False)


def _check(model: NeuralTransducer, y: Tensor, counts: Tensor, blocks: Tensor) -> None:
    inside = torch.arange(counts.shape[1], device=y.device) < blocks[:, None] if counts.dim() == 2 else None
    if inside is None or len(counts) != len(y) or int(blocks.max()) > counts.shape[1]:
        raise ShapeError(f"an alignment must be [{len(y)}, {int(blocks.max())}], not {tuple(counts.shape)}")
    if int(counts.min()) < 0 or int(counts.max()) > model.M - 1 or bool((counts * ~inside).any()):
        raise ShapeError(f"a block writes 0..{model.M - 1} symbols (M = {model.M}) and none after the last block")
    if not torch.equal(counts.sum(1), (y >= 0).sum(1)):
        raise ShapeError("an alignment must write every symbol of its target once: the counts do not add up to it")


def _table(model: NeuralTransducer, y: Tensor, counts: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What step m of block n reads and writes, and whether it is there: [B, N, M] each."""
    start = counts.cumsum(1) - counts
    m = torch.arange(model.M, device=y.device)
    end = model.end
    padded = torch.cat((y.clamp(min=0), y.new_zeros(len(y), 1)), 1)
    at = (start[..., None] + m).clamp(max=y.shape[1])
    symbol = padded.gather(1, at.flatten(1)).view_as(at)
    there = (torch.arange(counts.shape[1], device=y.device) < blocks[:, None])[..., None]
    if model.end_by != "none":
        target = torch.where(m < counts[..., None], symbol, end)
        previous = torch.cat((torch.full_like(target[..., :1], end), target[..., :-1]), 2)
        return previous, target, there & (m <= counts[..., None])
    last = (start + counts)[..., None]  # symbols written by the end of the block: the last of them is repeated
    before = torch.cat((torch.full_like(y[:, :1], end), y.clamp(min=0)), 1)  # before[j] is the j-th symbol, or nothing
    said = before.gather(1, last[..., 0])[..., None]
    target = torch.where(m < counts[..., None], symbol, said)[..., : model.M - 1]
    first = before.gather(1, start)[..., None]
    if model.independent:
        first = torch.full_like(first, end)
    return torch.cat((first, target[..., :-1]), 2), target, there.expand_as(target)


def scattered(lengths: Tensor, blocks: Tensor, M: int, generator: torch.Generator) -> Tensor:
    """Alignments drawn at random: counts [B, N] of `lengths` symbols in as many of an utterance's blocks * (M - 1) places.

    All choices of places are equally likely. `generator` is a CPU generator.
    """
    places = torch.arange(int(blocks.max()) * (M - 1), device=blocks.device)
    draws = torch.rand(len(blocks), len(places), generator=generator).to(blocks.device)
    draws = draws.masked_fill(places >= blocks[:, None] * (M - 1), 2.0)
    chosen = draws.argsort(1).argsort(1) < lengths[:, None]
    return chosen.unflatten(1, (-1, M - 1)).sum(2)


def unrolled(model: NeuralTransducer, encoded: Encoded, steps: Steps) -> Tensor:
    """log p of the steps, summed over each utterance: nats [B].

    Only s, the attention and the context feed back and are stepped; the upper layers and the softmax follow as one.
    """
    utterances, count = len(encoded.blocks), encoded.mask.shape[1]
    if steps.per_block:
        encoded, count = encoded.separate(), 1
    rows, length = steps.target.shape
    index = (torch.arange(rows, device=steps.block.device)[:, None] * count + steps.block).t().flatten()
    pick = [
        t.flatten(0, 1).index_select(0, index).unflatten(0, (length, rows)).unbind(0)
        for t in (encoded.memory, encoded.keys, encoded.mask)
    ]
    embedded = model.embedding(steps.previous.t()).unbind(0)
    state = model.initial(rows)
    seen, contexts = [], []
    for t in range(length):
        s, context, _, state = model.look(embedded[t], (pick[0][t], pick[1][t], pick[2][t]), state)
        seen.append(s)
        contexts.append(context)
    context = torch.stack(contexts)
    out, _ = model.upper(torch.cat((context, torch.stack(seen)), 2), lengths=steps.valid.sum(1))
    found = model.log_probs(out, context).gather(2, steps.target.t()[..., None])[..., 0]
    total = (found * steps.valid.t()).sum(0)
    return total.view(utterances, -1).sum(1)
