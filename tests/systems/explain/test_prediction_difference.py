"""Prediction difference: the conditional against brute force, the estimate against quadrature, and one patch at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.systems.explain.prediction_difference import (
    PDA,
    Conditional,
    Constant,
    Marginal,
    PatchGaussian,
    log_odds,
    patch_corners,
)
from cambrian.systems.explain.prediction_difference._pictures import crowded, scenes
from cambrian.systems.explain.prediction_difference.model import spread
from cambrian.systems.explain.prediction_difference.recipe import (
    Config,
    Options,
    PredictionDifference,
    PredictionDifferenceStudy,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_gaussian(channels: int = 2, window: int = 4, seed: int = 0, ridge: float = 0.0) -> PatchGaussian:
    size = channels * window * window
    root = torch.randn(size, size, generator=gen(seed), dtype=torch.float64) / size**0.5
    mean = torch.rand(size, generator=gen(seed + 1), dtype=torch.float64)
    return PatchGaussian(mean, root @ root.T + 0.1 * torch.eye(size), channels=channels, window=window, ridge=ridge)


def make_target(channels: int = 3, side: int = 12, classes: int = 4):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(6 * (side // 2) ** 2, classes),
    )  # fmt: skip
    x = torch.rand(200, channels, side, side, generator=gen(3))
    data = {"train": (x, torch.arange(200) % classes), "test": (x[:40], torch.arange(40) % classes)}
    return wrap(net, space=Space.image((channels, side, side)), classes="abcdefgh"[:classes], data=data)


# -- the conditional Gaussian ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 1), (2, 0), (1, 2)])
def test_conditional_equals_brute_force_from_the_precision_matrix(row, column):
    model = some_gaussian()
    part = model.geometry(2, row, column)
    precision = torch.linalg.inv(model.covariance)
    inner = precision[part.inside][:, part.inside]
    gain = -torch.linalg.solve(inner, precision[part.inside][:, part.outside])
    assert torch.allclose(part.gain, gain, atol=1e-8)
    assert torch.allclose(part.factor @ part.factor.T, torch.linalg.inv(inner), atol=1e-8)
    flags = torch.zeros(2, 4, 4, dtype=torch.bool)
    flags[:, row : row + 2, column : column + 2] = True
    assert part.inside.tolist() == flags.flatten().nonzero()[:, 0].tolist()


def test_samples_have_the_conditional_mean_and_covariance_of_their_own_window():
    model, space = some_gaussian(), Space.image((2, 9, 9), -100, 100)
    x = torch.randn(2, 2, 9, 9, generator=gen(5), dtype=torch.float64)
    sampler = Conditional(model, torch.randn(60_000, 8, generator=gen(6), dtype=torch.float64), space)
    corners = torch.tensor([[0, 0], [4, 3], [7, 7], [7, 2]])
    drawn = sampler.fill(x, corners, 2).flatten(3)
    for p, (row, column) in enumerate(corners.tolist()):
        top, left = min(max(row - 1, 0), 5), min(max(column - 1, 0), 5)
        window = x[1, :, top : top + 4, left : left + 4].flatten()
        inside = model.geometry(2, row - top, column - left).inside
        out = torch.tensor([i for i in range(32) if i not in inside.tolist()])
        s = model.covariance
        mean = model.mean[inside] + s[inside][:, out] @ torch.linalg.solve(
            s[out][:, out], window[out] - model.mean[out]
        )
        left_over = s[inside][:, inside] - s[inside][:, out] @ torch.linalg.solve(s[out][:, out], s[out][:, inside])
        assert torch.allclose(drawn[1, p].mean(0), mean, atol=0.02)
        assert torch.allclose(torch.cov(drawn[1, p].T), left_over, atol=0.02)


def test_conditional_mean_equals_numpys_to_1e_5_on_fitted_patches():
    images = scenes(train=200, test=10, seed=0).train[torch.arange(200)]["image"].float() / 255
    model = PatchGaussian.fit(images, 6, patches=2000, generator=gen())
    sampler = Conditional(model, torch.zeros(1, 27, dtype=torch.float64), Space.image((3, 32, 32), -9, 9))
    mean = sampler.fill(images[:1], torch.tensor([[10, 12]]), 3)[0, 0, 0].flatten().numpy()
    part, s = model.geometry(3, 1, 1), model.covariance.numpy()
    window = images[0, :, 9:15, 11:17].flatten().double().numpy()
    w, r, mu = part.inside.numpy(), part.outside.numpy(), model.mean.numpy()
    brute = mu[w] + s[np.ix_(w, r)] @ np.linalg.inv(s[np.ix_(r, r)]) @ (window[r] - mu[r])
    assert np.abs(mean - brute).max() < 1e-5


def test_fit_recovers_moments_and_warns_when_patches_are_few():
    images = torch.randn(50, 1, 8, 8, generator=gen()) * 2 + 1
    model = PatchGaussian.fit(images, 2, patches=40_000, generator=gen(1), ridge=0.0)
    assert torch.allclose(model.mean, torch.full((4,), 1.0, dtype=torch.float64), atol=0.15)
    assert torch.allclose(model.covariance, 4 * torch.eye(4, dtype=torch.float64), atol=0.4)
    with pytest.warns(UserWarning, match="30 patches are few for 16 values; take 80"):
        PatchGaussian.fit(images, 4, patches=30, generator=gen())


def test_degenerate_patches_still_give_samples():
    flat = torch.full((20, 3, 8, 8), 0.5)
    model = PatchGaussian.fit(flat, 4, patches=300, generator=gen())
    drawn = Conditional(model, torch.randn(5, 12, generator=gen()), Space.image((3, 8, 8))).fill(
        flat[:1], torch.tensor([[2, 2]]), 2
    )
    assert float((drawn - 0.5).abs().max()) < 1e-3


# -- the evidence ------------------------------------------------------------------------------------------------------


class Logistic(nn.Module):
    """Two classes, logit of the second is a weighted sum of the pixels."""

    def __init__(self, weight: torch.Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x.flatten(1) * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


def test_probability_without_a_pixel_converges_to_quadrature():
    model = some_gaussian(channels=1, window=3)
    weight = 2 * torch.randn(9, generator=gen(2))
    target = wrap(Logistic(weight, -0.4), space=Space.image((1, 3, 3), -50, 50), classes="ab")
    x = torch.randn(1, 1, 3, 3, generator=gen(4))
    pda = PDA(k=1, window=3, samples=4096)
    sampler = Conditional(model, torch.randn(4096, 1, generator=gen(9), dtype=torch.float64), target.space)
    found, corners = pda.differences(target, x, sampler, count=10**9)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for p, (row, column) in enumerate(corners.tolist()):
        part = model.geometry(1, row, column)
        flat = x.flatten().double()
        mean = model.mean[part.inside] + part.gain @ (flat[part.outside] - model.mean[part.outside])
        values = float(mean) + float(part.factor) * nodes
        rest = float((flat * weight).sum() - flat[part.inside] * weight[part.inside]) - 0.4
        without = float((weights / weights.sum() / (1 + np.exp(-(rest + values * float(weight[part.inside]))))).sum())
        clean = torch.sigmoid((flat * weight).sum() - 0.4)
        estimate = float(log_odds(clean, 10**9, 2)) - float(found[0, p, 1])  # log2 odds of the averaged probability
        assert abs(1 / (1 + 2**-estimate) - without) < 1e-2


@pytest.mark.parametrize("sampler", ["conditional", "marginal", "grey"])
@pytest.mark.parametrize("quantity", ["prob", "logit", "unit:0/2"])
def test_maps_equal_one_variant_at_a_time(sampler, quantity):
    target = make_target()
    x, y = torch.rand(3, 3, 12, 12, generator=gen(8)), torch.tensor([0, 3, 1])
    pda = PDA(k=3, window=6, stride=2, samples=4, sampler=sampler, quantity=quantity, patches=1000, batch=53)
    made = pda.prepare(target, gen(1))
    maps = pda(target, x, y, generator=gen(), sampler=made)
    corners = patch_corners(12, 12, 3, 2)
    fills = made.fill(x, corners, 3)
    target.module.eval()
    total, count = torch.zeros(3, 12, 12), torch.zeros(12, 12)

    def value(picture):
        with torch.no_grad():
            if quantity.startswith("unit"):
                return target.module[0](picture[None])[0, 2].mean()
            logits = target.module(picture[None])[0]
            return logits if quantity == "logit" else logits.softmax(0)

    for b in range(3):
        for p, (row, column) in enumerate(corners.tolist()):
            values = []
            for fill in fills[b, p]:
                variant = x[b].clone()
                variant[:, row : row + 3, column : column + 3] = fill
                values.append(value(variant))
            before, after = value(x[b]), torch.stack(values).mean(0)
            if quantity == "prob":
                before, after = ((q[y[b]] * 200 + 1) / 204 for q in (before, after))
                before, after = ((q / (1 - q)).log2() for q in (before, after))
            elif quantity == "logit":
                before, after = before[y[b]], after[y[b]]
            total[b, row : row + 3, column : column + 3] += before - after
            count[row : row + 3, column : column + 3] += 1
    assert maps.shape == (3, 1, 12, 12) and maps.dtype == torch.float32
    assert torch.allclose(maps[:, 0], total / (count / 3), atol=1e-4)


def test_the_last_partial_batch_holds_no_stale_windows():
    target = make_target()
    x, y = torch.rand(2, 3, 12, 12, generator=gen(8)), torch.tensor([[0, 1], [2, 3]])
    maps = [
        PDA(k=3, window=5, samples=3, patches=1000, batch=size)(target, x, y, generator=gen(2))
        for size in (1, 7, 512, 100_000)
    ]
    assert maps[0].shape == (2, 2, 12, 12)
    assert all(torch.allclose(maps[0], other, atol=1e-5) for other in maps[1:])


def test_a_constant_classifier_gives_no_evidence():
    target = make_target()
    nn.init.zeros_(target.module[5].weight)
    x = torch.rand(2, 3, 12, 12, generator=gen())
    for sampler in ("conditional", "marginal", "zero"):
        maps = PDA(k=4, window=6, samples=2, sampler=sampler, patches=1000)(
            target, x, torch.tensor([0, 1]), generator=gen()
        )
        assert not maps.any()


def test_a_linear_logit_gives_the_closed_form():
    weight = torch.randn(16, generator=gen(1))
    target = wrap(Logistic(weight, 0.3), space=Space.image((1, 4, 4)), classes="ab")
    x = torch.rand(1, 1, 4, 4, generator=gen(2))
    maps = PDA(k=1, window=1, sampler="zero", quantity="logit")(target, x, torch.tensor([1]), generator=gen())
    assert torch.allclose(maps.flatten(), x.flatten() * weight, atol=1e-5)
    sure = wrap(Logistic(torch.full((16,), 1e4), 0.0), space=Space.image((1, 4, 4)), classes="ab")
    saturated = PDA(k=1, window=1, sampler="zero")(sure, x, torch.tensor([1]), generator=gen(), count=100)
    assert torch.isfinite(saturated).all()


def test_probabilities_are_averaged_before_the_log_odds():
    target = make_target()
    with torch.no_grad():
        target.module[5].weight *= 30  # unlike answers for unlike pictures
    x, y = torch.rand(1, 3, 12, 12, generator=gen(8)), torch.tensor([0])
    pda = PDA(k=12, window=12, samples=6, stride=12, sampler="marginal")
    made = pda.prepare(target, gen(4))
    with torch.no_grad():
        p = target.logits(made.images).softmax(1)[:, 0]
        clean = target.logits(x).softmax(1)[0, 0]
    right = log_odds(clean, 200, 4) - log_odds(p.double().mean(), 200, 4)
    wrong = log_odds(clean, 200, 4) - log_odds(p, 200, 4).mean()
    found = float(pda(target, x, y, generator=gen(), sampler=made)[0, 0, 5, 5])
    assert found == pytest.approx(float(right), abs=1e-4) and abs(float(right - wrong)) > 1e-3


def test_unchanged_patches_are_not_computed_again():
    target = make_target()
    seen = []
    handle = target.module.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    x = torch.full((1, 3, 12, 12), 0.5)
    x[:, :, :3, :3] = 0.9
    PDA(k=3, window=3, stride=3, sampler="grey")(target, x, torch.tensor([0]), generator=gen())
    handle.remove()
    assert sum(seen) == 2  # the picture, and its one patch that is not grey


def test_corners_cover_every_pixel_and_spread_averages():
    for side, k, stride in ((32, 4, 2), (11, 3, 2), (7, 7, 1), (10, 4, 4)):
        corners = patch_corners(side, side, k, stride)
        flat = spread(torch.ones(len(corners)), corners, k, side, side)
        assert torch.equal(flat, torch.ones(side, side)) and int(corners.max()) == side - k
    one = spread(torch.tensor([1.0, 3.0]), torch.tensor([[0, 0], [0, 1]]), 2, 2, 3)
    assert one.tolist() == [[1.0, 2.0, 3.0]] * 2


def test_the_network_is_left_as_it_was_and_maps_are_reproducible():
    target = make_target()
    target.module.train()
    before = copy.deepcopy(target.module.state_dict())
    x, y = torch.rand(2, 3, 12, 12, generator=gen(8)), torch.tensor([0, 1])
    pda = PDA(k=3, window=6, stride=3, samples=2, patches=1000)
    assert torch.equal(pda(target, x, y, generator=gen(3)), pda(target, x, y, generator=gen(3)))
    assert not torch.equal(pda(target, x, y, generator=gen(3)), pda(target, x, y, generator=gen(4)))
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert target.module.training and target.module[1].training


def test_wrong_settings_and_inputs_are_refused():
    target = make_target()
    x, y = torch.rand(2, 3, 12, 12), torch.tensor([0, 1])
    quick = PDA(k=3, window=6, stride=3, samples=2, patches=1000)
    for bad in ({"sampler": "best"}, {"k": 3, "stride": 4}, {"k": 5, "window": 4}, {"samples": 0}):
        with pytest.raises(ConfigError):
            PDA(**bad)
    for quantity in ("odds", "unit:0", "unit:zero/1", "unit:0/99"):
        with pytest.raises(ConfigError):
            PDA(quantity=quantity, sampler="grey")(target, x, y, generator=gen())
    with pytest.raises(ConfigError, match="window"):
        PDA(k=4, window=13, patches=3000)(target, x, y, generator=gen())
    for classes in (None, torch.tensor([0, 4]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ShapeError, match="classes"):
            quick(target, x, classes, generator=gen())
    for pictures in (x[:, :1], x + 1, x * float("nan"), x[:0]):
        with pytest.raises(ShapeError):
            quick(target, pictures, y, generator=gen())
    with pytest.raises(ShapeError, match="surroundings"):
        quick(target, x, y, generator=gen(), surroundings=x[:1])
    with pytest.raises(ShapeError, match="Gaussian"):
        PatchGaussian(torch.zeros(5), torch.eye(5), channels=3, window=2)
    with pytest.raises(ShapeError, match="other pictures"):
        quick(target, x, y, generator=gen(), sampler=Marginal(torch.rand(2, 3, 8, 8)))


def test_targets_that_lack_something_say_so():
    vector = wrap(nn.Linear(4, 2), space=Space.vector(4, 0.0, 1.0), classes="ab")
    with pytest.raises(CapabilityError, match="vector"):
        PDA().prepare(vector, gen())
    bare = make_target()
    bare._splits = {}
    with pytest.raises(DataError, match="train"):
        PDA(k=3, window=6).prepare(bare, gen())
    images = torch.rand(30, 3, 12, 12)
    made = PDA(k=3, window=6, stride=3, samples=2, patches=1000).prepare(bare, gen(), images=images)
    maps = PDA(k=3, window=6, stride=3, samples=2)(
        bare, images[:1], torch.tensor([0]), generator=gen(), sampler=made, count=30
    )
    assert bool(maps.any())


def test_surroundings_only_change_what_is_drawn():
    target = make_target()
    x, y = torch.rand(2, 3, 12, 12, generator=gen(8)), torch.tensor([0, 1])
    pda = PDA(k=3, window=6, stride=3, samples=2, patches=1000)
    made = pda.prepare(target, gen())
    same = pda(target, x, y, generator=gen(), sampler=made, surroundings=x)
    other = pda(target, x, y, generator=gen(), sampler=made, surroundings=x.flip(0))
    assert torch.equal(same, pda(target, x, y, generator=gen(), sampler=made)) and not torch.allclose(same, other)
    fixed = pda(target, x, y, generator=gen(), sampler=Constant(0.5), surroundings=x.flip(0))
    assert torch.equal(fixed, pda(target, x, y, generator=gen(), sampler=Constant(0.5)))


def test_distractors_are_found_by_subtraction():
    index = torch.arange(20)
    full, where = crowded(0, index, 20)
    plain = scenes(test=20, seed=0).test[index]
    away = ~where.expand(-1, 3, -1, -1)
    gap = (plain["image"].float() / 255 - full).abs()
    assert float(gap[away].max()) <= 0.1 and bool(where.flatten(1).any(1).float().mean() > 0.8)
    assert 0.002 < float(where.float().mean()) < 0.1


# -- roles -------------------------------------------------------------------------------------------------------------


def test_explaining_compares_samplers_classes_sizes_and_units():
    target = make_target()
    options = Options(
        k=3,
        window=5,
        stride=3,
        samples=2,
        images=2,
        sizes=(2, 4),
        units=("0/1", "2/3"),
        samplers=("conditional", "zero"),
    )
    found = PredictionDifference(options).explain(target, gen())
    assert [row["method"] for row in found.rows] == ["pda:conditional", "pda:zero"]
    assert set(found.figures) == {"samplers", "classes", "sizes", "units"}
    assert found.rows[0]["forward/image"] <= 1 + 16 * 2 and found.rows[1]["forward/image"] <= 1 + 16
    assert all(abs(row["randomised Spearman"]) <= 1 and 0 <= row["deletion AUC"] <= 1 for row in found.rows)
    with pytest.raises(ConfigError, match="samplers"):
        Options(samplers=("best",))
    vector = wrap(nn.Linear(4, 2), space=Space.vector(4, 0.0, 1.0), classes="ab")
    with pytest.raises(CapabilityError, match="vector"):
        PredictionDifference().explain(vector, gen())


def test_the_study_measures_evidence_in_the_box(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path))
    small = {"scenes": 3, "distracted": 2, "samples": 2, "stride": 4, "target_steps": 20, "target_samples": 300}
    for more in ({}, {"sampler": "noise"}, {"shuffled": True, "distracted": 0}):
        found = PredictionDifferenceStudy(Config(**{**small, **more})).measure(0, tmp_path, lambda done, total: None)
        assert 0 <= found.metrics["mass"] <= 1 and found.metrics["mass_strokes"] <= found.metrics["mass"]
        assert ("distractor_against" in found.metrics) == ("distracted" not in more)
        assert "<img" in found.sample.html()
