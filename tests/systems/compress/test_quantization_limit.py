"""Levels for all layers at once: the second-order prediction, ratios, the shared codebook's training, files and chains."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cambrian.codec import container
from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect import Space, wrap
from cambrian.inspect.curvature import floored, hessian_diag
from cambrian.inspect.kmeans1d import kmeans1d_global
from cambrian.inspect.size import weight_names
from cambrian.inspect.state import CompressionState
from cambrian.systems.compress import quantization_limit as ql
from cambrian.systems.compress.deep_compression import prune_once
from cambrian.systems.compress.quantization_limit import recipe
from cambrian.systems.compress.quantization_limit.recipe import Options, QuantizationLimit


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=300, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def diagonal(target):
    made = hessian_diag(target, weight_names(target.module), n=1400, generator=torch.Generator().manual_seed(0))
    return floored(made)


def test_one_codebook_serves_all_layers_and_every_weight_is_in_it(target, diagonal):
    for method in ql.METHODS:
        made = ql.quantise(target, method, diagonal=diagonal, k=12, lam=1e-6)
        weights = [made.module.get_parameter(name) for name in weight_names(made.module)]
        assert torch.isin(torch.cat([w.flatten() for w in weights]), made.book.codebook).all()
        assert len(made.clusters.codebook) <= 12
        before, after = target.module.state_dict(), made.module.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in before if n not in weight_names(made.module))
        flat = made.weights.join({name: made.module.get_parameter(name) for name in made.weights.names})
        assert np.allclose(flat, made.clusters.codebook[made.clusters.index], atol=1e-6)


def test_global_k_means_is_at_the_optimum_of_its_own_aim(target, diagonal):
    plain = ql.quantise(target, "kmeans", k=8)
    weighted = ql.quantise(target, "hkmeans", diagonal=diagonal, k=8)
    values, h = plain.weights.values, plain.weights.join(diagonal)
    for made in (plain, weighted):
        lloyd = ql.quantise(target, (made is plain and "kmeans") or "hkmeans", diagonal=diagonal, k=8, search="lloyd")
        assert made.clusters.inertia <= lloyd.clusters.inertia + 1e-12
    assert ql.predicted_increase(values, weighted.clusters, h) <= ql.predicted_increase(values, plain.clusters, h)
    assert ql.predicted_increase(values, weighted.clusters, h) == pytest.approx(weighted.clusters.inertia / 2)
    assert np.array_equal(kmeans1d_global(values, 8).index, plain.clusters.index)


def test_equal_curvature_is_plain_k_means_bit_for_bit(target):
    ones = {name: torch.ones_like(target.module.get_parameter(name)) for name in weight_names(target.module)}
    for method, other in (("kmeans", "hkmeans"), ("uniform", "huniform")):
        a, b = ql.quantise(target, method, k=10), ql.quantise(target, other, diagonal=ones, k=10)
        assert np.array_equal(a.clusters.codebook, b.clusters.codebook)
        assert all(torch.equal(p, q) for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True))


def test_a_price_of_zero_makes_ecsq_hessian_k_means(target, diagonal):
    weights = ql.Weights.of(target.module)
    h = weights.join(diagonal)
    free = ql.cluster(weights.values, "ecsq", h=h, k=9, lam=0.0)
    start = ql.cluster(weights.values, "huniform", h=h, k=9).codebook
    from cambrian.inspect.kmeans1d import kmeans1d

    lloyd = kmeans1d(weights.values, len(start), weights=h, init=start)
    assert free.inertia == pytest.approx(lloyd.inertia, rel=1e-3)
    lengths = [ql.code_lengths(c.index, len(c.codebook))[1] for c in
               (ql.cluster(weights.values, "ecsq", h=h, k=40, lam=lam) for lam in (0.0, 1e-7, 1e-5, 1e-3))]  # fmt: skip
    assert lengths == sorted(lengths, reverse=True)


def test_the_prediction_is_within_a_factor_of_three_where_the_loss_hardly_moves(target, diagonal):
    rows = ql.sweep(target, "hkmeans", (40, 60, 100), diagonal=diagonal, split="train")
    close = [row for row in rows if 1e-5 < row["increase"] < 0.05]
    assert close and all(1 / 3 < row["predicted"] / row["increase"] < 3 for row in close), rows


def test_the_ratio_counts_lengths_tables_and_levels():
    index = np.array([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2)
    assert ql.code_lengths(index, 4) == (2, 28 / 16)  # lengths 1, 2, 3, 3
    assert ql.compression_ratio(index, 4) == pytest.approx(32 / (28 / 16 + (9 + 4 * 32) / 16))
    assert ql.compression_ratio(index, 4, coded=False) == pytest.approx(32 / (2 + 4 * 32 / 16))


def test_the_gradient_of_a_level_is_the_sum_over_all_layers(target, diagonal):
    made = ql.quantise(target, "kmeans", k=6)
    module, names = made.module.double().eval(), weight_names(made.module)
    book = made.book.codebook.double().requires_grad_()
    made.book.codebook = book.detach()
    x, y, _ = next(target.batches("train", 50))
    tied = {name: book[made.book.index[name]] for name in names}
    (wanted,) = torch.autograd.grad(F.cross_entropy(torch.func.functional_call(module, tied, (x.double(),)), y), book)
    F.cross_entropy(module(x.double()), y).backward()
    made.book.constrain_gradients(module)
    for name in names:
        assert torch.allclose(module.get_parameter(name).grad, wanted[made.book.index[name]], rtol=1e-6, atol=1e-10)


def test_training_the_levels_lowers_the_loss_and_keeps_them_shared(target):
    made = ql.quantise(target, "kmeans", k=5)
    before, index = target.metric(made.module, "train")["loss"], copy.deepcopy(made.book.index)
    ql.tune(target, made, steps=40, lr=1e-3, generator=torch.Generator().manual_seed(0))
    assert target.metric(made.module, "train")["loss"] < before
    for name, where in index.items():
        assert torch.equal(made.module.get_parameter(name), made.book.codebook[where])
        assert torch.equal(where, made.book.index[name])


@pytest.mark.parametrize("code", ["huffman", "fixed"])
def test_compress_stores_what_it_says_and_reads_it_back(target, tmp_path: Path, code: str):
    before = copy.deepcopy(target.module.state_dict())
    options = Options(k=24, samples=100, steps=10, code=code)
    made = QuantizationLimit(options).compress(target, tmp_path, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    plain, rounded, tuned = made.rows
    assert tuned["bytes"] == made.file.stat().st_size and tuned["retrain steps"] == 10
    assert plain["levels"] <= 24 and rounded["predicted"] > 0 and rounded["huffman bits"] <= rounded["fixed bits"]
    again = container.load(made.file, copy.deepcopy(target.module))
    assert all(torch.equal(made.module.state_dict()[name], t) for name, t in again.state_dict().items())
    kinds = {entry["kind"] for entry in container.inspect(made.file)["tensors"]}
    assert ("huffman" in kinds) == (code == "huffman") and made.state.quantised


def test_pruned_weights_stay_zero_and_only_survivors_are_clustered(target, tmp_path: Path):
    module, state = copy.deepcopy(target.module), CompressionState(stages=["prune"])
    prune_once(module, state, {name: {"density": 0.4} for name in weight_names(module)[1:]})
    pruned = target.replaced(module, state)
    made = QuantizationLimit(Options(k=12, samples=100, steps=8)).compress(
        pruned, tmp_path, torch.Generator().manual_seed(0)
    )
    for name in weight_names(module)[1:]:
        assert torch.equal(made.module.get_parameter(name) != 0, state.of(name).mask)
    assert made.state.stages == ["prune", "quantise"] and made.rows[-1]["position bits"] > 0
    entries = {entry["name"]: entry["kind"] for entry in container.inspect(made.file)["tensors"]}
    assert [entries[name] for name in weight_names(module)] == ["huffman", "sparse", "sparse"]
    with pytest.raises(ConfigError, match="quantised already"):
        QuantizationLimit().compress(target.replaced(made.module, made.state), tmp_path, torch.Generator())


def test_bits_are_read_off_the_curve_where_it_last_crosses():
    points = [(2.0, 1.0), (3.0, 0.01), (4.0, 0.1), (5.0, 0.001)]
    assert ql.bits_at(points, 0.01) == pytest.approx(4.5)
    assert ql.bits_at([(1.0, 1.0), (2.0, 0.01)], 0.1) == pytest.approx(1.5)
    assert math.isnan(ql.bits_at([(1.0, 1.0)], 0.1)) and math.isnan(ql.bits_at([(1.0, 0.01), (2.0, 0.001)], 0.1))
    assert ql.bits_at([(6.0, 0.2), (6.0, 0.01), (6.0, 0.3)], 0.1) == 6.0  # a fixed-length code: the best of equal bits


def test_bad_input_is_refused(target, diagonal, tmp_path: Path):
    values = np.arange(5.0)
    for method, settings in (("median", {}), ("hkmeans", {}), ("ecsq", {}), ("kmeans", {"k": 0})):
        with pytest.raises(ConfigError):
            ql.cluster(values, method, **settings)
    with pytest.raises(ConfigError, match="levels"):
        ql.Config(levels=(1,))
    bare = wrap(nn.Sequential(nn.BatchNorm1d(3)), space=Space.vector(3, 0, 1), classes="abc")
    with pytest.raises(CapabilityError):
        QuantizationLimit().compress(bare, tmp_path, torch.Generator())


def test_the_study_and_its_sabotage(target, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "trained", lambda *a, **k: type("R", (), {"target": lambda self: target})())

    def measure(**settings) -> dict[str, float]:
        config = ql.Config(levels=(6, 8), samples=300, **settings)
        return ql.QuantizationLimitStudy(config).measure(0, tmp_path, lambda done, total: None).metrics

    plain, ones = measure(method="kmeans"), measure(weights="ones")
    assert plain["increase"] == ones["increase"]
    mixed, real = measure(weights="permuted"), measure()
    assert mixed != real and all(math.isfinite(v) for v in {**mixed, **real}.values())
    monkeypatch.setitem(recipe.LEVELS, "uniform", (4, 8, 16, 32, 64))
    found = measure(experiment="bits", method="uniform", increase=0.1)
    assert found["bits 4"] < found["bits"] < found["bits 64"]
    with pytest.raises(ConfigError, match="does not cross"):
        measure(experiment="bits", method="uniform", increase=1e3)
