"""FGSM: equality with peers, the closed forms of the paper, the reused gradient of adversarial training, and its composition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.data import digits
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Supervised
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.systems.attack.fgsm.model import (
    DIRECTIONS,
    MaxoutNet,
    RBFNet,
    adversarial_objective,
    control,
    fgsm,
    line_fit,
    logistic_adversarial_loss,
    logit_paths,
    rubbish_error,
    transfer_matrix,
    weight_similarity,
)
from cambrian.systems.attack.fgsm.recipe import FGSM, AdversarialTraining, Options, TrainingOptions


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def make_target(net: nn.Module, steps: int = 45):
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    return made.finetune(net, steps=steps, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0)) and made


@pytest.fixture(scope="module")
def target():
    return make_target(small_net())


@pytest.fixture(scope="module")
def samples(target):
    x, y, _ = next(target.batches("test", 120))
    return x, y


@pytest.mark.parametrize("eps", [4 / 255, 0.2])
def test_equal_to_foolbox(target, samples, eps: float):
    foolbox = pytest.importorskip("foolbox")
    x, y = samples
    model = foolbox.PyTorchModel(copy.deepcopy(target.module).eval(), bounds=(0, 1))
    _, theirs, _ = foolbox.attacks.LinfFastGradientAttack(random_start=False)(model, x, y, epsilons=eps)
    assert torch.equal(fgsm(target, x, y, eps).x_adv, theirs)


def test_equal_to_torchattacks(target, samples):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = samples
    theirs = torchattacks.FGSM(copy.deepcopy(target.module).eval(), eps=0.1)(x, y)
    assert torch.equal(fgsm(target, x, y, 0.1).x_adv, theirs)


def test_beats_every_control_of_the_same_size(target, samples):
    x, y = samples
    success = float(fgsm(target, x, y, 0.15).success.float().mean())
    assert success > 0.5
    for kind in DIRECTIONS[1:]:
        moved = control(target, x, y, 0.15, kind, torch.Generator().manual_seed(0))
        assert float(moved.success.float().mean()) < success - 0.1
    turned = control(target, x, y, 0.3, "rotate", torch.Generator()).x_adv
    angle = F.cosine_similarity(turned.flatten(1), x.flatten(1)).arccos()
    assert (
        bool((angle <= 0.3 + 1e-3).all()) and float(angle.median()) > 0.15
    )  # clipping at the box only shortens the turn
    with pytest.raises(ConfigError, match="direction"):
        control(target, x, y, 0.1, "sideways", torch.Generator())


def test_attacker_reports_references_and_aims_at_a_class(target, samples):
    x, y = samples
    before = copy.deepcopy(target.module.state_dict())
    found = FGSM(Options(eps=0.15, batch=50)).attack(target, x, y, torch.Generator().manual_seed(0))
    assert [row["method"] for row in found.rows] == ["fgsm", "random sign", "bim-10", "pgd-10"]
    rates = {row["method"]: row["success"] for row in found.rows}
    assert rates["random sign"] < rates["fgsm"] <= rates["bim-10"] + 0.02
    assert set(found.figures) == {"strip", "paths"} and len(found.x_adv) == 120
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    aimed = FGSM(Options(eps=0.3, goal="8", reference=False)).attack(target, x, y, torch.Generator())
    hit = target.logits(aimed.x_adv).argmax(1) == 8
    assert bool(aimed.success.any()) and not bool((aimed.success & ~hit).any())
    for bad in (Options(goal="eight"), Options(goal="8", direction="noise")):
        with pytest.raises(ConfigError):
            FGSM(bad).attack(target, x, y, torch.Generator())


# -- the linear view -----------------------------------------------------------------------------------------------------


def test_logistic_adversarial_loss_equals_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    w, b = torch.randn(20, generator=generator, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(50, generator=generator) < 0.5, -1.0, 1.0).double()
    moved = x.clone().requires_grad_(True)
    F.softplus(-y * (moved @ w + b)).sum().backward()
    x_adv = x + 0.25 * moved.grad.sign()
    direct = F.softplus(-y * (x_adv @ w + b)).mean()
    assert float(direct) == pytest.approx(float(logistic_adversarial_loss(w, b, x, y, 0.25)), abs=1e-9)
    printed = F.softplus(y * (0.25 * w.abs().sum() - x @ w - b)).mean()  # y outside of the whole bracket
    assert abs(float(printed) - float(direct)) > 0.1
    with pytest.raises(ShapeError):
        logistic_adversarial_loss(w, b, x, (y > 0).double(), 0.25)


def test_the_step_of_a_linear_model_grows_with_the_l1_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    target = wrap(net, space=Space.image((1, 8, 8)), classes="ab")
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    y = torch.tensor([0])
    gap = (net[1].weight[1] - net[1].weight[0]).detach()
    before, after = target.logits(x)[0], target.logits(fgsm(target, x, y, 0.1).x_adv)[0]
    assert float((after - before) @ torch.tensor([-1.0, 1.0]).double()) == pytest.approx(0.1 * float(gap.abs().sum()))
    steps, logits = logit_paths(target, x, y, 0.1)
    assert float(line_fit(steps.double(), logits[:, :, 0]).min()) > 1 - 1e-9


def test_line_fit_is_the_squared_correlation():
    steps = torch.linspace(-1, 1, 9)
    values = torch.stack([2 * steps + 1, steps**2, steps**3, torch.ones(9)], 1)
    expected = torch.corrcoef(torch.stack([steps, steps**3]))[0, 1] ** 2
    found = line_fit(steps, values)
    assert torch.allclose(
        found, torch.stack([torch.tensor(1.0), torch.tensor(0.0), expected, torch.tensor(1.0)]), atol=1e-6
    )


# -- adversarial training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_reused_gradients_equal_the_three_pass_computation(norm: str):
    net, reference = small_net().double(), small_net().double()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, space = torch.arange(16) % 10, Space.image((1, 8, 8))
    total, scalars = adversarial_objective(
        net, lambda: (F.cross_entropy(net(x), y), {"seen": 1.0}), eps=0.1, space=space, a=0.3, norm=norm
    )
    total.backward()

    moved = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(F.cross_entropy(reference(moved), y), moved)
    unit = slope.sign() if norm == "inf" else slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv = (x + 0.1 * unit).clamp(0, 1)
    clean, adversarial = F.cross_entropy(reference(x), y), F.cross_entropy(reference(x_adv), y)
    (0.3 * clean + 0.7 * adversarial).backward()
    assert torch.allclose(total, 0.3 * clean + 0.7 * adversarial)
    assert torch.equal(scalars["adversarial loss"], adversarial.detach()) and scalars["seen"] == 1.0
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-12)
    assert not net._forward_pre_hooks


def test_a_hidden_layer_can_be_perturbed_instead():
    net = small_net()
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    seen: list[torch.Tensor] = []
    net[5].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].detach()))
    total, _ = adversarial_objective(
        net, lambda: (F.cross_entropy(net(x), y), {}), eps=0.5, space=Space.image((1, 8, 8)), layer="5"
    )
    total.backward()
    gap = (seen[1] - seen[0]).abs()
    assert float(gap.max()) == pytest.approx(0.5 * float(seen[0].std()), rel=1e-4)
    assert bool(net[0].weight.grad.any())


def test_a_loss_with_two_forward_passes_is_refused():
    net, x, y = small_net(), torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(CapabilityError, match="saw 2"):
        adversarial_objective(
            net, lambda: (F.cross_entropy(net(x) + net(x), y), {}), eps=0.1, space=Space.image((1, 8, 8))
        )


@config
class TinyConfig:
    steps: int = option(50, "steps", low=1)
    batch: int = option(32, "samples", low=1)


class TinyRecipe(Supervised[TinyConfig]):
    slug = "tiny"

    def build(self, config, data):
        self.model = small_net()
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=5e-3)

    def objective(self, batch):
        return F.cross_entropy(self.model(batch["image"].float() / 255), batch["label"]), {}

    def target(self):
        return wrap(self.model, space=Space.image((1, 8, 8)), classes=self.data.info["classes"], data=self.data)


def train_tiny(*methods: AdversarialTraining, steps: int = 90) -> TinyRecipe:
    recipe = TinyRecipe(TinyConfig(), data=digits.load(valid=200), methods=methods)
    for step in range(steps):
        recipe.step(recipe.data.train[torch.arange(step * 32, step * 32 + 32) % 1200])
        recipe.iteration += 1
    return recipe


def test_adversarial_training_with_a_ramp_makes_a_recipe_harder_to_fool(samples):
    x, y = samples
    method = AdversarialTraining(TrainingOptions(eps=0.15, clean=20, ramp=20))
    assert [round(method.size(i), 4) for i in (0, 19, 20, 40, 999)] == [0, 0, round(0.15 / 21, 4), 0.15, 0.15]
    plain, hard = train_tiny().target(), train_tiny(method).target()
    accuracy = {
        name: float((~fgsm(t, x, y, 0.15).success).float().mean()) for name, t in (("plain", plain), ("hard", hard))
    }
    assert accuracy["hard"] > accuracy["plain"] + 0.15
    assert hard.metric()["accuracy"] > 0.9


def test_adversarial_training_needs_a_supervised_recipe():
    class Other(Recipe[TinyConfig]):
        slug = "other"

        def build(self, config, data):
            self.model = nn.Linear(1, 1)

    with pytest.raises(CapabilityError, match="supervised"):
        Other(TinyConfig(), data=digits.load(), methods=[AdversarialTraining()])
    for bad in ({"eps": -1.0}, {"a": 1.5}, {"norm": "3"}):
        with pytest.raises(ConfigError):
            TrainingOptions(**bad)


# -- diagnostics and the paper's models ----------------------------------------------------------------------------------


def test_rubbish_is_taken_for_a_class_and_transfer_is_strongest_at_home(target, samples):
    x, y = samples
    other = make_target(small_net(1))
    error, confidence = rubbish_error(target, 200, torch.Generator().manual_seed(0))
    assert 0.2 < error <= 1 and 0.5 < confidence <= 1
    assert rubbish_error(target, 50, torch.Generator(), threshold=1.1) == (0.0, 0.0)
    rows = {row["source"]: row for row in transfer_matrix({"a": target, "b": other}, x, y, 0.15)}
    assert rows["a"]["a"] > rows["a"]["b"] > 0 and rows["b"]["b"] > rows["b"]["a"] > 0
    same = weight_similarity(target.module, target.module)
    assert (
        min(same.values()) == pytest.approx(1) and abs(weight_similarity(target.module, other.module)["5.weight"]) < 0.5
    )


def test_maxout_takes_the_largest_piece_and_rbf_is_unsure_far_away(tmp_path):
    torch.manual_seed(0)
    net = MaxoutNet(inputs=4, classes=3, units=(5,), pieces=2)
    x = torch.randn(6, 4)
    flat = net.hidden[0](x)
    expected = net.head(torch.maximum(flat[:, 0::2], flat[:, 1::2]))
    assert torch.allclose(net(x), expected)
    net.save_pretrained(tmp_path)
    assert torch.equal(MaxoutNet.from_pretrained(tmp_path)(x), net(x))
    rbf = RBFNet(inputs=4, classes=3)
    near, far = rbf(rbf.centres.detach()).softmax(1), rbf(torch.full((1, 4), 40.0)).softmax(1)
    assert torch.equal(near.argmax(1), torch.arange(3)) and torch.allclose(far, torch.full((1, 3), 1 / 3), atol=1e-4)
