"""Measures of attribution maps: against loops written out, closed forms, and networks whose answer is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect import Space, maps, wrap


class Share(nn.Module):
    """p(class 0) is a weighted mean of the pixels, p(class 1) the rest."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights / weights.sum())

    def forward(self, x: Tensor) -> Tensor:
        share = (x.mean(1) * self.weights).sum((1, 2)).clamp(1e-7, 1 - 1e-7)
        return torch.stack([share, 1 - share], 1).log()


def share_target(weights: Tensor, channels: int = 1):
    return wrap(Share(weights), space=Space.image((channels, *weights.shape)), classes="ab")


def conv_target(seed: int = 0, channels: int = 3):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6 * 48, 4),
    )
    return wrap(net, space=Space.image((channels, 6, 8), -1.0, 3.0), classes="abcd")


def batch(n: int = 5, channels: int = 3):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, channels, 6, 8, generator=generator) * 4 - 1
    return x, torch.arange(n) % 4, torch.randn(n, channels, 6, 8, generator=generator)


def by_hand(target, x, y, scores, steps, fill, insert):
    """One picture and one portion at a time."""
    module = target.module.eval()
    out = []
    for i in range(len(x)):
        order = np.argsort(-scores[i].sum(0).flatten().numpy())
        points = []
        for step in range(steps + 1):
            mixed = (fill[i] if insert else x[i]).clone().flatten(1)
            other = (x[i] if insert else fill[i]).flatten(1)
            for pixel in order[: round(step * len(order) / steps)]:
                mixed[:, pixel] = other[:, pixel]
            with torch.no_grad():
                points.append(float(module(mixed.view(1, *x[i].shape)).softmax(1)[0, y[i]]))
        out.append(sum((a + b) / 2 / steps for a, b in pairwise(points)))
    return torch.tensor(out)


@pytest.mark.parametrize("fill", ["grey", "mean", "blur", "lo", "hi"])
def test_deletion_and_insertion_equal_the_loop(fill: str):
    target = conv_target()
    x, y, scores = batch()
    stand_in = maps.filled(target, x, fill)
    deleted = maps.deletion_auc(target, x, y, scores, steps=7, fill=fill)
    inserted = maps.insertion_auc(target, x, y, scores, steps=7, fill=fill)
    assert torch.allclose(deleted, by_hand(target, x, y, scores, 7, stand_in, False), atol=1e-6)
    assert torch.allclose(inserted, by_hand(target, x, y, scores, 7, stand_in, True), atol=1e-6)
    assert torch.equal(deleted, maps.deletion_auc(target, x, y, scores, 7, stand_in))  # a tensor may be the fill


def test_areas_of_a_network_that_counts_pixels():
    x, y = torch.ones(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    scores = torch.randn(2, 1, 4, 4)
    equal = share_target(torch.ones(4, 4))
    assert torch.allclose(maps.deletion_auc(equal, x, y, scores, 16, "lo"), torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(maps.insertion_auc(equal, x, y, scores, 16, "lo"), torch.tensor(0.5), atol=1e-5)
    one = torch.zeros(4, 4)
    one[1, 2] = 1.0  # all evidence in one pixel: gone after the first portion, or with the last
    best = maps.deletion_auc(share_target(one), x, y, one.expand(2, 1, 4, 4), 16, "lo")
    worst = maps.deletion_auc(share_target(one), x, y, -one.expand(2, 1, 4, 4), 16, "lo")
    assert torch.allclose(best, torch.tensor(0.5 / 16), atol=1e-5)
    assert torch.allclose(worst, torch.tensor(1 - 0.5 / 16), atol=1e-5)


def test_ranking_is_by_signed_sum_and_scatters_ties():
    scores = torch.tensor([[[[3.0, -9.0], [1.0, 0.0]], [[-2.5, 0.0], [1.0, 0.0]]]])
    assert maps.ranking(scores).tolist() == [[2, 0, 3, 1]]
    flat = maps.ranking(torch.zeros(3, 1, 10, 10))
    assert torch.equal(flat[0], flat[1]) and sorted(flat[0].tolist()) == list(range(100))
    assert flat[0].tolist() != list(range(100)) and abs(float(flat[0, :30].double().mean()) - 49.5) < 20


def test_blur_keeps_constants_and_equals_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    theirs = np.stack(
        [[ndimage.gaussian_filter(c, 2.0, mode="mirror", radius=6) for c in picture] for picture in x.numpy()]
    )
    assert np.allclose(maps.blurred(x, 2.0).numpy(), theirs, atol=1e-12)
    assert torch.allclose(maps.blurred(torch.full((1, 1, 5, 9), 0.3), 4.0), torch.tensor(0.3))
    with pytest.raises(ConfigError, match="sigma"):
        maps.blurred(x, 0.0)


def test_pointing_counts_the_largest_signed_pixel_and_the_distance():
    scores, masks = torch.zeros(3, 1, 5, 5), torch.zeros(3, 1, 5, 5, dtype=torch.uint8)
    masks[:, 0, 2, 2] = 1
    scores[0, 0, 2, 2] = 1.0
    scores[1, 0, 2, 2], scores[1, 0, 0, 2] = -5.0, 0.1  # the largest absolute value is against the class
    scores[2, 0, 3, 3] = 1.0
    assert maps.pointing_hits(scores, masks).tolist() == [True, False, False]
    assert maps.pointing_hits(scores, masks.bool(), tolerance=1.0).tolist() == [True, False, False]
    assert maps.pointing_hits(scores, masks.float(), tolerance=1.5).tolist() == [True, False, True]
    assert maps.pointing_hits(scores, torch.zeros_like(masks)).tolist() == [False, False, False]


def test_mass_is_the_share_of_positive_relevance():
    scores, masks = torch.randn(4, 3, 6, 7), torch.rand(4, 1, 6, 7) < 0.4
    scores[3] = -1.0
    positive = scores.sum(1).clamp_min(0).numpy()
    expected = [
        float((p * m).sum() / p.sum()) if p.sum() else 0.0 for p, m in zip(positive, masks[:, 0].numpy(), strict=True)
    ]
    assert torch.allclose(maps.mask_mass(scores, masks), torch.tensor(expected), atol=1e-6)
    assert maps.mask_mass(masks.float(), masks).tolist() == [1.0] * 4


def test_boxes_enclose_each_mask():
    masks = torch.zeros(2, 1, 6, 7, dtype=torch.uint8)
    masks[0, 0, 1, 5] = masks[0, 0, 4, 2] = 1
    expected = torch.zeros(2, 1, 6, 7, dtype=torch.bool)
    expected[0, 0, 1:5, 2:6] = True
    assert torch.equal(maps.boxes(masks), expected)


def test_the_randomised_check_tells_maps_of_the_network_from_maps_of_the_picture():
    target = conv_target()
    x, y, _ = batch(8)

    def gradient(where, x, y):
        moved = x.clone().requires_grad_(True)
        return torch.autograd.grad(where.logits(moved).gather(1, y[:, None]).sum(), moved)[0]

    before = {name: value.clone() for name, value in target.module.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    assert abs(float(maps.randomised_check(gradient, target, x, y, generator).mean())) < 0.3
    picture = maps.randomised_check(lambda where, x, y: x, target, x, y, generator)
    assert torch.allclose(picture, torch.ones(8)) and picture.shape == (8,)
    assert all(torch.equal(before[name], value) for name, value in target.module.state_dict().items())
    again = [maps.randomised_check(gradient, target, x, y, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_rank_agreement_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(3, 2, 5, 5).round(decimals=1), torch.randn(3, 1, 5, 5).round(decimals=1)
    expected = [stats.spearmanr(p.sum(0).flatten(), q.flatten()).statistic for p, q in zip(a, b, strict=True)]
    assert torch.allclose(maps.rank_agreement(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert maps.rank_agreement(a, torch.zeros(3, 1, 5, 5)).tolist() == [0.0] * 3


def test_the_row_has_costs_measures_and_facts():
    target = conv_target()
    x, y, scores = batch()
    masks = torch.rand(5, 1, 6, 8) < 0.3

    def gradient(where, x, y):
        with where.quiet() as module:
            moved = x.clone().requires_grad_(True)
            return torch.autograd.grad(module(moved).gather(1, y[:, None]).sum(), moved)[0]

    row = maps.explain_row(
        target, x, y, gradient, method="gradient", masks=masks, generator=torch.Generator().manual_seed(0), gap=0.5
    )
    assert (row["method"], row["forward/image"], row["backward/image"], row["gap"]) == ("gradient", 1, 1, 0.5)
    assert row["deletion AUC"] == pytest.approx(float(maps.deletion_auc(target, x, y, gradient(target, x, y)).mean()))
    assert 0 <= row["mask mass"] <= 1 and -1 <= row["randomised Spearman"] <= 1 and row["s/image"] > 0
    given = maps.explain_row(target, x, y, gradient, method="given", maps=scores, fill="blur", counts={"forward": 50})
    assert "s/image" not in given and "pointing" not in given and given["fill"] == "blur"
    assert not target.module._forward_hooks and not target.module._forward_pre_hooks
    assert maps.overlay_figure(target, x, {"gradient": scores}, list("abcde")) is not None


def test_bad_maps_masks_and_settings_are_refused():
    target = conv_target()
    x, y, scores = batch()
    for bad in (scores[:4], scores[:, :, :5], scores[:, 0], scores.long(), scores * float("nan")):
        with pytest.raises(ShapeError):
            maps.deletion_auc(target, x, y, bad)
    with pytest.raises(ShapeError):
        maps.insertion_auc(target, x, y + 9, scores)
    for steps in (0, 49):
        with pytest.raises(ConfigError, match="steps"):
            maps.deletion_auc(target, x, y, scores, steps)
    with pytest.raises(ConfigError, match="fill"):
        maps.deletion_auc(target, x, y, scores, fill="paint")
    with pytest.raises(ShapeError, match="fill"):
        maps.deletion_auc(target, x, y, scores, fill=torch.zeros(2, 2))
    for bad in (torch.ones(5, 3, 6, 8), torch.full((5, 1, 6, 8), 0.5), torch.ones(4, 1, 6, 8)):
        with pytest.raises(ShapeError):
            maps.pointing_hits(scores, bad)
    vector = wrap(nn.Linear(3, 2), space=Space.vector(3, 0, 1), classes="ab")
    with pytest.raises(CapabilityError, match="pictures"):
        maps.deletion_auc(vector, torch.rand(2, 3), torch.zeros(2, dtype=torch.int64), scores)
