import math

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.nn.likelihood.gmm import DiagMixture


def test_one_component_is_a_normal():
    head = DiagMixture(3)
    params, x = torch.randn(5, head.n_params).double(), torch.randn(5, 3).double()
    mean, logvar = params.chunk(2, -1)
    expected = torch.distributions.Normal(mean, (0.5 * logvar).exp()).log_prob(x).sum(-1)
    assert head.n_params == 6 and torch.allclose(head.log_prob(params, x), expected, atol=1e-4)


def test_mixture_agrees_with_torch_and_integrates_to_one():
    head = DiagMixture(1, 3)
    params = torch.randn(head.n_params, generator=torch.Generator().manual_seed(0)).double()
    mean, logvar, logits = params[:3], params[3:6], params[6:]
    peer = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Normal(mean, (0.5 * logvar).exp())
    )
    grid = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    density = head.log_prob(params.expand(20001, -1), grid[:, None])
    assert torch.allclose(density, peer.log_prob(grid), atol=1e-4)
    assert torch.trapezoid(density.exp(), grid) == pytest.approx(1.0, abs=1e-5)


def test_draws_have_the_moments_and_cold_ones_sit_on_a_mean():
    head = DiagMixture(2, 2)
    params = torch.tensor([-1.0, 0.0, 1.0, 2.0, -2.0, -2.0, -2.0, -2.0, 0.0, math.log(3.0)]).expand(20000, -1)
    drawn = head.sample(params, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), head.mean(params[:1])[0], atol=0.05)
    assert head.mean(params[:1])[0].tolist() == pytest.approx([0.5, 1.5])
    assert head.sample(params[:1], torch.Generator(), 0.0)[0].tolist() == [1.0, 2.0]


def test_a_collapsing_component_stays_finite():
    head = DiagMixture(2, 2)
    params = torch.full((1, head.n_params), -200.0).requires_grad_()
    loss = head.log_prob(params, params.detach()[:, :2]).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(params.grad).all()


def test_wrong_width():
    with pytest.raises(ShapeError, match="10 outputs"):
        DiagMixture(2, 2).split(torch.zeros(1, 9))
