"""The L2 attack of Carlini and Wagner: equality with a peer, the closed form of a linear network, the box, bad settings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.inspect.attack import Goal
from cambrian.inspect.carlini_wagner import carlini_wagner


def make_target(lo: float = 0.0, hi: float = 1.0):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    target = wrap(net, space=Space.image((3, 2, 2), lo, hi), classes="abcd")
    x = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * (hi - lo) + lo
    return target, x, target.logits(x).argmax(1)


@pytest.mark.parametrize("aim", [False, True])
@pytest.mark.parametrize("confidence", [0.0, 0.1])
def test_equal_to_foolbox(aim: bool, confidence: float):
    foolbox = pytest.importorskip("foolbox")
    target, x, y = make_target()
    wanted = (y + 1) % 4
    model = foolbox.PyTorchModel(copy.deepcopy(target.module).eval(), bounds=(0, 1))
    criterion = foolbox.criteria.TargetedMisclassification(wanted) if aim else foolbox.criteria.Misclassification(y)
    peer = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=40, stepsize=0.05, confidence=confidence, initial_const=0.01, abort_early=False
    )
    _, theirs, _ = peer(model, x, criterion, epsilons=None)
    ours = carlini_wagner(
        target,
        x,
        y,
        goal=Goal(wanted) if aim else None,
        steps=40,
        searches=6,
        lr=0.05,
        confidence=confidence,
        first=0.01,
    )
    found = (theirs != 0).flatten(1).any(1)
    assert float(found.float().mean()) > 0.5
    assert torch.equal(ours.success | ~found, torch.ones(20, dtype=torch.bool))
    assert torch.allclose(ours.x_adv[found], theirs[found], atol=2e-5)
    assert torch.equal(ours.x_adv[~found], x[~found])


def test_a_linear_network_is_left_at_the_distance_to_its_nearest_plane():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    target = wrap(net, space=Space.image((3, 2, 2), -20.0, 20.0), classes="abc")
    x = torch.randn(30, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    logits, weight = target.logits(x).detach(), net[1].weight.detach()
    y = logits.argmax(1)
    gaps = torch.stack(
        [(logits[range(30), y] - logits[:, k]) / (weight[y] - weight[k]).norm(dim=1) for k in range(3)], 1
    )
    nearest = gaps.nan_to_num(float("inf")).scatter(1, y[:, None], float("inf")).amin(1)
    found = carlini_wagner(target, x, y, steps=150, searches=9, lr=0.005)
    assert bool(found.success.all())
    assert bool((found.norms["l2"] >= nearest * (1 - 1e-4)).all())
    assert float((found.norms["l2"] / nearest).median()) < 1.05


def test_confidence_buys_a_lead_and_the_box_holds():
    target, x, y = make_target(-3.0, 5.0)
    before = copy.deepcopy(target.module.state_dict())
    plain, sure = (carlini_wagner(target, x, y, steps=60, searches=7, lr=0.05, confidence=k) for k in (0.0, 0.5))
    logits = target.logits(sure.x_adv)
    lead = logits.scatter(1, y[:, None], float("-inf")).amax(1) - logits.gather(1, y[:, None]).squeeze(1)
    assert bool(sure.success.any()) and float(lead[sure.success].min()) >= 0.5 - 1e-3
    both = sure.success & plain.success
    assert float(sure.norms["l2"][both].mean()) > float(plain.norms["l2"][both].mean())
    assert float(sure.x_adv.min()) >= -3 and float(sure.x_adv.max()) <= 5
    assert plain.queries["backward"] == 7 * 60 * 20
    assert all(torch.equal(before[name], value) for name, value in target.module.state_dict().items())


def test_bad_inputs_are_told():
    target, x, y = make_target()
    for bad in ({"steps": 0}, {"searches": 0}, {"lr": 0.0}, {"first": 0.0}, {"confidence": -1.0}):
        with pytest.raises(ConfigError):
            carlini_wagner(target, x, y, **bad)
    with pytest.raises(ConfigError, match="wanted"):
        carlini_wagner(target, x, y, goal=Goal(7))
    with pytest.raises(ShapeError):
        carlini_wagner(target, x[:, :2], y)
