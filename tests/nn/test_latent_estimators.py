"""Estimators on a model with one Gaussian latent per row, where everything is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.latent import (
    DiagGaussian,
    Funnel,
    StreamingLogMean,
    bound_loss,
    cyclic_weight,
    effective_samples,
    free_bits,
    log_mean_exp,
)

X = torch.tensor([[1.5], [-0.5], [0.2]], dtype=torch.float64)


def start(exact: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """theta of p(z) = N(theta, 1), p(x|z) = N(z, 1), and q(z|x): mean slope and log variance; exact: slope 1/2, 1/2."""
    values = (0.0, 0.5, math.log(0.5)) if exact else (0.3, 0.2, -0.2)
    return tuple(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)


def log_weights(parameters: tuple[Tensor, ...], k: int, seed: int, kind: str, copies: int = 1) -> Tensor:
    """[K, B] for X repeated `copies` times."""
    theta, slope, logvar = parameters
    x = X.repeat(copies, 1)
    q = DiagGaussian(slope * x, logvar.expand_as(x))
    funnel, z = Funnel(), q.sample(torch.Generator().manual_seed(seed), k)
    if kind in ("stl", "dreg"):
        q = q.detach()
    z = funnel.pass_through(z) if kind == "dreg" else z
    one = torch.zeros_like(x)
    log_w = (
        DiagGaussian(theta + one, one).log_prob(z) + DiagGaussian(z, torch.zeros_like(z)).log_prob(x) - q.log_prob(z)
    )
    funnel.close(log_w)
    return log_w


def gradient(kind: str, k: int, seed: int, exact: bool = False, copies: int = 1, **options: bool) -> Tensor:
    parameters = start(exact)
    loss = bound_loss(log_weights(parameters, k, seed, kind, copies), kind, **options)
    return torch.stack(torch.autograd.grad(loss, parameters))


def test_the_bounds_are_what_their_formulas_say() -> None:
    log_w = torch.tensor([[0.0, -1.0], [math.log(3.0), -1.0]], dtype=torch.float64)
    assert float(bound_loss(log_w, "elbo")) == pytest.approx(-(math.log(3.0) / 2 - 1.0) / 2)
    assert float(bound_loss(log_w, "iwae")) == pytest.approx(-(math.log(2.0) - 1.0) / 2)
    torch.testing.assert_close(effective_samples(log_w), torch.tensor([1 / (1 / 16 + 9 / 16), 2.0]).double())


def test_iwaes_gradient_weighs_each_samples_own() -> None:
    parameters = start()
    log_w = log_weights(parameters, 5, 0, "iwae")
    weights = torch.softmax(log_w.detach(), 0)
    by_hand = [-(weights * log_w).sum(0).mean(), -log_w.mean()]
    for loss, options in zip(by_hand, ({}, {"uniform": True}), strict=True):
        expected = torch.stack(torch.autograd.grad(loss, parameters, retain_graph=True))
        torch.testing.assert_close(gradient("iwae", 5, 0, **options), expected)
    torch.testing.assert_close(gradient("iwae", 5, 0, uniform=True), gradient("elbo", 5, 0))


@pytest.mark.parametrize(("kind", "peer"), [("stl", "elbo"), ("dreg", "iwae")])
def test_path_estimators_have_the_same_expectation(kind: str, peer: str) -> None:
    runs = {name: torch.stack([gradient(name, 4, seed, copies=400) for seed in range(25)]) for name in (kind, peer)}
    error = (runs[kind].var(0) / 25 + runs[peer].var(0) / 25).sqrt()
    assert ((runs[kind].mean(0) - runs[peer].mean(0)).abs() < 5 * error).all()
    # the decoder's parameter has the very same gradient, sample by sample
    torch.testing.assert_close(runs[kind][:, 0], runs[peer][:, 0])


def test_path_estimators_vary_less_near_the_posterior() -> None:
    for kind, peer in (("stl", "elbo"), ("dreg", "iwae")):
        exact, noisy = (torch.stack([gradient(name, 4, s, exact=True) for s in range(10)]) for name in (kind, peer))
        assert exact[:, 1:].abs().max() < 1e-12  # at the exact posterior the path gradient is zero for every draw
        assert noisy[:, 1:].abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["elbo", "iwae"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    found, h = gradient(kind, 3, 1), 1e-6
    for number in range(3):
        values = []
        for sign in (1, -1):
            parameters = [p.detach().clone() for p in start()]
            parameters[number] += sign * h
            values.append(float(bound_loss(log_weights(tuple(parameters), 3, 1, kind), kind)))
        assert float(found[number]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_the_exact_posterior_makes_every_bound_the_likelihood() -> None:
    log_w = log_weights(start(exact=True), 7, 0, "elbo")
    expected = DiagGaussian(torch.zeros_like(X), torch.full_like(X, math.log(2.0))).log_prob(X)
    torch.testing.assert_close(log_w, expected.expand(7, -1))
    torch.testing.assert_close(log_mean_exp(log_w), expected)


def test_bounds_rise_with_samples() -> None:
    log_w = log_weights(start(), 50, 0, "elbo", copies=3000).detach()
    bounds = [log_mean_exp(log_w.view(-1, k, log_w.shape[1]), 1).mean() for k in (1, 5, 50)]
    truth = DiagGaussian(torch.full_like(X, 0.3), torch.full_like(X, math.log(2.0))).log_prob(X).mean()
    assert bounds[0] < bounds[1] < bounds[2] < truth + 1e-3
    assert float(truth - bounds[2]) < 0.1 * float(truth - bounds[0])


def test_streaming_does_not_depend_on_chunks() -> None:
    log_w = 200.0 * torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    for size in (1, 5, 23):
        stream = StreamingLogMean()
        for part in log_w.split(size):
            stream.add(part)
        torch.testing.assert_close(stream.value(), log_mean_exp(log_w.double()))
    with pytest.raises(ShapeError):
        StreamingLogMean().value()


def test_free_bits_act_on_each_features_batch_mean() -> None:
    kl = torch.tensor([[0.0, 1.0], [0.2, 3.0]], requires_grad=True)
    loss = free_bits(kl, 0.5)
    assert float(loss.detach()) == pytest.approx(0.5 + 2.0)
    (slope,) = torch.autograd.grad(loss, kl)
    assert torch.equal(slope, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_cyclic_weight() -> None:
    assert [cyclic_weight(s, 10) for s in (0, 2, 5, 9, 10, 12)] == pytest.approx([0.0, 0.4, 1.0, 1.0, 0.0, 0.4])


def test_bad_requests_are_typed_errors() -> None:
    for call in (lambda: bound_loss(torch.zeros(3)), lambda: free_bits(torch.zeros(3), 0.1)):
        with pytest.raises(ShapeError):
            call()
    for call in (lambda: bound_loss(torch.zeros(3, 1), "elbow"), lambda: cyclic_weight(1, 0)):
        with pytest.raises(ConfigError):
            call()
