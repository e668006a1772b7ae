from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from cambrian.errors import ShapeError
from cambrian.nn.likelihood import Mixture2D

HEAD = Mixture2D(4)


def raw(*batch: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*batch, HEAD.n_params, generator=torch.Generator().manual_seed(seed))


def peer(params: torch.Tensor) -> MixtureSameFamily:
    log_pi, mu, log_sigma, rho = (p.double() for p in HEAD.split(params))
    sx, sy = log_sigma.exp().unbind(-1)
    rows = [torch.stack((sx * sx, rho * sx * sy), -1), torch.stack((rho * sx * sy, sy * sy), -1)]
    return MixtureSameFamily(Categorical(logits=log_pi), MultivariateNormal(mu, torch.stack(rows, -2)))


def test_density_equals_torch_distributions() -> None:
    params, target = raw(50), torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    reference = peer(params.double()).log_prob(target.double())
    torch.testing.assert_close(HEAD.log_prob(params, target).double(), reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(HEAD.log_prob(params.double(), target.double()), reference, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one() -> None:
    params = raw(3, scale=0.5).double()
    axis = torch.linspace(-15, 15, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for one in params:
        mass = HEAD.log_prob(one.expand(len(grid), -1), grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert float(mass) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("extreme", [50.0, -50.0, 1e4])
def test_gradients_stay_finite_at_the_extremes(extreme: float) -> None:
    params = torch.full((2, HEAD.n_params), extreme, requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [900.0, -900.0]])
    value = HEAD.log_prob(params, target)
    (gradient,) = torch.autograd.grad(value.sum(), params)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_a_point_hit_exactly_has_a_bounded_density() -> None:
    params = torch.zeros(1, HEAD.n_params)
    params[:, 3 * 4 : 5 * 4] = -100.0
    highest = float(HEAD.log_prob(params, torch.zeros(1, 2)))
    assert 0 < highest < 2 * 7.0


def test_samples_have_the_mixtures_moments() -> None:
    params = raw(1, scale=0.7).expand(60000, -1)
    drawn = HEAD.sample(params, torch.Generator().manual_seed(2)).double()
    reference = peer(params[:1])
    torch.testing.assert_close(drawn.mean(0), reference.mean[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(drawn.var(0), reference.variance[0], rtol=0.08, atol=0.05)
    torch.testing.assert_close(HEAD.mean(params[:1]).double(), reference.mean)


def test_temperature_scales_the_variance() -> None:
    single = Mixture2D(1)
    params = torch.tensor([[0.0, 3.0, -1.0, 0.5, -0.5, 0.8]]).expand(40000, -1)
    full, cool = (single.sample(params, torch.Generator().manual_seed(0), t) for t in (1.0, 0.25))
    torch.testing.assert_close(cool - cool.mean(0), (full - full.mean(0)) / 2)  # same noise, half the deviation
    reference = single.sample(params, torch.Generator().manual_seed(0), 0.5, spread=0.25)
    torch.testing.assert_close(reference, cool)
    frozen = single.sample(params[:3], torch.Generator(), 0.0)
    torch.testing.assert_close(frozen, torch.tensor([3.0, -1.0]).expand(3, 2))


def test_low_temperature_picks_the_likeliest_component() -> None:
    params = torch.zeros(500, HEAD.n_params)
    params[:, 2] = 1.0
    params[:, 4:8] = torch.tensor([-20.0, 0.0, 20.0, 40.0])
    x = HEAD.sample(params, torch.Generator().manual_seed(0), 0.05)[:, 0]
    assert ((x - 20).abs() < 3).all()


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ShapeError):
        HEAD.log_prob(torch.zeros(1, 23), torch.zeros(1, 2))
