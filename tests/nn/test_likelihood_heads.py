"""What holds for every output distribution of one number. A new head is one more line of `HEADS`.

Distributions of vectors (`Mixture2D`, `DiagMixture` of several features, `DMOL`) have the same tests in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.likelihood import Bernoulli, Categorical, Gaussian
from cambrian.nn.likelihood.discretized import DiscretizedGaussian, DiscretizedLogistic
from cambrian.nn.likelihood.gmm import DiagMixture


@dataclass(frozen=True)
class Case:
    """`support` are all values, or a fine grid of them `step` apart; `peer(params)` is a reference in float64.

    `vector`: the head takes targets [..., 1]. `clipped`: its mean is that of the distribution before it is cut to a grid.
    """

    head: Any
    support: Tensor
    peer: Any
    step: float = 1.0
    vector: bool = False
    clipped: bool = False
    far: float = 1e4  # raw outputs up to which values and slopes are finite

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        return self.head.log_prob(params, target[..., None] if self.vector else target)

    def sample(self, params: Tensor, seed: int, temperature: float = 1.0) -> Tensor:
        drawn = self.head.sample(params, torch.Generator().manual_seed(seed), temperature)
        return drawn[..., 0] if self.vector else drawn

    def mean(self, params: Tensor) -> Tensor:
        return self.head.mean(params)[..., 0] if self.vector else self.head.mean(params)


class Bins:
    """The mass of bins 1/128 wide under a distribution function, the first and last open: the reference of the
    discretized heads."""

    def __init__(self, cdf: Any) -> None:
        self.cdf = cdf

    def log_prob(self, x: Tensor) -> Tensor:
        edge, last = 1 / 256, 127.5 / 128
        above = torch.where(x > last - edge, torch.ones_like(x), self.cdf(x + edge))
        below = torch.where(x < -last + edge, torch.zeros_like(x), self.cdf(x - edge))
        return (above - below).log()


def mixture(p: Tensor) -> Any:
    parts = distributions.Normal(p[..., :2], (p[..., 2:4].exp() + 1e-6).sqrt())
    return distributions.MixtureSameFamily(distributions.Categorical(logits=p[..., 4:]), parts)


GRID = torch.linspace(-40, 40, 8001, dtype=torch.float64)
CENTRES = (torch.arange(256) - 127.5) / 128
HEADS = {
    "bernoulli": Case(Bernoulli(), torch.tensor([0.0, 1.0]), lambda p: distributions.Bernoulli(logits=p[..., 0])),
    "gaussian": Case(Gaussian(), GRID, lambda p: distributions.Normal(p[..., 0], (p[..., 1] / 2).exp()), 0.01),
    "gaussian-fixed": Case(Gaussian(0.3), GRID, lambda p: distributions.Normal(p[..., 0], 0.3), 0.01),
    "discretized-gaussian": Case(
        DiscretizedGaussian(),
        CENTRES,
        lambda p: Bins(distributions.Normal(p[..., 0], p[..., 1].exp()).cdf),
        clipped=True,
    ),
    "discretized-logistic": Case(
        DiscretizedLogistic(),
        CENTRES,
        lambda p: Bins(lambda x: torch.sigmoid((x - p[..., 0]) / p[..., 1].exp())),
        clipped=True,
    ),
    "mixture": Case(DiagMixture(1, 2), GRID, mixture, 0.01, vector=True),
    "categorical": Case(Categorical(7), torch.arange(7), lambda p: distributions.Categorical(logits=p)),
}
CASES = pytest.mark.parametrize("case", HEADS.values(), ids=HEADS.keys())


def raw(case: Case, *batch: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*batch, case.head.n_params, generator=torch.Generator().manual_seed(0))


@CASES
def test_it_sums_to_one(case: Case) -> None:
    params = raw(case, 5, 1).double()
    support = case.support if case.support.dtype == torch.int64 else case.support.double()
    mass = case.log_prob(params, support).exp().sum(1) * case.step
    torch.testing.assert_close(mass, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


@CASES
def test_it_agrees_with_a_reference_in_float64(case: Case) -> None:
    params = raw(case, 60, scale=0.3 if case.clipped else 1.0)  # the reference itself gives log 0 far out
    pick = torch.randint(len(case.support), (60,), generator=torch.Generator().manual_seed(1))
    target = case.support[pick] * (0.1 if case.step != 1.0 else 1)
    target = target.to(params) if target.is_floating_point() else target
    expected = case.peer(params.double()).log_prob(target.double() if target.is_floating_point() else target)
    torch.testing.assert_close(case.log_prob(params, target).double(), expected, rtol=1e-5, atol=1e-5)


@CASES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_and_gradients_stay_finite_at_the_extremes(case: Case, sign: float) -> None:
    params = torch.full((len(case.support), case.head.n_params), sign * case.far).requires_grad_()
    target = case.support if case.support.dtype == torch.int64 else case.support.float()
    value = case.log_prob(params, target)
    (gradient,) = torch.autograd.grad(value.sum(), params)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@CASES
def test_samples_have_its_mean_and_follow_the_generator(case: Case) -> None:
    params = raw(case, 3, 1, scale=0.5).expand(3, 20_000, -1)
    first, again = (case.sample(params, 5) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (3, 20_000)
    expected = case.mean(params[:, 0]).double()
    if case.clipped:
        every = case.support.double().expand(3, -1)
        expected = (case.log_prob(params[:, :1].double(), case.support.double()).exp() * every).sum(1)
    error = first.double().std(1) / 20_000**0.5
    assert ((first.double().mean(1) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize(
    "case", [c for c in HEADS.values() if not (c.clipped or c.vector)], ids=lambda c: type(c.head).__name__
)
def test_temperature_zero_gives_a_mode(case: Case) -> None:
    params = raw(case, 20)
    mode = case.sample(params, 0, 0.0)
    other = case.sample(params, 0, 1.0)
    assert (case.log_prob(params, mode) >= case.log_prob(params, other) - 1e-6).all()
    assert not torch.equal(mode, other)


@CASES
def test_wrong_width_is_refused(case: Case) -> None:
    with pytest.raises(ShapeError):
        case.head.log_prob(torch.zeros(4, case.head.n_params + 1), case.support[:1])


def test_a_predicted_variance_has_a_floor() -> None:
    params = torch.tensor([[0.5, -1e6]])
    assert float(Gaussian().log_prob(params, torch.tensor([0.5]))) < 5.0


def test_bad_settings_and_targets_are_refused() -> None:
    for build in (lambda: Gaussian(0.0), lambda: Categorical(1)):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(ShapeError, match="int64"):
        Categorical(3).log_prob(torch.zeros(2, 3), torch.zeros(2))


def test_the_normal_tail_has_its_value_and_slope_in_single_precision():
    head = DiscretizedGaussian()
    for u in (-5.0, -19.9, -20.1, -300.0, -1e5):
        single = torch.tensor(u, requires_grad=True)
        value = head.log_cdf(single)
        (slope,) = torch.autograd.grad(value, single)
        exact = torch.tensor(u, dtype=torch.float64)
        assert float(value) == pytest.approx(float(torch.special.log_ndtr(exact)), rel=1e-5)
        ratio = torch.exp(-exact.square() / 2 - torch.special.log_ndtr(exact)) / (2 * torch.pi) ** 0.5
        assert float(slope) == pytest.approx(float(ratio) if u > -300 else -u, rel=1e-3)
