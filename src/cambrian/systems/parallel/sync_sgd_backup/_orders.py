"""Order statistics of arrival times, and the number of backup workers that they advise (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from cambrian.errors import ConfigError


def exponential_order(k: int, n: int, *, shift: float, rate: float) -> float:
    """E[T_(k of n)] of a shifted exponential: shift + (H_n - H_{n-k}) / rate."""
    return shift + sum(1.0 / i for i in range(n - k + 1, n + 1)) / rate


def mean_order(arrivals: Tensor, k: int, n: int) -> float:
    """Mean time to the k-th of n gradients, from a record [T, W] of W >= n workers, averaged over all choices of n of them.

    The j-th of W sorted times is the k-th of a random n of them with probability C(j-1, k-1) C(W-j, n-k) / C(W, n).
    Raises `ConfigError` where the record has gaps or too few workers.
    """
    workers = arrivals.shape[1]
    if not 1 <= k <= n <= workers:
        raise ConfigError(
            f"the {k}th of {n} workers needs a record of at least {n} and k of 1..{n}, not {workers} workers"
        )
    if bool(arrivals.isnan().any()):
        raise ConfigError("the record has gradients that never arrived: record it with wait='all'")
    chance = [comb(j - 1, k - 1) * comb(workers - j, n - k) / comb(workers, n) for j in range(1, workers + 1)]
    ordered = arrivals.double().sort(1).values.mean(0)
    return float((ordered * torch.tensor(chance, dtype=torch.float64)).sum())


@dataclass(frozen=True)
class Plan:
    """The best split of the machines, and what every split was predicted to take (rows: N, b, seconds a step, total)."""

    workers: int
    backups: int
    seconds: float
    table: tuple[tuple[int, int, float, float], ...]


def plan_backups(arrivals: Tensor, iterations: Mapping[int, float]) -> Plan:
    """Which N of the W recorded machines should count, the others being backups.

    `iterations` maps N to the number of steps that training needs with N gradients a step. Raises `ConfigError` for none
    that fits the record.
    """
    machines = arrivals.shape[1]
    rows: list[tuple[int, int, float, float]] = []
    for needed, count in sorted(iterations.items()):
        if 1 <= needed <= machines:
            step = mean_order(arrivals, needed, machines)
            rows.append((needed, machines - needed, step, step * count))
    if not rows:
        raise ConfigError(f"iterations must name a number of workers in 1..{machines}, not {sorted(iterations)}")
    best = min(rows, key=lambda row: row[3])
    return Plan(best[0], best[1], best[3], tuple(rows))
