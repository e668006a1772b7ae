"""Denoising feature matching: the best denoiser of a Gaussian, the generator's gradient, who learns from what."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.data.split import Data
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Images, Plot
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL
from cambrian.systems.gans import _judging, _worlds
from cambrian.systems.gans.dfm import DFM, Config, DFMRecipe, denoiser_for, denoising_loss, pull_loss

TINY = Config(
    steps=4,
    batch=8,
    characters="digits",
    arch="connected",
    latent=4,
    hidden=(16, 12),
    r_depth=1,
    r_width=16,
    samples=32,
)


@pytest.fixture(scope="module")
def digits() -> Data:
    return _worlds.load(Source("world", "digits"))


def _recipe(data: Data, **changes: object) -> DFMRecipe:
    return DFMRecipe(dataclasses.replace(TINY, **changes), data=data)


def _batch(data: Data, count: int = 8) -> dict[str, Tensor]:
    return data.split("train")[torch.arange(count)]


def test_the_denoiser_of_gaussian_features_is_the_affine_optimum() -> None:
    """r(h) = mu + S (S + sigma^2 I)^-1 (h - mu), reached to 2 % of what it has to explain."""
    torch.manual_seed(0)
    draw, sigma = torch.Generator().manual_seed(1), 0.8
    mu, root = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[1.5, 0, 0], [0.7, 0.8, 0], [-0.4, 0.3, 0.5]])
    r = denoiser_for(3, depth=1, width=48)
    optimiser = torch.optim.Adam(r.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        h = mu + torch.randn(256, 3, generator=draw) @ root.T
        optimiser.zero_grad()
        denoising_loss(r, h, sigma * torch.randn(256, 3, generator=draw)).backward()
        optimiser.step()
        schedule.step()
    covariance = root @ root.T
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3))
    noisy = mu + torch.randn(4000, 3, generator=draw) @ root.T + sigma * torch.randn(4000, 3, generator=draw)
    best = (noisy - mu) @ gain.T
    with torch.no_grad():
        found = r.eval()(noisy) - mu
    assert float((found - best).square().sum() / best.square().sum()) < 0.02


def test_the_generators_gradient_is_that_of_a_fixed_target() -> None:
    """2 J^T (Phi - r) / N, with the Jacobian written out and r treated as a constant."""
    torch.manual_seed(0)
    phi = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    r = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double()
    theta, z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    h = phi(z @ theta)
    (found,) = torch.autograd.grad(pull_loss(h, r(h)), theta)
    jacobian = torch.func.jacrev(lambda t: phi(z @ t))(theta.detach())  # [N, F, 3, 4]
    want = 2 * torch.einsum("nfij,nf->ij", jacobian, (h - r(h)).detach()) / len(z)
    torch.testing.assert_close(found, want)
    through = torch.autograd.grad((phi(z @ theta) - r(phi(z @ theta))).square().sum(1).mean(), theta)[0]
    assert not torch.allclose(found, through)  # the gradient through r is another one


def test_players_come_in_order_and_each_learns_from_its_own(digits: Data) -> None:
    recipe = _recipe(digits)
    batch = _batch(digits)
    model, x = recipe.model, recipe.real(batch)
    with torch.no_grad():
        alone = model.discriminator.features(x, (REAL,))
    d, r, g = recipe.players(x, batch)
    assert [d.name, r.name, g.name] == ["d", "r", "g"]
    assert [p.name for p in _recipe(digits, pull="match").players(x, batch)] == ["d", "g"]
    _, reported = d.loss(0)
    assert float(reported["feature_sd"]) == pytest.approx(float(alone.std()), rel=1e-5)  # no pass of its own for r
    statistics = [norm.running_mean[FAKE].clone() for norm in model.denoiser.norms]
    r.loss(0).backward()
    assert all(p.grad is not None for p in model.denoiser.parameters())
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(torch.equal(a, n.running_mean[FAKE]) for a, n in zip(statistics, model.denoiser.norms, strict=True))
    model.zero_grad()
    loss, scalars = g.loss(0)
    loss.backward()
    assert all(p.grad is None for p in model.denoiser.parameters())  # r is a target, not a way
    assert all(p.grad is not None for p in model.generator.parameters())
    assert -1 <= float(scalars["cosine"]) <= 1 and float(scalars["to_target"]) > 0


def test_the_pull_moves_features_towards_their_targets(digits: Data) -> None:
    recipe = _recipe(digits, l_adv=0.0, l_den=1.0)
    model, batch = recipe.model, _batch(digits)
    torch.manual_seed(3)
    z = torch.randn(64, 4)
    model.eval()
    with torch.no_grad():
        target = model.denoise(model.features(model.generate(z), FAKE), FAKE)
        before = float((model.features(model.generate(z), FAKE) - target).norm())
    optimiser = torch.optim.Adam(model.generator.parameters(), lr=3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        pull_loss(model.discriminator.features(model.generate(z), (FAKE,)), target).backward()
        optimiser.step()
    with torch.no_grad():
        assert float((model.features(model.generate(z), FAKE) - target).norm()) < 0.9 * before
    model.train()
    h = model.discriminator.features(model.generate(z), (FAKE,))
    _, scalars = recipe.pulled(h, h.sum() * 0.0, recipe.real(batch))
    assert float(scalars["cosine"]) == 0.0  # no adversarial gradient to agree with


def test_the_sabotage_takes_targets_of_other_samples_and_a_weight_of_zero_is_the_plain_game(digits: Data) -> None:
    own, shuffled = _recipe(digits), _recipe(digits, r_target="shuffled")
    h = torch.randn(8, own.model.width, requires_grad=True)
    target = own.model.denoise(h.detach(), FAKE)
    distances = []
    for recipe in (own, shuffled):
        _, scalars = recipe.pulled(h, h.sum(), h.detach())
        distances.append(float(scalars["to_target"]))
    assert distances[0] == pytest.approx(float((h - target).norm(dim=1).mean().detach()), rel=1e-5)
    assert distances[1] == pytest.approx(float((h - target.roll(1, 0)).norm(dim=1).mean().detach()), rel=1e-5)
    arms = [_recipe(digits, **a) for a in ({"l_den": 0.0}, {"pull": "none"}, {"l_den": 50.0})]
    for recipe in arms:
        recipe.step(_batch(digits))
    weights = [torch.nn.utils.parameters_to_vector(r.model.generator.parameters()) for r in arms]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-7, rtol=1e-6)
    assert not torch.allclose(weights[0], weights[2], atol=1e-6)


@pytest.mark.parametrize("pull", ["denoise", "match", "none"])
def test_images_train_and_show(digits: Data, pull: str) -> None:
    recipe = _recipe(digits, pull=pull, arch="dcgan", base=2)
    loop = Loop(recipe)
    scalars = [loop.advance() for _ in range(2)]
    assert {"d_loss", "g_loss", "d_accuracy", "feature_sd"} <= set(scalars[0])
    assert ("r_loss" in scalars[0]) == (pull == "denoise") and ("to_target" in scalars[0]) == (pull != "none")
    with inference(recipe, 0):
        sheet = recipe.targets(n=3)
    assert isinstance(sheet, Images) and sheet.tensor.shape == (9, 1, 8, 8)
    assert float(sheet.tensor.min()) >= 0 and float(sheet.tensor.max()) <= 1


def test_points_train_and_figures_are_added() -> None:
    recipe = _recipe(_worlds.load(Source("world", "ring8")))
    loop = Loop(recipe)
    loop.advance()
    figures = evaluate(recipe)
    assert {"modes_touched", "quality", "r_error", "feature_sd", "d_accuracy"} <= set(figures)
    assert figures["r_error"] > 0
    with inference(recipe, 0) as generator:
        assert isinstance(recipe.sample(20, generator), Plot)
    with pytest.raises(CapabilityError, match="needs images"):
        recipe.targets()


def test_all_characters_are_62_classes_with_a_judge_to_match(monkeypatch) -> None:
    seen: dict[str, object] = {}
    drawn = _worlds.load(Source("world", "digits"))
    monkeypatch.setattr("cambrian.systems.gans.dfm.glyphs.load", lambda **style: seen.update(style) or drawn)
    data = DFMRecipe.load_data(dataclasses.replace(TINY, characters="all"), Source("world", "glyphs"))
    assert len(seen["characters"]) == 62 and data.info["judge"]["limit"] == seen["train"]
    asked: dict[str, object] = {}
    monkeypatch.setattr(_judging, "judge_of", lambda *splits, **effort: asked.update(effort))
    _judging.panel_of(data)
    assert asked == data.info["judge"]
    assert "judge" not in DFMRecipe.load_data(TINY, Source("world", "digits")).info


def test_a_saved_model_computes_the_same_features(tmp_path) -> None:
    torch.manual_seed(0)
    model = DFM(shape=(1, 8, 8), latent=4, base=2, r_depth=1, r_width=8).eval()
    model.save_pretrained(tmp_path)
    again = DFM.from_pretrained(tmp_path).eval()
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.denoise(again.features(x)), model.denoise(model.features(x)))
    assert model.features(x).shape == (3, model.width)


def test_bad_input_is_named() -> None:
    model = DFM(shape=(1, 8, 8), latent=4, base=2, r_depth=1, r_width=8)
    with pytest.raises(ShapeError, match=r"\[batch >= 1, 1, 8, 8\]"):
        model.features(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ShapeError, match="rescale"):
        model.features(torch.full((2, 1, 8, 8), 9.0))
    with pytest.raises(ShapeError, match=rf"\[batch, {model.width}\]"):
        model.denoise(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="pull must be one of"):
        dataclasses.replace(TINY, pull="push")
    with pytest.raises(ConfigError, match="sigma must be at least 0"):
        dataclasses.replace(TINY, sigma=-1.0)
    with pytest.raises(ConfigError, match="do not train on the world"):
        DFMRecipe.load_data(TINY, Source("world", "gridworld"))
