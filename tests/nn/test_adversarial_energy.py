"""The pulling-away term and the margin of energy-based games."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import Margin, margin_loss, pulling_away


def _double_loop(codes: torch.Tensor) -> float:
    total, count = 0.0, len(codes)
    for i in range(count):
        for j in range(count):
            if i != j:
                total += float(torch.dot(codes[i], codes[j]) / (codes[i].norm() * codes[j].norm())) ** 2
    return total / (count * (count - 1))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (2, 1), (2, 6)])
def test_pulling_away_equals_the_double_loop(shape: tuple[int, int]) -> None:
    codes = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    assert float(pulling_away(codes)) == pytest.approx(_double_loop(codes), abs=1e-6)


def test_pulling_away_is_0_for_orthogonal_and_1_for_collinear_codes() -> None:
    assert float(pulling_away(3.0 * torch.eye(6))) == pytest.approx(0.0, abs=1e-7)
    line = torch.tensor([[1.0, 2.0, -1.0]]) * torch.tensor([[1.0], [-3.0], [0.5], [20.0]])
    assert float(pulling_away(line)) == pytest.approx(1.0, abs=1e-6)


def test_a_dead_code_has_no_gradient_and_no_nan() -> None:
    codes = torch.randn(4, 3)
    codes[1] = 0.0
    codes.requires_grad_()
    pulling_away(codes).backward()
    assert torch.isfinite(codes.grad).all() and not codes.grad[1].any() and codes.grad[0].any()


def test_pulling_away_needs_two_samples_and_can_be_stacked() -> None:
    with pytest.raises(ShapeError, match="B >= 2"):
        pulling_away(torch.ones(1, 3))
    stack = torch.randn(3, 8, 4)
    torch.testing.assert_close(vmap(pulling_away)(stack), torch.stack([pulling_away(codes) for codes in stack]))


def test_the_loss_is_0_where_data_have_no_energy_and_samples_reach_the_margin() -> None:
    assert float(margin_loss(torch.zeros(5), torch.full((5,), 10.0), 10.0)) == 0.0


def test_at_equilibrium_the_loss_is_the_margin_whatever_the_energy() -> None:
    for gamma in (0.0, 0.7, 3.0, 10.0):
        energy = torch.full((8,), gamma)
        assert float(margin_loss(energy, energy, 10.0)) == pytest.approx(10.0)


def test_the_hinge_has_no_gradient_beyond_the_margin() -> None:
    fake = torch.tensor([0.5, 1.5, 3.0], requires_grad=True)
    margin_loss(torch.zeros(3), fake, 1.0).backward()
    torch.testing.assert_close(fake.grad, torch.tensor([-1 / 3, 0.0, 0.0]))


def test_the_rule_is_a_running_mean_at_initialisation_and_then_stands() -> None:
    margin = Margin(factor=1.5, warm=3)
    energies = [
        torch.tensor([2.0, 4.0]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([2.0, 2.0]),
        torch.tensor([50.0, 90.0]),
    ]
    assert [float(margin.update(e)) for e in energies] == pytest.approx([4.5, 3.0, 3.0, 3.0])
    fixed = Margin(10.0)
    assert float(fixed.update(torch.ones(2))) == float(fixed()) == 10.0


def test_a_margin_can_fall_to_0_and_its_state_survives() -> None:
    margin = Margin(8.0, decay_steps=4)
    assert [float(margin.update(torch.ones(1))) for _ in range(6)] == pytest.approx([6, 4, 2, 0, 0, 0])
    rule, again = Margin(warm=2, decay_steps=10), Margin(warm=2, decay_steps=10)
    for _ in range(5):
        rule.update(torch.ones(3))
    again.load_state_dict(rule.state_dict())
    assert float(again()) == float(rule()) == pytest.approx(1.5 * 0.7)


@pytest.mark.parametrize("bad", [{"value": -1.0}, {"factor": 0.0}, {"warm": 0}, {"decay_steps": -1}])
def test_bad_margins_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a margin is >= 0"):
        Margin(**bad)
