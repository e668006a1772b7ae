"""VGAN: the bounded energy and its entropy surrogate against closed forms, the bound against an exact likelihood."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from sklearn.linear_model import Ridge

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Gallery, Images, Plot
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.gans.vgan_ebm import (
    VCD,
    VGAN,
    AugmentationStudy,
    Config,
    VGANRecipe,
    binary_entropy,
    entropy_surrogate,
    nll_bound,
    product_energy,
)
from cambrian.systems.gans.vgan_ebm._augment import few_labels, train_classifier
from cambrian.systems.gans.vgan_ebm.recipe import ridge_accuracy, used

TINY = Config(steps=3, batch=8, base=4, latent=6, hidden=(12, 12), features=10, experts=7, samples=20, size=None)


def _data(count: int = 30, size: int = 8, channels: int = 1) -> Data:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, channels, size, size), generator=draw, dtype=torch.uint8)
    split = TensorSplit(image=image, label=torch.arange(count) % 2)
    return Data("noise", "images", split, split, split, {"shape": (channels, size, size), "classes": [], "scale": 255})


def _recipe(data: Data | None = None, **settings: object) -> VGANRecipe:
    return VGANRecipe(dataclasses.replace(TINY, **settings), data=data or _data())


def _run(recipe: VGANRecipe) -> list[dict[str, float]]:
    loop = Loop(recipe)
    return [loop.advance() for _ in range(recipe.config.steps)]


# -- oracles ---------------------------------------------------------------------------------------------------------


def test_binary_entropy_equals_its_definition_and_survives_large_logits() -> None:
    a = torch.linspace(-12, 12, 101, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(a)
    torch.testing.assert_close(binary_entropy(a), -p * p.log() - (1 - p) * (1 - p).log(), atol=1e-10, rtol=1e-8)
    (slope,) = torch.autograd.grad(binary_entropy(a).sum(), a)
    torch.testing.assert_close(slope, (-a * p * (1 - p)).detach(), atol=1e-12, rtol=1e-10)
    far = torch.tensor([-200.0, -40.0, 40.0, 200.0], requires_grad=True)
    value = binary_entropy(far)
    assert torch.isfinite(torch.autograd.grad(value.sum(), far)[0]).all()
    _, left, right, _ = value.tolist()
    assert bool((value >= 0).all()) and left == right and 0 < left < 1e-15


def test_the_energy_is_bounded_and_low_where_all_experts_are_sure() -> None:
    logits = 30 * torch.randn(500, 9)
    energy = product_energy(logits)
    assert energy.shape == (500,) and float(energy.min()) >= 0 and float(energy.max()) <= 9 * math.log(2)
    assert float(product_energy(torch.zeros(1, 9))) == pytest.approx(9 * math.log(2), abs=1e-5)
    corners = 50.0 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)  # 2^K minima
    assert float(product_energy(corners).max()) < 1e-6


def test_the_entropy_surrogate_counts_both_values_of_every_expert() -> None:
    logits = 2 * torch.randn(40, 5, dtype=torch.float64)
    p = torch.sigmoid(logits).mean(0)
    expected = sum(-float(q) * math.log(float(q)) - (1 - float(q)) * math.log(1 - float(q)) for q in p)
    assert float(entropy_surrogate(logits)) == pytest.approx(expected, abs=1e-10)
    half = torch.tensor([[90.0, -90.0], [-90.0, 90.0]])
    assert float(entropy_surrogate(half)) == pytest.approx(2 * math.log(2), abs=1e-6)
    assert float(product_energy(half).max()) < 1e-6  # sure of each sample, and yet of high entropy over all
    same = torch.full((8, 3), 120.0, requires_grad=True)
    assert float(entropy_surrogate(same).detach()) == pytest.approx(0.0, abs=1e-8)
    assert torch.isfinite(torch.autograd.grad(entropy_surrogate(same), same)[0]).all()


@pytest.mark.parametrize(("mean", "spread"), [(0.7, 1.3), (0.7, 0.5), (-1.0, 1.3), (3.0, 4.0)])
def test_the_bound_misses_the_exact_likelihood_by_the_divergence_of_the_sampler(mean: float, spread: float) -> None:
    centre, width = 0.7, 1.3  # E(x) = (x - centre)^2 / (2 width^2): the model is N(centre, width^2)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (x - centre).square() / (2 * width**2)

    data = torch.randn(50, dtype=torch.float64)
    nll = energy(data).mean() + math.log(width * math.sqrt(2 * math.pi))
    q = DiagGaussian(torch.tensor([mean]).double(), 2 * torch.tensor([spread]).double().log())
    fake = torch.tensor([mean - spread, mean + spread], dtype=torch.float64)  # exact for quadratics
    bound = nll_bound(energy(data), energy(fake), q.entropy())
    p = DiagGaussian(torch.tensor([centre]).double(), 2 * torch.tensor([width]).double().log())
    assert float(nll - bound) == pytest.approx(float(kl_diag(q, p).sum()), abs=1e-6)
    if (mean, spread) == (centre, width):
        assert float(bound) == pytest.approx(float(nll), abs=1e-4)
    else:
        assert float(bound) < float(nll) - 1e-2


def test_a_round_lowers_the_printed_losses_and_nothing_else() -> None:
    recipe = _recipe()
    x = recipe.real(recipe.data.split("train")[torch.arange(8)])
    start = recipe.rng.get_state()
    g, e = recipe.players(x, {})
    twin = copy.deepcopy(recipe.model)
    made = twin.generate(twin.prior(8, recipe.rng))
    p = torch.sigmoid(twin.logits(made))
    share = p.mean(0)
    energy = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1).mean()
    entropy = -(share * share.log() + (1 - share) * (1 - share).log()).sum()
    expected = torch.autograd.grad(energy - entropy, list(twin.generator.parameters()), retain_graph=True)
    recipe.rng.set_state(start)
    loss, _ = g.loss(0)
    ours = torch.autograd.grad(loss, list(recipe.model.generator.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    recipe.rng.set_state(start)
    loss, _ = e.loss(0)
    on_data = twin.logits(x)
    real = torch.sigmoid(on_data).mean(0)
    printed = twin.energy(x).mean() - energy + (real * real.log() + (1 - real) * (1 - real).log()).sum()
    torch.testing.assert_close(loss, printed, atol=1e-4, rtol=1e-5)
    assert all(
        v is None for v in torch.autograd.grad(loss, list(recipe.model.generator.parameters()), allow_unused=True)
    )


def test_the_transitions_loss_is_a_mixture_whose_ends_are_pure() -> None:
    parts = {}
    for rho in (0.0, 0.25, 1.0):
        recipe = _recipe(mode="vcd", rho=rho)
        recipe.model.eval()
        x = recipe.real(recipe.data.split("train")[torch.arange(8)])
        loss, extra = recipe._vcd(x)
        parts[rho] = float(loss.detach()), float(extra["error"])
        used_body = torch.autograd.grad(loss, list(recipe.model.body.parameters()), allow_unused=True)
        assert all(v is None for v in used_body) == (rho == 0.0)
    error, energy = parts[0.0][1], parts[1.0][0]
    assert parts[0.0][0] == pytest.approx(error) and 0 < energy <= 7 * math.log(2)
    assert parts[0.25][0] == pytest.approx(0.25 * energy + 0.75 * error, rel=1e-5)


def test_the_probe_is_ridge_regression_on_one_hot_labels() -> None:
    x, held = torch.randn(200, 6, dtype=torch.float64), torch.randn(100, 6, dtype=torch.float64)
    y, held_y = (x[:, 0] + 0.3 * x[:, 1] > 0).long(), (held[:, 0] > 0).long()
    scaled, seen = ((part - x.mean(0)) / x.std(0) for part in (x, held))
    peer = Ridge(alpha=1e-3 * len(x)).fit(scaled.numpy(), torch.nn.functional.one_hot(y, 2).double().numpy())
    accuracy = float((torch.tensor(peer.predict(seen.numpy())).argmax(1) == held_y).double().mean())
    assert ridge_accuracy(x, y, held, held_y, classes=2) == pytest.approx(accuracy)
    assert accuracy > 0.8


# -- behaviour -------------------------------------------------------------------------------------------------------


def test_disturbing_replaces_half_of_a_code() -> None:
    model = VCD(shape=(1, 8, 8), latent=2000, base=4, hidden=(8,))
    h = torch.full((3, 2000), 5.0)
    mixed = model.disturb(h, torch.Generator().manual_seed(0))
    kept = mixed == 5.0
    assert 0.45 < float(kept.float().mean()) < 0.55
    assert float(mixed[~kept].abs().max()) <= 1.0 and abs(float(mixed[~kept].mean())) < 0.05


def test_chains_start_in_the_picture_and_repeat() -> None:
    model = VCD(shape=(1, 8, 8), latent=6, base=4, hidden=(8,), features=5, experts=3).eval()
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    states = model.chain(x, 3, torch.Generator().manual_seed(1))
    assert states.shape == (4, 4, 1, 8, 8) and torch.equal(states[0], x)
    torch.testing.assert_close(states[-1], model.transition(x, steps=3, seed=1))
    assert not torch.allclose(states[1], states[2])
    assert torch.equal(model.transition(x, steps=0), x)
    with pytest.raises(ConfigError, match="0 or more steps"):
        model.transition(x, steps=-1)


@pytest.mark.parametrize("k", [1, 3])
def test_the_generator_plays_k_times_to_one_energy_step(k: int) -> None:
    recipe = _recipe(k=k, optim="adam", lr=1e-3, lr_d=1e-3, steps=2)
    _run(recipe)
    steps = [int(next(iter(o.state.values()))["step"]) for o in (recipe.g_optim, recipe.e_optim)]
    assert steps == [2 * k, 2]


@pytest.mark.parametrize("mode", ["vgan", "vcd", "gan"])
@pytest.mark.parametrize("arch", ["pool", "dcgan", "connected"])
def test_every_mode_trains_judges_and_shows(mode: str, arch: str) -> None:
    recipe = _recipe(mode=mode, arch=arch, data=_data(channels=3))
    recipe.data.info["classes"] = ["even", "odd"] if arch == "dcgan" and mode == "vgan" else []
    scalars = _run(recipe)
    assert all(math.isfinite(value) for row in scalars for value in row.values())
    figures = evaluate(recipe)
    assert ("energy_noise" in figures) == (mode != "gan") and ("recon_error" in figures) == (mode == "vcd")
    assert ("d_accuracy" in figures) == (mode == "gan") and ("probe_accuracy" in figures) == bool(
        recipe.data.info["classes"]
    )
    with inference(recipe, 0) as generator:
        shown = recipe.sample(4, generator)
    assert isinstance(shown, Gallery) and ("chains" in shown.items) == (mode == "vcd")
    assert ("experts" in shown.items) == (mode != "gan")
    if mode == "gan":
        with pytest.raises(CapabilityError, match="no energy"):
            recipe.bits()
    if mode == "vgan":
        with pytest.raises(CapabilityError, match="no transitions"):
            recipe.chain()


def test_points_train_and_actions_draw() -> None:
    recipe = _recipe(VGANRecipe.load_data(TINY, Source("world", "ring8")), samples=200)
    _run(recipe)
    assert {"modes_touched", "energy_data", "energy_noise", "bits_used"} <= set(evaluate(recipe))
    with inference(recipe, 0) as generator:
        assert isinstance(recipe.sample(20, generator), Plot)
        assert isinstance(recipe.energies(), Plot) and isinstance(recipe.bits(), Plot)
    vcd = _recipe(VGANRecipe.load_data(TINY, Source("world", "ring8")), mode="vcd", samples=200)
    _run(vcd)
    assert vcd.model.transition(torch.randn(5, 2)).shape == (5, 2)
    with pytest.raises(CapabilityError, match="needs images"):
        vcd.chain()


def test_the_energy_of_a_trained_model_tells_data_from_noise() -> None:
    ring = VGANRecipe.load_data(TINY, Source("world", "ring8"))
    settings: dict[str, object] = {
        "steps": 150,
        "batch": 64,
        "optim": "adam",
        "lr": 1e-3,
        "lr_d": 1e-3,
        "experts": 40,
        "features": 128,
        "hidden": (64, 64),
    }
    for seed in (0, 1):
        recipe = VGANRecipe(dataclasses.replace(TINY, **settings, samples=200), data=ring, seed=seed)
        _run(recipe)
        figures = evaluate(recipe)
        assert figures["energy_data"] < figures["energy_noise"] - 1.0
        assert figures["energy_noise"] <= 40 * math.log(2)


def test_few_labels_and_equal_starts_of_both_arms() -> None:
    label = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(0))
    chosen = few_labels(label, 5, torch.Generator().manual_seed(1))
    assert torch.bincount(label[chosen]).tolist() == [5, 5, 5] and len(chosen.unique()) == 15
    model = VCD(shape=(1, 16, 16), latent=6, base=4, hidden=(8,)).eval()
    x, y = torch.rand(15, 1, 16, 16) * 2 - 1, label[chosen]
    settings = dataclasses.replace(AugmentationStudy.presets["smoke"], classifier_steps=4, weight=0.0)
    plain, mixed = train_classifier(x, y, None, settings, 0), train_classifier(x, y, model, settings, 0)
    for a, b in zip(plain.parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    half = train_classifier(x, y, model, dataclasses.replace(settings, weight=0.5), 0)
    assert not all(torch.allclose(a, b) for a, b in zip(plain.parameters(), half.parameters(), strict=True))


def test_the_study_measures_both_arms(tmp_path) -> None:
    smoke = AugmentationStudy.presets["smoke"]
    done: list[tuple[int, int]] = []
    found = AugmentationStudy(smoke).measure(0, tmp_path, lambda *at: done.append(at))
    assert {"accuracy", "valid_accuracy", "label_kept", "distance"} <= set(found.metrics) and done[-1] == (1, 1)
    assert isinstance(found.sample, Images) and found.sample.tensor.shape[0] == 50
    plain = AugmentationStudy(dataclasses.replace(smoke, augment=False)).measure(0, tmp_path, lambda *at: None)
    assert set(plain.metrics) == {"accuracy", "valid_accuracy"}


def test_experts_in_use_and_bad_settings() -> None:
    assert used(torch.tensor([0.0, 0.05, 0.5, 0.95, 0.2])) == 2
    with pytest.raises(ConfigError, match="mode must be one of"):
        dataclasses.replace(TINY, mode="ebm")
    with pytest.raises(ConfigError, match="rho"):
        dataclasses.replace(TINY, rho=1.5)
    with pytest.raises(ConfigError, match="arch 'mlp' is unknown"):
        VGAN(shape=(1, 8, 8), arch="mlp")
    with pytest.raises(ConfigError, match="experts and features"):
        VGAN(shape=(1, 8, 8), experts=0)
    with pytest.raises(ShapeError, match="halve square images twice"):
        VGAN(shape=(1, 8, 10))
    model = VGAN(shape=(1, 8, 8), base=4, features=5, hidden=(8,))
    with pytest.raises(ShapeError, match="rescale"):
        model.energy(torch.full((1, 1, 8, 8), 3.0))
    with pytest.raises(ShapeError, match="images must be"):
        model.body(torch.zeros(1, 1, 9, 8))
    clutter = VGANRecipe.load_data(dataclasses.replace(TINY, clutter=True, size=16), Source("world", "glyphs"))
    assert clutter.info["shape"] == (3, 16, 16)
