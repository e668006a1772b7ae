"""What holds for every output distribution of one number. A new head is one more line of `HEADS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.likelihood import Bernoulli, Categorical, Gaussian


@dataclass(frozen=True)
class Case:
    """`support` are all values, or a fine grid of them `step` apart; `peer(params)` is a reference in float64."""

    head: Any
    support: Tensor
    peer: Any
    step: float = 1.0


GRID = torch.linspace(-40, 40, 8001, dtype=torch.float64)
HEADS = {
    "bernoulli": Case(Bernoulli(), torch.tensor([0.0, 1.0]), lambda p: distributions.Bernoulli(logits=p[..., 0])),
    "gaussian": Case(Gaussian(), GRID, lambda p: distributions.Normal(p[..., 0], (p[..., 1] / 2).exp()), 0.01),
    "gaussian-fixed": Case(Gaussian(0.3), GRID, lambda p: distributions.Normal(p[..., 0], 0.3), 0.01),
    "categorical": Case(Categorical(7), torch.arange(7), lambda p: distributions.Categorical(logits=p)),
}
CASES = pytest.mark.parametrize("case", HEADS.values(), ids=HEADS.keys())


def raw(case: Case, *batch: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*batch, case.head.n_params, generator=torch.Generator().manual_seed(0))


@CASES
def test_it_sums_to_one(case: Case) -> None:
    params = raw(case, 5, 1).double()
    support = case.support if case.support.dtype == torch.int64 else case.support.double()
    mass = case.head.log_prob(params, support).exp().sum(1) * case.step
    torch.testing.assert_close(mass, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


@CASES
def test_it_agrees_with_a_reference_in_float64(case: Case) -> None:
    params = raw(case, 60)
    pick = torch.randint(len(case.support), (60,), generator=torch.Generator().manual_seed(1))
    target = case.support[pick] * (0.1 if case.step != 1.0 else 1)
    target = target.to(params) if target.is_floating_point() else target
    expected = case.peer(params.double()).log_prob(target.double() if target.is_floating_point() else target)
    torch.testing.assert_close(case.head.log_prob(params, target).double(), expected, rtol=1e-5, atol=1e-5)


@CASES
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_values_and_gradients_stay_finite_at_the_extremes(case: Case, extreme: float) -> None:
    params = torch.full((len(case.support), case.head.n_params), extreme).requires_grad_()
    target = case.support if case.support.dtype == torch.int64 else case.support.float()
    value = case.head.log_prob(params, target)
    (gradient,) = torch.autograd.grad(value.sum(), params)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@CASES
def test_samples_have_its_mean_and_follow_the_generator(case: Case) -> None:
    params = raw(case, 3, 1, scale=0.5).expand(3, 20_000, -1)
    first, again = (case.head.sample(params, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (3, 20_000)
    error = first.double().std(1) / 20_000**0.5
    assert ((first.double().mean(1) - case.head.mean(params[:, 0]).double()).abs() < 5 * error).all()


@CASES
def test_temperature_zero_gives_a_mode(case: Case) -> None:
    params = raw(case, 20)
    mode = case.head.sample(params, torch.Generator().manual_seed(0), 0.0)
    other = case.head.sample(params, torch.Generator().manual_seed(0), 1.0)
    assert (case.head.log_prob(params, mode) >= case.head.log_prob(params, other) - 1e-6).all()
    assert not torch.equal(mode, other)


@CASES
def test_wrong_width_is_refused(case: Case) -> None:
    with pytest.raises(ShapeError, match="output"):
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
