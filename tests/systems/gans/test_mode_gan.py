"""Mode-regularised GAN: its losses and their gradients against autograd by hand, what it counts, shows and refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, play
from cambrian.systems.gans import _worlds
from cambrian.systems.gans.mode_gan import ModeGAN, missing_modes, stacked_modes
from cambrian.systems.gans.mode_gan._config import Config
from cambrian.systems.gans.mode_gan._missing import train_third_party
from cambrian.systems.gans.mode_gan._show import histogram, random_cell
from cambrian.systems.gans.mode_gan.model import distance, manifold_loss, mode_regulariser
from cambrian.systems.gans.mode_gan.recipe import ModeGANRecipe

TINY = Config(l1=0.2, steps=4, batch=16, latent=8, hidden=(16, 16), base=4, size=8, samples=64, lr=1e-3)


def _noise(size: int = 8, count: int = 64) -> Data:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 1, size, size), generator=draw, dtype=torch.uint8)
    split = TensorSplit(image=image, label=torch.zeros(count, dtype=torch.int64))
    return Data("noise", "images", split, split, split, {"shape": (1, size, size), "classes": [], "scale": 255})


def _recipe(world: str = "ring8", seed: int = 0, **changes: object) -> ModeGANRecipe:
    config = dataclasses.replace(TINY, **changes)
    data = _noise() if world == "noise" else _worlds.load(Source("world", world))
    return ModeGANRecipe(config, data=data, seed=seed)


def _trained(world: str = "ring8", **changes: object) -> ModeGANRecipe:
    loop = Loop(_recipe(world, **changes))
    for _ in range(loop.recipe.config.steps):
        loop.advance()
    return loop.recipe


def _gradients(recipe: ModeGANRecipe, x: Tensor, name: str = "g") -> dict[str, Tensor]:
    """What a player's loss sends to the generator and the encoder; nothing is updated."""
    (player,) = [p for p in recipe.players(x, {}) if p.name == name]
    play([player], minimise=lambda loss, o, clip_norm=None: loss[0].backward() if isinstance(loss, tuple) else loss.backward(), iteration=0)  # fmt: skip
    named = recipe.model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and n.startswith(("generator", "encoder"))}


def test_the_regulariser_is_a_distance_and_a_reward() -> None:
    x, again = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    logits = torch.tensor([[-3.0], [0.0], [2.0], [1.0], [-1.0]])
    by_hand = 0.2 * sum(((a - b) ** 2).sum() / 16 for a, b in zip(x, again, strict=True)) / 5
    by_hand = by_hand - 0.4 * sum(torch.log(torch.sigmoid(v)) for v in logits[:, 0]) / 5
    torch.testing.assert_close(mode_regulariser(distance(x, again), logits, l1=0.2, l2=0.4), by_hand)
    apart = torch.tensor(1.0)
    believed, doubted = (mode_regulariser(apart, torch.full((4, 1), v), l1=0.2, l2=0.4) for v in (4.0, -4.0))
    assert believed < doubted  # reconstructions that look real are rewarded
    expected = distance(x, again) - 0.01 * F.logsigmoid(logits).mean()  # to be minimised: -(lambda log D1 - d)
    torch.testing.assert_close(manifold_loss(distance(x, again), logits, weight=1.0, lam=0.01), expected)
    assert float(distance(torch.zeros(3, 2), torch.full((3, 2), 4.0))) == pytest.approx(1.0)  # points are divided by 4
    with pytest.raises(ShapeError, match="differ in shape"):
        distance(x, again[:, :, :3])


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_g_and_e_get_the_gradients_of_the_written_out_game(prior: str) -> None:
    recipe = _recipe("digits", prior=prior)
    x = recipe.real(recipe.data.split("train")[torch.arange(12)])
    model, state = recipe.model, recipe.rng.get_state()
    found = _gradients(recipe, x)
    recipe.rng.set_state(state)
    z = recipe.latent(12)
    codes = model.encoder(x)
    codes = torch.tanh(codes) if prior == "uniform" else codes
    fake, again = model.generator(z), model.generator(codes, sources=(FAKE,))  # each kind of latent for itself
    bracket = 0.2 * (x - again).square().mean() - 0.4 * F.logsigmoid(model.discriminator(again, (FAKE,))).mean()
    loss = -F.logsigmoid(model.discriminator(fake, (FAKE,))).mean() + bracket
    named = {n: p for n, p in model.named_parameters() if n.startswith(("generator", "encoder"))}
    for (name, _), slope in zip(named.items(), torch.autograd.grad(loss, list(named.values())), strict=True):
        torch.testing.assert_close(found[name], slope, atol=1e-6, rtol=1e-4, msg=name)
    encoder = [p for n, p in named.items() if n.startswith("encoder")]
    alone = torch.autograd.grad(
        0.2 * (x - model.reconstruct(x)).square().mean()
        - 0.4 * F.logsigmoid(model.discriminator(model.reconstruct(x), (FAKE,))).mean(),
        encoder,
    )
    for (name, slope), own in zip([i for i in found.items() if i[0].startswith("encoder")], alone, strict=True):
        torch.testing.assert_close(slope, own, atol=1e-6, rtol=1e-4, msg=name)  # one player gives E its bracket


def test_the_sabotage_leaves_g_the_plain_game_and_e_its_bracket() -> None:
    whole, cut, plain = (_recipe(**c) for c in ({}, {"detach_reg": True}, {"game": "gan"}))
    for name, value in plain.model.generator.named_parameters():  # arms of one seed start alike
        assert torch.equal(value, dict(whole.model.generator.named_parameters())[name])
    x = whole.real(whole.data.split("train")[torch.arange(16)])
    found = [_gradients(recipe, x) for recipe in (whole, cut, plain)]
    for name, slope in found[2].items():
        torch.testing.assert_close(found[1][name], slope, atol=1e-6, rtol=1e-4)
    assert not all(torch.allclose(found[0][n], found[2][n], atol=1e-6) for n in found[2])
    for name in (n for n in found[0] if n.startswith("encoder")):
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-4)


def test_mdgan_plays_reconstructions_against_both_sides() -> None:
    recipe = _recipe(game="mdgan")
    x = recipe.real(recipe.data.split("train")[torch.arange(16)])
    model, state = recipe.model, recipe.rng.get_state()
    with torch.no_grad():
        losses = {p.name: float(p.loss(0)[0]) for p in recipe.players(x, {})}
    recipe.rng.set_state(state)
    fake, again = model.generate(recipe.latent(16)), model.reconstruct(x)

    def apart(net: torch.nn.Module, real: Tensor, made: Tensor) -> float:
        return (-F.logsigmoid(net(real)).mean() - F.logsigmoid(-net(made)).mean()).item()

    assert list(losses) == ["m", "d", "g"]
    assert losses["m"] == pytest.approx(apart(model.manifold, x, again), rel=1e-4)
    assert losses["d"] == pytest.approx(apart(model.discriminator, again, fake), rel=1e-4)
    both = manifold_loss(distance(x, again), model.manifold(again), weight=0.2, lam=0.01)
    both = both - F.logsigmoid(model.discriminator(fake)).mean()
    assert losses["g"] == pytest.approx(both.item(), rel=1e-4)
    assert len(recipe.critics()) == 2


def test_three_sources_are_scored_in_one_pass_as_in_three() -> None:
    model = ModeGAN(shape=(3, 8, 8), base=4, base_d=4, latent=5)
    x, z = torch.rand(6, 3, 8, 8) * 2 - 1, torch.randn(6, 5)
    parts = model.scores(x, z)
    one = [(x, REAL), (model.generator(z), FAKE), (model.reconstruct(x), FAKE)]
    for logits, (sample, source) in zip(parts, one, strict=True):
        torch.testing.assert_close(logits, model.discriminator(sample, (source,))[:, 0], atol=1e-5, rtol=1e-4)


def test_codes_stay_in_the_range_of_a_uniform_prior() -> None:
    model = ModeGAN(shape=(2,), prior="uniform", latent=4)
    with torch.no_grad():
        model.encoder.head.weight.mul_(100)
    x = 3 * torch.randn(50, 2)
    assert model.encode(x).abs().max().item() <= 1.0
    free = ModeGAN(shape=(2,), latent=4)
    free.encoder.load_state_dict(model.encoder.state_dict())
    assert free.encode(x).abs().max().item() > 1.0
    with pytest.raises(CapabilityError, match="no encoder"):
        ModeGAN(shape=(2,), game="gan").encode(x)
    with pytest.raises(ShapeError, match="batch >= 1, 2"):
        model.encode(torch.randn(4, 3))
    with pytest.raises(ConfigError, match="game"):
        ModeGAN(shape=(2,), game="wgan")


def test_the_feature_distance_moves_g_and_e_alone() -> None:
    recipe = _recipe("digits", distance="features", arch="connected", l2=0.0)
    x = recipe.real(recipe.data.split("train")[torch.arange(12)])
    before = [p.clone() for p in recipe.model.discriminator.parameters()]
    player = recipe.players(x, {})[1]
    play([player], minimise=recipe.minimise, iteration=0)
    assert all(torch.equal(a, b) for a, b in zip(before, recipe.model.discriminator.parameters(), strict=True))
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in recipe.model.encoder.parameters())


def test_a_noisy_third_party_finds_the_mode_that_is_missing() -> None:
    draw = torch.Generator().manual_seed(0)
    side = lambda count, x: torch.randn(count, 2, generator=draw) * 0.2 + torch.tensor([x, 0.0])  # noqa: E731
    both, half = torch.cat((side(400, -1.5), side(400, 1.5))), side(800, 1.5)
    for sigma in (0.2, 0.5):
        told = missing_modes(half, both, torch.cat((side(200, -1.5), side(200, 1.5))), sigma=sigma, steps=150)
        assert float(told[:200].float().mean()) > 0.9 and float(told[200:].float().mean()) < 0.05
    full = missing_modes(torch.cat((side(400, -1.5), side(400, 1.5))), both, side(100, -1.5), sigma=0.2, steps=150)
    assert float(full.float().mean()) < 0.1
    state = torch.random.get_rng_state()
    train_third_party(both, half, sigma=0.1, steps=2)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ShapeError, match="one shape"):
        train_third_party(both, torch.zeros(3, 4), sigma=0.1)
    with pytest.raises(ConfigError, match="sigma"):
        train_third_party(both, half, sigma=-1.0)


def test_stacks_are_counted_by_a_classifier() -> None:
    class Level:
        def probabilities(self, images: Tensor) -> Tensor:
            return F.one_hot(images.mean((1, 2, 3)).round().long(), 8).float()

    made = torch.tensor([1.0, 1.0, 5.0, 7.0])[:, None, None, None].expand(-1, 3, 2, 2)
    found = stacked_modes(made, Level())
    assert (found["reached"], found["missed"]) == (3.0, 5.0)
    entropy = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(4.0).log()
    assert found["kl_to_uniform"] == pytest.approx(float(torch.tensor(8.0).log() - entropy), abs=1e-5)


@pytest.mark.parametrize("game", ["reg", "mdgan", "gan"])
@pytest.mark.parametrize("world", ["ring8", "noise"])
def test_every_game_trains_judges_and_shows(game: str, world: str) -> None:
    recipe = _trained(world, game=game)
    figures = evaluate(recipe)
    assert ("distance" in figures) == (game != "gan") and ("modes_touched" in figures) == (world == "ring8")
    with inference(recipe, 0) as generator:
        assert recipe.sample(4, generator)
    for module in recipe.modules().values():
        module.eval()
    if game == "gan":
        with pytest.raises(CapabilityError, match="no encoder"):
            recipe.reconstruct()
        return
    shown = recipe.reconstruct(n=6)
    assert len(shown.tensor) == (12 if world == "noise" else 6)
    table = recipe.missing(n=64, steps=5)
    assert table.columns == ["noise", "missing", "of"] and len(table.rows) == 5
    if world == "ring8":
        assert recipe.classes(n=100).figure().axes[0].patches
        with pytest.raises(CapabilityError, match="needs images"):
            recipe.stacks()
    else:
        with pytest.raises(CapabilityError, match="no labels"):
            recipe.classes()


def test_reconstructions_come_near_the_data(tmp_path) -> None:
    recipe = _recipe("digits", steps=150, arch="connected", l1=2.0, batch=64, latent=16, hidden=(64, 64))
    loop = Loop(recipe)
    before = evaluate(recipe)["distance"]
    for _ in range(150):
        loop.advance()
    assert evaluate(recipe)["distance"] < 0.5 * before
    assert recipe.reconstruct(n=5).save(tmp_path, "again")[0].stat().st_size > 500


def test_a_cell_of_the_grid_is_tried_with_and_without_regulariser(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path))
    recipe = _recipe("digits", arch="connected")
    found = recipe.grid(cells=1, steps=3)
    table = found.items["cells"]
    assert [row[0] for row in table.rows] == ["gan", "reg"]
    assert all(0 < row[table.columns.index("score")] <= 10 for row in table.rows)
    assert len(found.html()) > 1000
    cells = [random_cell(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {c["lr"] for c in cells} == {1e-2, 1e-3, 1e-4} and {len(c["hidden"]) for c in cells} == {2, 3, 4}
    assert histogram({"a": torch.ones(50), "b": torch.arange(50) + 1}).axes[0].lines  # many classes: sorted shares


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="game must be one of"):
        dataclasses.replace(TINY, game="wgan")
    with pytest.raises(ConfigError, match="belong to the game reg"):
        dataclasses.replace(TINY, game="mdgan", detach_reg=True)
    with pytest.raises(ConfigError, match="l1 must be at least 0"):
        dataclasses.replace(TINY, l1=-1.0)
