"""The model by hand, the guide's decisions, exact budgets, masks that hold, and the network that comes out."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import cambrian
from cambrian.codec import container
from cambrian.data import digits
from cambrian.errors import CapabilityError, CheckpointError, ConfigError
from cambrian.inspect import Space, wrap
from cambrian.inspect.layers import layer_table
from cambrian.inspect.sparse_conv import Geometry, SparseConv2d
from cambrian.systems.compress import guided_sparsity
from cambrian.systems.compress.guided_sparsity import Guide, Machine, Options, predict, recipe, sparsify, train_sparse
from cambrian.systems.compress.guided_sparsity._machine import Work, calibrate, interleaved
from cambrian.systems.compress.guided_sparsity.model import METHODS, LayerPlan, budget_masks, plans_of
from cambrian.systems.compress.guided_sparsity.recipe import KERNEL, Config, GuidedSparsity, GuidedSparsityStudy

FAST = Machine(flops=1e11, bandwidth=1e11, alpha=3.0, conv_flops=1e11)
SLOW_MEMORY = Machine(flops=1e11, bandwidth=1e7, alpha=3.0, conv_flops=1e11)


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=150, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


def test_the_model_is_the_papers():
    work = Work(flops=2e9, activations=4e6, weights=1e6)
    compute = predict(work, 0.1, FAST)
    assert compute.seconds_dense == pytest.approx(0.02) and compute.seconds_sparse == pytest.approx(3 * 0.1 * 0.02)
    assert compute.speedup == pytest.approx(1 / 0.3) and compute.high == pytest.approx(1 / 3)
    memory = predict(work, 0.1, Machine(1e11, 1e9, 3.0, 1e11))
    assert memory.seconds_sparse == pytest.approx((4e6 + 2 * 0.1 * 1e6) / 1e9 if 4.2e-3 > 6e-3 else 6e-3)
    x = memory.low  # where both terms meet
    assert 3.0 * x * 2e9 / 1e11 == pytest.approx((4e6 + 2.0 * x * 1e6) / 1e9)
    assert predict(work, x, Machine(1e11, 1e9, 3.0, 1e11)).seconds_sparse == pytest.approx(0.06 * x)
    over = predict(work, 0.1, Machine(1e11, 1e11, 3.0, 2e11), over="conv2d")
    assert over.speedup == pytest.approx(compute.speedup / 2) and over.high == pytest.approx(1 / 6)
    fixed = predict(Work(2e9, 4e6, 1e6, outputs=1e6), 0.1, Machine(1e11, 1e11, 3.0, 1e11, fixed=2e-9))
    assert (
        fixed.seconds_sparse == pytest.approx(0.002 + 0.006) and fixed.low == 0.0 and fixed.high == pytest.approx(0.3)
    )
    assert predict(work, 0.0, FAST).speedup < 1e3 and not predict(work, 0.1, SLOW_MEMORY).useful
    for x, over in ((1.5, "sgemm"), (0.1, "gpu")):
        with pytest.raises(ConfigError):
            predict(work, x, FAST, over=over)
    with pytest.raises(ConfigError, match="positive"):
        Machine(1e11, 0.0, 3.0, 1e11)


def test_work_is_counted_by_hand():
    layer = layer_table(nn.Conv2d(3, 4, 3, padding=1, groups=1), torch.rand(1, 3, 6, 5))[0]
    by_table, by_shape = Work.of(layer, batch=2), Work.of_conv(Geometry(3, 6, 5, (3, 3), padding=(1, 1)), 4, 2)
    assert by_table == by_shape
    assert by_shape.flops == 2 * 2 * 4 * 27 * 30 and by_shape.activations == 4 * 2 * (90 + 120)
    assert by_shape.weights == 4 * 4 * 27 and by_shape.outputs == 240


def test_calibration_is_remembered_for_this_processor(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(guided_sparsity._machine, "OUTPUTS", 8)
    made = calibrate(tmp_path / "m.json", backend="torch", repeats=1)
    assert made.flops > 1e8 and made.bandwidth > 1e8 and made.alpha > 0 and made.fixed >= 0
    monkeypatch.setattr(guided_sparsity._machine, "_measured", lambda *_: FAST)
    assert calibrate(tmp_path / "m.json", backend="torch", repeats=1) == made
    assert calibrate(backend="torch", repeats=1) == FAST
    (tmp_path / "m.json").write_text('{"who": 1}')
    assert calibrate(tmp_path / "m.json", backend="torch", repeats=1) == FAST  # of another machine: measured again
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(CheckpointError):
        calibrate(tmp_path / "m.json", backend="torch", repeats=1)


def test_timing_takes_turns_and_gives_ratios():
    calls = []
    x = torch.rand(60_000)
    runs = {
        "one": lambda: (calls.append("one"), x.sin()),
        "three": lambda: (calls.append("three"), x.sin(), x.sin(), x.sin()),
    }
    times = interleaved(runs, 9, window=0.01)
    assert 2.0 < times["three"] / times["one"] < 4.5
    assert calls.count("one") > 1.5 * calls.count("three")  # about equally long windows


def test_guided_plans_leave_out_layers_without_gain(target):
    plans = plans_of(target.module, target.example(), FAST, guided=True, fc=0.1)
    assert [p.active for p in plans.values()] == [True, True, True, True]
    assert [p.multiplier for p in plans.values()] == [1.0, 1.0, 0.1, 0.1]
    guided = plans_of(target.module, target.example(), SLOW_MEMORY, guided=True, fc=0.1)
    assert not guided["0.weight"].active and guided["0.weight"].verdict.startswith("dense")
    free = plans_of(target.module, target.example(), SLOW_MEMORY, guided=False, fc=0.1)
    assert free["0.weight"].active and free["6.weight"].multiplier == 1.0


def plan(low: float, high: float) -> LayerPlan:
    prediction = predict(Work(1.0, 0.0, 0.0), 0.5, FAST)
    return LayerPlan("conv", False, type(prediction)(1.0, low, high, 1.0, 1.0))


def test_the_guide_stops_layers_that_are_sparse_enough_and_gives_back_those_that_settle_too_dense():
    net = nn.Sequential(nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 5))
    plans = {"0.weight": plan(0.3, 0.5), "1.weight": plan(0.01, 0.5), "2.weight": plan(0.01, 0.5)}
    guide = Guide(net, plans, decay=0.0, look=1, guided=True)
    dense = net[1].weight.detach().clone()
    with torch.no_grad():
        net[0].weight[:3] = 0  # density 1/4: finer than useful
        net[1].weight[:1] = 0  # 3/4: above 1/alpha, and it will not move
        net[2].weight[:1] = 0
    guide.decide(net)
    with torch.no_grad():
        net[2].weight[:2] = 0  # still on its way
    guide.decide(net)
    assert [p.active for p in plans.values()] == [False, False, True]
    assert torch.equal(net[1].weight, dense) and not guide.state.of("0.weight").mask[:3].any()
    assert guide.pruned() == ["0.weight", "2.weight"]


def test_soft_thresholding_gives_exact_zeros_and_stopped_layers_keep_theirs():
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -0.5, 0.01, -0.01, 0.03, 0.0]]))
    plans = {"weight": LayerPlan("", True, None, 0.5)}
    guide = Guide(net, plans, decay=0.4, look=100, guided=True)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    guide.constrain_step(net, optimiser)
    assert torch.allclose(net.weight, torch.tensor([[0.48, -0.48, 0.0, 0.0, 0.01, 0.0]]))
    assert int(net.weight.count_nonzero()) == 3


def test_surgery_splices_weights_back_when_they_grow():
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0, 0.2, 1.0]]))
    guide = Guide(net, {"weight": LayerPlan("", True, None)}, decay=0.0, look=100, guided=True, surgery=True, c=0.0)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    guide.constrain_step(net, optimiser)
    assert net.weight[0, 2] == 0.0 and guide.full["weight"][0, 2] == pytest.approx(0.2)
    for _ in range(2):  # the gradient at the masked network moves the dense value under the mask
        net.weight.grad = torch.tensor([[0.0, 0.0, -0.6, 0.0]])
        optimiser.step()
        guide.constrain_step(net, optimiser)
    assert net.weight[0, 2].item() == pytest.approx(1.4)


@pytest.mark.parametrize("keep", [0.05, 0.3, 1.0])
def test_a_budget_is_met_exactly(target, keep: float):
    module = copy.deepcopy(target.module)
    guide = Guide(module, plans_of(module, target.example(), FAST, guided=True, fc=0.1), decay=0.0, look=9, guided=True)
    masks = budget_masks(module, guide, keep)
    total = sum(module.get_parameter(n).numel() for n in guide.plans)
    assert sum(int(m.sum()) for m in masks.values()) == round(keep * total)
    kept = torch.cat([module.get_parameter(n)[m].detach().abs() for n, m in masks.items()])
    lost = [module.get_parameter(n)[~m].detach().abs() for n, m in masks.items()]
    assert keep == 1.0 or kept.min() >= torch.cat(lost).max() - 1e-7
    if keep == 0.05:
        with pytest.raises(ConfigError, match="fewer weights"):
            budget_masks(module, guide, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_training_ends_sparse_with_masks_that_held(target, method: str):
    before = copy.deepcopy(target.module.state_dict())
    settings = {"steps": 30, "retrain": 10, "look": 10, "lr": 0.02, "decay": 0.3, "keep": 0.3}
    made = train_sparse(target, FAST, method=method, generator=torch.Generator().manual_seed(0), **settings)
    again = train_sparse(target, FAST, method=method, generator=torch.Generator().manual_seed(0), **settings)
    kept = [made.module.get_parameter(n) for n in made.plans]
    assert sum(int(w.count_nonzero()) for w in kept) <= round(0.3 * sum(w.numel() for w in kept))
    for name, tensor in made.state.tensors.items():
        assert not made.module.get_parameter(name)[~tensor.mask].any()
    assert all(torch.equal(a, b) for a, b in zip(made.module.parameters(), again.module.parameters(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in target.module.state_dict().items())
    assert target.metric(made.module)["accuracy"] > 0.5 and made.state.stages == ["guided-sparsity"]


def test_layers_that_cannot_gain_stay_dense(target):
    made = train_sparse(
        target, SLOW_MEMORY, steps=5, retrain=5, decay=0.5, lr=0.02, generator=torch.Generator().manual_seed(0)
    )
    rows = {row["layer"]: row for row in made.rows(target.example())}
    assert rows["0"]["density"] == rows["3"]["density"] == 1.0 and rows["6"]["density"] < 1.0
    assert made.conv_seconds(target.example()) == pytest.approx((rows["0"]["ms dense"] + rows["3"]["ms dense"]) / 1e3)


def test_sparsify_computes_the_same_network(target):
    module = copy.deepcopy(target.module)
    with torch.no_grad():
        module[3].weight.mul_(torch.rand(module[3].weight.shape) < 0.2)
    fast, x = sparsify(module, below=0.5, backend="torch"), torch.rand(3, 1, 8, 8)
    assert isinstance(fast[3], SparseConv2d) and isinstance(fast[0], nn.Conv2d) and isinstance(module[3], nn.Conv2d)
    assert torch.allclose(fast(x), module(x), atol=1e-5)


def test_speed_is_measured_where_the_layers_stand(target):
    module = copy.deepcopy(target.module)
    with torch.no_grad():
        module[3].weight.mul_(torch.rand(module[3].weight.shape) < 0.2)
    found = recipe.measured_speedups(module, target.example(), "torch")
    assert list(found) == ["3"] and found["3"][0] == pytest.approx(0.2, abs=0.05) and found["3"][1] > 0


def test_compress_writes_masks_and_hands_them_on(target, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "machine_here", lambda backend="auto": FAST)
    found = GuidedSparsity(Options(steps=20, retrain=20, keep=0.2, backend="torch")).compress(
        target, tmp_path, torch.Generator().manual_seed(0)
    )
    again = container.load(found.file, copy.deepcopy(target.module))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), found.module.parameters(), strict=True))
    row = found.rows[0]
    assert row["non-zero"] < 0.25 * row["params"] and row["kernel"] == "torch" and row["ratio"] > 2
    assert row["sparse latency ms"] > 0 and "%" in row["layers"] and set(found.figures) == {"layers", "roofline"}
    flat = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), space=target.space, classes=target.classes)
    with pytest.raises(CapabilityError, match="convolutions"):
        GuidedSparsity().compress(flat, tmp_path, torch.Generator())
    with pytest.raises(ConfigError, match="method"):
        train_sparse(target, FAST, method="magic", generator=torch.Generator())


def test_a_sparse_run_chains_with_other_compressors(monkeypatch):
    monkeypatch.setattr(recipe, "machine_here", lambda backend="auto": FAST)
    run = cambrian.train("vgg", preset="smoke", data="digits", plan="A", stages=2, width=0.1, steps=40, size=8)
    child = cambrian.compress(run, "guided-sparsity:steps=10,retrain=10,keep=0.3,backend=torch")
    state = child.target().state
    assert state.stages == ["guided-sparsity"] and any(s.mask is not None for s in state.tensors.values())
    smaller = cambrian.compress(child, "taylor-pruning:until=maps=0.8,updates=1,final=5,oracle=false,samples=32")
    weight = smaller.target().module.body.conv2_1.weight
    assert 0 < int(weight.count_nonzero()) < 0.9 * weight.numel()


def test_without_numba_the_claim_is_inconclusive_not_failed(monkeypatch, tmp_path: Path):
    def missing(backend: str) -> str:
        raise CapabilityError("the sparse kernel needs numba; run: pip install 'cambrian[fast]'")

    monkeypatch.setattr(recipe, "resolve", missing)
    found = GuidedSparsityStudy(Config()).measure(0, tmp_path, lambda done, total: None)
    assert math.isnan(found.metrics["times_conv2d"]) and "cambrian[fast]" in found.notes["backend"]
    from cambrian.engine.claims import judge

    assert judge(KERNEL, {arm: [found.metrics] * 3 for arm in KERNEL.arms}).verdict == "inconclusive"


def test_the_trained_pattern_has_the_asked_density(monkeypatch):
    monkeypatch.setattr(recipe, "OUTPUTS", 24)
    weight = recipe.trained_pattern(0.09, 32, 0)
    assert weight.shape == (24, 256, 3, 3) and int(weight.count_nonzero()) == round(0.09 * weight.numel())
