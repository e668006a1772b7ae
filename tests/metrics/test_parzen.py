"""Parzen window against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import KernelDensity

from cambrian.errors import ConfigError, ShapeError
from cambrian.metrics.parzen import parzen_log_density, parzen_score


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_log_density_equals_kernel_density(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points, samples = torch.randn(30, 4, generator=generator), torch.randn(50, 4, generator=generator)
    expected = KernelDensity(bandwidth=sigma, kernel="gaussian").fit(samples.double().numpy())
    ours = parzen_log_density(points, samples, sigma, chunk=7)
    theirs = torch.from_numpy(expected.score_samples(points.double().numpy()))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-9)


def test_sigma_comes_from_the_validation_points() -> None:
    generator = torch.Generator().manual_seed(1)
    samples, valid, test = (torch.randn(400, 2, generator=generator) for _ in range(3))
    sigmas = (0.01, 0.3, 5.0)
    score, sigma = parzen_score(valid, test, samples, sigmas)
    assert sigma == 0.3
    assert score == pytest.approx(float(parzen_log_density(test, samples, 0.3).mean()))
    with pytest.raises(ConfigError, match="sigma"):
        parzen_log_density(valid, samples, 0.0)
    with pytest.raises(ShapeError, match="points and samples"):
        parzen_log_density(valid, torch.zeros(3, 5), 1.0)
