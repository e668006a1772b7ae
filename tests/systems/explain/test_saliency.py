"""Gradient attributions: equality with Captum, the counter-examples of the papers, completeness, and ReLUs of every kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.inspect.maps import boxes, pass_size
from cambrian.nn import zoo
from cambrian.systems.explain._scenes import scenes, understood
from cambrian.systems.explain.saliency import (
    METHODS,
    completeness_gap,
    grad_cam,
    gradient,
    integrated_gradients,
    quadrature,
    saliency,
    smooth,
)
from cambrian.systems.explain.saliency.model import QUADRATURES, baseline_of, last_spatial, relu_rule, score
from cambrian.systems.explain.saliency.recipe import Config, Options, Saliency, SaliencyStudy


class ConvNet(nn.Module):
    """Two convolutions with batch norm; `relu` says how the rectifiers are written."""

    def __init__(self, relu: str = "module") -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.relu1, self.relu2, self.pool = nn.ReLU(relu == "inplace"), nn.ReLU(relu == "inplace"), nn.MaxPool2d(2)
        self.gap, self.fc, self.kind = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 5), relu

    def rectify(self, module: nn.Module, h: Tensor) -> Tensor:
        kinds = {
            "function": F.relu, "torch": torch.relu, "method": Tensor.relu, "method_": Tensor.relu_, "shared": self.relu1,
            "function_": lambda h: F.relu(h, inplace=True), "clamp": lambda h: h.clamp(min=0), "tanh": torch.tanh,
        }  # fmt: skip
        return kinds.get(self.kind, module)(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.rectify(self.relu1, self.bn1(self.conv1(x))))
        return self.fc(self.gap(self.rectify(self.relu2, self.conv2(h))).flatten(1))


def make(relu: str = "module", seed: int = 0):
    torch.manual_seed(seed)
    net = ConvNet(relu)
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 8, 8) * 2)  # batch statistics that are not 0 and 1
    return wrap(net, space=Space.image((3, 8, 8)), classes="abcde")


def batch(n: int = 6):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 5


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


def peer(target):
    return copy.deepcopy(target.module).eval()


# -- equality with Captum ----------------------------------------------------------------------------------------------


def test_gradient_and_gradient_times_input_equal_captum(captum):
    target, (x, y) = make(), batch()
    theirs = captum.Saliency(peer(target)).attribute(x.clone(), target=y, abs=False)
    assert torch.equal(saliency(target, x, y), theirs)
    assert torch.allclose(gradient(target, x, y, cap_mb=1e-3), theirs, atol=1e-7)  # one picture a pass
    theirs = captum.InputXGradient(peer(target)).attribute(x.clone(), target=y)
    assert torch.allclose(saliency(target, x, y, "gradient-x-input"), theirs, atol=1e-7)


@pytest.mark.parametrize("relu", ["module", "inplace", "function", "torch", "method", "method_", "function_", "shared"])
def test_guided_and_deconvnet_equal_captum_however_relu_is_written(captum, relu: str):
    target, (x, y) = make(relu), batch()
    reference = peer(make("module"))  # Captum's hooks see separate modules only
    guided = captum.GuidedBackprop(reference).attribute(x.clone(), target=y)
    assert torch.allclose(saliency(target, x, y, "guided"), guided, atol=1e-7)
    deconvnet = captum.Deconvolution(peer(make("module"))).attribute(x.clone(), target=y)
    assert torch.allclose(saliency(target, x, y, "deconvnet"), deconvnet, atol=1e-7)
    assert not torch.allclose(guided, saliency(target, x, y), atol=1e-3)


@pytest.mark.parametrize("quad", QUADRATURES)
def test_integrated_gradients_equal_captum(captum, quad: str):
    target, (x, y) = make(), batch()
    start = torch.rand(3, 8, 8).expand_as(x)
    name = {"gauss-legendre": "gausslegendre"}.get(quad, f"riemann_{quad}")
    theirs = captum.IntegratedGradients(peer(target)).attribute(x, start, target=y, n_steps=50, method=name)
    # Captum's trapezoid weights sum to 49 / 50
    theirs = theirs * 50 / 49 if quad == "trapezoid" else theirs
    for cap in (None, 1e-3, 0.3):
        ours = integrated_gradients(target, x, y, baseline=start, n=50, quad=quad, cap_mb=cap)
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_probability_as_the_score_equals_captum_on_the_softmax(captum):
    target, (x, y) = make(), batch()
    whole = nn.Sequential(peer(target), nn.Softmax(1))
    theirs = captum.IntegratedGradients(whole).attribute(x, torch.zeros_like(x), target=y, n_steps=20)
    assert torch.allclose(integrated_gradients(target, x, y, n=20, of="prob"), theirs, atol=1e-6)


def test_grad_cam_equals_captum(captum):
    target, (x, y) = make(), batch()
    module = peer(target)
    theirs = captum.LayerGradCam(module, module.relu2).attribute(x, target=y, relu_attributions=True)
    assert last_spatial(target) == "gap:in"
    for layer in (None, "relu2", "gap:in"):
        assert torch.allclose(grad_cam(target, x, y, layer=layer, upsample="none"), theirs, atol=1e-6)
    near = captum.LayerAttribution.interpolate(theirs, (8, 8))
    assert torch.allclose(grad_cam(target, x, y, upsample="nearest"), near, atol=1e-6)
    smoothly = captum.LayerAttribution.interpolate(theirs, (8, 8), interpolate_mode="bilinear")
    assert torch.allclose(saliency(target, x, y, "grad-cam"), smoothly, atol=1e-6)
    assert saliency(make("inplace"), x, y, "grad-cam").shape == (6, 1, 8, 8)


def test_smoothgrad_equals_captum_under_shared_noise(captum):
    target, (x, y) = make(), batch()
    tunnel = captum.NoiseTunnel(captum.Saliency(peer(target)))
    torch.manual_seed(5)
    theirs = tunnel.attribute(x.clone(), nt_type="smoothgrad", nt_samples=10, stdevs=0.2, target=y, abs=False)
    torch.manual_seed(5)
    noise = torch.normal(0, torch.full((6 * 10, 3, 8, 8), 0.2)).view(6, 10, 3, 8, 8).transpose(0, 1)
    ours = smooth(lambda a, b: target_slope(target, a, b), x, y, noise)
    assert torch.allclose(ours, theirs, atol=1e-6)


def target_slope(target, x, y):
    with target.quiet() as module:
        moved = x.clone().requires_grad_(True)
        return torch.autograd.grad(module(moved).gather(1, y[:, None]).sum(), moved)[0]


# -- closed forms and counter-examples -----------------------------------------------------------------------------------


def vector(module: nn.Module, size: int, lo: float = -5.0, hi: float = 5.0):
    return wrap(module, space=Space.vector(size, lo, hi), classes="a")


class Lambda(nn.Module):
    """Logits `[B,1]` of any function of `x [B,D]`."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)[:, None]


ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_on_a_linear_model_integrated_gradients_are_the_weights_times_the_difference(n: int):
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    target = wrap(net, space=Space.vector(6, -3, 3), classes="abc")
    x, y, start = torch.randn(9, 6), torch.arange(9) % 3, torch.randn(6)
    expected = net.weight[y] * (x - start)
    for quad in QUADRATURES:
        if quad != "trapezoid" or n > 1:
            assert torch.allclose(
                integrated_gradients(target, x, y, baseline=start, n=n, quad=quad), expected, atol=1e-6
            )
    averaged = integrated_gradients(target, x, y, baseline=[start, "zero", "grey"], n=n)
    assert torch.allclose(averaged, net.weight[y] * (x - start / 3), atol=1e-6)
    assert float(completeness_gap(target, x, y, averaged, baseline=[start, "zero", "grey"]).max()) < 1e-3


def test_sensitivity_fails_for_the_gradient_and_holds_for_integrated_gradients():
    target = vector(Lambda(lambda x: 1 - F.relu(1 - x[:, 0])), 1)  # f(0) = 0, f(2) = 1, flat from 1 on
    x = torch.tensor([[2.0]])
    assert float(gradient(target, x, ZERO)) == 0.0
    assert float(saliency(target, x, ZERO, "guided")) == 0.0
    assert float(integrated_gradients(target, x, ZERO, n=200, quad="middle")) == pytest.approx(1.0, abs=1e-6)
    assert float(integrated_gradients(target, x, ZERO, n=64)) == pytest.approx(1.0, abs=0.02)


def test_two_networks_of_one_function_get_one_map_from_integrated_gradients_but_two_from_guided():
    one = vector(Lambda(lambda x: F.relu(F.relu(x[:, 0]) - 1 - F.relu(x[:, 1]))), 2)
    two = vector(Lambda(lambda x: F.relu(F.relu(x[:, 0] - 1) - F.relu(x[:, 1]))), 2)  # the paper's figure 7
    x = torch.tensor([[3.0, 1.0]])
    for target in (one, two):
        found = integrated_gradients(target, x, ZERO, n=3000, quad="middle")
        assert torch.allclose(found, torch.tensor([[1.5, -0.5]]), atol=2e-3)
    line = vector(Lambda(lambda x: F.relu(x[:, 0] + 9) - 9), 1)  # x on [-5, 5]
    pair = vector(Lambda(lambda x: F.relu(x[:, 0]) - F.relu(-x[:, 0])), 1)
    x = torch.tensor([[-2.0]])
    assert [float(saliency(t, x, ZERO, "guided")) for t in (line, pair)] == [1.0, 0.0]
    assert [float(integrated_gradients(t, x, ZERO)) for t in (line, pair)] == pytest.approx([-2.0, -2.0])


def test_the_gap_closes_with_the_number_of_gradients_and_not_for_gradient_x_input():
    target, (x, y) = make(), batch()
    for kind in ("zero", "grey", "mean", "blur", "noise"):
        gaps = [
            completeness_gap(
                target, x, y, integrated_gradients(target, x, y, baseline=kind, n=n), baseline=kind
            ).median()
            for n in (1, 64)
        ]
        assert float(gaps[1]) < 0.02 and float(gaps[1]) < float(gaps[0])
    plain = saliency(target, x, y, "gradient-x-input")
    hand = (plain.flatten(1).sum(1) - (score_at(target, x, y) - score_at(target, 0 * x, y))).abs()
    hand = hand / (score_at(target, x, y) - score_at(target, 0 * x, y)).abs()
    assert torch.allclose(completeness_gap(target, x, y, plain), hand, rtol=1e-4)


def score_at(target, x, y):
    return target.logits(x).detach().gather(1, y[:, None])[:, 0]


def test_folded_batch_norms_change_integrated_gradients_by_rounding_only():
    target, (x, y) = make(), batch()
    plain, fast = (integrated_gradients(target, x, y, baseline="grey", fold=fold) for fold in (False, True))
    assert float((plain - fast).abs().median()) < 1e-6 and float((plain - fast).abs().max()) < 1e-3
    assert not any("forward" in vars(part) for part in target.module.modules())


@pytest.mark.parametrize("quad", QUADRATURES)
def test_quadratures_integrate(quad: str):
    nodes, weights = quadrature(40, quad)
    assert weights.sum() == pytest.approx(1) and nodes.min() >= 0 and nodes.max() <= 1
    tolerance = {"gauss-legendre": 1e-12, "left": 0.05, "right": 0.05}.get(quad, 1e-3)
    assert float(weights @ np.exp(nodes)) == pytest.approx(np.e - 1, abs=tolerance)
    if quad == "gauss-legendre":
        assert float(quadrature(3)[1] @ quadrature(3)[0] ** 5) == pytest.approx(1 / 6)  # exact to degree 2 n - 1


def test_scores_are_logit_probability_and_log_odds():
    logits, y = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.equal(score(logits, y), logits.gather(1, y[:, None])[:, 0])
    assert torch.allclose(score(logits, y, "prob"), p)
    assert torch.allclose(score(logits, y, "log-odds"), (p / (1 - p)).log())
    saturated = vector(Lambda(lambda x: 200 * x[:, 0]), 1)  # one class: p = 1 whatever x is
    assert float(gradient(saturated, torch.ones(1, 1), ZERO, of="prob")) == 0.0
    assert float(gradient(saturated, torch.ones(1, 1), ZERO)) == 200.0


def test_baselines_lie_in_the_box():
    x = torch.rand(4, 3, 8, 8)
    target = make()
    for kind in ("zero", "noise", "grey", "mean", "blur", "lo", "hi"):
        start = baseline_of(target, x, kind, torch.Generator().manual_seed(0))
        assert start.shape == x.shape and float(start.min()) >= 0 and float(start.max()) <= 1
    other = vector(nn.Linear(2, 1), 2, 1.0, 3.0)
    assert baseline_of(other, torch.full((1, 2), 2.0), "zero").tolist() == [[1.0, 1.0]]
    with pytest.raises(CapabilityError, match="pictures"):
        baseline_of(other, torch.full((1, 2), 2.0), "blur")


# -- behaviour -----------------------------------------------------------------------------------------------------------


def test_nothing_of_the_network_changes_and_samples_do_not_depend_on_each_other():
    target, (x, y) = make("inplace"), batch()
    target.module.train()
    before, kept = copy.deepcopy(target.module.state_dict()), x.clone()
    for method in METHODS:
        maps = saliency(target, x, y, method, n=8, samples=4)
        assert maps.shape[0] == 6 and maps.dtype == torch.float32 and not maps.requires_grad
        if method != "smoothgrad":
            assert torch.allclose(saliency(target, x[2:3], y[2:3], method, n=8), maps[2:3], atol=1e-6)
    assert torch.equal(x, kept) and target.module.training and target.module.conv1.weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in target.module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in target.module.modules())
    assert target.module.conv1.weight.grad is None
    one, two = (saliency(target, x, y, "smoothgrad", generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and not torch.allclose(one, gradient(target, x, y), atol=1e-4)
    assert torch.allclose(saliency(target, x, y, "smoothgrad", sigma=0.0), gradient(target, x, y), atol=1e-6)


def test_rectifiers_that_cannot_be_seen_are_refused():
    x, y = batch()
    with pytest.raises(CapabilityError, match="Clamp"):
        saliency(make("clamp"), x, y, "guided")
    with pytest.raises(CapabilityError, match="none that is visible"):
        saliency(make("tanh"), x, y, "deconvnet")
    scripted = wrap(torch.jit.trace(peer(make()), x), space=Space.image((3, 8, 8)), classes="abcde")
    with pytest.raises(CapabilityError):
        saliency(scripted, x, y, "guided")
    with relu_rule("guided"):
        pass
    h = torch.tensor([-1.0, 2.0], requires_grad=True)
    F.relu(h).sum().backward()
    assert h.grad.tolist() == [0.0, 1.0]  # the rule ends with the block


def test_an_in_place_relu_still_changes_its_input():
    def forward(x: Tensor) -> Tensor:
        h = 2 * x
        F.relu(h, inplace=True)
        return h.sum(1)

    target = vector(Lambda(forward), 2)
    x = torch.tensor([[1.0, -1.0]])
    assert saliency(target, x, ZERO, "guided").tolist() == [[2.0, 0.0]]
    assert saliency(target, x, ZERO, "deconvnet").tolist() == [[2.0, 2.0]]


def test_bad_input_is_refused():
    target, (x, y) = make(), batch()
    for bad in (x[:, :2], x * float("nan"), x + 2, x[:0]):
        with pytest.raises(ShapeError):
            saliency(target, bad, y)
    with pytest.raises(ShapeError):
        saliency(target, x, y + 4)
    for settings in ({"method": "psychic"}, {"of": "luck"}, {"method": "integrated", "n": 0},
                     {"method": "integrated", "quad": "simpson"}, {"method": "integrated", "baseline": "beige"},
                     {"method": "integrated", "baseline": []}, {"method": "smoothgrad", "sigma": 2.0},
                     {"method": "integrated", "n": 1, "quad": "trapezoid"}, {"method": "grad-cam", "layer": "conv9"},
                     {"method": "integrated", "cap_mb": 0.0}):  # fmt: skip
        with pytest.raises(ConfigError):
            saliency(target, x, y, **settings)
    with pytest.raises(CapabilityError, match="feature maps"):
        grad_cam(target, x, y, layer="fc")
    with pytest.raises(CapabilityError, match="2 times"):
        grad_cam(make("shared"), x, y, layer="relu1")
    with pytest.raises(CapabilityError, match="feature maps"):
        grad_cam(wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), space=target.space, classes="abcde"), x, y)
    with pytest.raises(ShapeError, match="noise"):
        smooth(lambda a, b: a, x, y, torch.zeros(2, 3, 3))
    with pytest.raises(ShapeError, match="adds up"):
        completeness_gap(target, x, y, grad_cam(target, x, y))
    tokens = wrap(nn.Linear(2, 2), space=Space("tokens", (2,), 0, 9), classes="ab")
    with pytest.raises(CapabilityError, match="tokens"):
        saliency(tokens, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


def test_passes_shrink_with_the_cap():
    target = make()
    assert pass_size(target, 1e-6) == 1 and pass_size(target, 2.0) == pytest.approx(2 * pass_size(target, 1.0), abs=1)


# -- the explainer and the study -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene():
    """A network with fresh weights on scenes: enough for everything but the claim."""
    data = scenes(0, samples=20, test=400)
    torch.manual_seed(0)
    net = zoo.build("vgg-small", channels=1, classes=10)
    return wrap(net, space=Space.image((1, 32, 32)), classes=data.info["classes"], data=data)


def test_scenes_hold_one_small_object_anywhere(scene):
    _, _, meta = next(scene.batches("test", 400))
    inside = boxes(meta["mask"])
    share = inside.float().mean((1, 2, 3))
    assert float(share.max()) < 0.15 and 0.04 < float(share.mean()) < 0.1
    rows, columns = inside.any(3).float().mean((0, 1)), inside.any(2).float().mean((0, 1))
    assert float(rows[:8].max()) > 0.1 and float(columns[-8:].max()) > 0.1
    with torch.no_grad():
        x, y, found = understood(scene, 5, 0)
        assert torch.equal(scene.logits(x).argmax(1), y) and found.shape == (5, 1, 32, 32)
    with pytest.raises(DataError, match="correctly"):
        understood(scene, 400, 0)


def test_the_explainer_measures_every_method(scene):
    found = Saliency(Options(images=8, n=4, samples=3)).explain(scene, torch.Generator().manual_seed(0))
    rows = {row["method"]: row for row in found.rows}
    assert list(rows) == list(METHODS) and set(found.figures) == {"maps"}
    assert rows["integrated"]["forward/image"] == rows["integrated"]["backward/image"] == 4
    assert rows["smoothgrad"]["backward/image"] == 3 and rows["gradient"]["backward/image"] == 1
    assert "completeness gap" in rows["integrated"] and "completeness gap" not in rows["grad-cam"]
    for row in rows.values():
        assert {"deletion AUC", "insertion AUC", "pointing", "mask mass", "randomised Spearman"} <= set(row)
    few = Saliency(Options(methods="gradient+guided", images=3, randomise=False, label="predicted", of="prob"))
    rows = few.explain(scene, torch.Generator().manual_seed(0)).rows
    assert [row["quantity"] for row in rows] == ["prob", "prob"] and "randomised Spearman" not in rows[0]
    with pytest.raises(ConfigError, match="methods"):
        Options(methods="gradient+magic").chosen()


def test_the_explainer_says_which_method_does_not_apply(scene):
    net = zoo.build("wide-elu", channels=1, classes=10)
    other = wrap(
        net, space=scene.space, classes=scene.classes, data={"test": (torch.rand(4, 1, 32, 32), torch.arange(4))}
    )
    rows = {
        row["method"]: row for row in Saliency(Options(images=4, n=2, samples=2)).explain(other, torch.Generator()).rows
    }
    assert (
        "visible" in rows["guided"]["note"] and "note" not in rows["integrated"] and "pointing" not in rows["gradient"]
    )
    with pytest.raises(CapabilityError):
        Saliency(Options(methods="guided", images=4)).explain(other, torch.Generator())


def test_the_claim_s_metrics_come_from_one_study(monkeypatch, scene):
    monkeypatch.setattr("cambrian.systems.explain.saliency.recipe.scene_target", lambda *_, **__: scene)

    def measure(**over):
        return SaliencyStudy(Config(images=10, **over)).measure(0, None, lambda done, total: None).metrics

    many, one, plain, noise = measure(n=24), measure(n=1), measure(method="gradient-x-input"), measure(method="random")
    assert many["gap"] < one["gap"] and many["gap"] < plain["gap"] and many["evaluations"] == 24
    assert noise["randomised"] == pytest.approx(1.0) and "gap" not in measure(method="grad-cam")


def test_the_relevance_of_channels_goes_along(scene):
    found = Saliency(Options(methods="gradient", images=8, randomise=False)).explain(scene, torch.Generator())
    convolutions = [layer for layer in scene.layers() if layer.kind == "Conv2d"]
    assert [len(values) for values in found.relevance.values()] == [layer.weight[0] for layer in convolutions]
    flat = wrap(
        zoo.fitted("lenet-300-100", classes=10, channels=1, size=32, mean=(0.5,), std=(0.5,)),
        space=scene.space, classes=scene.classes, data={"test": (torch.rand(4, 1, 32, 32), torch.arange(4))},
    )  # fmt: skip
    alone = Saliency(Options(methods="gradient", images=4, randomise=False)).explain(flat, torch.Generator())
    assert not alone.relevance
