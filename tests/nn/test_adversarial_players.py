"""Rounds, ratios, averages: who is updated when, and by what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import MovingAverage, Player, discriminator_accuracy, gradient_norm, part, play


def _minimise(loss: Tensor, optimiser: torch.optim.Optimizer, clip_norm: float | None = None) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimiser.step()


def test_update_ratios_and_order() -> None:
    x, y = (nn.Parameter(torch.ones(1)) for _ in range(2))
    calls: list[tuple[str, int]] = []

    def loss(name: str, parameter: nn.Parameter) -> Any:
        def call(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            calls.append((name, turn))
            return (parameter**2).sum(), {f"{name}_seen": parameter.detach().clone()}

        return call

    players = [
        Player("d", torch.optim.SGD([x], lr=0.1), loss("d", x), turns=2),
        Player("g", torch.optim.SGD([y], lr=0.1), loss("g", y), every=2),
    ]
    first = play(players, minimise=_minimise, iteration=0)
    second = play(players, minimise=_minimise, iteration=1)
    assert calls == [("d", 0), ("d", 1), ("g", 0), ("d", 0), ("d", 1)]
    assert set(first) == {"d_loss", "d_grad", "d_seen", "g_loss", "g_grad", "g_seen"}
    assert "g_loss" not in second
    assert x.item() == pytest.approx(0.8**4) and y.item() == pytest.approx(0.8)
    assert float(first["d_grad"]) == pytest.approx(1.6)  # of the last turn
    assert not first["d_loss"].requires_grad


def test_a_player_leaves_the_others_alone() -> None:
    g, d = nn.Linear(2, 2), nn.Linear(2, 1)
    before = [p.detach().clone() for p in d.parameters()]
    player = Player("g", torch.optim.SGD(g.parameters(), lr=0.1), lambda _: d(g(torch.ones(3, 2))).mean())
    play([player], minimise=_minimise, iteration=0)
    assert all(torch.equal(a, b) for a, b in zip(before, d.parameters(), strict=True))
    assert all(p.grad is None for p in d.parameters())


def test_clipping_reaches_minimise() -> None:
    x = nn.Parameter(torch.full((1,), 10.0))
    player = Player("x", torch.optim.SGD([x], lr=1.0), lambda _: (x**2).sum(), clip_norm=0.5)
    scalars = play([player], minimise=_minimise, iteration=0)
    assert x.item() == pytest.approx(9.5) and float(scalars["x_grad"]) == pytest.approx(0.5)


def test_bad_ratios_and_batches_are_named() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ConfigError, match="'d'"):
        Player("d", optimiser, lambda _: torch.zeros(()), turns=0)
    with pytest.raises(ShapeError, match="3 turns"):
        part({"x": torch.zeros(2)}, 0, 3)
    pieces = [part({"x": torch.arange(7)}, turn, 3)["x"].tolist() for turn in range(3)]
    assert pieces == [[0, 1], [2, 3], [4, 5]]


def test_accuracy_and_gradient_norm() -> None:
    assert float(discriminator_accuracy(torch.tensor([1.0, -1.0]), torch.tensor([-2.0]))) == pytest.approx(0.75)
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    assert float(gradient_norm([a, b])) == 0.0
    a.grad = torch.tensor([3.0, 4.0])
    b.grad = torch.tensor([12.0])
    assert float(gradient_norm([a, b])) == pytest.approx(13.0)


def test_moving_average_follows_its_formula_and_copies_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = MovingAverage(net, 0.9)
    expected = net[0].weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            net[0].weight.add_(1.0)
        net(torch.randn(8, 2))
        average.update(net)
        expected = 0.9 * expected + 0.1 * net[0].weight.detach()
    torch.testing.assert_close(average.averaged[0].weight, expected)
    assert torch.equal(average.averaged[1].running_mean, net[1].running_mean)
    assert not average.train().averaged[1].training  # it stays in evaluation mode
    assert not any(p.requires_grad for p in average.parameters())
    twin = MovingAverage(net, 0.9)
    twin.load_state_dict(average.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(twin(x), average(x)) and int(twin.updates) == 3


def test_warm_average_forgets_the_initialisation() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = MovingAverage(net, 0.999, warm=True)
    with torch.no_grad():
        net.weight.fill_(1.0)
    for _ in range(200):
        average.update(net)
    assert average.averaged.weight.item() == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ConfigError, match="decay"):
        MovingAverage(net, 1.0)
