"""Stacks of nets against the same nets trained one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import REAL, ConnectedNet
from cambrian.studies.many import Stacked, StackedAdam, StackedDropout, StackedSGD, alike, minimise


def _nets(count: int, norm: str = "none") -> list[ConnectedNet]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(ConnectedNet(inputs=(3,), outputs=(2,), hidden=(8, 6), norm=norm))
    return made


def _data(members: int, steps: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(steps, members, 10, 3, generator=draw), torch.randn(steps, members, 10, 2, generator=draw)


# not Adam with batch norm: biases before a norm have gradient 0 up to rounding, which Adam blows up to full steps
@pytest.mark.parametrize(("kind", "norm"), [("adam", "none"), ("sgd", "none"), ("sgd", "split"), ("momentum", "split")])
def test_training_a_stack_equals_training_its_members_one_by_one(kind: str, norm: str) -> None:
    rates = [1e-2, 3e-3, 0.0]
    nets = _nets(3, norm)
    x, y = _data(3)
    stack = Stacked(nets)
    if kind == "adam":
        optimiser = StackedAdam(stack.parameters(), lr=rates, betas=(0.5, 0.99))
    else:
        optimiser = StackedSGD(stack.parameters(), lr=rates, momentum=0.9 if kind == "momentum" else 0.0)
    for xs, ys in zip(x, y, strict=True):
        minimise((stack(xs) - ys).square().mean((1, 2)), optimiser)
    for i, net in enumerate(nets):
        if kind == "adam":
            alone = torch.optim.Adam(net.parameters(), lr=rates[i], betas=(0.5, 0.99))
        else:
            alone = torch.optim.SGD(net.parameters(), lr=rates[i], momentum=0.9 if kind == "momentum" else 0.0)
        for xs, ys in zip(x, y, strict=True):
            alone.zero_grad()
            (net(xs[i]) - ys[i]).square().mean().backward()
            alone.step()
        ours = stack.member(i).state_dict()
        for name, value in net.state_dict().items():  # running statistics too
            torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4)


def test_a_member_that_diverges_does_not_touch_the_others() -> None:
    x, y = _data(3)
    with_it, without = Stacked(_nets(3)), Stacked(_nets(3)[1:])
    first = StackedAdam(with_it.parameters(), lr=[1e30, 1e-2, 1e-2])
    second = StackedAdam(without.parameters(), lr=1e-2)
    for xs, ys in zip(x, y, strict=True):
        minimise((with_it(xs) - ys).square().mean((1, 2)), first)
        minimise((without(xs[1:]) - ys[1:]).square().mean((1, 2)), second)
    assert not torch.isfinite(with_it.member(0).layers[0].weight).all()
    for a, b in zip(with_it.member(2).parameters(), without.member(1).parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_shared_inputs_other_methods_and_keywords() -> None:
    nets = _nets(2, "split")
    stack = Stacked(nets)
    x = torch.randn(6, 3)
    torch.testing.assert_close(stack(x, shared=(0,)), torch.stack([net(x) for net in copy.deepcopy(nets)]))
    seen = stack.call("features", x, shared=(0,), sources=(REAL,))
    torch.testing.assert_close(seen, torch.stack([net.features(x) for net in nets]))


def test_training_and_evaluation_mode_reach_the_members() -> None:
    stack = Stacked([nn.Sequential(nn.Linear(3, 4), StackedDropout(rate)) for rate in (0.0, 0.5)])
    x = torch.ones(400, 3)
    trained = stack(x, shared=(0,))
    stack.eval()
    plain = stack(x, shared=(0,))
    assert not stack.member(0).training
    torch.testing.assert_close(trained[0], plain[0])
    kept = (trained[1] != 0).float().mean()
    assert 0.4 < float(kept) < 0.6
    torch.testing.assert_close(trained[1].mean(0), plain[1].mean(0), atol=0.2, rtol=0.3)


def test_random_layers_draw_differently_for_every_member() -> None:
    nets = [nn.Dropout(0.5), nn.Dropout(0.5)]
    stack = Stacked([nn.Sequential(nn.Linear(2, 2), net) for net in nets])
    with torch.no_grad():
        for p in stack.parameters():
            p.fill_(1.0)
    made = stack(torch.ones(64, 2), shared=(0,))
    assert not torch.equal(made[0], made[1])


def test_state_of_stack_and_optimiser_resumes_exactly() -> None:
    x, y = _data(2)
    stack = Stacked(_nets(2))
    optimiser = StackedAdam(stack.parameters(), lr=[1e-2, 1e-3])

    def train(net: Stacked, adam: StackedAdam, part: slice) -> None:
        for xs, ys in zip(x[part], y[part], strict=True):
            minimise((net(xs) - ys).square().mean((1, 2)), adam)

    train(stack, optimiser, slice(0, 6))
    twin = Stacked(_nets(2)[::-1])
    other = StackedAdam(twin.parameters(), lr=1.0)
    twin.load_state_dict(copy.deepcopy(stack.state_dict()))
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    train(stack, optimiser, slice(6, None))
    train(twin, other, slice(6, None))
    assert all(torch.equal(a, b) for a, b in zip(stack.parameters(), twin.parameters(), strict=True))


def test_nets_are_grouped_by_shape_and_misuse_is_named() -> None:
    narrow, wide = _nets(3), [ConnectedNet(inputs=(3,), outputs=(2,), hidden=(9, 6)) for _ in range(2)]
    assert alike([narrow[0], wide[0], narrow[1], wide[1], narrow[2]]) == [[0, 2, 4], [1, 3]]
    with pytest.raises(ShapeError, match="2 kinds"):
        Stacked([narrow[0], wide[0]])
    stack = Stacked(narrow)
    with pytest.raises(ShapeError, match=r"\[3, \.\.\.\]"):
        stack(torch.randn(2, 5, 3))
    with pytest.raises(ShapeError, match="not over members"):
        minimise(stack(torch.randn(3, 5, 3)).mean(), StackedAdam(stack.parameters()))
    with pytest.raises(ConfigError, match="one a member"):
        StackedAdam(stack.parameters(), lr=[-1.0, 0.0, 0.0])
    optimiser = StackedSGD(stack.parameters(), lr=[0.1, 0.1])
    with pytest.raises(ShapeError, match="2 step sizes"):
        minimise(stack(torch.randn(3, 5, 3)).mean((1, 2)), optimiser)
    with pytest.raises(ConfigError, match="dropout rate"):
        StackedDropout(1.0)
