"""Occlusion and the deconvnet: against loops, Captum and max-unpooling; regional recomputation against whole passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.nn import zoo
from cambrian.systems.explain._scenes import scenes
from cambrian.systems.explain.occlusion import (
    ZFNet,
    correspondence,
    deconvnet,
    evolution,
    invariance,
    occlude,
    occlusion_map,
    receptive_box,
    renormalise,
    top_activations,
    windows,
)
from cambrian.systems.explain.occlusion._projection import changed
from cambrian.systems.explain.occlusion._regional import Regional
from cambrian.systems.explain.occlusion.model import average, spread
from cambrian.systems.explain.occlusion.recipe import (
    Config,
    Occlusion,
    OcclusionStudy,
    Options,
    part_places,
)
from cambrian.worlds import faces


def noisy(net: nn.Module, channels: int, size: int) -> nn.Module:
    """Batch statistics that are not 0 and 1."""
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(8, channels, size, size))
    return net


def target_of(net: nn.Module, channels: int = 3, size: int = 16, classes: int = 10, lo: float = 0.0, hi: float = 1.0):
    return wrap(net, space=Space.image((channels, size, size), lo, hi), classes=[str(i) for i in range(classes)])


def small(seed: int = 0, inplace: bool = False):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    return target_of(noisy(net, 3, 16))


def batch(n: int = 3, channels: int = 3, size: int = 16):
    x = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(n) % 10


# -- occlusion ---------------------------------------------------------------------------------------------------------


def test_every_record_equals_the_loop_over_pictures_and_places():
    target, (x, c) = small(), batch()
    found = occlude(target, x, c, size=5, stride=3, value="grey", layer="5", cap_mb=0.05)
    assert found["tops"].tolist() == found["lefts"].tolist() == [0, 3, 6, 9, 12]  # the last one is cut to 4 pixels
    module = target.module.eval()
    for i in range(3):
        strongest = int(module[:6](x[i : i + 1]).sum((2, 3)).argmax())
        assert int(found["strongest"][i]) == strongest
        for r, top in enumerate(found["tops"].tolist()):
            for q, left in enumerate(found["lefts"].tolist()):
                covered = x[i : i + 1].clone()
                covered[:, :, top : top + 5, left : left + 5] = 0.5
                logits = module(covered).detach()
                assert float(found["prob"][i, r, q]) == pytest.approx(float(logits.softmax(1)[0, c[i]]), abs=1e-6)
                assert int(found["label"][i, r, q]) == int(logits.argmax())
                total = float(module[:6](covered)[0, strongest].sum().detach())
                assert float(found["activation"][i, r, q]) == pytest.approx(total, rel=1e-5)
    assert torch.allclose(found["clean"], module(x).softmax(1).gather(1, c[:, None])[:, 0])


@pytest.mark.parametrize(("size", "stride"), [(4, 1), (4, 4), (5, 2), (16, 3)])
def test_the_average_map_equals_captum(size: int, stride: int):
    captum = pytest.importorskip("captum.attr")
    target, (x, c) = small(), batch()
    module = copy.deepcopy(target.module).eval()
    method = captum.Occlusion(module)
    theirs = method.attribute(x, (3, size, size), strides=(3, stride, stride), target=c, baselines=0.5)
    ours = occlusion_map(target, x, c, size, stride, "grey", of="logit", way="average")
    assert torch.allclose(ours.expand_as(theirs), theirs, atol=1e-6)


def test_values_are_pixels_and_the_map_is_the_drop():
    """A network that averages one pixel's neighbourhood: the map is known."""

    class Pixel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 3, 6], -x[:, 0, 3, 6]], 1)

    target = target_of(Pixel(), 1, 8, 2)
    x, c = torch.ones(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    for value, height in (("zero", 1.0), ("grey", 0.5), ("mean", 0.0), (torch.tensor(0.75), 0.25)):
        found = occlude(target, x, c, 3, 1, value, of="logit", layer=None)
        drop = found["clean"] - found["prob"]
        rows, columns = torch.arange(6)[:, None], torch.arange(6)[None, :]
        inside = (rows <= 3) & (rows + 3 > 3) & (columns <= 6) & (columns + 3 > 6)
        assert torch.allclose(drop[0], inside * height)
    shown = occlusion_map(target, x, c, 3, 1, "zero", of="logit")[0, 0]
    assert shown[3, 5:].tolist() == [1.0, 1.0, 1.0] and float(shown[3, 3]) == 0.0 and float(shown[0, 0]) == 0.0
    with pytest.raises(DataError):
        occlude(target, x, c, 3, 1, "data", layer=None)  # there is no training split to take the mean of
    data = {"train": (torch.full((4, 1, 8, 8), 0.2), torch.zeros(4, dtype=torch.int64))}
    informed = wrap(Pixel(), space=target.space, classes="ab", data=data)
    found = occlude(informed, x, c, 3, 1, of="logit", layer=None)
    assert float((found["clean"] - found["prob"]).max()) == pytest.approx(0.8)


def test_spread_meets_the_grid_at_the_centres_and_is_linear_between():
    tops, lefts = windows(9, 12, 3, 2)
    assert tops.tolist() == [0, 2, 4, 6] and lefts.tolist() == [0, 2, 4, 6, 8, 10]  # centres 1 3 5 7; 1 3 5 7 9 10.5
    grid = torch.rand(2, 4, 6)
    full = spread(grid, tops, lefts, 3, 9, 12)
    assert torch.allclose(full[:, 0, 1:8:2, 1:10:2], grid[:, :, :5])
    assert torch.allclose(full[:, 0, 2, 3], (grid[:, 0, 1] + grid[:, 1, 1]) / 2)
    assert torch.equal(full[:, 0, 0, 0], grid[:, 0, 0]) and torch.allclose(full[:, 0, 8, 11], grid[:, 3, 5])
    plane = (tops + 1.0)[None, :, None] + torch.zeros(1, 4, 6)
    assert torch.allclose(spread(plane, tops, lefts, 3, 9, 12)[0, 0, 1:8, 4], torch.arange(1.0, 8.0))
    one = spread(torch.full((1, 1, 1), 0.3), *windows(4, 4, 4, 1), 4, 4, 4)
    assert torch.allclose(one, torch.full((1, 1, 4, 4), 0.3)) and torch.equal(
        one, average(torch.full((1, 1, 1), 0.3), *windows(4, 4, 4, 1), 4, 4, 4)
    )


# -- regional recomputation --------------------------------------------------------------------------------------------


def layers_net(kind: str) -> nn.Module:
    torch.manual_seed(1)
    tail = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(10)]
    heads: dict[str, list[nn.Module]] = {
        "strides": [nn.Conv2d(3, 4, 5, 2, 2), nn.ELU(), nn.Conv2d(4, 6, 3, 1, 0)],
        "overlapping pools": [nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 3)],
        "average": [nn.AvgPool2d(2), nn.Conv2d(3, 4, 3, 1, 2), nn.Tanh(), nn.AvgPool2d(3, 1, 1)],
        "dilation and groups": [nn.Conv2d(3, 6, 3, 1, 2, dilation=2, groups=3), nn.BatchNorm2d(6), nn.MaxPool2d(2)],
        "oblong": [nn.Conv2d(3, 4, (1, 5), (1, 2), (0, 2)), nn.ReLU(), nn.Conv2d(4, 4, (3, 1))],
    }
    return noisy(nn.Sequential(*heads[kind], *tail), 3, 24)


@pytest.mark.parametrize("kind", ["strides", "overlapping pools", "average", "dilation and groups", "oblong"])
@pytest.mark.parametrize("size", [1, 4])
def test_patches_give_what_whole_pictures_give(kind: str, size: int):
    target, (x, c) = target_of(layers_net(kind), size=24), batch(2, size=24)
    with target.quiet() as module:
        region = Regional.find(target, module, x[:1], size, None)
    assert region is not None and len(region.chain) >= 2
    slow = occlude(target, x, c, size, max(1, size - 1), "blur", of="logit", layer=None, regional=False)
    fast = occlude(target, x, c, size, max(1, size - 1), "blur", of="logit", layer=None)
    assert torch.allclose(fast["prob"], slow["prob"], atol=1e-5) and torch.equal(fast["label"], slow["label"])


@pytest.mark.parametrize("net", ["vgg-small", "resnet-mini", "inception-mini", "lenet-5", "wide-elu", "vgg-a"])
def test_patches_serve_the_networks_of_the_zoo_and_leave_them_alone(net: str):
    torch.manual_seed(0)
    made = zoo.fitted(net, classes=10, channels=3, size=32, mean=[0.4], std=[0.3])
    target, (x, c) = target_of(noisy(made, 3, 32), size=32), batch(1, size=32)
    before = copy.deepcopy(target.module.state_dict())
    slow = occlude(target, x, c, 5, 5, "zero", of="logit", regional=False)
    fast = occlude(target, x, c, 5, 5, "zero", of="logit")
    scale = float(slow["clean"].abs().max())
    assert torch.allclose(fast["prob"], slow["prob"], atol=1e-5 * max(1, scale))
    assert torch.allclose(fast["activation"], slow["activation"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in target.module.state_dict().items())
    for part in target.module.modules():
        assert "forward" not in vars(part) and not part._forward_hooks and not part._forward_pre_hooks
    with target.quiet() as module:
        region = Regional.find(target, module, x, 5, None)
    assert (region is None) == (net == "lenet-300-100") and target.module.training


def test_a_branch_inside_the_chain_shortens_it_and_a_dense_network_has_none():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            return self.head((self.three(self.two(h)) + h).mean((2, 3)))

    torch.manual_seed(0)
    target, (x, c) = target_of(Skip()), batch(1)
    with target.quiet() as module:
        region = Regional.find(target, module, x, 3, None)
    assert region is not None and [part for part, _ in region.chain] == [target.module.one]
    slow = occlude(target, x, c, 3, 2, "zero", of="logit", layer=None, regional=False)
    assert torch.allclose(occlude(target, x, c, 3, 2, "zero", of="logit", layer=None)["prob"], slow["prob"], atol=1e-5)
    dense = target_of(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))
    with dense.quiet() as module:
        assert Regional.find(dense, module, x, 3, None) is None
    assert occlude(dense, x, c, 8, 8, "zero", layer=None)["prob"].shape == (1, 2, 2)


# -- the deconvnet -----------------------------------------------------------------------------------------------------


def test_projection_equals_captum_on_convolutions_and_relus():
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
    target, (x, _) = target_of(nn.Sequential(*body, nn.Flatten(), nn.Linear(5 * 256, 10))), batch()
    peer = captum.Deconvolution(copy.deepcopy(body).eval())
    maps = body(x).detach()
    unit = int(maps[..., 7, 9].amin(0).argmax())
    value = maps[:, unit, 7, 9].view(-1, 1, 1, 1)
    assert float(value.max()) > 0
    theirs = peer.attribute(x.clone(), target=(unit, 7, 9)) * value
    assert torch.allclose(deconvnet(target, x, "3", unit, (7, 9)), theirs, atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
def test_projection_unpools_by_switches_and_transposes_filters(kernel: int, stride: int):
    torch.manual_seed(0)
    conv1, conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
    net = nn.Sequential(conv1, nn.ReLU(True), nn.MaxPool2d(kernel, stride), conv2, nn.ReLU(True), nn.Flatten(),
                        nn.LazyLinear(10))  # fmt: skip
    target, (x, _) = target_of(noisy(net, 3, 16)), batch()
    h1 = conv1(x).relu()
    pooled, switches = F.max_pool2d(h1, kernel, stride, return_indices=True)
    h2 = conv2(pooled).relu()
    channel = torch.tensor([1, 3, 5])
    own = h2[torch.arange(3), channel].flatten(1)
    signal = torch.zeros_like(h2)
    place = own.argmax(1)
    signal.flatten(2)[torch.arange(3), channel, place] = own.amax(1)
    down = F.conv_transpose2d(signal.relu(), conv2.weight, padding=1)
    unpooled = torch.zeros_like(h1).flatten(2).scatter_add(2, switches.flatten(2), down.flatten(2)).view_as(h1)
    if (kernel, stride) == (2, 2):
        assert torch.equal(unpooled, F.max_unpool2d(down, switches, kernel, stride))
    expected = F.conv_transpose2d(unpooled.relu(), conv1.weight, padding=1).detach()
    assert torch.allclose(deconvnet(target, x, "4", channel), expected, atol=1e-6)
    assert float(expected.abs().max()) > 0
    assert not torch.allclose(deconvnet(target, x, "4", channel, "all"), expected, atol=1e-3)
    assert target.module.training and not any(part._forward_hooks for part in target.module.modules())


# -- features ----------------------------------------------------------------------------------------------------------


def with_data(net: nn.Module, n: int = 40, size: int = 16):
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5))
    splits = {"test": (x, torch.arange(n) % 10)}
    return wrap(net, space=Space.image((3, size, size)), classes="0123456789", data=splits), x


def test_top_activations_are_the_largest_of_the_split():
    target, x = with_data(small().module)
    maps = target.module.eval()[:6](x).detach()
    for channel, top in top_activations(target, "5", [0, 7], n=4).items():
        values = maps[:, channel].flatten(1).amax(1)
        assert torch.allclose(top.value, values.sort(descending=True).values[:4])
        assert torch.allclose(maps[top.index, channel, top.position[:, 0], top.position[:, 1]], top.value)
    found = evolution({0: target, 9: target}, "5", [1], limit=20)
    index, projection = found[9][1]
    assert index == int(top_activations(target, "5", [1], n=1, limit=20)[1].index) and projection.shape == (3, 16, 16)
    for bad in ({"n": 0}, {"n": 41}):
        with pytest.raises(DataError):
            top_activations(target, "5", [0], **bad)
    with pytest.raises(ConfigError, match="channel"):
        top_activations(target, "5", [8])


def test_a_projection_stays_inside_the_receptive_box():
    target, (x, _) = small(), batch()
    for position in ((0, 0), (3, 5), (7, 7)):
        top, left, bottom, right = receptive_box(target, "4", position)
        outside = torch.ones(16, 16, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        grads = deconvnet(target, x, "4", 2, position, rule="deconvnet")
        assert not bool(grads[:, :, outside].any())
    assert receptive_box(target, "4", (3, 3)) == (3, 3, 11, 11)  # 3x3, pool 2, 3x3: 8 pixels
    with pytest.raises(CapabilityError, match="receptive"):
        receptive_box(target, "8", (0, 0))


def test_correspondence_is_zero_for_one_effect_and_equals_the_double_sum():
    target, (x, _) = small(), batch(4)
    masks = torch.zeros(4, 1, 16, 16, dtype=torch.bool)
    masks[:, :, 4:9, 3:8] = True
    delta, each = correspondence(target, x, masks, "4", torch.full_like(x, 0.5))
    net = target.module.eval()[:5]
    e = (net(x) - net(torch.where(masks, torch.tensor(0.5), x))).detach().flatten(1).sign()
    expected = sum(float((e[i] != e[j]).float().mean()) for i in range(4) for j in range(4) if i != j) / 12
    assert float(delta) == pytest.approx(expected, abs=1e-6) and float(each.mean()) == pytest.approx(expected, abs=1e-6)
    same = x[:1].repeat(4, 1, 1, 1)
    assert float(correspondence(target, same, masks, "4", torch.zeros_like(x))[0]) == 0.0
    with pytest.raises(ShapeError, match="B >= 2"):
        correspondence(target, x[:1], masks[:1], "4", x[:1])


def test_invariance_starts_at_zero_and_changes_move_pixels():
    target, (x, _) = small(), batch()
    curves = invariance(target, x, "5", "translate", [0.0, 1.0, 4.0])
    assert curves.shape == (3, 3) and float(curves[0].max()) < 1e-5 and float(curves[1].min()) > 0
    assert torch.allclose(changed(x, "translate", 2.0)[:, :, 2:], x[:, :, :-2], atol=1e-5)
    assert torch.allclose(changed(x, "rotate", 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-4) or torch.allclose(
        changed(x, "rotate", 90.0), torch.rot90(x, -1, (2, 3)), atol=1e-4
    )
    assert torch.allclose(changed(x, "scale", 1.0), x, atol=1e-5)
    wide = changed(torch.ones(1, 1, 8, 8).tril(), "scale", 2.0)
    assert torch.allclose(wide[..., 3:5, 3:5].mean(), torch.tensor(0.75), atol=0.2)
    for change, amounts in (("melt", [1.0]), ("rotate", []), ("scale", [0.0])):
        with pytest.raises(ConfigError):
            invariance(target, x, "5", change, amounts)


def test_filters_above_the_limit_come_back_to_it_and_zfnet_has_the_paper_s_sizes():
    conv = nn.Conv2d(3, 4, 7)
    with torch.no_grad():
        conv.weight[0] *= 10
        conv.weight[1:] *= 0.5
    before = conv.weight.detach().clone()
    assert renormalise(conv, 0.1) == 1 and renormalise(conv, 0.1001) == 0
    assert float(conv.weight[0].square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(conv.weight[1:], before[1:])
    assert torch.allclose(conv.weight[0] / conv.weight[0].norm(), before[0] / before[0].norm())
    with pytest.raises(CapabilityError):
        renormalise(nn.Linear(2, 2))
    with torch.device("meta"):
        full = ZFNet()
    assert sum(p.numel() for p in full.parameters()) == 62_357_608
    net = ZFNet(classes=5, size=64, width=0.0625)
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(ConfigError, match="vanish"):
        ZFNet(size=16, width=0.1)


# -- behaviour -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    target, (x, c) = small(), batch()
    for bad in (x[:, :2], x * float("nan"), x[:0]):
        with pytest.raises(ShapeError):
            occlude(target, bad, c, value="zero")
    with pytest.raises(ShapeError):
        occlude(target, x, c + 9, value="zero")
    for settings in ({"size": 0}, {"size": 17}, {"size": 4, "stride": 5}, {"stride": 0}, {"value": "gold"},
                     {"of": "luck"}, {"layer": "conv9"}):  # fmt: skip
        with pytest.raises(ConfigError):
            occlude(target, x, c, **{"value": "zero", **settings})
    with pytest.raises(ConfigError, match="way"):
        occlusion_map(target, x, c, value="zero", way="up")
    with pytest.raises(CapabilityError, match="feature maps"):
        occlude(target, x, c, value="zero", layer="8")
    vector = wrap(nn.Linear(3, 2), space=Space.vector(3, 0, 1), classes="ab")
    with pytest.raises(CapabilityError, match="pictures"):
        occlude(vector, torch.rand(1, 3), torch.zeros(1, dtype=torch.int64))
    for position in ((8, 0), "middle"):
        with pytest.raises(ConfigError, match="position"):
            deconvnet(target, x, "4", 0, position)
    with pytest.raises(ConfigError, match="channel"):
        deconvnet(target, x, "4", 8)
    with pytest.raises(CapabilityError, match="feature maps"):
        deconvnet(target, x, "8", 0)
    with pytest.raises(ConfigError, match="nearest"):
        deconvnet(target, x, "conv9", 0)


# -- the explainer and the studies ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene():
    """A network with fresh weights on scenes: enough for everything but the claim."""
    data = scenes(0, samples=20, test=100)
    torch.manual_seed(0)
    net = zoo.build("vgg-small", channels=1, classes=10, widths=(6, 6, 8, 8, 12))
    return wrap(net, space=Space.image((1, 32, 32)), classes=data.info["classes"], data=data)


def test_the_explainer_gives_a_row_and_three_figures(scene):
    found = Occlusion(Options(images=4, stride=4, features=2)).explain(scene, torch.Generator().manual_seed(0))
    (row,) = found.rows
    assert row["forward/image"] == 8 * 8 and row["backward/image"] == 0 and row["quantity"] == "prob"
    assert {"deletion AUC", "insertion AUC", "pointing", "mask mass", "randomised Spearman"} <= set(row)
    assert set(found.figures) == {"panel", "maps", "features"}
    x = torch.rand(3, 1, 32, 32)
    elu = wrap(
        zoo.build("wide-elu", channels=1), space=scene.space, classes=scene.classes, data={"test": (x, torch.arange(3))}
    )
    plain = Occlusion(Options(images=3, stride=6, value="zero", randomise=False, label="predicted"))
    found = plain.explain(elu, torch.Generator())
    assert "visible" in found.rows[0]["note"] and set(found.figures) == {"panel", "maps"}
    assert "pointing" not in found.rows[0] and "randomised Spearman" not in found.rows[0]


def test_the_study_s_controls_know_nothing_and_the_shuffled_grid_too(monkeypatch, scene):
    class Bright(nn.Module):
        """Sure of its class while anything bright is left: only the object counts."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            light = (x - 0.8).clamp_min(0).sum((1, 2, 3))
            return F.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) * light[:, None] + self.bias

    data = scenes(0, samples=20, test=100, distractors=0)
    oracle = wrap(Bright(), space=scene.space, classes=scene.classes, data=data)
    monkeypatch.setattr("cambrian.systems.explain.occlusion.recipe.scene_target", lambda *_, **__: oracle)

    def measure(**over):
        return OcclusionStudy(Config(images=60, **over)).measure(0, None, lambda done, total: None).metrics

    found = measure()
    assert found["pointing_2px"] > 0.95 and found["lower_on_object"] > 0.95 and found["drop_on"] > found["drop_off"]
    for control in ({"map": "random"}, {"map": "centre"}, {"permute": True}):
        assert measure(**control)["pointing"] < 0.4
    with pytest.raises(CapabilityError, match="re-initialised"):
        measure(map="fresh")


def test_a_lit_ground_leaves_the_object_the_brightest():
    plain, lit = (scenes(1, samples=4, test=30, relief=relief).test[torch.arange(30)] for relief in (0.0, 2.5))
    assert torch.equal(plain["mask"], lit["mask"]) and torch.equal(plain["label"], lit["label"])
    inside = plain["mask"].bool()
    before, after = plain["image"].float() / 255, lit["image"].float() / 255
    assert bool((after >= before - 0.01).all()) and float(after[inside].mean()) > 0.8
    assert 0.3 < float(after[~inside].mean()) < 0.5 and float(after[~inside].std()) > 0.2 > float(before[~inside].std())
    again = scenes(1, samples=4, test=30, relief=2.5).test[torch.arange(30)]
    assert torch.equal(lit["image"], again["image"])


def test_parts_of_faces_are_where_the_landmarks_are(monkeypatch):
    data = faces.load(size=32, train=20, test=40, seed=0)
    torch.manual_seed(0)
    net = zoo.build("vgg-small", channels=3, classes=4)
    target = wrap(net, space=Space.image((3, 32, 32)), classes=data.info["classes"], data=data)
    monkeypatch.setattr(
        "cambrian.systems.explain.occlusion.recipe.face_target", lambda *_, **__: (target, ["body.relu1", "body.relu5"])
    )
    marks = data.test[torch.arange(40)]["landmarks"]
    for part, mark in (("eye", 0), ("nose", 2)):
        tops, lefts = part_places(marks, part, 6, 32, torch.Generator())
        centre = (marks[:, mark] + 1) * 16
        assert (
            float((lefts + 3 - centre[:, 0]).abs().max()) <= 0.51
            and float((tops + 3 - centre[:, 1]).abs().max()) <= 0.51
        )
    study = OcclusionStudy(Config(experiment="correspondence", images=20, value="grey"))
    found = study.measure(0, None, lambda done, total: None).metrics
    assert found["delta"] == found["delta_relu5"] and 0 < found["delta_relu1"] < 1
