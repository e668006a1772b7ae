"""Weighted k-means of numbers: the global optimum by divide and conquer against scikit-learn's restarts.

Run: python benchmarks/quantization_limit.py
"""

from __future__ import annotations

import numpy as np

from cambrian.inspect.bench import compare
from cambrian.inspect.kmeans1d import kmeans1d, kmeans1d_global


def quadratic(values: np.ndarray, h: np.ndarray, k: int) -> float:
    """The optimum by dynamic programming over every split, O(k n^2)."""
    order = np.argsort(values)
    w, h = values[order], h[order]
    mass, first, second = (np.concatenate([[0.0], np.cumsum(x)]) for x in (h, h * w, h * w * w))
    best = np.full(len(w) + 1, np.inf)
    best[0] = 0.0
    for _ in range(k):
        new = best.copy()
        for i in range(1, len(w) + 1):
            m, f, s = (x[i] - x[:i] for x in (mass, first, second))
            new[i] = min(new[i], float((best[:i] + s - f * f / m).min()))
        best = new
    return float(best[-1])


def against_scikit_learn(count: int, k: int) -> None:
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(0)
    values, h = generator.standard_t(4, count), generator.gamma(0.4, size=count) + 1e-4
    start = np.linspace(values.min(), values.max(), k)
    same = KMeans(k, init=start[:, None], n_init=1, max_iter=300, tol=0.0).fit(values[:, None], sample_weight=h)
    gap = abs(kmeans1d(values, k, weights=h, init=start).inertia / same.inertia_ - 1)
    assert gap < 1e-4, f"Lloyd's inertia differs by {gap}"
    theirs = lambda: float(KMeans(k, n_init=3, random_state=0).fit(values[:, None], sample_weight=h).inertia_)  # noqa: E731
    peer, best = theirs(), kmeans1d_global(values, k, weights=h, exact=count).inertia
    for name, exact in (("of all", count), ("among bins", 4096)):
        ours = lambda exact=exact: kmeans1d_global(values, k, weights=h, exact=exact).inertia  # noqa: E731
        assert best <= ours() * (1 + 1e-9) and ours() <= peer * (1 + 1e-6)
        result = compare({f"optimum {name}": ours, "scikit-learn": theirs}, repeats=3, warmup=0)
        shares = f"{ours() / best:.5f} and {peer / best:.5f} times the least inertia"
        print(f"n = {count}, k = {k}, against 3 restarts ({shares}):", result)


def main() -> None:
    generator = np.random.default_rng(1)
    values, h = generator.normal(size=500), generator.gamma(0.4, size=500) + 1e-4
    found = kmeans1d_global(values, 9, weights=h).inertia
    assert abs(found / quadratic(values, h, 9) - 1) < 1e-9
    against_scikit_learn(80_000, 16)


if __name__ == "__main__":
    main()
