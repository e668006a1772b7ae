"""Where the non-zero entries of a sparse array are: the number of zeros before each, in a field of few bits.

    gap_i = p_i - p_{i-1} - 1,   p_{-1} = -1                  (positions p in flattened, row-major order)

A gap that does not fit the field of b bits is bridged by fillers: explicit entries that hold a zero, each 2^b positions
after the entry before it (figure 2 of arXiv 1510.00149). Fillers go on after the last non-zero entry until fewer than
2^b positions are left, so that the array's length bounds the number of entries and the other way round.

Shapes: N positions, M entries (non-zeros and fillers).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cambrian.errors import CheckpointError, ConfigError

MAX_GAP_BITS = 8


class DeltaIndex:
    """Positions as gaps of `bits` bits, 1 to 8."""

    def __init__(self, bits: int) -> None:
        if not 1 <= bits <= MAX_GAP_BITS:
            raise ConfigError(f"position fields have 1 to {MAX_GAP_BITS} bits, not {bits}")
        self.bits = bits
        self.span = 1 << bits

    def encode(self, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """Gaps int64 `[M]` below `2^bits`, and bool `[M]`: True for a non-zero of `mask` (bool, N entries), False for a
        filler.
        """
        flat = np.asarray(mask, bool).ravel()
        where = np.flatnonzero(flat)
        gaps = np.diff(where, prepend=-1, append=len(flat)) - 1  # the last one is the tail without an entry
        fillers = gaps // self.span
        ends = np.cumsum(fillers + 1) - 1  # the entry of each non-zero; the last is one past the end
        entries = np.full(int(ends[-1]), self.span - 1, np.int64)
        entries[ends[:-1]] = gaps[:-1] % self.span
        present = np.zeros(len(entries), bool)
        present[ends[:-1]] = True
        return entries, present

    def decode(self, gaps: np.ndarray, present: np.ndarray, count: int) -> np.ndarray:
        """Positions int64 of the non-zeros in an array of `count` entries. Raises `CheckpointError` when the gaps lead
        outside of it or end too early.
        """
        positions = np.cumsum(np.asarray(gaps, np.int64) + 1) - 1
        reach = int(positions[-1]) + 1 if len(positions) else 0
        if not reach <= count < reach + self.span:
            raise CheckpointError(f"position gaps reach {reach} of {count} entries; the file is damaged")
        return positions[np.asarray(present, bool)]
