"""The bins sum to 1, equal float64 arithmetic, and have finite gradients where naive ones do not."""

from __future__ import annotations

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.nn.likelihood.discretized import DiscretizedGaussian, DiscretizedLogistic

HEADS = [DiscretizedGaussian, DiscretizedLogistic]
NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


def reference_cdf(head: object, u: torch.Tensor) -> torch.Tensor:
    return NORMAL.cdf(u) if isinstance(head, DiscretizedGaussian) else torch.sigmoid(u)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_the_levels_sum_to_one(kind: type, levels: int) -> None:
    head = kind(levels=levels, step=2 / levels)
    mu = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.501, 1.0, 5.0])
    sigma = torch.tensor([-6.0, -3.0, -0.5, 2.0])
    params = torch.stack(torch.meshgrid(mu, sigma, indexing="ij"), -1)[:, :, None].double()
    values = head.centre(torch.arange(levels)).double()
    total = torch.logsumexp(head.log_prob(params.expand(-1, -1, levels, -1), values.expand(7, 4, -1)), -1)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_against_float64_and_the_cdf(kind: type) -> None:
    head = kind()
    generator = torch.Generator().manual_seed(0)
    params = torch.stack(
        (torch.rand(500, generator=generator) * 2 - 1, torch.rand(500, generator=generator) * 4 - 4), -1
    )
    level = torch.randint(0, 256, (500,), generator=generator)
    found = head.log_prob(params, head.centre(level)).double()
    wide = params.double()
    mass = head.cdf(wide, level + 1) - head.cdf(wide, level)
    keep = mass > 1e-12  # below, the difference of two distribution functions is not exact even in float64
    assert int(keep.sum()) > 250
    torch.testing.assert_close(found[keep], mass[keep].log(), atol=2e-4, rtol=2e-4)
    edge = (128 - 128) * head.step
    at = reference_cdf(head, (edge - wide[:, 0]) * torch.exp(-wide[:, 1]))
    torch.testing.assert_close(head.cdf(wide, torch.full((500,), 128)), at)
    assert (head.cdf(wide, torch.zeros(500)) == 0).all()
    assert (head.cdf(wide, torch.full((500,), 256)) == 1).all()


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_are_finite_at_the_extremes(kind: type) -> None:
    head = kind()
    mu = torch.tensor([-1e3, -1.0, 0.0, 0.003, 1.0, 1e3])
    rows = torch.stack(torch.meshgrid(mu, torch.tensor([-20.0, -7.0, 0.0, 7.0, 20.0]), indexing="ij"), -1)
    for level in (0, 1, 127, 254, 255):
        params = rows.clone().requires_grad_()
        value = head.log_prob(params, head.centre(torch.full((6, 5), level)))
        assert torch.isfinite(value).all()
        value.sum().backward()
        assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("kind", HEADS)
def test_draws_follow_the_bins(kind: type) -> None:
    head = kind(levels=8, step=0.25)
    params = torch.tensor([0.2, -1.5]).expand(40_000, 2)
    drawn = head.sample(params, torch.Generator().manual_seed(0))
    level = (drawn / head.step + 3.5).round().long()
    share = torch.bincount(level, minlength=8) / len(level)
    expected = head.log_prob(params[:8], head.centre(torch.arange(8))).exp()
    torch.testing.assert_close(share, expected, atol=0.012, rtol=0)
    assert head.sample(params[:1], torch.Generator(), 0.0).item() == pytest.approx(0.125)
    assert head.mean(torch.tensor([7.0, 0.0])).item() == pytest.approx(head.last)


@pytest.mark.parametrize("bad", [0.3, 1.5, float("nan")])
def test_values_off_the_grid_are_refused(bad: float) -> None:
    head = DiscretizedGaussian()
    with pytest.raises(ShapeError):
        head.log_prob(torch.zeros(1, 2), torch.tensor([bad + 0.001]))
    with pytest.raises(ShapeError):
        head.log_prob(torch.zeros(1, 3), torch.zeros(1))
