"""What was written against what should have been: errors, and how long after its end each symbol came out.

Shapes: B batch, N blocks, S symbols, W frames of a block, M steps a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import DataError
from cambrian.metrics.edit import distance, pairs
from cambrian.systems.language.neural_transducer._decode import Decoded


def given(ends: Tensor, blocks: Tensor, W: int, M: int) -> Tensor:
    """The alignment [B, N] in which every symbol is written by the block in which it ends (`ends` [B, S] in frames).

    What is too much for a block (more than M - 1) goes to the next. Raises `DataError` when the last one overflows.
    """
    n_blocks = int(blocks.max())
    block = torch.where(ends >= 0, (ends - 1).clamp(min=0) // W, n_blocks)
    wanted = torch.zeros(len(ends), n_blocks + 1, dtype=torch.long, device=ends.device)
    wanted = wanted.scatter_add(1, block, torch.ones_like(block))[:, :n_blocks]
    counts, carried = torch.zeros_like(wanted), torch.zeros_like(wanted[:, 0])
    for n in range(n_blocks):
        carried = carried + wanted[:, n]
        counts[:, n] = carried.clamp(max=M - 1) * (n < blocks)
        carried = carried - counts[:, n]
    if bool(carried.any()):
        i = int(carried.nonzero()[0])
        raise DataError(f"utterance {i}: {int(carried[i])} symbols end too late for blocks of W = {W} frames that write M - 1 = {M - 1}")  # fmt: skip
    return counts


@dataclass
class Judge:
    """Gathers utterances; `figures` sums them up. `W` frames a block, `seconds` a frame."""

    W: int
    seconds: float
    errors: int = 0
    symbols: int = 0
    wrong: int = 0
    utterances: int = 0
    delays: list[float] = field(default_factory=list[float])
    late: list[int] = field(default_factory=list[int])

    def add(self, reference: Sequence[int], ends: Sequence[int], frames: int, found: Decoded) -> None:
        """One utterance: its symbols, their ends in frames (-1: unknown), its length in frames, and what was written."""
        errors = distance(reference, found.symbols)
        self.errors, self.symbols = self.errors + errors, self.symbols + len(reference)
        self.wrong, self.utterances = self.wrong + (errors > 0), self.utterances + 1
        for i, j in pairs(reference, found.symbols):
            if i is None or j is None or reference[i] != found.symbols[j] or ends[i] < 0:
                continue
            out = min((found.blocks[j] + 1) * self.W, frames)
            self.delays.append((out - ends[i]) * self.seconds)
            self.late.append(found.blocks[j] - (ends[i] - 1) // self.W)

    def figures(self) -> dict[str, float]:
        """Errors per symbol, share of utterances with any error, and of the correct symbols the mean and 90 % delay in
        milliseconds and the share that came out no more than one block after the block in which they end.
        """
        out = {"error_rate": self.errors / max(1, self.symbols), "sequence_error": self.wrong / max(1, self.utterances)}
        if self.delays:
            delays = 1e3 * np.asarray(self.delays)
            out |= {"latency_ms": float(delays.mean()), "latency_p90_ms": float(np.quantile(delays, 0.9)),
                    "prompt": float(np.mean(np.asarray(self.late) <= 1))}  # fmt: skip
        return out
