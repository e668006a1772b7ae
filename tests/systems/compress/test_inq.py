"""Powers of two: the rounding by brute force, frozen weights bit for bit, shift-add arithmetic, the file, and the loop."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from cambrian.codec import container
from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect import Space, wrap
from cambrian.inspect.size import weight_names
from cambrian.inspect.state import CompressionState
from cambrian.systems.compress import inq
from cambrian.systems.compress.inq import INQ, Config, INQStudy, Options, Powers, Quantiser, ShiftLayer, quantise


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=60, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize(
    ("top", "bits", "high", "low"),
    [(0.5, 3, -1, -2), (0.5, 5, -1, -8), (0.5, 2, -1, -1), (0.74, 5, -1, -8), (0.75, 5, 0, -7), (3.0, 4, 2, -1)],
)
def test_exponents_follow_equations_2_and_3(top: float, bits: int, high: int, low: int):
    powers = Powers.of(torch.tensor([0.01, -top]), bits)
    assert (powers.high, powers.low) == (high, low)
    assert len(powers.alphabet()) == 2 ** (bits - 1) + 1
    assert torch.equal(powers.alphabet(), powers.alphabet().sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_rounding_is_the_nearest_value_with_ties_away_from_zero(dtype: torch.dtype, bits: int):
    weight = torch.randn(500, generator=torch.Generator().manual_seed(bits)).to(dtype)
    powers = Powers.of(weight, bits)
    ties = 0.75 * 2.0 ** torch.arange(powers.low + 1, powers.high + 1)
    small = torch.tensor([2.0 ** (powers.low - 1), 0.49 * 2.0**powers.low, 0.0, -0.0, 1e-42])
    weight = torch.cat([weight, ties.to(dtype), -ties.to(dtype), small.to(dtype)])
    values = powers.alphabet().double()
    gaps = (weight.double()[:, None] - values).abs()
    # of equally near values take the one of larger magnitude: eq. 4 includes the lower boundary
    best = torch.where(gaps == gaps.amin(1, keepdim=True), values.abs(), -1.0).argmax(1)
    magnitude = values[best].abs() * weight.double().sign()
    assert torch.equal(powers.round(weight).double(), magnitude + 0.0)
    assert powers.round(weight).dtype == dtype


def test_rounding_in_the_log_domain_would_differ():
    powers = Powers.of(torch.tensor([1.0]), 5)
    between = torch.tensor([0.72])  # below the linear midpoint 0.75, above the geometric one 0.707
    assert float(powers.round(between)) == 0.5


def test_a_weight_that_outgrew_the_alphabet_is_clamped_and_empty_layers_are_refused():
    powers = Powers(0, -3)
    assert powers.round(torch.tensor([5.0, -1.6])).tolist() == [1.0, -1.0]
    for bad in (torch.zeros(3), torch.tensor([1.0, float("nan")])):
        with pytest.raises(DataError):
            Powers.of(bad, 5)


def test_portions_are_exact_despite_ties_and_take_the_largest_first():
    net = nn.Linear(8, 5, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.3)
        net.weight[0].fill_(0.4)
    work = Quantiser(net, 5, "magnitude", torch.Generator())
    counts = []
    for portion in (0.2, 0.5, 1.0):
        work.advance(portion)
        counts.append(int(work.state.of("weight").frozen.sum()))
        if portion == 0.2:
            assert bool(work.state.of("weight").frozen[0].all())
    assert counts == [8, 20, 40]


def test_frozen_weights_stay_bit_identical_over_the_rounds_and_end_in_the_alphabet(target):
    work = Quantiser(copy.deepcopy(target.module), 3, "random", torch.Generator().manual_seed(0))
    held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for portion in (0.3, 0.7, 1.0):
        work.advance(portion)
        for name, (where, values) in held.items():
            assert torch.equal(work.module.get_parameter(name)[where], values)
        if portion < 1:
            target.finetune(work.module, steps=3, constraint=work.state, generator=torch.Generator().manual_seed(1))
        for name in weight_names(work.module):
            where = work.state.of(name).frozen
            held[name] = where, work.module.get_parameter(name).detach()[where].clone()
    for name, powers in work.powers.items():
        assert torch.isin(work.module.get_parameter(name), powers.alphabet()).all()
    assert not torch.isin(work.module[4].bias, work.powers["4.weight"].alphabet()).all()


def test_pruned_weights_keep_their_mask_and_do_not_count_in_the_portions(target):
    pruned, state = copy.copy(target), CompressionState(stages=["magnitude"])
    pruned.module = copy.deepcopy(target.module)
    name = weight_names(pruned.module)[1]
    weight = pruned.module.get_parameter(name)
    keep = weight.detach().abs() > weight.detach().abs().median()
    state.prune(pruned.module, name, keep)
    work, _ = quantise(pruned, bits=4, portions=(0.5, 1.0), steps=3, state=state, generator=torch.Generator())
    assert not work.module.get_parameter(name)[~keep].any() and work.state.stages == ["magnitude", "inq"]
    first = Quantiser(copy.deepcopy(pruned.module), 4, "magnitude", torch.Generator(), copy.deepcopy(state))
    first.advance(0.5)
    assert int((first.state.of(name).frozen & keep).sum()) == round(0.5 * int(keep.sum()))


@pytest.mark.parametrize("bits", [2, 5])
def test_shift_and_add_equals_the_float_layer_exactly(bits: int):
    generator = torch.Generator().manual_seed(bits)
    conv, linear = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(6, 5, bias=False)
    images = torch.randint(256, (2, 3, 7, 7), generator=generator).double() / 256
    vectors = torch.randint(-300, 300, (4, 6), generator=generator).double() / 256
    for layer, x in ((conv, images), (linear, vectors)):
        powers = Powers.of(layer.weight, bits)
        with torch.no_grad():
            layer.weight.copy_(powers.round(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_((layer.bias * 64).round() / 64)
        assert torch.equal(ShiftLayer(layer, powers)(x), layer.double()(x))
    with pytest.raises(CapabilityError):
        ShiftLayer(nn.Conv2d(4, 4, 3, groups=2), Powers(0, -3))


def test_compress_writes_a_file_that_is_the_network(target, tmp_path: Path):
    before = copy.deepcopy(target.module.state_dict())
    found = INQ(Options(steps=10)).compress(target, tmp_path, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    again = container.load(found.file, copy.deepcopy(target.module))
    assert all(torch.equal(found.module.state_dict()[name], t) for name, t in again.state_dict().items())
    once, row = found.rows
    assert row["bytes"] == found.file.stat().st_size and row["ratio"] > 3 and row["bits/weight"] < 6
    assert row["accuracy after"] >= row["accuracy before"] - 0.05 and row["accuracy after"] >= once["accuracy after"]
    assert 4 < row["paper's bits/weight"] <= 5 and row["retrain steps"] == 30
    assert set(found.figures) == {"exponents", "rounds"}


def test_the_last_round_does_not_retrain_and_bad_portions_are_refused(target):
    calls: list[int] = []
    spy = copy.copy(target)
    spy.finetune = lambda module, **settings: calls.append(settings["steps"])
    _, rows = quantise(spy, portions=(0.4, 0.9, 1.0), steps=7, generator=torch.Generator())
    assert calls == [7, 7] and [row["portion"] for row in rows] == [0.4, 0.9, 1.0]
    for portions in ((0.5,), (0.5, 0.4, 1.0), (0.0, 1.0), (1.0, 1.0)):
        with pytest.raises(ConfigError, match="portions"):
            Options(portions=portions)


def test_the_study_compares_with_the_better_of_the_two_float_networks(target, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(inq, "_target", lambda steps, seed: target)
    for rate in (0.001, 3.0):  # the second ruins the retrained float network, which must not help INQ
        found = INQStudy(Config(steps=2, portions=(0.5, 1.0), lr=rate)).measure(0, tmp_path, lambda done, total: None)
        best = max(found.metrics["float"], found.metrics["original"])
        assert found.metrics["against_best_float"] == found.metrics["accuracy"] - best
    assert found.metrics["float"] < found.metrics["original"]
