"""The recursions as tables of costs [T+1, M+1], filled row by row in numpy; kept in memory, and on disk where asked."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.int32]
INFINITE = 1 << 28  # twice that plus T still fits 32 bits
LONGEST = 20_000  # t(t+1)/2 stays below INFINITE
LIMIT = 2_000_000_000  # candidate splits looked at: about ten seconds
HID, INT = 0, 1


def size(T: int, M: int) -> int:
    """The number of candidate splits that a table of T steps and M units looks at."""
    return T * T // 2 * M


class Table:
    """Costs by segment length t and budget m. `hid` and `int` differ only for `mixed`: there the start is counted."""

    def __init__(self, kind: str, alpha: int, split: str, hid: Costs, internal: Costs) -> None:
        self.kind, self.alpha, self.split = kind, alpha, split
        self.hid, self.int = hid, internal

    def rows(self, t: int) -> NDArray[np.int64]:
        """The splits y that are tried for a segment of t steps."""
        return np.array([(t + 1) // 2]) if self.split == "half" and t > 1 else np.arange(1, t + 1)

    def rest(self, start: int, op: str, m: int) -> int:
        """The budget right of a split: less what is kept on the left."""
        if self.kind == "mixed":
            return m - (1 if start == HID else self.alpha)
        return m - (self.alpha if self.kind == "mixed-paper" and op == "internal" else 1)

    def choose(self, start: int, t: int, m: int) -> tuple[str, int]:
        """The cheapest decision for a segment: (operation, y)."""
        cost = (self.hid if start == HID else self.int)[t, m]
        for op, y, value in self.options(start, t, m):
            if value == cost:
                return op, y
        raise AssertionError("a table entry without a decision")

    def options(self, start: int, t: int, m: int) -> list[tuple[str, int, int]]:
        """The best split of each kind of decision with its cost."""
        own = self.hid if start == HID else self.int
        y = self.rows(t)
        found: list[tuple[str, int, int]] = []
        if self.kind != "internal":
            found.append(("last", t, t + int(own[t - 1, m])))
        for op, right, inside in (("hidden", self.hid, 0), ("internal", self.int, 1)):
            left = self.rest(start, op, m)
            ys = y[y < t] if op == "hidden" or self.kind == "mixed" else y
            if left < 0 or not len(ys) or (self.kind == "internal" and op == "hidden"):
                continue
            costs = ys + right[t - ys, left].astype(np.int64) + own[ys - inside, m]
            k = int(costs.argmin())
            found.append((op, int(ys[k]), int(costs[k])))
        if self.kind == "mixed" and start == HID:
            found.append(("convert", 1, 1 + int(self.int[t - 1, m])))
        return found


def _fill_mixed(table: Table, T: int, M: int) -> None:
    """V_k(t, m), k = hidden or internal start: the exact optimum."""
    hid, internal, a = table.hid, table.int, table.alpha
    hid[0, 1:] = 0
    internal[0, a:] = 0
    for t in range(1, T + 1):
        y = table.rows(t)
        y = y[y < t]
        at: Any = slice(1, t) if table.split == "optimal" else y
        before: Any = slice(0, t - 1) if table.split == "optimal" else y - 1
        back: Any = slice(t - 1, 0, -1) if table.split == "optimal" else t - y
        to_hid = y[:, None].astype(np.int32) + hid[back]
        to_int = y[:, None].astype(np.int32) + internal[back]
        for own, size in ((hid, 1), (internal, a)):
            best = t + own[t - 1]
            if own is hid:
                best = np.minimum(best, 1 + internal[t - 1])
            if len(y) and size <= M:
                inner = np.minimum(
                    (to_hid[:, : M + 1 - size] + own[at, size:]).min(0),
                    (to_int[:, : M + 1 - size] + own[before, size:]).min(0),
                )
                best[size:] = np.minimum(best[size:], inner)
            own[t] = np.minimum(best, INFINITE)
            own[t, :size] = INFINITE


def _fill_internal(table: Table, T: int, M: int) -> None:
    """C(t, m) = min_{1<=y<=t} y + C(t-y, m-1) + C(y-1, m): section 3.2, m internal states."""
    costs = table.hid
    costs[0, :] = 0
    for t in range(1, T + 1):
        y = table.rows(t)
        inner = y[:, None].astype(np.int32) + costs[t - y, :-1] + costs[y - 1, 1:]
        costs[t, 1:] = np.minimum(inner.min(0), INFINITE)


def _fill_paper(table: Table, T: int, M: int) -> None:
    """The paper's mixed recursion (section 3.3): the cheaper of a hidden and an internal state at every split."""
    costs, a = table.hid, table.alpha
    costs[0, 0:] = 0
    for t in range(1, T + 1):
        y = table.rows(t)
        best = t + costs[t - 1]
        short = y[y < t]
        if len(short):
            inner = short[:, None].astype(np.int32) + costs[t - short, :-1] + costs[short, 1:]
            best[1:] = np.minimum(best[1:], inner.min(0))
        if a <= M:
            inner = y[:, None].astype(np.int32) + costs[t - y, : M + 1 - a] + costs[y - 1, a:]
            best[a:] = np.minimum(best[a:], inner.min(0))
        costs[t, 1:] = np.minimum(best[1:], INFINITE)


_FILL = {"mixed": _fill_mixed, "internal": _fill_internal, "mixed-paper": _fill_paper}
_KEPT: dict[tuple[str, int, str], Table] = {}


def compute(kind: str, T: int, M: int, alpha: int, split: str = "optimal") -> Table:
    """Fill a table for all segments of up to T steps and all budgets of up to M."""
    shape = (T + 1, M + 1)
    hid = np.full(shape, INFINITE, np.int32)
    table = Table(kind, alpha, split, hid, np.full(shape, INFINITE, np.int32) if kind == "mixed" else hid)
    _FILL[kind](table, T, M)
    return table


def get(kind: str, T: int, M: int, alpha: int, split: str = "optimal", cache: Path | None = None) -> Table:
    """A table that covers T and M: the last one of its kind, one from the directory `cache`, or a new one."""
    alpha = 1 if kind == "internal" else alpha
    key = (kind, alpha, split)
    known = _KEPT.get(key)
    if known is not None and known.hid.shape[0] > T and known.hid.shape[1] > M:
        return known
    path = cache / f"bptt-{kind}-{alpha}-{split}-{T}x{M}.npy" if cache is not None else None
    table = _read(path, kind, T, M, alpha, split) if path is not None else None
    if table is None:
        table = compute(kind, T, M, alpha, split)
        if path is not None:
            _write(path, table)
    _KEPT[key] = table
    return table


def _write(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    both = np.stack([table.hid, table.int])
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.append(both.reshape(-1), np.array([zlib.crc32(both.tobytes()) & 0x7FFFFFFF], np.int32)))
    partial.replace(path)


def _read(path: Path, kind: str, T: int, M: int, alpha: int, split: str) -> Table | None:
    """None for a file that is absent, of another shape or damaged: it is computed again."""
    try:
        flat = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if flat.dtype != np.int32 or flat.shape != (2 * (T + 1) * (M + 1) + 1,):
        return None
    both = np.ascontiguousarray(flat[:-1]).reshape(2, T + 1, M + 1)
    if zlib.crc32(both.tobytes()) & 0x7FFFFFFF != int(flat[-1]):
        return None
    return Table(kind, alpha, split, both[0], both[1])
