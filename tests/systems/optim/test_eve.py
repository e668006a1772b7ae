"""Eve: the feedback's tables, its equality with Adam without feedback, resume, and use on recipes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cambrian.data.split import Batch, Data, TensorSplit
from cambrian.engine import state
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Scalars, recipe
from cambrian.errors import CapabilityError, ConfigError, NonFiniteError
from cambrian.systems.optim.eve import (
    Config,
    Eve,
    EveMethod,
    EveStudy,
    Feedback,
    LossFeedback,
    Options,
    contest,
    source_text,
    train,
)

LOSSES = (4.0, 2.0, 3.0, 3.0, 1.0)
TABLES = {  # by hand, beta3 = 0.5
    "v3": (1.0, 1.0, 0.75, 0.425, 1.2125),  # r = 1, 1/2, 0 -> 1/10, 2
    "v1": (1.0, 1.0, 0.75, 0.425, 1.3625),  # fhat = 4, 2, 3, 3.3 (q = 1 -> 1.1), 1; r = 1, 1/2, 1/10, 2.3
}


@pytest.mark.parametrize("variant", ["v3", "v1"])
def test_feedback_equals_the_hand_computed_table(variant: str) -> None:
    feedback = Feedback(beta3=0.5, variant=variant)
    assert [feedback.update(f) for f in LOSSES] == pytest.approx(TABLES[variant], rel=1e-12)


@pytest.mark.parametrize("variant", ["v3", "v1"])
def test_feedback_of_tensors_equals_that_of_numbers(variant: str) -> None:
    numbers, tensors = Feedback(variant=variant, f_star=-3.0), Feedback(variant=variant, f_star=-3.0)
    for f in torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2.9).tolist():
        assert float(tensors.update(torch.tensor(f, dtype=torch.float64))) == pytest.approx(
            numbers.update(f), rel=1e-12
        )
    assert tensors.state_dict() == pytest.approx(numbers.state_dict())


def test_a_tensor_below_f_star_is_reported_when_checked() -> None:
    feedback = Feedback()
    feedback.update(torch.tensor(1.0))
    feedback.update(torch.tensor(-1.0))
    with pytest.raises(ConfigError, match="f_star"):
        feedback.state_dict()


def test_scalar_quadratic_equals_the_formulas() -> None:
    """Five steps on f = theta^2, from theta = 1, lr 0.1, beta3 0.9, written out from the paper's algorithm."""
    theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optim = Eve([theta], lr=0.1, betas=(0.9, 0.999, 0.9))
    x, m, v, d, last = 1.0, 0.0, 0.0, 1.0, None
    for t in range(1, 6):
        f, g = x * x, 2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if last is not None:
            r = min(max(abs(f - last) / min(f, last), 0.1), 10.0)
            d = 0.9 * d + 0.1 * r
        last = f
        x -= 0.1 / d * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        loss = theta.square().sum()
        optim.zero_grad()
        loss.backward()
        optim.step(loss=loss)
        assert theta.item() == pytest.approx(x, rel=1e-12)
    assert optim.param_groups[0]["lr"] == 0.1 and optim.feedback.t == 5


def fit(make: Any, steps: int = 30, resume_at: int | None = None, closure: bool = False) -> torch.Tensor:
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optim = make(model.parameters())
    for step in range(steps):
        if step == resume_at:
            saved = state.unflatten(*state.flatten(optim.state_dict()))
            optim = make(model.parameters())
            optim.load_state_dict(saved)

        def loss_and_gradients(optim: Any = optim) -> torch.Tensor:
            optim.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        if closure:
            optim.step(loss_and_gradients)
        elif getattr(optim, "takes_loss", False):
            optim.step(loss=loss_and_gradients())
        else:
            loss_and_gradients()
            optim.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_feedback_it_is_adam_bit_for_bit() -> None:
    adam = fit(lambda p: torch.optim.Adam(p, 1e-2))
    assert torch.equal(fit(lambda p: Eve(p, 1e-2, c=1.0)), adam)
    assert not torch.equal(fit(lambda p: Eve(p, 1e-2)), adam)


def test_closure_and_loss_argument_agree() -> None:
    assert torch.equal(fit(lambda p: Eve(p, 1e-2), closure=True), fit(lambda p: Eve(p, 1e-2)))


def test_feedback_on_the_device_equals_feedback_on_the_host() -> None:
    host = fit(lambda p: Eve(p, 1e-2, foreach=False))
    torch.testing.assert_close(fit(lambda p: Eve(p, 1e-2, foreach=False, on_device=True)), host, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Eve(p, 1e-2),
        lambda p: Eve(p, 1e-2, variant="v1"),
        lambda p: LossFeedback(torch.optim.RMSprop(p, 1e-2)),
        lambda p: LossFeedback(torch.optim.SGD(p, 1e-2, momentum=0.9), beta3=0.9),
    ],
)
def test_a_resumed_optimiser_continues_bit_for_bit(make: Any) -> None:
    assert torch.equal(fit(make, resume_at=11), fit(make))


def test_schedulers_act_through_the_wrapper() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optim = LossFeedback(torch.optim.SGD([parameter], 1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optim, 1, 0.5)
    parameter.grad = torch.ones(1)
    optim.step(loss=1.0)
    scheduler.step()
    assert optim.base.param_groups[0]["lr"] == 0.5 and parameter.item() == 0.0


def test_losses_of_several_processes_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    dist = torch.distributed
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda t: t.add_(5.0))  # the other process saw 5
    optim = Eve([nn.Parameter(torch.ones(1))])
    optim.step(loss=torch.tensor(1.0))
    assert optim.feedback.previous == 3.0


@pytest.mark.parametrize("bad", [dict(c=0.5), dict(betas=(0.9, 0.99)), dict(variant="v2"), dict(f_star=-math.inf)])
def test_bad_settings_are_config_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Eve([nn.Parameter(torch.ones(1))], **bad)


def test_bad_losses_are_typed_errors() -> None:
    optim = Eve([nn.Parameter(torch.ones(1))], f_star=-1.0)
    with pytest.raises(ConfigError, match="f_star"):
        optim.step(loss=-1.0)
    with pytest.raises(NonFiniteError):
        optim.step(loss=math.nan)
    with pytest.raises(CapabilityError, match="loss"):
        optim.step()


@config
class TwoPlayers:
    steps: int = option(6, "steps", low=1)
    batch: int = option(4, "samples", low=1)
    shift: float = option(0.0, "added to both losses")


@recipe("two-players", data="none")
class TwoPlayersRecipe(Recipe[TwoPlayers]):
    def build(self, config: TwoPlayers, data: Data) -> None:
        self.g, self.d = nn.Linear(2, 2), nn.Linear(2, 1)
        self.optim_g = self.optimiser(torch.optim.Adam, self.g.parameters(), lr=1e-2, betas=(0.5, 0.9))
        self.optim_d = self.optimiser(torch.optim.RMSprop, self.d.parameters(), lr=1e-2)

    def step(self, batch: Batch) -> Scalars:
        x = torch.randn(4, 2, generator=self.rng)
        loss_d = self.d(self.g(x).detach()).mean().exp() + self.config.shift
        self.minimise(loss_d, self.optim_d)
        loss_g = -self.d(self.g(x)).mean() + self.config.shift
        self.minimise(loss_g, self.optim_g, clip_norm=1.0)
        self.iteration += 1
        return {"d": loss_d.detach(), "g": loss_g.detach()}


def players(options: Options, shift: float = 0.0) -> TwoPlayersRecipe:
    data = Data("none", "points", TensorSplit(x=torch.zeros(4, 2)), None, None, {})
    return TwoPlayersRecipe(TwoPlayers(shift=shift), data=data, seed=3, methods=[EveMethod(options)])


def test_the_method_takes_over_every_optimiser_and_resumes_exactly() -> None:
    straight, stopped = players(Options(f_star=-9.0)), players(Options(f_star=-9.0))
    assert isinstance(straight.optim_g, Eve) and straight.optim_g.param_groups[0]["betas"] == (0.5, 0.9)
    assert type(straight.optim_d) is LossFeedback and isinstance(straight.optim_d.base, torch.optim.RMSprop)
    for r, steps in ((straight, 6), (stopped, 3)):
        for _ in range(steps):
            r.step({})
    resumed = players(Options(f_star=-9.0))
    resumed.load_state_dict(state.unflatten(*state.flatten(stopped.state_dict())))
    for _ in range(3):
        resumed.step({})
    a, b = state.flatten(straight.state_dict()), state.flatten(resumed.state_dict())
    assert a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
    assert resumed.optim_d.feedback.t == 6 and resumed.optim_d.feedback.d != 1.0


def test_negative_losses_name_f_star() -> None:
    with pytest.raises(ConfigError, match=r"eve:f_star"):
        players(Options(), shift=-5.0).step({})


def test_the_study_prefers_more_steps_and_replays_adam() -> None:
    found = EveStudy(Config(steps=60, rates=(1e-3, 3e-3))).measure(100, Path("."), lambda done, total: None)
    start = train(Config(steps=1), 100, 1e-6)[0]
    assert found.metrics["best_loss"] < 0.5 * start and found.metrics["best_rate"] == 3e-3
    short = Config(steps=20, c=1.0)
    assert train(short, 100, 1e-3)[0] == train(short, 100, 1e-3, [1.0] * 20)[0]


@pytest.mark.parametrize("optimiser", ["scaled", "replay"])
def test_the_controls_divide_by_what_eve_had(optimiser: str) -> None:
    c = Config(steps=15, optimiser=optimiser)
    divisors = contest(c, 100, 1e-3)[1]
    source = train(c, 100 if optimiser == "scaled" else 1100, 1e-3)[1]
    assert divisors == ([source[-1]] * 15 if optimiser == "scaled" else source) and source[-1] != 1.0


def test_the_character_workload_learns_more_than_letter_frequencies() -> None:
    c = Config(workload="characters", steps=60, batch=16, hidden=32, rates=(1e-2,))
    counts = torch.bincount(source_text(), minlength=128).double()
    p = counts[counts > 0] / counts.sum()
    assert train(c, 100, 1e-2)[0] < float(-(p * p.log()).sum())
