"""Transfer: the ensemble's loss against its formula, equal distortion, who is fooled, geometry, the attacker and the study."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.inspect.attack import Goal, ascend
from cambrian.systems.attack.transferable_attacks import (
    Ensemble,
    Moves,
    at_rmsd,
    boundary_distances,
    decision_plane,
    ensemble_attack,
    fast_gradient,
    gaussian_noise,
    gradient_cosines,
    leave_one_out,
    plane_directions,
    right_for_all,
    rmsd,
    smallest_step,
    transfer_matrix,
)
from cambrian.systems.attack.transferable_attacks.recipe import Options, TransferableAttacks, summary

SPACE = Space.image((1, 8, 8))


def network(seed: int, kind: str) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "conv":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU() if kind == "mlp" else nn.Tanh(), nn.Linear(48, 10))


@pytest.fixture(scope="module")
def targets():
    data = digits.load(valid=200)
    made = {}
    for seed, kind in enumerate(("conv", "mlp", "tanh", "conv")):
        net = network(seed, kind)
        one = wrap(net, space=SPACE, classes=data.info["classes"], data=data)
        one.finetune(net, steps=80, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(seed))
        made[f"{kind}{seed}"] = one
    return made


@pytest.fixture(scope="module")
def samples(targets):
    x, y, _ = next(next(iter(targets.values())).batches("test", 200))
    right = right_for_all(list(targets.values()), x, y)
    return x[right][:60], y[right][:60]


# -- the loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_mean_of_probabilities(targets, samples):
    x, y = samples
    group = list(targets.values())[:3]
    chance = torch.stack([t.logits(x).double().softmax(2 - 1) for t in group])
    weights = torch.tensor([0.5, 0.3, 0.2]).double().view(3, 1, 1)
    mean = (weights * chance).sum(0)
    wanted = (y + 1) % 10
    ensemble = Ensemble(group, [0.5, 0.3, 0.2])
    with ensemble.quiet():
        targeted = ensemble.losses(x, y, Goal(wanted)).double()
        untargeted = ensemble.losses(x, y, Goal()).double()
    rows = torch.arange(len(x))
    assert torch.allclose(targeted, -mean[rows, wanted].log(), rtol=1e-4)
    assert torch.allclose(untargeted, -(1 - mean[rows, y]).log(), rtol=2e-3, atol=1e-4)
    logits = torch.stack([t.logits(x) for t in group]).double()
    of_logits = F.cross_entropy((weights * logits).sum(0), wanted, reduction="none")
    assert float((targeted - of_logits).abs().median()) > 0.5, "the mean of logits is another loss"
    of_logs = (weights.squeeze(2) * -chance[:, rows, wanted].log()).sum(0)
    assert float((of_logs - targeted).min()) > -1e-6 and float((of_logs - targeted).median()) > 0.1, "Jensen"


def test_the_gradient_is_autograds_of_the_plain_formula(targets, samples):
    x, y = samples[0][:10], samples[1][:10]
    group = list(targets.values())[:3]
    for goal, label in ((Goal((y + 1) % 10), (y + 1) % 10), (Goal(), y)):
        moved = x.clone().requires_grad_(True)
        mean = torch.stack([t.module.eval()(moved).softmax(1) for t in group]).mean(0)[torch.arange(10), label]
        (-(mean if goal.targeted else 1 - mean).log()).sum().backward()
        ensemble = Ensemble(group)
        with ensemble.quiet():
            grad, _ = ensemble.gradient(x, y, goal)
        size = moved.grad.flatten(1).norm(dim=1)
        gap = (grad - moved.grad).flatten(1).norm(dim=1) / size
        assert float(gap.max()) < (1e-4 if goal.targeted else 2e-2), "1 - p loses digits, the logarithms do not"


def test_a_certain_network_still_has_a_loss_and_a_gradient():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        net[1].weight.mul_(400)
    target = wrap(net, space=Space.image((1, 2, 2)), classes="abc")
    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = target.logits(x).argmax(1)
    sure = target.logits(x).softmax(1).amax(1) == 1.0
    assert bool(sure.any())
    ensemble = Ensemble([target, target])
    with ensemble.quiet():
        grad, losses = ensemble.gradient(x, y, Goal())
    assert bool(losses.isfinite().all()) and bool((grad[sure].flatten(1).abs().amax(1) > 0).all())


def test_one_network_copies_of_it_and_weights_on_it_are_the_single_attack(targets, samples):
    x, y = samples
    one = targets["conv0"]
    goal = Goal((y + 3) % 10)
    alone = ensemble_attack([one], x, y, goal, lr=0.02, steps=12)
    again = ensemble_attack([one] * 4, x, y, goal, lr=0.02, steps=12)
    summed = ensemble_attack([one], x, y, goal, lr=0.02, steps=12, update="sum")
    assert torch.equal(alone.x_adv, again.x_adv) and torch.equal(alone.x_adv, summed.x_adv)
    assert again.queries == alone.queries, "copies are computed once"
    by_hand, state = x.clone().requires_grad_(True), None
    state = torch.optim.Adam([by_hand], lr=0.02)
    for _ in range(12):
        state.zero_grad()
        F.cross_entropy(one.module.eval()(by_hand), goal.wanted(y), reduction="sum").backward()
        state.step()
        by_hand.data.clamp_(0, 1)
    assert float((alone.x_adv - by_hand.detach()).abs().median()) < 1e-5
    assert torch.equal(one.logits(alone.x_adv).argmax(1), one.logits(by_hand.detach()).argmax(1))
    with pytest.raises(ConfigError):
        Ensemble([one], [0.5])


def test_summed_updates_take_one_adam_step_for_each_network(targets, samples):
    x, y = samples[0][:6], samples[1][:6]
    group = [targets["conv0"], targets["mlp1"]]
    goal = Goal((y + 1) % 10)
    summed = ensemble_attack(group, x, y, goal, lr=0.01, steps=1, update="sum").x_adv
    singles = [ensemble_attack([t], x, y, goal, lr=0.01, steps=1).x_adv - x for t in group]
    inside = (x > 0.05) & (x < 0.95)
    assert torch.allclose((summed - x)[inside], sum(singles)[inside], atol=1e-6)


def test_networks_of_one_kind_can_be_stacked(targets, samples):
    x, y = samples[0][:16], samples[1][:16]
    group = list(targets.values())
    plain, stacked = Ensemble(group), Ensemble(group, stack=True)
    assert len(plain.parts) == 4 and len(stacked.parts) == 3
    for goal in (Goal(), Goal((y + 1) % 10)):
        with plain.quiet(), stacked.quiet():
            (a, la), (b, lb) = plain.gradient(x, y, goal), stacked.gradient(x, y, goal)
        assert torch.allclose(la, lb, atol=1e-5) and torch.allclose(a, b, atol=1e-5)


def test_distance_holds_the_attack_back_and_networks_stay_as_they_were(targets, samples):
    x, y = samples
    before = {name: copy.deepcopy(t.module.state_dict()) for name, t in targets.items()}
    modes = {name: t.module.training for name, t in targets.items()}
    group = list(targets.values())[:2]
    sizes = [
        rmsd(x, ensemble_attack(group, x, y, lr=0.01, steps=20, lam=lam).x_adv, SPACE).mean() for lam in (0, 50, 500)
    ]
    assert sizes[1] < sizes[0] / 5 and sizes[2] < sizes[0] / 5
    for name, t in targets.items():
        assert t.module.training == modes[name]
        assert all(torch.equal(before[name][k], v) for k, v in t.module.state_dict().items())


# -- one step ------------------------------------------------------------------------------------------------------------


def test_one_step_on_one_network_is_the_fast_gradient_sign(targets, samples):
    x, y = samples
    one = targets["mlp1"]
    assert torch.equal(fast_gradient([one], x, y, size=0.1), ascend(one, x, y, eps=0.1).x_adv)
    wanted = (y + 1) % 10
    assert torch.equal(
        fast_gradient([one], x, y, Goal(wanted), size=0.1), ascend(one, x, y, eps=0.1, goal=Goal(wanted)).x_adv
    )
    middle = x * 0.2 + 0.4
    along = fast_gradient([one], middle, y, size=0.05, norm="2")
    assert torch.allclose(rmsd(middle, along, SPACE), torch.tensor(0.05 * 255), rtol=1e-3)


def test_the_smallest_step_is_the_first_that_succeeds(targets, samples):
    x, y = samples[0][:20], samples[1][:20]
    one = targets["conv0"]
    found = smallest_step([one], x, y, spacing=0.01, largest=0.3)
    assert bool(found.isfinite().any())
    for i in range(20):
        tries = [k * 0.01 for k in range(1, 31)]
        wins = [
            s for s in tries if one.logits(fast_gradient([one], x[i : i + 1], y[i : i + 1], size=s)).argmax(1) != y[i]
        ]
        assert float(found[i]) == pytest.approx(wins[0] if wins else math.inf)
    with pytest.raises(ConfigError):
        smallest_step([one], x, y, spacing=0.0)


# -- equal distortion, and the tables ------------------------------------------------------------------------------------


def test_a_setting_is_found_that_gives_the_wanted_size():
    for curve in (lambda s: 3 * s, lambda s: 100 * s**0.4, lambda s: 60 * s / (1 + s)):
        assert curve(at_rmsd(curve, 30.0, 0.01, tries=20)) == pytest.approx(30, rel=0.03)
    with pytest.raises(ConfigError, match="no setting"):
        at_rmsd(lambda s: 10.0, 30.0, 1.0)


@pytest.mark.parametrize("kind", ["optimise", "sign", "gradient"])
def test_moves_meet_the_wanted_distortion(targets, samples, kind: str):
    x, y = samples
    goal = Goal((y + 1) % 10)
    moves = Moves(kind, steps=10, wanted=25.0, probe=30)
    moved = moves([targets["conv0"], targets["mlp1"]], x, y, goal)
    assert float(rmsd(x, moved, SPACE).mean()) == pytest.approx(25, rel=0.1)
    noise = gaussian_noise(x, 25.0, SPACE, torch.Generator().manual_seed(0))
    assert (
        float(rmsd(x, noise, SPACE).mean()) == pytest.approx(25, rel=2e-3)
        and 0 <= float(noise.min()) <= float(noise.max()) <= 1
    )
    with pytest.raises(ConfigError):
        Moves("magic")


def test_an_ensemble_reaches_the_wanted_class_more_often_than_its_members(targets, samples):
    x, y = samples
    goal = Goal.drawn(y, 10, torch.Generator().manual_seed(0))
    moves = Moves(steps=20, wanted=60.0, probe=60)
    single = transfer_matrix(targets, x, y, moves, goal)
    group = leave_one_out(targets, x, y, moves, goal)
    assert [row["source"] for row in single] == list(targets) and group[0]["source"] == "-conv0"
    names = list(targets)
    alone, together = (summary(rows, names, arm, True) for rows, arm in ((single, "single"), (group, "ensemble")))
    assert together["matching"] > alone["matching"] + 0.1
    assert min(row[row["source"]] for row in single) > 0.8, "an attack hits the network that it was made for"
    assert alone["best"] >= alone["matching"] and together["best"] == together["matching"]
    noise = gaussian_noise(x, 60.0, SPACE, torch.Generator().manual_seed(0))
    hits = [float(goal.reached(t.logits(noise), y).float().mean()) for t in targets.values()]
    assert sum(hits) / 4 < 0.15
    plain = transfer_matrix(targets, x, y, moves)
    assert summary(plain, names, "single", False)["accuracy"] < 0.7 and plain[0]["conv0"] < 0.1


def test_different_tasks_are_refused(targets, samples):
    x, y = samples
    one = targets["mlp1"]
    other = wrap(one.module, space=SPACE, classes=list(reversed(one.classes)))
    wider = wrap(one.module, space=Space.image((1, 8, 8), -1.0, 1.0), classes=one.classes)
    for bad in (other, wider):
        with pytest.raises(CapabilityError):
            Ensemble([one, bad])
    for settings in ({"lr": 0.0}, {"steps": 0}, {"lam": -1.0}, {"update": "never"}):
        with pytest.raises(ConfigError):
            ensemble_attack([one], x, y, **settings)
    with pytest.raises(ConfigError):
        Ensemble([])
    with pytest.raises(ConfigError, match="two"):
        leave_one_out({"a": one}, x, y, Moves())
    with pytest.raises(ConfigError, match="wanted"):
        ensemble_attack([one], x, y, Goal(y[:3]))
    with pytest.raises(ShapeError):
        ensemble_attack([one], x * float("nan"), y)


# -- geometry ------------------------------------------------------------------------------------------------------------


def test_cosines_of_gradients(targets, samples):
    x, y = samples[0][:20], samples[1][:20]
    group = list(targets.values())
    found = gradient_cosines(group, x, y)
    slopes = []
    for t in group[:2]:
        moved = x.clone().requires_grad_(True)
        F.cross_entropy(t.module.eval()(moved), y, reduction="sum").backward()
        slopes.append(moved.grad.flatten(1))
    assert float(found[0, 1]) == pytest.approx(float(F.cosine_similarity(*slopes).mean()), abs=1e-4)
    assert torch.allclose(found.diagonal(), torch.ones(4), atol=1e-4) and torch.allclose(found, found.T, atol=1e-5)
    assert float(found[~torch.eye(4, dtype=torch.bool)].max()) < 0.9


def test_a_plane_of_decisions_and_distances_to_a_known_boundary(targets, samples):
    x, y = samples[0][:1], samples[1][:1]
    one = targets["conv0"]
    d1, d2 = plane_directions(one, x, y, torch.Generator().manual_seed(0))
    assert (
        float((d1 * d2).sum().abs()) < 1e-5
        and float(d1.norm()) == pytest.approx(1)
        and float(d2.norm()) == pytest.approx(1)
    )
    labels = decision_plane(targets, x, d1, d2, reach=3.0, points=5)["conv0"]
    ticks = torch.linspace(-3, 3, 5)
    for i, j in ((0, 0), (2, 2), (4, 1)):
        point = x + ticks[j] * d1 + ticks[i] * d2
        assert int(labels[i, j]) == int(one.module.eval()(point).argmax())
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net[1].bias.zero_()
    plane = wrap(net, space=Space.vector(2, -1.0, 1.0), classes="ab")
    points = torch.tensor([[0.3, 0.1], [0.5, -0.4], [-0.2, 0.0]])
    along = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = boundary_distances(plane, points, along, reach=2.0)
    assert (
        found[0] == pytest.approx(0.3, abs=1e-4)
        and bool(found[1].isinf())
        and found[2] == pytest.approx(0.2 / 0.6, abs=1e-4)
    )
    for bad in ({"d1": d1[0], "d2": d2, "reach": 1.0}, {"d1": d1, "d2": d2, "reach": 1.0, "x": samples[0][:2]}):
        with pytest.raises(ShapeError):
            decision_plane(targets, bad.pop("x", x), **bad)
    with pytest.raises(ShapeError):
        boundary_distances(plane, points, along[:2], reach=1.0)


# -- the verb ------------------------------------------------------------------------------------------------------------


def test_the_attacker_trains_networks_of_its_own_and_is_judged_by_the_target(targets, samples):
    x, y = samples
    one = targets["conv0"]
    options = Options(nets=("mlp", "vgg-small"), train_steps=120, wanted=60.0, steps=15)
    found = TransferableAttacks(options).attack(one, x, y, torch.Generator().manual_seed(0))
    rows = {row["method"]: row for row in found.rows}
    assert list(rows) == ["ensemble", "mlp", "vgg-small", "the target itself", "gaussian noise"]
    assert rows["the target itself"]["success"] > 0.8 > rows["gaussian noise"]["success"] + 0.4
    assert rows["ensemble"]["success"] > rows["gaussian noise"]["success"] + 0.1 and rows["ensemble"]["targeted"]
    assert all(row["median RMSD/255"] == pytest.approx(60, rel=0.15) for row in found.rows)
    assert set(found.figures) == {"strip", "plane"}
    for goal in ("untargeted", "least-likely", "7"):
        quick = Options(nets=("mlp",), train_steps=20, steps=3, goal=goal, reference=False)
        assert len(TransferableAttacks(quick).attack(one, x[:8], y[:8], torch.Generator()).rows) == 1
    with pytest.raises(ConfigError, match="goal"):
        TransferableAttacks(Options(nets=("mlp",), train_steps=1, goal="seven")).attack(one, x, y, torch.Generator())
    bare = wrap(one.module, space=SPACE, classes=one.classes)
    with pytest.raises(CapabilityError, match="no training data"):
        TransferableAttacks().attack(bare, x, y, torch.Generator())
