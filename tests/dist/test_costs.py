"""Collectives' costs against the paper's formulas, and stragglers against their distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cambrian.dist.collectives import SCHEMES, best_block, seconds
from cambrian.dist.straggler import Straggler
from cambrian.errors import ConfigError


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_one_worker_communicates_nothing(scheme: str) -> None:
    assert float(seconds(scheme, 1e6, 1, bandwidth=1e9, latency=1e-3)) == 0.0


def test_formulas_of_the_paper() -> None:
    n, b = 4e6, 1e9
    expected = {
        "one-to-all": lambda k: 2 * n * (k - 1) / b,
        "tree": lambda k: 2 * math.ceil(math.log2(k)) * n / b,
        "butterfly": lambda k: math.ceil(math.log2(k)) * n / b,
        "butterfly-mixing": lambda k: n / b,
        "ring": lambda k: 2 * (k - 1) / k * n / b,
    }
    for scheme, formula in expected.items():
        for k in (2, 3, 8, 100):
            assert float(seconds(scheme, n, k, bandwidth=b)) == pytest.approx(formula(k)), scheme


def test_pipeline_hardly_grows_with_the_workers_and_its_block_is_the_best() -> None:
    at = {k: float(seconds("pipeline", 64e6, k, bandwidth=1e9, latency=5e-5)) for k in (2, 16)}
    assert at[16] / at[2] < 1.3
    tree = [float(seconds("tree", 64e6, k, bandwidth=1e9, latency=5e-5)) for k in (2, 16)]
    assert tree[1] / tree[0] == pytest.approx(4)
    n, k, bandwidth, latency = 64e6, 16, 1e9, 5e-5
    blocks = np.geomspace(1e3, 6e7, 4000)
    costs = 2 * (k - 1 + n / blocks) * latency + (blocks * (k - 1) + n) * 2 / bandwidth
    assert at[16] <= costs.min() * (1 + 1e-6)
    assert float(best_block(n, k, bandwidth, latency)) == pytest.approx(blocks[costs.argmin()], rel=0.01)


def test_arrays_broadcast_and_bad_requests_are_typed() -> None:
    table = seconds("ring", np.array([[1e6], [2e6]]), np.array([1, 2, 4]), bandwidth=1e9)
    np.testing.assert_allclose(table, [[0, 1e-3, 1.5e-3], [0, 2e-3, 3e-3]])
    with pytest.raises(ConfigError, match="scheme"):
        seconds("star", 1.0, 2, bandwidth=1.0)
    with pytest.raises(ConfigError, match="positive"):
        seconds("ring", 1.0, 0, bandwidth=1.0)


def test_a_worker_meets_the_same_delays_in_a_larger_fleet_and_a_longer_run() -> None:
    kind = Straggler("lognormal", scale=0.05, spread=0.1, slow_probability=0.1, slow_factor=5.0)
    torch.testing.assert_close(kind.delays(70, 6, 3)[:50, :4], kind.delays(50, 4, 3), rtol=0, atol=0)
    assert not torch.equal(kind.delays(50, 4, 3), kind.delays(50, 4, 4))


def test_distributions_have_their_means() -> None:
    def mean(**settings: object) -> float:
        return float(Straggler(**settings).delays(40_000, 2, 0).mean())

    assert mean(kind="none") == 0
    assert mean(kind="constant", scale=0.2) == pytest.approx(0.2)
    assert mean(kind="lognormal", scale=0.05, spread=0.1) == pytest.approx(0.05 * math.exp(0.005), rel=0.01)
    assert mean(kind="exponential", scale=0.1, spread=0.3) == pytest.approx(0.4, rel=0.02)
    assert mean(kind="pareto", scale=1.0, shape=3.0) == pytest.approx(1.5, rel=0.02)
    assert mean(kind="constant", scale=1.0, slow_probability=0.1, slow_factor=5.0) == pytest.approx(1.4, rel=0.02)
    trace = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    drawn = Straggler("trace", recorded=trace).delays(2000, 2, 0)
    assert set(drawn[:, 0].tolist()) == {1.0, 3.0} and set(drawn[:, 1].tolist()) == {10.0, 30.0}


def test_one_slow_machine_is_always_slow() -> None:
    delays = Straggler("constant", scale=1.0, slow_workers=(1,), slow_factor=4.0).delays(3, 3, 0)
    assert delays.tolist() == [[1.0, 4.0, 1.0]] * 3


@pytest.mark.parametrize(
    "bad", [{"kind": "gamma"}, {"scale": -1.0}, {"slow_probability": 1.5}, {"kind": "trace"}, {"shape": 0.0}]
)
def test_bad_stragglers_are_typed_errors(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Straggler(**bad)
