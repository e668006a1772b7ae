"""Gradient noise: its variance, order with clipping, equality at eta = 0, resume, and use on recipes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cambrian.data.split import Batch, Data, TensorSplit
from cambrian.engine import methods, state
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Scalars, recipe
from cambrian.errors import CapabilityError, ConfigError
from cambrian.systems.optim.eve import EveMethod
from cambrian.systems.optim.eve import Options as EveOptions
from cambrian.systems.optim.gradient_noise import (
    DeepMLP,
    GradientNoise,
    GradientNoiseMethod,
    GradientNoiseStudy,
    Options,
    add_gradient_noise_,
    equal_variance_eta,
    noise_std,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("t", "eta"), [(0, 0.3), (9, 0.01), (999, 1.0)])
def test_the_variance_is_eta_over_one_plus_t_to_the_gamma(t: int, eta: float) -> None:
    parts = [nn.Parameter(torch.zeros(300, 300)), nn.Parameter(torch.zeros(10_000))]
    for p in parts:
        p.grad = torch.ones_like(p)
    add_gradient_noise_(parts, t, eta, 0.55, seeded())
    noise = torch.cat([p.grad.flatten() - 1 for p in parts if p.grad is not None])  # 1e5 draws: std within 0.22 %
    expected = math.sqrt(eta) / (1 + t) ** 0.275
    assert float(noise.std()) == pytest.approx(expected, rel=0.01)
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(1e5)


def test_one_draw_serves_all_and_missing_gradients_are_skipped() -> None:
    a, b, c = (nn.Parameter(torch.zeros(n)) for n in (3, 4, 5))
    a.grad, c.grad = torch.zeros(3), torch.zeros(5)
    sigma = add_gradient_noise_([a, b, c], 2, 0.5, 0.55, seeded())
    torch.testing.assert_close(torch.cat([a.grad, c.grad]), sigma * torch.randn(8, generator=seeded()))
    assert b.grad is None and sigma == noise_std(2, 0.5)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(CapabilityError, match="sparse=False"):
        add_gradient_noise_(embedding.parameters(), 0, 0.1)


def fit(make: Any, steps: int = 20, resume_at: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optim = make(model.parameters())
    for step in range(steps):
        if step == resume_at:
            saved = state.unflatten(*state.flatten(optim.state_dict()))
            optim = make(model.parameters())
            optim.load_state_dict(saved)
        optim.zero_grad()
        (model(x) - y).square().mean().backward()
        optim.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_noise_it_is_the_wrapped_optimiser_bit_for_bit() -> None:
    adam = fit(lambda p: torch.optim.Adam(p, 1e-2))
    assert torch.equal(fit(lambda p: GradientNoise(torch.optim.Adam(p, 1e-2), eta=0.0)), adam)
    assert not torch.equal(fit(lambda p: GradientNoise(torch.optim.Adam(p, 1e-2), 0.1)), adam)


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.Adam])
def test_a_resumed_optimiser_continues_bit_for_bit(factory: Any) -> None:
    def make(params: Any) -> GradientNoise:
        return GradientNoise(factory(params, 1e-2), 0.1, generator=seeded(4), clip_norm=1.0)

    assert torch.equal(fit(make, resume_at=7), fit(make))


@pytest.mark.parametrize(("order", "bounded"), [("noise-then-clip", True), ("clip-then-noise", False)])
def test_clipping_comes_on_the_chosen_side_of_the_noise(order: str, bounded: bool) -> None:
    p = nn.Parameter(torch.zeros(1000))
    optim = GradientNoise(torch.optim.SGD([p], 1.0), 1.0, generator=seeded(), order=order, clip_norm=0.5)
    p.grad = torch.ones(1000)
    optim.step()
    assert (float(p.detach().norm()) <= 0.5 + 1e-4) is bounded


@pytest.mark.parametrize(
    "bad", [dict(eta=-1.0), dict(eta=math.nan), dict(gamma=-0.1), dict(order="x"), dict(clip_norm=0.0)]
)
def test_bad_settings_are_config_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GradientNoise(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), **bad)


@config
class Toy:
    steps: int = option(6, "steps", low=1)


@recipe("toy", data="none")
class ToyRecipe(Recipe[Toy]):
    def build(self, config: Toy, data: Data) -> None:
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)
        self.optim_a = self.optimiser(torch.optim.SGD, self.a.parameters(), lr=0.1)
        self.optim_b = self.optimiser(torch.optim.Adam, self.b.parameters(), lr=0.1)

    def step(self, batch: Batch) -> Scalars:
        x = torch.randn(4, 2, generator=self.rng)
        for model, optim in ((self.a, self.optim_a), (self.b, self.optim_b)):
            self.minimise(model(x).square().mean() + 0.1, optim, clip_norm=1.0)
        self.iteration += 1
        return {}


def toy(*, eta: float = 0.5, eve: bool = False) -> ToyRecipe:
    data = Data("none", "points", TensorSplit(x=torch.zeros(4, 2)), None, None, {})
    used: list[Any] = [GradientNoiseMethod(Options(eta=eta))]
    if eve:
        used.insert(0, EveMethod(EveOptions()))
    return ToyRecipe(Toy(), data=data, seed=3, methods=used)


@pytest.mark.parametrize("eve", [False, True])
def test_the_method_wraps_every_optimiser_and_resumes_exactly(eve: bool) -> None:
    straight, stopped, resumed = toy(eve=eve), toy(eve=eve), toy(eve=eve)
    for r, steps in ((straight, 6), (stopped, 3)):
        for _ in range(steps):
            r.step({})
    resumed.load_state_dict(state.unflatten(*state.flatten(stopped.state_dict())))
    for _ in range(3):
        resumed.step({})
    a, b = state.flatten(straight.state_dict()), state.flatten(resumed.state_dict())
    assert a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
    assert straight.optim_a.t == 6
    states = [o.generator.get_state() for o in (toy().optim_a, toy().optim_b)]
    assert not torch.equal(*states)  # each optimiser has noise of its own


def test_the_methods_noise_is_a_function_of_the_seed() -> None:
    same, other = toy(), toy(eta=0.0)
    again = toy()
    for r in (same, again, other):
        r.step({})
    assert torch.equal(same.a.weight, again.a.weight) and not torch.equal(same.a.weight, other.a.weight)


def test_the_command_line_form_parses() -> None:
    method = methods.parse("gradient-noise:eta=0.3,order=noise-then-clip,clip_norm=2", "training-method")
    assert method.options == Options(eta=0.3, order="noise-then-clip", clip_norm=2.0)


def test_the_deep_network_has_the_stated_weights() -> None:
    kinds = {
        "zero": 0.0,
        "gaussian": 0.1,
        "he": math.sqrt(2 / 50),
        "random-walk": math.sqrt(2 / 50) * math.exp(1.2 / 47.6),
    }
    for init, std in kinds.items():
        model = DeepMLP(inputs=64, classes=10, layers=20, width=50, init=init, std=0.1)
        hidden = torch.stack(list(model.weights()[1:-1])).detach()
        assert float(hidden.std()) == pytest.approx(std, rel=0.02)  # 47,500 draws
        assert len(model.weights()) == 21 and model(torch.zeros(3, 64)).abs().max() == 0  # biases are zero


def test_the_constant_schedule_has_the_same_accumulated_variance() -> None:
    annealed = sum(noise_std(t, 0.05) ** 2 for t in range(500))
    assert 500 * noise_std(0, equal_variance_eta(0.05, 0.55, 500), 0.0) ** 2 == pytest.approx(annealed)


def test_the_study_trains_from_zero_weights_only_with_noise() -> None:
    smoke = GradientNoiseStudy.presets["smoke"]
    settings = {f: getattr(smoke, f) for f in ("steps", "layers")}
    with_noise = GradientNoiseStudy(smoke).measure(100, Path("."), lambda done, total: None)
    without = GradientNoiseStudy(type(smoke)(**settings, eta=0.0)).measure(100, Path("."), lambda done, total: None)
    assert with_noise.metrics["accuracy"] > 0.5 and without.metrics["accuracy"] < 0.2
