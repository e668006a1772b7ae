"""Selectivity: planted units, receptive fields against gradients, one pass against unit by unit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.nn.zoo import fitted
from cambrian.systems.explain.neuron_selectivity import (
    Top,
    TopActivations,
    achromatic,
    axis_tilt,
    class_index,
    class_shares,
    color_index,
    crops,
    hue_axis,
    neuron_feature,
    opponent,
    orientation_index,
    symmetry_index,
)
from cambrian.systems.explain.neuron_selectivity._inks import INKS, load
from cambrian.systems.explain.neuron_selectivity.model import (
    class_floor,
    cut_fields,
    field_of,
    paste_fields,
    unit_layers,
)
from cambrian.systems.explain.neuron_selectivity.recipe import (
    Config,
    NeuronSelectivity,
    NeuronSelectivityStudy,
    Options,
)


def pictures(n: int = 60, channels: int = 3, side: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def make_target(net: nn.Module, x: torch.Tensor, y: torch.Tensor | None = None, classes: int = 5):
    y = torch.arange(len(x)) % classes if y is None else y
    return wrap(
        net, space=Space.image(tuple(x.shape[1:])), classes=[str(i) for i in range(classes)], data={"test": (x, y)}
    )


def random_target(n: int = 60, side: int = 12):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(5, 7, 3, padding=1, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(7 * 9, 5),
    )  # fmt: skip
    with torch.no_grad():
        net[1].bias += 1
    return make_target(net, pictures(n, side=side))


def filter_target(kernel: torch.Tensor, x: torch.Tensor, **data):
    """One convolution without bias, then ReLU."""
    conv = nn.Conv2d(kernel.shape[1], len(kernel), kernel.shape[2:], bias=False)
    conv.weight.data = kernel
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(kernel), 5))
    return make_target(net, x, **data)


# -- winners -----------------------------------------------------------------------------------------------------------


def test_streamed_winners_equal_a_full_sort(monkeypatch):
    monkeypatch.setattr("cambrian.systems.explain.neuron_selectivity.model.CHUNK", 7)
    target = random_target(60)
    tops = TopActivations(target, n=13).collect()
    assert list(tops) == ["2", "5"]
    x = target.draw("test", torch.arange(60))[0]
    for name, h in target.features(x, ["2", "5"]).items():
        best, place = h.flatten(2).max(2)
        values, order = best.sort(dim=0, descending=True, stable=True)
        top = tops[name]
        assert torch.allclose(top.values, values[:13].T, atol=1e-6)
        clear = (values[:12] - values[1:13] > 1e-5).T & (values[:12] > 0).T
        same = torch.gather(best.T, 1, top.images)
        assert torch.allclose(same, top.values, atol=1e-6) and len(top.images[0].unique()) == 13
        apart = clear.clone()
        apart[:, 1:] &= clear[:, :-1]
        assert torch.equal(top.images[:, :12][apart], order[:12].T[apart])
        assert torch.equal(top.places[:, :12][apart], place.T.gather(1, order.T)[:, :12][apart])


def test_settings_that_cannot_be_are_refused():
    target = random_target()
    for n in (1, 61):
        with pytest.raises(ConfigError, match="n must lie in 2..60"):
            TopActivations(target, n=n).collect()
    with pytest.raises(ConfigError, match="nearest"):
        TopActivations(target, layers=["conv"], n=5).collect()
    vector = wrap(
        nn.Linear(4, 2),
        space=Space.vector(4, 0.0, 1.0),
        classes="ab",
        data={"test": (torch.rand(5, 4), torch.zeros(5).long())},
    )
    with pytest.raises(CapabilityError, match="vector"):
        TopActivations(vector, n=2).collect()
    dense = make_target(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5)), pictures())
    with pytest.raises(CapabilityError, match="no convolutions"):
        TopActivations(dense, n=2).collect()
    assert TopActivations(dense, layers=["1"], n=4).collect()["1"].values.shape == (5, 4)


@pytest.mark.parametrize("name", ["resnet-mini", "inception-mini", "vgg-small", "lenet-5"])
def test_units_are_found_in_the_zoo(name):
    torch.manual_seed(0)
    net = fitted(name, classes=5, channels=3, size=32, mean=(0.5,) * 3, std=(0.3,) * 3)
    target = make_target(net, pictures(6, side=32))
    names = unit_layers(target)
    tops = TopActivations(target, names, n=3).collect()
    convs = sum("Conv" in layer.kind for layer in target.layers())
    assert len(set(names)) == len(names) == convs and list(tops) == names
    assert all(top.field is not None and top.field.size >= 1 for top in tops.values())


# -- receptive fields --------------------------------------------------------------------------------------------------


def support(target, name: str, unit: int, place: tuple[int, int], tries: int = 6) -> torch.Tensor:
    """bool `[H,W]`: pixels with a gradient for that unit in any of several random pictures."""
    seen = torch.zeros(target.space.shape[1:], dtype=torch.bool)
    for i in range(tries):
        x = pictures(1, side=target.space.shape[1], seed=100 + i).requires_grad_()
        h = target.features(x, [name], grad=True)[name]
        (grad,) = torch.autograd.grad(h[0, unit, place[0], place[1]], x)
        seen |= grad[0].abs().sum(0) > 0
    return seen


def test_receptive_field_boxes_equal_the_gradients_support_at_50_places():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 5, stride=2, padding=1), nn.Tanh(),
              nn.Conv2d(4, 4, 3), nn.Tanh()]  # fmt: skip
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))
    net(torch.rand(1, 3, 30, 30))
    target = make_target(net, pictures(4, side=30))
    generator = torch.Generator().manual_seed(2)
    for name in ("1", "3", "6"):
        shape = tuple(target.features(pictures(1, side=30), [name])[name].shape[2:])
        picked = torch.randint(shape[0] * shape[1], (17,), generator=generator)
        top = Top(torch.ones(1, 17), torch.zeros(1, 17).long(), picked[None], shape, field_of(target, name))
        tops, lefts, size = top.corners(30, 30)
        for j, place in enumerate(picked.tolist()):
            box = torch.zeros(30, 30, dtype=torch.bool)
            row, column = int(tops[0, j]), int(lefts[0, j])
            box[max(row, 0) : row + size, max(column, 0) : column + size] = True
            assert torch.equal(support(target, name, 1, (place // shape[1], place % shape[1]), tries=2), box)


def test_crops_are_the_pixels_under_the_field_and_paste_puts_them_back():
    x = pictures(3, side=6)
    tops, lefts = torch.tensor([-2, 3, 1]), torch.tensor([4, 0, -1])
    cut = cut_fields(x, tops, lefts, 4, 0.5)
    assert torch.equal(cut[1], torch.cat([x[1, :, 3:6, 0:4], torch.full((3, 1, 4), 0.5)], 1))
    assert torch.equal(cut[0, :, 2:, :2], x[0, :, :2, 4:]) and bool((cut[0, :, :2] == 0.5).all())
    assert torch.equal(paste_fields(x, cut, tops, lefts), x)
    changed = paste_fields(x, torch.zeros_like(cut), tops, lefts)
    assert not changed[2, :, 1:5, :3].any() and torch.equal(changed[2, :, :, 3:], x[2, :, :, 3:])


def test_neuron_feature_is_the_weighted_mean_of_the_crops():
    target = random_target()
    top = TopActivations(target, n=9).collect()["5"]
    feature = neuron_feature(target, top, "test")
    x = target.draw("test", torch.arange(60))[0]
    tops, lefts, size = top.corners(12, 12)
    padded = torch.full((60, 3, 12 + 2 * size, 12 + 2 * size), 0.5)
    padded[:, :, size : size + 12, size : size + 12] = x
    for unit in range(7):
        if bool(top.dead[unit]):
            assert bool(torch.isnan(feature[unit]).all())
            continue
        total = torch.zeros(3, size, size)
        for j in range(9):
            row, column = int(tops[unit, j]) + size, int(lefts[unit, j]) + size
            crop = padded[top.images[unit, j], :, row : row + size, column : column + size]
            total += float(top.values[unit, j].clamp_min(0) / top.values[unit, 0]) * crop / 9
        assert torch.allclose(feature[unit], total, atol=1e-5)
    assert crops(target, top, "test", torch.tensor([2])).shape == (1, 9, 3, size, size)


# -- indices -----------------------------------------------------------------------------------------------------------


def test_a_red_minus_green_filter_needs_colour_and_an_intensity_filter_does_not():
    kernel = torch.zeros(3, 3, 3, 3)
    kernel[0, 0], kernel[0, 1] = 1.0, -1.0
    kernel[1] = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))  # the same in all channels
    kernel[2] = -1.0
    target = filter_target(kernel, pictures(200))
    tops = TopActivations(target, ["1"], n=40).collect()
    alpha = color_index(target, tops, "test")["1"]
    assert float(alpha[0]) >= 0.95 and abs(float(alpha[1])) <= 0.02
    assert math.isnan(float(alpha[2])) and tops["1"].dead.tolist() == [False, False, True]


def test_one_grey_pass_equals_grey_crops_unit_by_unit():
    target = random_target()
    tops = TopActivations(target, n=8).collect()
    found = color_index(target, tops, "test")
    for name, top in tops.items():
        tops_, lefts, size = top.corners(12, 12)
        for unit in range(len(top.values)):
            after = []
            for j in range(8):
                x = target.draw("test", top.images[unit, j : j + 1])[0]
                at = (tops_[unit, j : j + 1], lefts[unit, j : j + 1])
                grey = paste_fields(x, achromatic(cut_fields(x, *at, size, 0.5)), *at)
                after.append(target.features(grey, [name])[name][0, unit].flatten()[top.places[unit, j]])
            if not bool(top.dead[unit]):
                alpha = 1 - torch.stack(after).clamp_min(0).sum() / top.values[unit].clamp_min(0).sum()
                assert float(found[name][unit]) == pytest.approx(float(alpha), abs=1e-5)


def test_class_index_of_planted_winners():
    def top(values):
        values = torch.tensor(values)
        return Top(values, torch.zeros_like(values).long(), torch.zeros_like(values).long(), (1, 1))

    four = top([[1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0], [3.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -2.0]])
    labels = torch.tensor([[2, 2, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    gamma = class_index(four, labels, 5)
    assert gamma[:3].tolist() == [1.0, 0.0, pytest.approx(2 / 3)] and math.isnan(float(gamma[3]))
    assert class_index(four, labels, 5, threshold=0.75)[1] == pytest.approx(2 / 3)
    assert class_shares(four, labels, 5)[1].tolist() == [0.5, 0.25, 0.125, 0.125, 0.0]
    assert class_floor(100, 9) == pytest.approx(91 / 99) and class_floor(100, 200) == 0
    for bad in (0.0, 1.5):
        with pytest.raises(ConfigError, match="threshold"):
            class_index(four, labels, 5, bad)
    with pytest.raises(ShapeError, match="winners"):
        class_index(four, labels[:2], 5)


def test_a_one_class_detector_is_class_selective():
    x = pictures(100) * 0.3
    y = torch.arange(100) % 5
    x[y == 2, :, 3:6, 3:6] = 1.0
    target = filter_target(torch.ones(1, 3, 3, 3), x, y=y)
    top = TopActivations(target, ["1"], n=20).collect()["1"]
    assert float(class_index(top, y[top.images], 5)[0]) == 1.0
    assert set(y[top.images].flatten().tolist()) == {2}


def test_symmetry_and_orientation_of_planted_filters():
    edge = torch.tensor([[-1.0, 0.0, 1.0]] * 3).expand(3, 3, 3)
    ring = torch.tensor([[1.0, 1, 1], [1, -8, 1], [1, 1, 1]]).expand(3, 3, 3)
    target = filter_target(torch.stack([edge, ring]), pictures(100))
    tops = TopActivations(target, ["1"], n=20).collect()
    assert float(symmetry_index(target, tops, "test", "vertical")["1"][0]) == pytest.approx(1.0)
    assert float(symmetry_index(target, tops, "test", "horizontal")["1"][0]) == pytest.approx(0.0, abs=1e-5)
    for degrees, lost in ((90, 0.5), (180, 1.0), (360, 0.0)):
        found = orientation_index(target, tops, "test", degrees)["1"]
        assert abs(float(found[1])) < 1e-5
        assert float(found[0]) == pytest.approx(lost, abs=0.5 if lost == 0.5 else 1e-5)
    assert 0.0 < float(orientation_index(target, tops, "test", 45)["1"][0]) < 1.0
    with pytest.raises(ConfigError, match="axis"):
        symmetry_index(target, tops, "test", "diagonal")


# -- colour ------------------------------------------------------------------------------------------------------------


def test_opponent_axes_are_orthonormal_and_the_achromatic_copy_keeps_intensity():
    x = pictures(2)
    axes = opponent(x)
    assert torch.allclose(axes.square().sum(1), x.square().sum(1), atol=1e-5)
    red, green, blue = x.unbind(1)
    assert torch.allclose(axes[:, 0], (red - green) / 2**0.5, atol=1e-6) and torch.allclose(
        axes[:, 1], (red + green - 2 * blue) / 6**0.5, atol=1e-6
    )
    grey = opponent(achromatic(x))
    assert torch.allclose(grey[:, 2], axes[:, 2], atol=1e-6) and float(grey[:, :2].abs().max()) < 1e-6
    with pytest.raises(CapabilityError, match="3 channels"):
        achromatic(x[:, :1])


def test_hue_axis_and_tilt_of_painted_features():
    ramp = torch.linspace(0, 1, 16).view(4, 4)
    flat = torch.full((4, 4), 0.5)
    red_green = torch.stack([ramp, 1 - ramp, flat])
    blue_yellow = torch.stack([ramp, ramp, 1 - ramp])
    grey = torch.stack([ramp, ramp, ramp])
    none = torch.stack([flat, flat, flat])
    features = torch.stack([red_green, blue_yellow, grey, none])
    angle, share = hue_axis(features)
    assert min(float(angle[0]), 180 - float(angle[0])) < 1e-4 and float(angle[1]) == pytest.approx(90, abs=1e-3)
    assert torch.allclose(share[:2], torch.ones(2, dtype=torch.float64)) and bool(torch.isnan(angle[2:]).all())
    tilt = axis_tilt(features)
    assert float(tilt[0]) == pytest.approx(90, abs=1e-3) and float(tilt[2]) == pytest.approx(0, abs=1e-3)
    assert float(tilt[1]) == pytest.approx(math.degrees(math.atan(8**0.5)), abs=1e-3) and math.isnan(float(tilt[3]))


def test_a_grey_target_has_no_colour_index():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 5))
    target = make_target(net, pictures(20, channels=1))
    tops = TopActivations(target, n=4).collect()
    with pytest.raises(CapabilityError, match="3 channels"):
        color_index(target, tops, "test")


def test_the_network_is_left_as_it_was():
    target = random_target()
    target.module.train()
    before = copy.deepcopy(target.module.state_dict())
    tops = TopActivations(target, n=6).collect()
    color_index(target, tops, "test"), symmetry_index(target, tops, "test")
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert target.module.training and not target.module[0]._forward_hooks


# -- roles -------------------------------------------------------------------------------------------------------------


def test_explaining_gives_a_row_for_each_layer_and_pictures():
    target = random_target()
    found = NeuronSelectivity(Options(n=10, mirror=True, turn=90.0, shown=4)).explain(target, torch.Generator())
    assert [row["layer"] for row in found.rows] == ["2", "5"] and [row["units"] for row in found.rows] == [5, 7]
    assert set(found.figures) == {"indices", "features 2", "features 5", "labels"}
    for row in found.rows:
        assert row["least class index"] == pytest.approx(5 / 9) and 0 <= row["colour-selective"] <= 1
        assert row["median class index"] >= row["least class index"] - 1e-9
        assert {"median colour index", "median symmetry index", "median orientation index"} <= set(row)
    torch.manual_seed(0)
    grey = make_target(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 5)), pictures(20, channels=1)
    )
    plain = NeuronSelectivity(Options(n=4)).explain(grey, torch.Generator())
    assert "median colour index" not in plain.rows[0] and "features 1" in plain.figures


def test_the_same_pictures_under_three_labels_and_inks_that_survive_without_colour():
    data = {task: load(task, train=60, test=60, seed=3) for task in ("colour", "shape", "shuffled")}
    splits = {task: found.train[torch.arange(60)] for task, found in data.items()}
    for other in ("shape", "shuffled"):
        assert torch.equal(splits["colour"]["image"], splits[other]["image"])
    shape, ink = splits["colour"]["shape"], splits["colour"]["ink"]
    assert torch.equal(splits["colour"]["label"], shape * 4 + ink) and torch.equal(splits["shape"]["label"], shape)
    assert torch.equal(splits["shuffled"]["label"] // 4, shape)
    assert 0.05 < float((splits["shuffled"]["label"] % 4 == ink).float().mean()) < 0.5
    assert torch.allclose(torch.tensor(INKS).sum(1), torch.full((4,), 1.2))
    x = splits["colour"]["image"].float() / 255
    contrast = achromatic(x)[:, 0].flatten(1)
    assert float((contrast.amax(1) - contrast.amin(1)).min()) > 0.2


def test_the_study_measures_both_indices(tmp_path, monkeypatch):
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path))
    small = {"n": 10, "samples": 120, "target_steps": 10, "target_samples": 200}
    for more in ({}, {"task": "shape"}, {"network": "untrained"}):
        found = NeuronSelectivityStudy(Config(**small, **more)).measure(0, tmp_path, lambda done, total: None)
        assert -1 <= found.metrics["gamma_spearman"] <= 1 and found.metrics["alpha_last"] <= 1
        assert found.metrics["gamma_last"] >= found.metrics["gamma_floor"] - 1e-9 and len(found.notes["alpha"]) == 5
