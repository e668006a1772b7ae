"""Masks, shared weights and their gradients against brute force and autograd; the file; the stages; the study."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cambrian.codec import container
from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect import Space, wrap
from cambrian.inspect.size import weight_names
from cambrian.inspect.state import CompressionState
from cambrian.systems.compress import deep_compression as dc
from cambrian.systems.compress.deep_compression import DeepCompression, Options, recipe
from cambrian.systems.compress.deep_compression._pictures import PARTS, byte_parts


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=150, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 1.0])
def test_a_density_keeps_exactly_the_largest_even_among_ties(density: float):
    weight = torch.randn(30, 7, generator=generator())
    weight[3:9] = 0.25
    mask = dc.magnitude_mask(weight, density=density)
    kept, lost = weight[mask].abs(), weight[~mask].abs()
    assert int(mask.sum()) == max(1, round(density * 210)) and (not len(lost) or kept.min() >= lost.max())


def test_a_threshold_counts_standard_deviations_of_what_is_left():
    weight = torch.tensor([0.0, 0.0, 1.0, -1.0, 3.0, -3.0])
    assert dc.magnitude_mask(weight, q=0.5).tolist() == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]  # std of the four: sqrt 5
    assert dc.magnitude_mask(weight, q=0.4).tolist() == [False, False, True, True, True, True]
    assert not dc.magnitude_mask(torch.zeros(3), q=1.0).any()


@pytest.mark.parametrize("bad", [{}, {"density": 0.5, "q": 1.0}, {"density": 0.0}, {"density": 1.1}, {"q": -1.0}])
def test_impossible_limits_are_refused(bad: dict):
    with pytest.raises(ConfigError):
        dc.magnitude_mask(torch.randn(4), **bad)
    with pytest.raises(DataError):
        dc.magnitude_mask(torch.tensor([1.0, float("nan")]), density=0.5)


def test_pruned_weights_stay_zero_survivors_go_on_and_nothing_else_is_pruned(target):
    module, state = copy.deepcopy(target.module), CompressionState()
    rows = dc.prune(target, module, state, densities=dict.fromkeys(weight_names(module), 0.2), rounds=2, steps=9,
                    lr=0.05, generator=generator(), factory=torch.optim.Adam, lr_scale=0.1)  # fmt: skip
    assert [row["density"] for row in rows] == pytest.approx([0.2**0.5, 0.2], rel=0.05)
    first = {
        name: dc.magnitude_mask(target.module.get_parameter(name), density=0.2**0.5) for name in weight_names(module)
    }
    for name in weight_names(module):
        weight, mask = module.get_parameter(name), state.of(name).mask
        assert torch.equal(weight != 0, mask) and not (mask & ~first[name]).any()  # each round prunes what is left
        assert not torch.equal(weight[mask], target.module.get_parameter(name)[mask])
    assert all(name.endswith(("0.weight", "4.weight", "8.weight", "10.weight")) for name in state.tensors)
    assert module[4].bias.count_nonzero() == 12 and state.stages == ["prune"]


def test_thresholds_rise_to_q_of_the_original_deviations(target):
    module, state = copy.deepcopy(target.module), CompressionState()
    dc.prune(
        target, module, state, q=dict.fromkeys(weight_names(module), 1.0), rounds=3, steps=0, generator=generator()
    )
    for name in weight_names(module):
        weight = target.module.get_parameter(name).detach()
        assert torch.equal(state.of(name).mask, weight.abs() > weight.std(correction=0))


def test_a_layer_that_loses_everything_is_named():
    module = nn.Sequential(nn.Linear(3, 2))
    with pytest.warns(UserWarning, match=r"'0\.weight' is pruned completely"):
        dc.prune_once(module, CompressionState(), {"0.weight": {"q": 50.0}})
    state = CompressionState()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dc.prune_once(module, state, {"0.weight": {"q": 50.0}})
    dc.share_weights(module, state, {"0.weight": 2})
    assert not module[0].weight.any() and state.of("0.weight").codebook.tolist() == [0.0]


def test_dropout_falls_with_the_connections_that_are_left(target):
    module, state = copy.deepcopy(target.module), CompressionState()
    dc.prune_once(module, state, {"8.weight": {"density": 0.25}})
    with dc.scaled_dropout(module, state):
        assert module[7].p == pytest.approx(0.2 * 0.5, rel=1e-3)
    assert module[7].p == 0.2


def test_sharing_clusters_the_survivors_alone_and_reserves_zero(target):
    module, state = copy.deepcopy(target.module), CompressionState()
    dc.prune_once(module, state, {"8.weight": {"density": 0.3}})
    dc.share_weights(module, state, {"8.weight": 3, "10.weight": 2})
    pruned, whole = state.of("8.weight"), state.of("10.weight")
    assert pruned.codebook[0] == 0 and len(pruned.codebook) <= 9 and len(whole.codebook) == 4
    assert torch.equal(pruned.index == 0, ~pruned.mask) and (pruned.codebook[1:] != 0).all()
    assert pruned.codebook[1:].abs().min() > 0.5 * target.module[8].weight[pruned.mask].abs().min()
    for name, of in (("8.weight", pruned), ("10.weight", whole)):
        assert torch.equal(module.get_parameter(name), of.codebook[of.index])
    with pytest.raises(ConfigError, match="prune before"):
        dc.prune_once(module, state, {"8.weight": {"density": 0.1}})
    for bits in (0, 17):
        with pytest.raises(ConfigError, match="bits"):
            dc.share_weights(module, CompressionState(), {"4.weight": bits})


def test_the_gradient_of_a_shared_value_equals_autograd_through_the_codebook(target):
    module, state = copy.deepcopy(target.module).double().eval(), CompressionState()
    dc.prune_once(module, state, {"4.weight": {"density": 0.4}})
    dc.share_weights(module, state, {"4.weight": 3, "8.weight": 2})
    x, y, _ = next(target.batches("train", 40))
    books = {name: state.of(name).codebook.clone().requires_grad_() for name in ("4.weight", "8.weight")}
    tied = {name: book[state.of(name).index] for name, book in books.items()}
    loss = F.cross_entropy(torch.func.functional_call(module, tied, (x.double(),)), y)
    wanted = dict(zip(books, torch.autograd.grad(loss, list(books.values())), strict=True))
    F.cross_entropy(module(x.double()), y).backward()
    state.constrain_gradients(module)
    for name, of in ((name, state.of(name)) for name in books):
        grad, start = module.get_parameter(name).grad, int(of.mask is not None)
        for k in range(start, len(of.codebook)):
            assert torch.allclose(grad[of.index == k], wanted[name][k], rtol=1e-6, atol=1e-10)
        assert of.mask is None or not grad[~of.mask].any()


def test_shared_values_are_trained_without_decay_and_stay_shared(target):
    module, state = copy.deepcopy(target.module), CompressionState()
    names = weight_names(module)
    dc.prune_once(module, state, {name: {"density": 0.3} for name in names})
    dc.share(target, module, state, dict.fromkeys(names, 3), steps=0, generator=generator())
    before, books = target.metric(module)["loss"], {name: state.of(name).codebook.clone() for name in names}
    state.stages.clear()
    index = {name: state.of(name).index.clone() for name in names}
    settings = {"factory": torch.optim.Adam, "lr": 2e-3, "lr_scale": 1.0, "weight_decay": 0.0}
    target.finetune(module, steps=40, constraint=state, generator=generator(), **settings)
    assert target.metric(module)["loss"] < before
    for name in names:
        of = state.of(name)
        assert torch.equal(module.get_parameter(name), of.codebook[of.index]) and torch.equal(of.index, index[name])
        assert of.codebook[0] == 0 and not torch.equal(of.codebook, books[name])


def test_the_rate_of_equation_1():
    assert dc.sharing_rate(16, 4) == pytest.approx(3.2)  # figure 3 of the paper: 16 weights, 4 values


def test_a_scan_prunes_one_layer_at_a_time_and_chooses_the_lowest_good_density(target):
    levels = (0.05, 0.4, 1.0)
    scan = dc.sensitivity(target, levels)
    whole = target.metric(split="valid")["accuracy"]
    assert all(row[-1] == whole and row[0] <= row[-1] + 0.03 for row in scan.values()) and len(scan) == 4
    assert dc.choose_densities({"a": [0.2, 0.89, 0.9], "b": [0.1, 0.2, 0.3]}, levels, 0.9, 0.02) == {"a": 0.4, "b": 1.0}


def test_compress_gives_rows_files_and_the_same_network_back(target, tmp_path: Path):
    before = copy.deepcopy(target.module.state_dict())
    options = Options(density=0.3, densities=("0=0.9",), rounds=2, steps=60, conv_bits=5, fc_bits=4, share_steps=30)
    made = DeepCompression(options).compress(target, tmp_path, generator())
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    chains = [row["chain"] for row in made.rows]
    assert chains == ["original", "prune", "prune+share", "prune+share+huffman"]
    sizes = [row["bytes"] for row in made.rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == made.file.stat().st_size
    assert made.rows[-1]["accuracy after"] > made.rows[-1]["accuracy before"] - 0.05
    assert [row["retrain steps"] for row in made.rows] == [0, 60, 90, 90]
    again = container.load(made.file, copy.deepcopy(target.module))
    assert all(torch.equal(made.module.state_dict()[name], t) for name, t in again.state_dict().items())
    parts = byte_parts(made.file)
    assert sum(parts.values()) == sizes[-1] and set(parts) == set(PARTS) and min(parts.values()) > 0
    assert set(made.figures) == {"bytes", "layers", "weights"} and made.state.stages == ["prune", "share"]


def test_the_table_of_layers_counts_what_the_file_holds(target, tmp_path: Path):
    made = DeepCompression(Options(density=0.1, steps=0, share_steps=0)).compress(target, tmp_path, generator())
    entries = {entry["name"]: entry for entry in container.inspect(made.file)["tensors"]}
    for row in dc.layer_rows(made.module, made.state):
        entry, kept = entries[f"{row['layer']}.weight"], row["weights"] * row["density"] + row["fillers"]
        coded = (row["index bits coded"] + row["weight bits coded"]) * kept / 8
        book = 4 * entry["symbols"]
        assert entry["entries"] == round(kept) and entry["gap"] == row["index bits"]
        assert coded <= entry["bytes"] - book + 1 and entry["bytes"] - book - coded < 80  # tables of code lengths
        assert row["entropy"] <= row["weight bits coded"] + 1e-9 < row["entropy"] + 1
        assert row["index bits coded"] <= row["index bits"]


def test_without_pruning_it_is_k_means_and_huffman_and_without_bits_it_is_pruning(target, tmp_path: Path):
    whole = DeepCompression(Options(density=1.0, steps=5, conv_bits=3, fc_bits=2, share_steps=0))
    assert whole.stages() == ("quantise",)
    made = whole.compress(target, tmp_path, generator())
    assert [row["chain"] for row in made.rows] == ["original", "share", "share+huffman"]
    assert made.rows[-1]["non-zero"] == made.rows[0]["non-zero"]
    pruning = DeepCompression(Options(density=0.5, steps=0, conv_bits=0, fc_bits=0))
    assert pruning.stages() == ("prune",) and len(pruning.compress(target, tmp_path, generator()).rows) == 2


def test_a_scan_and_q_are_other_ways_to_choose(target, tmp_path: Path):
    scanned = DeepCompression(Options(scan_drop=0.05, steps=0, share_steps=0, rounds=1)).compress(
        target, tmp_path, generator()
    )
    by_q = DeepCompression(Options(q=0.5, steps=0, share_steps=0, rounds=1)).compress(target, tmp_path, generator())
    assert scanned.rows[1]["non-zero"] < scanned.rows[0]["non-zero"] > by_q.rows[1]["non-zero"]


def test_bad_options_and_networks_are_refused(target, tmp_path: Path):
    for bad in ({"densities": ("0",)}, {"densities": ("0=2",)}, {"density": 0.0}, {"fc_bits": 17}, {"init": "random"}):
        with pytest.raises(ConfigError):
            Options(**bad)
    with pytest.raises(ConfigError, match="no layer 'fc9'"):
        DeepCompression(Options(densities=("fc9=0.1",))).compress(target, tmp_path, generator())
    data = {"train": (torch.rand(8, 3), torch.zeros(8, dtype=torch.int64)), "test": (torch.rand(8, 3), torch.zeros(8, dtype=torch.int64))}  # fmt: skip
    bare = wrap(nn.BatchNorm1d(3), space=Space.vector(3, 0, 1), classes="abc", data=data)
    with pytest.raises(CapabilityError, match="no convolution or linear"):
        DeepCompression().compress(bare, tmp_path, generator())


def test_the_study_measures_bytes_and_the_sabotage_costs_them(target, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "PROPORTIONS", {"lenet-5": (8.0, 1.5, 1.0, 2.4)})
    monkeypatch.setattr(recipe, "trained", lambda *a, **k: type("R", (), {"target": lambda self: target})())
    found = {}
    for method, density in (("chain", 0.1), ("chain", 1.0), ("prune", 0.1), ("share", 0.1)):
        config = recipe.Config(method=method, nets=("lenet-5",), cnn_steps=6, cnn_density=density, rounds=1)
        found[method, density] = (
            recipe.DeepCompressionStudy(config).measure(0, tmp_path, lambda done, total: None).metrics
        )
    size = (tmp_path / "lenet-5.cmb").stat().st_size
    original = sum(4 * p.numel() for p in target.module.parameters())
    assert found["share", 0.1]["share"] == pytest.approx(size / original)
    assert (
        found["chain", 0.1]["share"] < found["prune", 0.1]["share"] and found["chain", 1.0]["share"] >= size / original
    )
    least = min(found["prune", 0.1]["file lenet-5"], found["prune", 0.1]["xz lenet-5"])
    assert found["prune", 0.1]["ratio lenet-5"] == pytest.approx(original / least)
    assert np.isfinite(list(found["chain", 0.1].values())).all()
