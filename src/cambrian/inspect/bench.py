"""Side-by-side timing: interleaved, warmed up, medians, and the ratio with a bootstrap interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of each contender and how many times faster the first is than the second (median, 95 % interval)."""

    seconds: dict[str, list[float]]
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        first, second = list(self.seconds)[:2]
        verdict = "faster" if self.low > 1 else "slower" if self.high < 1 else "no clear difference"
        times = ", ".join(f"{name} {1e3 * float(np.median(s)):.3f} ms" for name, s in self.seconds.items())
        return f"{first} / {second}: {self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}] ({verdict}; {times})"


def compare(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int = 15, warmup: int = 2, threads: int | None = None
) -> Comparison:
    """Call the contenders in turn, A B A B ..., and compare the first two.

    `ratio` is median(second) / median(first), so above 1 the first is faster; the interval resamples the paired repeats.
    `threads` fixes torch's thread count for the measurement.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        for _ in range(warmup):
            for run in contenders.values():
                run()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, run in contenders.items():
                start = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return Comparison(seconds, *ratio_interval(*list(seconds.values())[:2]))


def ratio_interval(first: list[float], second: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of medians second/first with its 95 % bootstrap interval over paired repeats."""
    a, b = np.asarray(first), np.asarray(second)
    pick = np.random.default_rng(0).integers(0, len(a), size=(draws, len(a)))
    ratios = np.median(b[pick], 1) / np.median(a[pick], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(b) / np.median(a)), float(low), float(high)
