"""The best alignment by a search like dynamic programming (section 3.4): one hypothesis for each number of written symbols.

After every block, h(j) is the best partial alignment that has written the first j symbols, with its state. Each is
extended by 0..M-1 symbols and `<e>`; of those that arrive at the same j the likeliest stays. That is exact where the
state depends on nothing but j and the block, and an approximation where the state remembers how it got there.

Shapes: B batch, S symbols, J = S + 1 hypotheses, N blocks, M steps a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cambrian.errors import CapabilityError
from cambrian.nn.scan import State

if TYPE_CHECKING:
    from cambrian.systems.language.neural_transducer.model import Encoded, NeuralTransducer


def search(model: NeuralTransducer, encoded: Encoded, y: Tensor) -> tuple[Tensor, Tensor]:
    """Counts int64 [B, N] and log-probabilities [B] of the best alignments found for targets y [B, S] (-1 after the last).

    All hypotheses of all utterances are rows of one step. An utterance that has fewer blocks keeps its table to the end.
    """
    if model.end_by == "none":
        raise CapabilityError(
            "without an end of block (end='none') alignments must be given; they cannot be searched for"
        )
    lengths, blocks = (y >= 0).sum(1), encoded.blocks
    batch, n_blocks, width = len(y), encoded.mask.shape[1], y.shape[1] + 1
    position = torch.arange(width, device=y.device)
    symbols = torch.cat((y.clamp(min=0), y.new_zeros(batch, model.M)), 1)
    score = torch.full((batch, width), -torch.inf, dtype=encoded.memory.dtype, device=y.device)
    score[:, 0] = 0.0
    low, high = _span(model, lengths, blocks, 0)
    state = model.initial(batch * (high - low + 1))
    back = torch.zeros(n_blocks, batch, width, dtype=torch.long, device=y.device)
    for n in range(n_blocks):
        arrivals, states = _extend(model, encoded.block(n), score, state, symbols, lengths, low, high)
        left = (blocks - n - 1).clamp(min=0)[:, None] * (model.M - 1)
        reachable = (position <= lengths[:, None]) & (lengths[:, None] - position <= left)
        best, back[n] = arrivals.masked_fill(~reachable, -torch.inf).max(0)
        score = torch.where((n < blocks)[:, None], best, score)
        next_low, next_high = _span(model, lengths, blocks, n + 1)
        state = _arrived(states, back[n][:, next_low : next_high + 1], low, high, next_low)
        low, high = next_low, next_high
    counts = _trace(back, lengths, blocks)
    return counts, score.gather(1, lengths[:, None])[:, 0]


def _span(model: NeuralTransducer, lengths: Tensor, blocks: Tensor, n: int) -> tuple[int, int]:
    """The fewest and the most symbols that a hypothesis can have written after n blocks and still be finished."""
    most, running = model.M - 1, blocks > n
    if not bool(running.any()):
        return 0, 0
    low = int((lengths - (blocks - n) * most)[running].min().clamp(min=0))
    return low, min(int(lengths[running].max()), n * most)


def _extend(
    model: NeuralTransducer,
    block: tuple[Tensor, Tensor, Tensor],
    score: Tensor,
    state: State,
    symbols: Tensor,
    lengths: Tensor,
    low: int,
    high: int,
) -> tuple[Tensor, list[State]]:
    """Scores [M, B, J] of arriving at each j by m symbols and `<e>`, and the states after m symbols and `<e>`'s step."""
    batch, width = score.shape
    origin = torch.arange(low, high + 1, device=score.device)
    live = score[:, low : high + 1]
    if model.independent:
        state = model.initial(batch * len(origin))
    arrivals = torch.full((model.M, batch, width), -torch.inf, dtype=score.dtype, device=score.device)
    previous = torch.full_like(live, model.end, dtype=torch.long)
    states: list[State] = []
    for m in range(min(model.M, width - low)):  # nobody has more than S - low symbols left
        found, state, _ = model.step(previous, block, state)
        states.append(state)
        last = min(high + m, width - 1)
        arrivals[m, :, low + m : last + 1] = (live + found[..., model.end])[:, : max(0, last + 1 - low - m)]
        if m + 1 < model.M:
            previous = symbols[:, low + m : high + m + 1]
            gain = found.gather(2, previous[..., None])[..., 0]
            live = (live + gain).masked_fill(origin + m >= lengths[:, None], -torch.inf)
    return arrivals, states


def _arrived(states: list[State], steps: Tensor, low: int, high: int, next_low: int) -> State:
    """The states of the hypotheses that stay: `steps` [B, J'] symbols before j = next_low .. of a table from low to high."""
    batch, width = steps.shape
    old = high - low + 1
    j = torch.arange(next_low, next_low + width, device=steps.device)
    row = (j - steps - low).clamp(0, old - 1) + old * torch.arange(batch, device=steps.device)[:, None]
    index = (steps * (batch * old) + row).flatten()
    return tuple(torch.cat(parts).index_select(0, index) for parts in zip(*states, strict=True))


def _trace(back: Tensor, lengths: Tensor, blocks: Tensor) -> Tensor:
    """Follow the table of symbols a block [N, B, J] back from every target's end: counts [B, N]."""
    at, counts = lengths.clone(), torch.zeros(len(lengths), len(back), dtype=torch.long, device=back.device)
    for n in range(len(back) - 1, -1, -1):
        step = back[n].gather(1, at[:, None])[:, 0] * (n < blocks)
        counts[:, n] = step
        at = at - step
    return counts
