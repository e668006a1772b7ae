"""Clustering numbers: in one dimension k-means is sorting, prefix sums and bisection, and its optimum can be found.

    minimise  sum_j sum_{i in C_j} h_i (w_i - c_j)^2,    c_j = sum_{C_j} h w / sum_{C_j} h             (weights h > 0)

Clusters are intervals, because a point goes to the nearest centre whatever its weight. With sorted values and running
sums of h, h w and h w^2 the cost of any interval takes three subtractions, so an iteration of Lloyd's takes O(k log n).
Exact: D_j(i) = min_m D_{j-1}(m) + cost(m, i), whose best m rises with i: divide and conquer, all midpoints of one depth
at once, O(k n log n). Entropy-constrained clustering weighs distances against code lengths: there a point's own weight
matters, clusters are no intervals, and every point is compared with every centre.

Shapes: N values, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cambrian.errors import ConfigError, DataError

INITS = ("linear", "forgy", "density")
EXACT = 1 << 16  # more distinct positions than this are put into BINS bins before the exact search
BINS = 4096
_BLOCK = 1 << 16  # table entries at a time: they stay in the cache


@dataclass(frozen=True)
class Clusters:
    """`codebook` float64 `[k]`, ascending, every centre used; `index` int64 `[N]`; the weighted squared error."""

    codebook: np.ndarray
    index: np.ndarray
    inertia: float
    iterations: int = 0


class SortedValues:
    """Values `[N]` in order, with running sums; `weights` default to 1. Raises `DataError` for what cannot be clustered."""

    def __init__(self, values: Any, weights: Any | None = None) -> None:
        flat = np.asarray(values, np.float64).ravel()
        h = np.ones(len(flat)) if weights is None else np.asarray(weights, np.float64).ravel()
        if not len(flat) or h.shape != flat.shape:
            raise DataError(f"clustering takes N >= 1 values and as many weights, got {flat.shape} and {h.shape}")
        if not (np.isfinite(flat).all() and np.isfinite(h).all() and h.min() > 0):
            raise DataError("values must be finite, and weights finite and above 0")
        self.order = np.argsort(flat)
        self.values, self.weights = flat[self.order], h if weights is None else h[self.order]
        # centred, so that sums of squares keep their digits
        self.centre = float((self.values * self.weights).sum() / self.weights.sum())
        w = self.values - self.centre
        weighted = w if weights is None else self.weights * w
        self.mass, self.first, self.second = _running(self.weights), _running(weighted), _running(weighted * w)

    def __len__(self) -> int:
        return len(self.values)

    def cost(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Squared error of the clusters `[low, high)` around their weighted means."""
        mass, first = self.mass[high] - self.mass[low], self.first[high] - self.first[low]
        return np.maximum(self.second[high] - self.second[low] - first * first / np.where(mass > 0, mass, 1.0), 0.0)

    def means(self, edges: np.ndarray, old: np.ndarray) -> np.ndarray:
        """Weighted means of the intervals between `edges` [k + 1]; the `old` centre where one is empty."""
        mass, first = np.diff(self.mass[edges]), np.diff(self.first[edges])
        return np.where(mass > 0, first / np.where(mass > 0, mass, 1.0) + self.centre, old)

    def edges(self, centres: np.ndarray) -> np.ndarray:
        """Where the nearest of ascending `centres` changes: int64 `[k + 1]`, from 0 to N."""
        inner = np.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
        return np.concatenate([[0], inner, [len(self)]])

    def clusters(self, edges: np.ndarray, iterations: int = 0) -> Clusters:
        """The partition into intervals; empty ones are dropped."""
        edges = np.unique(edges)
        sorted_index = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        index = np.empty(len(self), np.int64)
        index[self.order] = sorted_index
        centres = self.means(edges, np.zeros(len(edges) - 1))
        return Clusters(centres, index, float(self.cost(edges[:-1], edges[1:]).sum()), iterations)


def initial(data: SortedValues, k: int, init: str, generator: torch.Generator | None = None) -> np.ndarray:
    """Ascending centres `[k]`: `linear` over the range, `density` at equal steps of the distribution, `forgy` = k of the
    values drawn without return.
    """
    if init == "linear":
        return np.linspace(data.values[0], data.values[-1], k)
    if init == "density":
        return data.values[np.minimum(((np.arange(k) + 0.5) / k * len(data)).astype(np.int64), len(data) - 1)]
    if init != "forgy":
        raise ConfigError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    chosen = torch.randperm(len(data), generator=generator)[:k].numpy()
    return np.sort(data.values[chosen])


def kmeans1d(
    values: Any,
    k: int,
    *,
    weights: Any | None = None,
    init: str | np.ndarray = "linear",
    iterations: int = 300,
    generator: torch.Generator | None = None,
) -> Clusters:
    """Lloyd's algorithm until no value changes its cluster (or `iterations`), from `init`: a name of `INITS` or centres.

    At most k clusters come back: those that end empty are dropped.
    """
    _check(k)
    data = values if isinstance(values, SortedValues) else SortedValues(values, weights)
    centres = initial(data, k, init, generator) if isinstance(init, str) else np.sort(np.asarray(init, np.float64))
    return _lloyd(data, centres, iterations)


def _lloyd(data: SortedValues, centres: np.ndarray, iterations: int) -> Clusters:
    edges = data.edges(centres)
    for done in range(1, iterations + 1):
        centres = np.sort(data.means(edges, centres))
        moved = data.edges(centres)
        if np.array_equal(moved, edges):
            return data.clusters(edges, done)
        edges = moved
    return data.clusters(edges, iterations)


def kmeans1d_global(
    values: Any, k: int, *, weights: Any | None = None, exact: int = EXACT, bins: int = BINS
) -> Clusters:
    """The best of all clusterings into k. With more than `exact` distinct values the optimum is sought among the edges
    of `bins` bins, half of equal numbers and half of equal widths, and Lloyd's algorithm follows.
    """
    _check(k)
    data = values if isinstance(values, SortedValues) else SortedValues(values, weights)
    places = np.flatnonzero(np.diff(data.values, prepend=np.nan, append=np.nan))  # where a new value begins, and N
    coarse = len(places) - 1 > exact
    if coarse:
        places = np.unique(np.concatenate([_quantiles(places, bins // 2), _steps(data, places, bins // 2)]))
    if k >= len(places) - 1:
        found = data.clusters(places)
    else:
        found = data.clusters(places[_best_edges(data, places, k)])
    return _lloyd(data, found.codebook, 300) if coarse else found


def _quantiles(places: np.ndarray, bins: int) -> np.ndarray:
    return places[np.linspace(0, len(places) - 1, bins + 1).round().astype(np.int64)]


def _steps(data: SortedValues, places: np.ndarray, bins: int) -> np.ndarray:
    """The places that come first after equal steps of the values' range."""
    inner = np.searchsorted(data.values, np.linspace(data.values[0], data.values[-1], bins + 1)[1:-1])
    return places[np.searchsorted(places, inner)]


def _best_edges(data: SortedValues, places: np.ndarray, k: int) -> np.ndarray:
    """Positions in `places` [P + 1] of the optimal k + 1 edges."""
    last = len(places) - 1
    best = data.cost(np.zeros(last + 1, np.int64), places)  # of the first i intervals in one cluster
    choices = np.zeros((k, last + 1), np.int64)
    for cluster in range(1, k):
        best, choices[cluster] = _add_cluster(data, places, best)
    edges = [last]
    for cluster in range(k - 1, 0, -1):
        edges.append(int(choices[cluster, edges[-1]]))
    return np.array([0, *reversed(edges)])


def _add_cluster(data: SortedValues, places: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One more cluster: `best(i) = min_{m <= i} before(m) + cost(m, i)` and its m, for all i, depth by depth."""
    last = len(places) - 1
    best, choice = np.empty(last + 1), np.empty(last + 1, np.int64)
    low, high = np.array([0]), np.array([last])  # ranges of i that are still open
    first, final = np.array([0]), np.array([last])  # and of m for each
    while len(low):
        middle = (low + high) // 2
        count = np.minimum(middle, final) - first + 1
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        row = np.repeat(np.arange(len(middle)), count)
        m = np.arange(int(count.sum())) - starts[row] + first[row]
        value = before[m] + data.cost(places[m], places[middle[row]])
        least = np.minimum.reduceat(value, starts)
        hit = np.flatnonzero(value == least[row])
        chosen = m[hit[np.searchsorted(row[hit], np.arange(len(middle)))]]  # the first minimum of each row
        best[middle], choice[middle] = least, chosen
        left, right = low < middle, middle < high
        low, high = np.concatenate([low[left], middle[right] + 1]), np.concatenate([middle[left] - 1, high[right]])
        first = np.concatenate([first[left], chosen[right]])
        final = np.concatenate([chosen[left], final[right]])
    return best, choice


def uniform1d(values: Any, *, step: float = 0.0, k: int = 0, weights: Any | None = None) -> Clusters:
    """Bins of width `step` around the multiples of it, or `k` bins over the range; a bin's value is its (weighted) mean.

    Empty bins are dropped. Raises `ConfigError` unless exactly one of both is given.
    """
    if (step > 0) == (k > 0) or not 0 <= step < float("inf") or k < 0:
        raise ConfigError(f"give a step above 0 or a number of bins, got step={step} and k={k}")
    data = SortedValues(values, weights)
    if step:
        bins = np.floor(data.values / step + 0.5)
    else:
        width = (data.values[-1] - data.values[0]) / k or 1.0
        bins = np.minimum(np.floor((data.values - data.values[0]) / width), k - 1)
    return data.clusters(np.concatenate([np.flatnonzero(np.diff(bins, prepend=np.nan)), [len(data)]]))


@dataclass(frozen=True)
class Constrained:
    """The clusters of `ecsq`, their `probabilities [k]`, and the Lagrangian after each iteration."""

    clusters: Clusters
    probabilities: np.ndarray
    lagrangian: list[float]


def ecsq(
    values: Any, lam: float, start: np.ndarray, *, weights: Any | None = None, iterations: int = 100, gain: float = 1e-9
) -> Constrained:
    """Iterative entropy-constrained scalar quantisation from centres `start [k]`:

        assign  argmin_j h |w - c_j|^2 - lam log2 p_j,    c_j = weighted mean,    p_j = |C_j| / N

    Empty clusters are dropped; ends when the Lagrangian `(sum h |w - c|^2 + lam sum -log2 p) / N` falls by less than
    the share `gain`. With lam = 0 this is weighted Lloyd.
    """
    if lam < 0 or not np.isfinite(lam):
        raise ConfigError(f"lambda must be at least 0, not {lam}")
    data = SortedValues(values, weights)
    w, h = data.values - data.centre, data.weights
    centres = np.sort(np.asarray(start, np.float64)) - data.centre
    index = _assign(w, h, centres, np.zeros(len(centres)), 0.0)
    trace: list[float] = []
    for done in range(1, iterations + 1):
        index = np.unique(index, return_inverse=True)[1]  # without the empty clusters
        share = np.bincount(index) / len(w)
        centres = np.bincount(index, h * w) / np.bincount(index, h)
        trace.append(float((h * (w - centres[index]) ** 2 - lam * np.log2(share)[index]).sum() / len(w)))
        if done == iterations or (done > 1 and trace[-2] - trace[-1] <= gain * abs(trace[-2])):
            break
        moved = _assign(w, h, centres, np.log2(share), lam)
        if np.array_equal(moved, index):
            break
        index = moved
    back = np.empty(len(w), np.int64)
    back[data.order] = index
    inertia = float((h * (w - centres[index]) ** 2).sum())
    return Constrained(Clusters(centres + data.centre, back, inertia, len(trace)), share, trace)


def _assign(w: np.ndarray, h: np.ndarray, centres: np.ndarray, bits: np.ndarray, lam: float) -> np.ndarray:
    """Cheapest centre of each value, in blocks that bound the N x k table."""
    out = np.empty(len(w), np.int64)
    block = max(1, _BLOCK // len(centres))
    for start in range(0, len(w), block):
        part = slice(start, start + block)
        gap = w[part, None] - centres
        out[part] = (h[part, None] * gap * gap - lam * bits).argmin(1)
    return out


def _running(x: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(x)])


def _check(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, not {k}")
