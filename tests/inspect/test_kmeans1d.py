"""Clustering numbers: the optimum by quadratic dynamic programming, Lloyd's by the distance table, entropy constraints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from cambrian.errors import ConfigError, DataError
from cambrian.inspect.kmeans1d import INITS, SortedValues, ecsq, initial, kmeans1d, kmeans1d_global, uniform1d


def optimum(values: np.ndarray, weights: np.ndarray, k: int) -> float:
    """Least cost of k or fewer intervals, every split tried."""
    order = np.argsort(values)
    w, h, n = values[order], weights[order], len(values)

    def cost(a: int, b: int) -> float:
        mean = np.average(w[a:b], weights=h[a:b])
        return float((h[a:b] * (w[a:b] - mean) ** 2).sum())

    best = [0.0] + [np.inf] * n
    for _ in range(k):
        best = [0.0] + [min(best[m] + cost(m, i) for m in range(i)) for i in range(1, n + 1)]
    return best[n]


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=n) ** 3, generator.gamma(0.4, size=n) + 1e-4


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 6), (30, 2), (60, 5), (90, 8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_global_search_finds_the_optimum_and_lloyd_never_beats_it(n: int, k: int, weighted: bool):
    values, h = sample(n, n + k)
    weights = h if weighted else np.ones(n)
    best = optimum(values, weights, min(k, n))
    given = weights if weighted else None
    found = kmeans1d_global(values, k, weights=given)
    assert found.inertia == pytest.approx(best, rel=1e-9, abs=1e-12)
    for init in INITS:
        lloyd = kmeans1d(values, k, weights=given, init=init, generator=torch.Generator().manual_seed(0))
        assert lloyd.inertia >= best - 1e-9
    again = kmeans1d(values, k, weights=given, init=found.codebook)  # the optimum is a fixed point
    assert again.inertia == pytest.approx(best, rel=1e-9, abs=1e-12) and np.array_equal(again.index, found.index)


def test_repeated_values_stay_together_and_do_not_disturb_the_optimum():
    values = np.repeat([3.0, -1.0, 0.5, 0.5, 2.0], [5, 1, 2, 2, 9])
    found = kmeans1d_global(values, 3)
    assert found.inertia == pytest.approx(optimum(values, np.ones(19), 3))
    assert kmeans1d_global(values, 4).inertia < 1e-12 and len(kmeans1d_global(values, 50).codebook) == 4


def test_bins_come_close_to_the_exact_search():
    values, h = sample(3000, 1)
    exact = kmeans1d_global(values, 12, weights=h).inertia
    assert exact <= kmeans1d_global(values, 12, weights=h, exact=100, bins=400).inertia <= 1.01 * exact


def test_lloyd_equals_the_distance_table_and_scikit_learn():
    values, h = sample(2000, 2)
    for weights in (None, h):
        found = kmeans1d(values, 10, weights=weights)
        start = np.linspace(values.min(), values.max(), 10)[:, None]
        peer = KMeans(10, init=start, n_init=1, max_iter=300, tol=0).fit(values[:, None], sample_weight=weights)
        assert found.inertia == pytest.approx(peer.inertia_, rel=1e-4)
        assert np.array_equal(found.index, np.abs(values[:, None] - found.codebook).argmin(1))


def test_the_result_is_whole():
    values, h = sample(500, 3)
    for found in (
        kmeans1d(values, 9, weights=h),
        kmeans1d_global(values, 9, weights=h),
        uniform1d(values, step=0.3, weights=h),
    ):
        assert np.array_equal(np.unique(found.index), np.arange(len(found.codebook)))
        assert (np.diff(found.codebook) > 0).all()
        means = np.bincount(found.index, h * values) / np.bincount(found.index, h)
        assert np.allclose(means, found.codebook)
        assert found.inertia == pytest.approx((h * (values - found.codebook[found.index]) ** 2).sum())


def test_starts():
    data = SortedValues(np.arange(100.0) ** 2)
    assert initial(data, 5, "linear").tolist() == [0, 2450.25, 4900.5, 7350.75, 9801]
    assert initial(data, 4, "density").tolist() == [12.0**2, 37.0**2, 62.0**2, 87.0**2]
    drawn = initial(data, 4, "forgy", torch.Generator().manual_seed(0))
    assert np.isin(drawn, data.values).all() and len(np.unique(drawn)) == 4


def test_uniform_bins_have_their_edges_at_odd_halves():
    found = uniform1d([-0.26, -0.24, 0.0, 0.24, 0.25, 0.26, 1.2], step=0.5)
    assert found.index.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert uniform1d([0.0, 0.24, 0.26, 0.5, 0.51, 1.0], k=4).index.tolist() == [0, 0, 1, 2, 2, 3]
    assert len(uniform1d([3.0, 3.0], k=5).codebook) == 1


@pytest.mark.parametrize("lam", [1e-3, 0.05])
def test_the_entropy_constrained_lagrangian_never_rises_and_drops_clusters(lam: float):
    values, h = sample(800, 4)
    made = ecsq(values, lam, np.linspace(-3, 3, 30), weights=h)
    assert len(made.lagrangian) > 2 and (np.diff(made.lagrangian) <= 1e-12).all()
    assert np.allclose(np.bincount(made.clusters.index) / 800, made.probabilities)
    cost = h[:, None] * (values[:, None] - made.clusters.codebook) ** 2 - lam * np.log2(made.probabilities)
    chosen = np.take_along_axis(cost, made.clusters.index[:, None], 1)[:, 0]
    assert chosen.sum() <= cost.min(1).sum() * (1 + 1e-6)
    dear = ecsq(values, 100 * lam, np.linspace(-3, 3, 30), weights=h)
    assert len(dear.clusters.codebook) < len(made.clusters.codebook)


def test_without_a_price_of_bits_it_is_weighted_lloyd():
    values, h = sample(700, 5)
    start = np.linspace(values.min(), values.max(), 8)
    made, plain = ecsq(values, 0.0, start, weights=h, iterations=300, gain=0.0), kmeans1d(values, 8, weights=h)
    assert np.array_equal(made.clusters.index, plain.index) and np.allclose(made.clusters.codebook, plain.codebook)


def test_equal_weights_change_nothing_bit_for_bit():
    values, _ = sample(400, 6)
    for solve in (kmeans1d, kmeans1d_global):
        plain, ones = solve(values, 7), solve(values, 7, weights=np.ones(400))
        assert np.array_equal(plain.codebook, ones.codebook) and np.array_equal(plain.index, ones.index)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_cannot_be_clustered_is_refused(values: list[float]):
    with pytest.raises(DataError):
        kmeans1d(values, 2)


def test_bad_settings_are_refused():
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(DataError):
            kmeans1d([1.0, 2.0], 2, weights=weights)
    with pytest.raises(ConfigError):
        kmeans1d([1.0], 0)
    with pytest.raises(ConfigError):
        kmeans1d([1.0], 1, init="random")
    with pytest.raises(ConfigError):
        uniform1d([1.0])
    with pytest.raises(ConfigError):
        uniform1d([1.0], step=0.1, k=2)
    with pytest.raises(ConfigError):
        ecsq([1.0], -1.0, np.zeros(1))
