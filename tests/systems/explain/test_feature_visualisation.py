"""Activation maximisation: planted filters and closed forms as oracles, regularisers one by one, dead channels, the report."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, NonFiniteError
from cambrian.inspect import Space, wrap
from cambrian.inspect.maps import blurred
from cambrian.systems.explain.feature_visualisation import (
    SETS,
    Aim,
    Config,
    FeatureVisualisation,
    Options,
    Regulariser,
    high_frequency_share,
    parse,
    regularisers,
    top_crops,
    visualise,
)
from cambrian.systems.explain.feature_visualisation._regularisers import after_step, term, viewed
from cambrian.systems.explain.feature_visualisation.model import palette


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def target():
    data = digits.load(valid=200)
    made = wrap(small_net(), space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(made.module, steps=60, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


def bare(net: nn.Module, shape=(3, 12, 12), classes: str = "ab"):
    return wrap(net, space=Space.image(shape), classes=classes)


# -- oracles -------------------------------------------------------------------------------------------------------------


def test_the_optimum_of_a_planted_filter_is_its_direction():
    net = nn.Sequential(nn.Conv2d(3, 5, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(720, 2))
    target = bare(net)
    found = visualise(target, ["0:3:6,6", "0:1:4,7"], steps=60, regs=["ball:0.4"], lr=0.01)
    offset = found.free - 0.5
    for i, (channel, y, x) in enumerate(((3, 6, 6), (1, 4, 7))):
        patch = offset[i, :, y - 2 : y + 3, x - 2 : x + 3]
        weight = net[0].weight[channel].detach()
        cosine = F.cosine_similarity(patch.flatten(), weight.flatten(), dim=0)
        assert float(cosine) > 0.99 and float(offset[i].norm()) == pytest.approx(0.4, rel=1e-3)
        expected = 0.4 * weight.norm() + 0.5 * weight.sum() + net[0].bias[channel].detach()
        assert float(found.free_score[i]) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("param", ["pixel", "fourier"])
def test_the_optimum_of_a_class_under_a_penalty_is_its_weight(param: str):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    target = bare(net, (1, 8, 8))
    found = visualise(target, "class:b", steps=300, regs=["penalty:0.5"], start="mean", param=param, lr=0.003)
    optimum = net[1].weight[1].detach() / (2 * 0.5)  # of w z - lambda |z|^2
    assert float((found.free - 0.5).flatten().sub(optimum).norm()) < 0.15 * float(optimum.norm())


def test_a_direction_is_a_weighted_sum_of_channels(target):
    vector = torch.zeros(12)
    vector[4] = 1.0
    one = visualise(target, "4:4", steps=8, start="mean")
    other = visualise(target, Aim("along", "4", vector=vector), steps=8, start="mean")
    assert torch.allclose(one.free, other.free, atol=1e-5)
    mixed = visualise(target, Aim("along", "4", vector=torch.ones(12) / 12), steps=8, start="mean")
    assert not torch.allclose(one.free, mixed.free, atol=1e-3)


def test_a_batch_equals_one_by_one_and_the_network_is_untouched(target):
    before, mode = copy.deepcopy(target.module.state_dict()), target.module.training
    aims = ["4:0", "4:5:1,2", "4:7"]
    together = visualise(target, aims, steps=10, regs=["decay:0.01", "blur:0.5:2"], start="mean")
    for i, aim in enumerate(aims):
        alone = visualise(target, aim, steps=10, regs=["decay:0.01", "blur:0.5:2"], start="mean")
        assert torch.allclose(together.free[i], alone.free[0], atol=1e-5)
        assert float(together.score[i]) == pytest.approx(float(alone.score[0]), rel=1e-4)
    assert target.module.training == mode and not any(m._forward_hooks for m in target.module.modules())
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())


def test_layers_after_the_aim_do_not_run(target):
    ran = []
    handle = target.module[7].register_forward_hook(lambda *_: ran.append(1))
    visualise(target, "0:2", steps=3)
    handle.remove()
    assert not ran


# -- what an ascent reaches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regs", [[], ["decay:0.01", "blur:0.4:4"]])
def test_class_pictures_are_given_their_class_and_exceed_real_scores(target, regs):
    names = [f"class:{c}" for c in target.classes]
    found = visualise(target, names, steps=100, regs=regs, generator=torch.Generator().manual_seed(1))
    chance = target.logits(found.pictures).softmax(1).diagonal()
    assert float((chance > 0.5).float().mean()) >= (0.9 if not regs else 0.7)
    assert found.trace[-1] > found.trace[0] and float(found.pictures.min()) >= 0 and float(found.pictures.max()) <= 1
    if not regs:
        real = torch.cat([target.logits(x) for x, _, _ in target.batches("train")]).amax(0)
        assert float((found.free_score > 1.5 * real).float().mean()) >= 0.8


def test_channels_exceed_the_training_maximum(target):
    aims = [f"5:{c}:1,1" for c in range(12)]
    found = visualise(target, aims, steps=60, start="mean")
    real = torch.cat([target.features(x, ["5"])["5"][:, :, 1, 1] for x, _, _ in target.batches("train")]).amax(0)
    live = real > 0
    assert float((found.free_score > 1.5 * real)[live].float().mean()) >= 0.8


def test_a_dead_channel_is_climbed_at_its_input():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        net[0].bias[1] = -50.0
    target = bare(net, (1, 8, 8))
    found = visualise(target, ["1:0", "1:1"], steps=10)
    assert found.dead.tolist()[1] is True and float(found.score[1]) < -10
    before = net[0](torch.full((1, 1, 8, 8), 0.5))[0, 1].mean().detach()
    assert float(found.score[1]) > float(before)
    assert visualise(target, "0:1", steps=2).dead.tolist() == [False]


def test_divergence_is_an_error_not_a_clipped_picture():
    class Explosive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1)[:, :2] * 50).exp()

    with pytest.raises(NonFiniteError, match="diverged"):
        visualise(bare(Explosive(), (1, 8, 8)), "class:a", steps=200, lr=0.2, start="mean")


# -- regularisers ----------------------------------------------------------------------------------------------------------


def test_changes_after_a_step():
    z = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    apply = lambda text, step=4: after_step([Regulariser.parse(text)], z, grad, step)  # noqa: E731
    assert torch.allclose(apply("decay:0.1"), 0.9 * z)
    assert torch.allclose(apply("blur:0.7:4"), blurred(z, 0.7)) and torch.equal(apply("blur:0.7:4", 3), z)
    assert torch.allclose(apply("ball:2").flatten(1).norm(dim=1), torch.tensor([2.0, 2.0]))
    idle, small = apply("contribution:50"), apply("norm:25")
    assert int((small == 0).all(1).sum(dim=(1, 2))[0]) == 9 and int((idle == 0).all(1).sum(dim=(1, 2))[1]) == 18
    kept = (small != 0).any(1)
    assert all(float(n[k].min()) >= float(n[~k].max()) for n, k in zip(z.norm(dim=1), kept, strict=True))
    order = (z * grad).sum(1).abs()[0]
    assert float(order[(idle[0] != 0).any(0)].min()) >= float(order[(idle[0] == 0).all(0)].max())


def test_terms_and_views():
    z = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    features, groups = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0])
    assert torch.allclose(term(Regulariser.parse("penalty:0.5"), z, features, groups), 0.5 * z.square().sum((1, 2, 3)))
    assert torch.allclose(term(Regulariser.parse("tv:1"), torch.ones_like(z), features, groups), torch.zeros(3))
    assert term(Regulariser.parse("diversity:2"), z, features, groups).tolist() == [2.0, 2.0, 0.0]
    assert term(Regulariser.parse("diversity:2"), z, features, torch.arange(3)).tolist() == [0.0, 0.0, 0.0]
    x = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(2))
    assert viewed([], x, torch.Generator()) is x
    shifted = viewed([Regulariser.parse("jitter:2")], x, torch.Generator().manual_seed(3))
    inner = x[0, 0, 3:6, 3:6]
    places = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    assert any(torch.allclose(shifted[0, 0, 3 + dy : 6 + dy, 3 + dx : 6 + dx], inner, atol=1e-4) for dy, dx in places)
    turned = viewed(
        [Regulariser.parse("rotate:30"), Regulariser.parse("zoom:0.2")], x, torch.Generator().manual_seed(3)
    )
    assert turned.shape == x.shape and not torch.allclose(turned, x, atol=1e-2)


def test_regularisers_are_parsed_and_checked():
    assert [reg.name for reg in regularisers(["yosinski-1", "tv"])] == ["blur", "norm", "tv"]
    assert all(regularisers([name]) or name == "none" for name in SETS)
    for bad in ("sharpen", "decay:2", "blur:0.5:0.5", "tv:x", "norm:20:30", "jitter:-1"):
        with pytest.raises(ConfigError):
            Regulariser.parse(bad)


def test_regularisers_remove_high_frequencies_and_diversity_spreads_copies(target):
    plain, soft = (visualise(target, "class:3", steps=60, regs=regs) for regs in ([], ["small"]))
    assert float(high_frequency_share(soft.pictures)) < 0.5 * float(high_frequency_share(plain.pictures))
    alike = []
    for regs in ([], ["diversity:30"]):
        copies = visualise(target, "4:3", steps=40, copies=3, regs=regs).free
        features = F.normalize(target.module[:5].eval()(copies).detach().flatten(1), dim=1)
        alike.append(float((features @ features.T).triu(1).sum()) / 3)
    assert alike[1] < alike[0] - 0.1


def test_share_of_high_frequencies():
    line = torch.arange(16.0)
    slow, fast = torch.cos(2 * math.pi * line * 2 / 16), torch.cos(2 * math.pi * line * 6 / 16)
    waves = torch.stack([slow, fast, slow + fast]).view(3, 1, 1, 16).expand(-1, 1, 16, -1)
    assert torch.allclose(high_frequency_share(waves + 5), torch.tensor([0.0, 1.0, 0.5]), atol=1e-5)


def test_octaves_and_fourier_give_smoother_first_steps(target):
    coarse = visualise(target, "class:2", steps=8, start="mean", octaves=2)
    fine = visualise(target, "class:2", steps=8, start="mean")
    assert float(high_frequency_share(coarse.free)) < float(high_frequency_share(fine.free))
    mean, colours = palette(target)
    assert mean.shape == (1, 1, 1, 1) and colours.shape == (1, 1)
    spectral = visualise(target, "class:2", steps=30, start="noise", param="fourier")
    assert spectral.trace[-1] > spectral.trace[0]
    first = visualise(target, "class:2", steps=1, start="noise", param="fourier", lr=1e-9)
    same = visualise(target, "class:2", steps=1, start="noise", lr=1e-9)
    assert torch.allclose(first.free, same.free, atol=1e-5)  # the transform is inverted exactly


# -- the report ------------------------------------------------------------------------------------------------------------


def test_real_crops_are_the_largest_activations(target):
    x, _, _ = next(target.batches("test", 60))
    crops, scores = top_crops(target, parse("0:4", target), x, count=5)
    best = target.features(x, ["0"])["0"][:, 4].amax((1, 2))
    assert torch.allclose(scores, best) and crops.shape == (5, 1, 3, 3)
    again = (F.conv2d(crops, target.module[0].weight) + target.module[0].bias.view(1, -1, 1, 1))[:, 4, 0, 0]
    assert torch.allclose(again, best.topk(5).values, atol=1e-5)
    whole, logits = top_crops(target, parse("class:3", target), x)
    assert whole.shape == (9, 1, 8, 8) and torch.allclose(logits, target.logits(x)[:, 3])


def test_explainer_reports_every_aim(target):
    generator = torch.Generator().manual_seed(0)
    found = FeatureVisualisation(Options(steps=15, samples=100)).explain(target, generator)
    assert len(found.rows) == 10 and set(found.figures) == {"mosaic", "beside-real"}
    assert found.rows[3]["aim"] == "class:3" and 0 <= found.rows[3]["own probability"] <= 1
    layer = FeatureVisualisation(Options(what="5", steps=5, samples=50, limit=4)).explain(target, generator)
    assert [row["aim"] for row in layer.rows] == ["5:0", "5:1", "5:2", "5:3"]
    assert all(row["own probability"] is None for row in layer.rows)


def test_wrong_requests(target):
    for bad in ("class:x", "class:#10", "5:twelve", "5:1:2", "nowhere:1"):
        with pytest.raises(ConfigError):
            visualise(target, bad, steps=1)
    for aim in ("5:99", "5:1:9,9", "7:1:0,0", Aim("v", "5", vector=torch.ones(3))):
        with pytest.raises(ConfigError):
            visualise(target, aim, steps=1)
    for settings in ({"steps": 0}, {"param": "wavelet"}, {"start": "photo"}, {"copies": 0}, {"regs": ["fog"]}):
        with pytest.raises(ConfigError):
            visualise(target, "class:1", **settings)
    with pytest.raises(ConfigError, match="one layer"):
        visualise(target, ["0:1", "5:1"], steps=1)
    vector = wrap(nn.Linear(4, 2), space=Space.vector(4, 0.0, 1.0), classes="ab")
    with pytest.raises(CapabilityError):
        visualise(vector, "class:a", steps=1)
    with pytest.raises(ConfigError):
        Config(networks=("alexnet",))
