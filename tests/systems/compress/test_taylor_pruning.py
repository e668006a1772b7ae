"""Scores against explicit gates, brute force and closed forms; the pruning loop; the smaller network's life afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import mutual_info_score
from torch import nn

import cambrian
from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, surgery, wrap
from cambrian.inspect.controls import spearman
from cambrian.inspect.state import CompressionState
from cambrian.inspect.surgery import ChannelGraph
from cambrian.nn import zoo
from cambrian.systems.compress.taylor_pruning import Options, TaylorPrune, Until, criteria, prune, rank, reestimate
from cambrian.systems.compress.taylor_pruning.model import CRITERIA, Pruner, combined


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = zoo.build("vgg-small", widths=(6, 8, 10), pools=(0, 1))
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=120, lr=0.1, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def batches(target):
    return list(target.batches("train", 60, seed=1, size=25))


def rows(target, batches, layer: str):
    """Maps after `layer` `[N, C, H, W]` and their gradients of the summed loss, by hooks."""
    kept, slopes = [], []

    def hold(_m, _i, out):
        out.retain_grad()
        kept.append(out)

    handle = target.module.get_submodule(layer).register_forward_hook(hold)
    for x, y, _ in batches:
        F.cross_entropy(target.module(x), y, reduction="sum").backward()
    handle.remove()
    target.module.zero_grad()
    slopes = [z.grad for z in kept]
    return torch.cat(kept).detach(), torch.cat(slopes)


def test_taylor_is_the_gradient_of_an_explicit_gate(target, batches):
    target.module.eval()
    got = criteria.taylor(target, batches)
    assert list(got) == ["body.conv1", "body.conv2", "body.conv3"]
    for layer, act in [("body.conv1", "body.relu1"), ("body.conv3", "body.relu3")]:
        total, count = 0.0, 0
        for x, y, _ in batches:
            gates = []

            def gated(_m, _i, z, gates=gates):
                gates.append(torch.ones(*z.shape[:2], 1, 1, requires_grad=True))
                return gates[0] * z / 1.0

            handle = target.module.get_submodule(act).register_forward_hook(gated)
            loss = F.cross_entropy(target.module(x), y, reduction="sum")
            handle.remove()
            slope = torch.autograd.grad(loss, gates[0])[0].squeeze()  # [B, C], each example its own
            size = target.features(x[:1], [act])[act][0, 0].numel()
            total, count = total + (slope / size).abs().double().sum(0), count + len(x)
        assert torch.allclose(got[layer], total / count, atol=1e-6, rtol=1e-5)


def test_criterion_leaves_no_trace(target, batches):
    target.module.train().zero_grad()
    before = copy.deepcopy(target.module.state_dict())
    for name in ("taylor", "oracle", "mi"):
        getattr(criteria, name)(target, batches)
    assert target.module.training and all(p.grad is None and p.requires_grad for p in target.module.parameters())
    assert all(torch.equal(before[k], v) for k, v in target.module.state_dict().items())
    target.module.eval()


def test_the_oracle_equals_brute_force(target, batches):
    signed, size = criteria.oracle(target, batches, absolute=False), criteria.oracle(target, batches)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    base = F.cross_entropy(target.logits(x), y)
    for layer, act in [("body.conv1", "body.relu1"), ("body.conv2", "body.relu2")]:
        for k in range(len(signed[layer])):

            def without(_m, _i, z, k=k):
                z = z.clone()
                z[:, k] = 0
                return z

            handle = target.module.get_submodule(act).register_forward_hook(without)
            change = float(F.cross_entropy(target.logits(x), y) - base)
            handle.remove()
            assert float(signed[layer][k]) == pytest.approx(change, abs=2e-6)
            assert float(size[layer][k]) == abs(float(signed[layer][k]))


def test_the_oracle_sees_through_flattening_strides_and_units():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ELU(), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(45, 6), nn.Sigmoid(), nn.Linear(6, 3),
    )  # fmt: skip
    made = wrap(net, space=Space.image((1, 14, 14)), classes="abc")
    x, y = torch.rand(4, 1, 14, 14), torch.tensor([0, 1, 2, 1])
    got, base = criteria.oracle(made, [(x, y)], units=True, absolute=False), F.cross_entropy(net(x), y)
    assert list(got) == ["0", "2", "6"]
    for layer, k in [("0", 1), ("2", 4), ("6", 5)]:
        change = F.cross_entropy(surgery.remove_maps(net, {layer: [k]}, x)(x), y) - base
        assert float(got[layer][k]) == pytest.approx(change.item(), abs=2e-6)


def test_the_oracle_of_a_residual_stream_removes_the_map_everywhere():
    torch.manual_seed(0)
    net = zoo.build("resnet-mini", channels=1, classes=4).eval()
    made = wrap(net, space=Space.image((1, 16, 16)), classes="abcd")
    x, y = torch.rand(5, 1, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    got = criteria.oracle(made, [(x, y)], absolute=False)["body.block3_1.conv2"]
    base = F.cross_entropy(net(x), y)
    for k in (0, 17, 31):
        small = surgery.remove_maps(net, {"body.block3_1.conv2": [k]}, x)
        assert float(got[k]) == pytest.approx((F.cross_entropy(small(x), y) - base).item(), abs=2e-6)
    assert criteria.weight(made)["stem.conv"].allclose(
        sum(m.weight.double().flatten(1).square().mean(1) for m in (net.stem.conv, net.body.block1_1.conv2))
    )


def test_simple_criteria_by_hand(target, batches):
    z, dz = rows(target, batches, "body.relu2")
    z, dz = z.double(), dz.double()
    pairs = {
        "mean": (criteria.activation(target, batches), z.abs().mean((0, 2, 3))),
        "std": (criteria.activation(target, batches, statistic="std"), z.std((0, 2, 3), correction=0)),
        "apoz": (criteria.apoz(target, batches), 1 - (z == 0).double().mean((0, 2, 3))),
        "batch": (criteria.taylor(target, batches, absolute="batch"), (z * dz).mean((0, 2, 3)).abs()),
        "ones": (criteria.taylor(target, batches, gradient="ones"), z.mean((2, 3)).abs().mean(0)),
        "weight": (criteria.weight(target), target.module.body.conv2.weight.double().square().mean((1, 2, 3))),
    }
    for name, (scores, wanted) in pairs.items():
        assert torch.allclose(scores["body.conv2"], wanted.detach(), atol=1e-6), name
    own = criteria.taylor(target, batches)["body.conv2"]
    assert (pairs["batch"][0]["body.conv2"] <= own + 1e-9).all()  # gradients of either sign cancel
    assert pairs["batch"][0]["body.conv2"].sum() < 0.6 * own.sum()


def test_information_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(300, 3, generator=generator).double(), torch.randint(5, (300,), generator=generator)
    values[:, 1] = values[:, 1].clamp_min(0)  # a rectified map: many equal values
    values[:, 2] = labels.double()
    got = criteria.information(values, labels, 8)
    for c in range(3):
        cuts = torch.quantile(values[:, c], torch.linspace(0, 1, 9).double()[1:-1])
        place = (values[:, c].unsqueeze(1) > cuts).sum(1)
        assert float(got[c]) == pytest.approx(mutual_info_score(place, labels), abs=1e-9)
    assert got[2] > 1.2 and got[2] > got[0]


def test_obd_approaches_the_exact_diagonal():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ELU(), nn.Flatten(), nn.Linear(12, 4))
    made = wrap(net, space=Space.image((1, 4, 4)), classes="abcd")
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([1, 3])
    z = net[1](net[0](x)).detach()
    hessian = torch.autograd.functional.hessian(lambda m: F.cross_entropy(net[3](net[2](m)), y, reduction="sum"), z)
    diagonal = hessian.reshape(z.numel(), z.numel()).diagonal().view_as(z)
    exact = (z.square() * diagonal / 2).flatten(2).mean(2).mean(0)
    got = criteria.obd(made, [(x, y)], probes=1500, generator=torch.Generator().manual_seed(0))["0"]
    assert torch.allclose(got, exact.detach().double(), rtol=0.15)


def test_taylor_ranks_like_the_oracle_and_permuted_gradients_do_not(target):
    batches = list(target.batches("train", 400, seed=2, size=200))
    truth = criteria.oracle(target, batches)
    own = criteria.taylor(target, batches)
    mixed = criteria.taylor(target, batches, gradient="permuted", generator=torch.Generator().manual_seed(0))
    agree = [sum(spearman(s[n].numpy(), truth[n].numpy()) for n in truth) / len(truth) for s in (own, mixed)]
    assert agree[0] > 0.5 and agree[1] < agree[0] - 0.2


def test_ranks_are_normalised_by_layer_and_pay_for_flops():
    scores = {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.tensor([0.06, 0.08]).double()}
    assert rank(scores, l2=False) == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    assert rank(scores) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    costs = {"a": torch.tensor([1.0, 1.0]).double(), "b": torch.tensor([500.0, 0.0]).double()}
    assert rank(scores, flops=1e-3, costs=costs)[0] == ("b", 0)
    assert float(combined(scores)["a"].norm()) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="costs"):
        rank(scores, flops=1e-3)


def test_the_loop_stops_where_asked_keeps_one_map_and_leaves_the_target_alone(target):
    before = copy.deepcopy(target.module.state_dict())
    for until in ("flops=0.6", "params=0.5", "maps=0.3"):
        work = prune(target, until=Until.parse(until), updates=1, maps=3, samples=50, generator=torch.Generator())
        measure, share = until.split("=")
        assert work.sizes()[measure] <= float(share) * work.start[measure] < work.history[-2][measure]
    again = prune(target, until=Until.parse(until), updates=1, maps=3, samples=50, generator=torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), work.module.parameters(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in target.module.state_dict().items())
    last = Pruner(target, copy.deepcopy(target.module), "weight", [], torch.Generator())
    gone = last.remove(100)
    assert sum(map(len, gone.values())) == 24 - 3
    assert min(len(g) for g in ChannelGraph(last.module, target.example()).prunable().values()) == 1
    with pytest.raises(CapabilityError, match="last map"):
        last.remove(1)


def test_accuracy_stops_before_it_is_too_low(target):
    limit = target.metric(split="valid")["accuracy"] - 0.15
    work = prune(target, until=Until("accuracy", limit), updates=2, maps=2, samples=100, generator=torch.Generator())
    assert target.metric(work.module, "valid")["accuracy"] >= limit - 0.02 and work.history


@pytest.mark.parametrize("criterion", CRITERIA[:-1])
def test_every_criterion_prunes(target, criterion: str):
    work = prune(
        target,
        criterion=criterion,
        until=Until("maps", 0.8),
        updates=0,
        maps=6,
        samples=40,
        generator=torch.Generator(),
    )
    assert work.sizes()["maps"] == 18


def test_what_an_explainer_found_is_followed_while_maps_go(target):
    known = copy.copy(target)
    known.relevance = {"body.conv2": torch.arange(8.0), "body.relu9": torch.ones(3)}
    work = prune(
        known, criterion="relevance", until=Until("maps", 0.8), updates=0, maps=2, flops=0.0, samples=20,
        generator=torch.Generator(),
    )  # fmt: skip
    kept = target.module.body.conv2.weight[6:]
    assert torch.equal(work.module.body.conv2.weight[-2:, :], kept) and work.module.body.conv2.out_channels == 2
    with pytest.raises(CapabilityError, match="relevance"):
        criteria.relevance(target)


def test_batch_norm_is_estimated_anew(target, batches):
    module = copy.deepcopy(target.module).train()
    reestimate(module, batches[:2])
    with torch.no_grad():
        first = [module.body.conv1(module.normalise(b[0])) for b in batches[:2]]
    assert torch.allclose(module.body.bn1.running_mean, sum(z.mean((0, 2, 3)) for z in first) / 2, atol=1e-6)
    assert module.training and module.body.bn1.training and module.body.bn1.momentum == 0.1


def test_masks_of_an_earlier_stage_hold_and_shrink_with_their_layers(target):
    masked = target.replaced(copy.deepcopy(target.module), CompressionState(stages=["magnitude"]))
    weight = masked.module.body.conv2.weight
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masked.state.prune(masked.module, "body.conv2.weight", keep)
    work = prune(
        masked, until=Until("maps", 0.7), updates=2, maps=4, final=2, samples=40, lr=0.05, generator=torch.Generator()
    )
    small, mask = work.module.body.conv2.weight, work.state.of("body.conv2.weight").mask
    assert mask.shape == small.shape and torch.equal(small != 0, mask) and small.numel() < weight.numel()
    assert work.state.stages == ["magnitude", "taylor-pruning"]
    assert torch.equal(masked.state.of("body.conv2.weight").mask, keep)


def test_bad_settings_and_inputs_are_typed_errors(target):
    for text in ("flops", "flops=x", "time=0.5", "flops=0", "flops=1.5"):
        with pytest.raises(ConfigError, match="until"):
            Options(until=text)
    with pytest.raises(ConfigError, match="compare"):
        Options(compare=("magic",))
    with pytest.raises(DataError, match="batch"):
        criteria.taylor(target, [])
    with pytest.raises(ShapeError, match="NaN"):
        criteria.taylor(target, [(torch.full((1, 1, 8, 8), float("nan")), torch.zeros(1, dtype=torch.int64))])
    with pytest.raises(ConfigError, match="absolute"):
        criteria.taylor(target, [], absolute="never")
    flat = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), space=target.space, classes=target.classes)
    with pytest.raises(CapabilityError, match="feature maps"):
        criteria.weight(flat)


def test_a_pruned_run_is_a_run_for_the_other_verbs(tmp_path: Path):
    run = cambrian.train("vgg", preset="smoke", data="digits", plan="A", stages=2, width=0.1, steps=60, size=8)
    child = cambrian.compress(run, "taylor-pruning:until=maps=0.5,maps=6,updates=2,final=20,samples=64,compare=weight")
    first, second = child.info["rows"]
    assert first["criterion" if "criterion" in first else "chain"].endswith("taylor")
    assert second["chain"].endswith("weight") and first["maps left"] <= 0.5 and -1 <= first["spearman per layer"] <= 1
    assert first["bytes"] == (child.path / child.info["file"]).stat().st_size and first["ratio"] > 1.5
    small = child.target()
    assert sum(p.numel() for p in small.module.parameters()) == first["params"]
    assert small.metric()["accuracy"] == pytest.approx(first["accuracy after"])
    attacked = cambrian.attack(child, "fgsm:eps=0.3", n=32)
    assert attacked.info["rows"][0]["method"] == "fgsm"
    again = cambrian.compress(child, "inq:steps=2")
    assert again.target().module.body.conv1_1.out_channels == small.module.body.conv1_1.out_channels
    assert {"tradeoff", "ranks", "widths"} <= {p.stem for p in child.artifacts.glob("*.png")}


def test_compress_returns_what_its_file_holds(target, tmp_path: Path):
    found = TaylorPrune(Options(until="flops=0.6", updates=1, maps=4, final=5, samples=50)).compress(
        target, tmp_path, torch.Generator().manual_seed(0)
    )
    again = surgery.load(found.file, target.module)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), found.module.parameters(), strict=True))
    assert found.rows[0]["flops left"] <= 0.6 and found.rows[0]["MACs"] * 2e-6 == pytest.approx(found.rows[0]["MFLOPs"])
