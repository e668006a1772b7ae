from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from cambrian.errors import ShapeError
from cambrian.nn.latent import (
    DiagGaussian,
    active_units,
    exponential_weight,
    floored,
    kl_diag,
    linear_weight,
    slerp,
)


def pair() -> tuple[DiagGaussian, DiagGaussian]:
    torch.manual_seed(0)
    return tuple(DiagGaussian(torch.randn(5, 3).double(), torch.randn(5, 3).double()) for _ in range(2))


def test_density_entropy_and_divergence_equal_torch() -> None:
    q, p = pair()
    peers = [Independent(Normal(d.mean, d.std), 1) for d in (q, p)]
    z = torch.randn(5, 3).double()
    torch.testing.assert_close(q.log_prob(z), peers[0].log_prob(z))
    torch.testing.assert_close(q.entropy(), peers[0].entropy())
    torch.testing.assert_close(kl_diag(q, p).sum(-1), kl_divergence(*peers))
    standard = DiagGaussian.standard(q.mean)
    torch.testing.assert_close(kl_diag(q), kl_diag(q, standard))


def test_samples_follow_the_generator_and_carry_gradients() -> None:
    mean, logvar = torch.zeros(40000, 2, requires_grad=True), torch.full((40000, 2), math.log(4.0), requires_grad=True)
    q = DiagGaussian(mean, logvar)
    first, second = (q.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert abs(float(first.detach().std()) - 2.0) < 0.02
    d_mean, d_logvar = torch.autograd.grad(first.sum(), (mean, logvar))
    assert (d_mean == 1).all()
    torch.testing.assert_close(d_logvar, 0.5 * first.detach())


def test_weights_start_and_end_where_the_paper_says() -> None:
    assert exponential_weight(0, 0.99995, 0.01) == pytest.approx(0.01)
    rate = 0.01 ** (2 / 500)
    assert exponential_weight(500, rate, 0.01) == pytest.approx(1 - 0.99 * 1e-4)
    assert [linear_weight(s, 10, 0.2) for s in (0, 5, 10, 99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])


def test_the_floor_acts_on_the_batch_mean() -> None:
    kl = torch.tensor([0.0, 0.3], requires_grad=True)
    assert float(floored(kl.mean(), 0.2).detach()) == pytest.approx(0.2)
    (gradient,) = torch.autograd.grad(floored(kl.mean(), 0.2), kl)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(floored(kl.mean(), 0.1), kl)
    assert (gradient == 0.5).all()  # also the element below the floor is pushed
    with pytest.raises(ShapeError):
        floored(kl, 0.2)


def test_slerp_keeps_the_norm_and_meets_its_ends() -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    path = slerp(a, b, 5)
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 2.0))
    torch.testing.assert_close(path[[0, -1]], torch.stack((a, b)))
    torch.testing.assert_close(path[2], torch.tensor([2.0, 2.0, 0.0]) / math.sqrt(2))
    torch.testing.assert_close(slerp(a, a, 3), a.expand(3, 3))
    with pytest.raises(ShapeError):
        slerp(a, b[:2], 3)


def test_active_units_counts_features_that_vary() -> None:
    assert active_units(torch.tensor([[0.0, 1.0, 5.0], [0.01, -1.0, 5.0]])) == 1


def test_mismatched_parameters_are_refused() -> None:
    with pytest.raises(ShapeError):
        DiagGaussian(torch.zeros(2, 3), torch.zeros(2, 2))
