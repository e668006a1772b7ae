"""EBGAN: energies, the pulling-away term where it belongs, the ladder, and the grid against cells trained alone."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Gallery
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, Margin, margin_loss, pulling_away
from cambrian.systems.gans import _worlds
from cambrian.systems.gans.ebgan import EBGAN, AutoEncoder, _grid, _study
from cambrian.systems.gans.ebgan._ladder import Ladder
from cambrian.systems.gans.ebgan.recipe import Config, EBGANRecipe, mean_cosine, roc

TINY = Config(steps=6, batch=16, latent=5, hidden=(16,), hidden_d=(12,), base=4, samples=64)


def _images(size: int = 8) -> Data:
    image = torch.randint(0, 256, (60, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = TensorSplit(image=image, label=torch.arange(60) % 3)
    return Data("noise", "images", split, split, split, {"shape": (1, size, size), "classes": ["a", "b", "c"], "scale": 255})  # fmt: skip


def _recipe(data: Data | None = None, **changes: object) -> EBGANRecipe:
    return EBGANRecipe(dataclasses.replace(TINY, **changes), data=data or _images())


def _train(recipe: EBGANRecipe, steps: int | None = None) -> list[dict[str, float]]:
    loop = Loop(recipe)
    return [loop.advance() for _ in range(steps or recipe.config.steps)]


def _model(**changes: object) -> EBGAN:
    torch.manual_seed(0)
    return EBGAN(shape=(1, 8, 8), latent=5, hidden=(16,), hidden_d=(12,), base=4, **changes)


# -- energies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["connected", "dcgan"])
def test_the_energy_is_the_mean_squared_error_of_each_samples_reconstruction(arch: str) -> None:
    model = _model(arch=arch).eval()
    x = torch.rand(7, 1, 8, 8) * 2 - 1
    rebuilt = model.reconstruct(x)
    assert rebuilt.shape == x.shape
    expected = torch.stack([((a - b) ** 2).mean() for a, b in zip(rebuilt, x, strict=True)])
    torch.testing.assert_close(model.energy(x), expected)
    torch.testing.assert_close(model.energy(x)[:1], model.energy(x[:1]))  # neighbours play no part


def test_points_have_energies_too_and_their_reconstruction_is_on_their_scale() -> None:
    model = EBGAN(shape=(2,), latent=3, hidden=(8,), hidden_d=(8,)).eval()
    x = torch.randn(5, 2)
    torch.testing.assert_close(model.energy(x), (0.25 * (model.reconstruct(x) - x)).square().mean(1))


def test_one_pass_over_both_sources_equals_two() -> None:
    for net in (_model().discriminator, _model(arch="dcgan").discriminator):
        x, fake = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
        both = net(torch.cat((x, fake)), (REAL, FAKE))
        parts = [net(x, (REAL,)), net(fake, (FAKE,))]
        for i in range(2):
            torch.testing.assert_close(both[i], torch.cat([part[i] for part in parts]), atol=1e-5, rtol=1e-4)


def test_the_papers_convolutional_encoder_has_64_128_256_channels_and_a_mirror() -> None:
    net = EBGAN(shape=(3, 64, 64), arch="dcgan", base=64).discriminator
    assert [block.conv.out_channels for block in net.encoder.blocks] == [64, 128, 256]
    assert [block.conv.out_channels for block in net.decoder] == [128, 64, 3]


def test_a_trained_auto_encoder_has_low_energy_on_what_it_saw_only() -> None:
    torch.manual_seed(0)
    net = AutoEncoder(shape=(1, 8, 8), hidden=(4,), norm="none")
    line = torch.randn(64) @ torch.eye(64)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        x = (torch.rand(32, 1) * line).view(-1, 1, 8, 8)
        loss = net(x)[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.requires_grad_(False)
    inside = net((torch.linspace(0.2, 0.8, 5)[:, None] * line).view(-1, 1, 8, 8))[0]
    outside = net(torch.randn(5, 1, 8, 8))[0]
    assert float(inside.max()) < 0.05 < float(outside.min())


# -- the game ----------------------------------------------------------------------------------------------------------


def _losses(recipe: EBGANRecipe, x: Tensor) -> list[tuple[Tensor, dict[str, Tensor]]]:
    return [player.loss(0) for player in recipe.players(x, {})]


def test_the_pulling_away_term_is_in_the_generators_loss_and_not_in_the_discriminators() -> None:
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    found = []
    for weight in (0.0, 0.7):
        recipe = _recipe(pt_weight=weight)
        found.append(_losses(recipe, x))
    (d_plain, _), (g_plain, _) = found[0]
    (d_pulled, _), (g_pulled, extra) = found[1]
    assert torch.equal(d_plain, d_pulled)
    torch.testing.assert_close(g_pulled - g_plain, 0.7 * extra["pulling_away"])
    assert 0 < float(extra["pulling_away"]) <= 1


def test_the_losses_are_the_papers() -> None:
    recipe = _recipe(margin=0.4, pt_weight=0.0)
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    state = recipe.rng.get_state()
    (d_loss, found), (g_loss, _) = _losses(recipe, x)
    recipe.rng.set_state(state)
    fake = recipe.model.generate(recipe.latent(16))
    real, made = recipe.model.discriminator(torch.cat((x, fake)), (REAL, FAKE))[0].chunk(2)
    torch.testing.assert_close(d_loss, real.mean() + (0.4 - made).clamp_min(0).mean())
    torch.testing.assert_close(g_loss, made.mean())
    assert float(found["margin"]) == pytest.approx(0.4)


def test_the_sabotage_leaves_a_plain_auto_encoder() -> None:
    recipe = _recipe(margin=0.0)
    (d_loss, found), _ = _losses(recipe, torch.rand(16, 1, 8, 8) * 2 - 1)
    assert float(d_loss.detach()) == pytest.approx(float(found["energy_real"]))


def test_the_margin_by_rule_is_above_the_energy_of_data_and_is_reported() -> None:
    recipe = _recipe(steps=30)
    scalars = _train(recipe)
    assert scalars[-1]["margin"] == scalars[21]["margin"] > scalars[-1]["energy_real"]
    assert evaluate(recipe)["margin"] == pytest.approx(scalars[-1]["margin"])


@pytest.mark.parametrize(("world", "arch"), [("ring8", "connected"), ("digits", "connected"), ("digits", "dcgan")])
def test_it_trains_judges_and_shows(world: str, arch: str) -> None:
    recipe = _recipe(_worlds.load(Source("world", world)), arch=arch, steps=3)
    _train(recipe)
    figures = evaluate(recipe)
    assert 0 <= figures["energy_auc"] <= 1 and 0 <= figures["code_cosine"] <= 1
    assert ("modes_touched" in figures) == (world == "ring8")
    with inference(recipe, 0) as generator:
        assert len(recipe.sample(8, generator).html()) > 1000


def test_anomalies_and_reconstructions_are_shown() -> None:
    recipe = _recipe(_worlds.load(Source("world", "digits")), steps=200, batch=64, hidden_d=(32,))
    _train(recipe)
    shown = recipe.anomalies(n=5)
    assert isinstance(shown, Gallery) and shown.items["lowest energy"].tensor.shape == (5, 1, 8, 8)
    areas = dict(shown.items["ranking"].rows)
    assert areas["noise"] > 0.95 and areas["shuffled"] > 0.95
    test = recipe.data.split("test")
    x = recipe.real(test[torch.arange(397)])
    lowest = recipe.model.show(x[recipe.model.energy(x).argmin()])
    torch.testing.assert_close(shown.items["lowest energy"].tensor[0], lowest)
    assert recipe.reconstructions(n=4).tensor.shape == (16, 1, 8, 8)


def test_helpers_against_plain_loops() -> None:
    codes = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    pairs = [abs(float(torch.cosine_similarity(a, b, 0))) for a, b in itertools.combinations(codes, 2)]
    assert mean_cosine(codes) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    inside, outside = torch.tensor([0.1, 0.4]), torch.tensor([0.3, 0.9, 0.4])
    wins = [1.0 if b > a else 0.5 if b == a else 0.0 for a in inside for b in outside]
    assert roc(inside, outside) == pytest.approx(sum(wins) / len(wins))


# -- the ladder --------------------------------------------------------------------------------------------------------


def test_a_ladder_is_quiet_in_evaluation_and_its_layers_all_learn() -> None:
    torch.manual_seed(0)
    net = Ladder(shape=(1, 8, 8), hidden=(12, 10), classes=3)
    x = torch.rand(9, 1, 8, 8)
    energy, code = net(x)
    assert energy.shape == (9,) and code.shape == (9, 10)
    (energy.mean() + net.classify(x).square().mean()).backward()
    quiet = {"top.bias", "up.0.bias", "up.1.bias", "down.1.bias"}  # shifts that a batch norm takes out again
    assert all(p.grad is not None and (name in quiet or p.grad.any()) for name, p in net.named_parameters())
    assert not torch.equal(net.classify(x), net.classify(x))
    net.eval()
    assert torch.equal(net.classify(x), net.classify(x))
    torch.testing.assert_close(net(x)[0], (net.reconstruct(x) - x).square().flatten(1).mean(1))


def test_the_semi_supervised_game_learns_from_few_labels() -> None:
    digits = _worlds.load(Source("world", "digits"))
    recipe = _recipe(digits, steps=150, batch=64, hidden_d=(64, 32), labels_per_class=10, margin_falls=True)
    before = evaluate(recipe)["accuracy"]
    scalars = _train(recipe)
    figures = evaluate(recipe)
    assert figures["accuracy"] > max(0.6, before + 0.3)
    assert scalars[-1]["cross_entropy"] < 0.5 and scalars[-1]["margin"] < scalars[30]["margin"]
    assert recipe.model.classify(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_cells_are_the_product_and_know_their_nets() -> None:
    cells = _grid.product("gan", layers=(2, 3), widths=(8, 16), dropouts=(0.0, 0.5), optimisers=("adam", "sgd"), rates=(1e-2, 1e-3))  # fmt: skip
    assert len(cells) == 2 * 2 * 2 * 4 * 2 and len({cell.seed for cell in cells}) == len(cells)
    up, down = cells[-1].nets((1, 8, 8), 5, "split")
    assert len(up.layers) == 2 and len(down.encoder.layers) == 2 and float(down.encoder.dropout.rate) == 0.5
    free = _grid.product("ebgan", layers=(2, 3), widths=(8,), layers_d=(2, 4), widths_d=(8, 16), dropouts=(0.0,))
    assert {(c.layers_g, c.layers_d, c.width_d) for c in free} == set(itertools.product((2, 3), (2, 4), (8, 16)))
    groups = _grid.populations(cells, (1, 8, 8), 5, "split")
    assert sorted(i for group in groups for i in group) == list(range(len(cells)))
    assert all(len({(cells[i].optim_g, cells[i].layers_g, cells[i].width_g) for i in group}) == 1 for group in groups)


def _alone(cell: _grid.Cell, train: Tensor, steps: int, margin: float | None) -> torch.nn.Module:
    """One cell of the grid the plain way: its own modules, optimisers and loop."""
    up, down = cell.nets((1, 8, 8), 5, "none")
    draw = torch.Generator().manual_seed(cell.seed + 1)
    g_optim, d_optim = (torch.optim.Adam(net.parameters(), lr=cell.lr, betas=(0.5, 0.999)) for net in (up, down))
    rule = Margin(margin)
    for _ in range(steps):
        x = train[torch.randint(len(train), (16,), generator=draw)]
        fake = up(2.0 * torch.rand(16, 5, generator=draw) - 1.0)
        real, made = down(torch.cat((x, fake.detach())), (REAL, FAKE))[0].chunk(2)
        loss = margin_loss(real, made, rule.update(real))
        d_optim.zero_grad()
        loss.backward()
        d_optim.step()
        energy, codes = down(fake, (FAKE,))
        g_optim.zero_grad()
        (energy.mean() + 0.1 * pulling_away(codes)).backward()
        g_optim.step()
    return up


def test_cells_trained_together_equal_cells_trained_alone() -> None:
    cells = _grid.product("ebgan", layers=(2,), widths=(8,), dropouts=(0.0,), replicates=3, seed=4)
    train = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1
    population = _grid.Population(cells, train, batch=16, latent=5, norm="none")
    for _ in range(25):
        population.step()
    for i, cell in enumerate(cells):
        alone = _alone(cell, train, 25, None)
        for a, b in zip(population.up.member(i).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_a_cell_does_not_depend_on_its_company() -> None:
    train = torch.rand(50, 1, 8, 8) * 2 - 1
    settings = {"batch": 16, "latent": 5, "norm": "split", "margin": 0.3}
    cells = _grid.product("gan", layers=(2, 3), widths=(8,), dropouts=(0.0,), seed=1)
    both = _grid.run(cells, train, steps=4, samples=20, settings=settings)
    single = _grid.run(cells[1:], train, steps=4, samples=20, settings=settings)
    assert both[0].shape == (20, 1, 8, 8)
    torch.testing.assert_close(both[1], single[0], atol=1e-4, rtol=1e-3)


def test_a_grid_with_dropout_is_the_same_whatever_was_drawn_before_and_leaves_the_caller_s_numbers_alone() -> None:
    train = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    cells = _grid.product("ebgan", layers=(2,), widths=(8,), dropouts=(0.0, 0.5), seed=1)
    settings = {"batch": 16, "latent": 5}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = _grid.run(cells, train, steps=5, samples=10, settings=settings)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = _grid.run(cells, train, steps=5, samples=10, settings=settings)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_study_measures_both_games_and_pairs_cells() -> None:
    settings = _study.GridConfig(
        game="both", steps=20, batch=16, layers=(2,), widths=(8, 16), dropouts=(0.0,), samples=60
    )
    ticks: list[tuple[int, int]] = []
    found = _study.GridStudy(settings).measure(0, None, lambda done, total: ticks.append((done, total)))
    assert found.metrics["ratio"] == pytest.approx(
        found.metrics["lower_quartile"] / found.metrics["gan_lower_quartile"]
    )
    assert found.metrics["ratio_low"] <= found.metrics["ratio"] <= found.metrics["ratio_high"]
    assert 1 <= found.metrics["worst"] <= found.metrics["median"] <= found.metrics["best"] <= 10
    assert ticks[-1] == (80, 80)
    assert {"histograms", "cells of gan", "samples of ebgan"} <= set(found.sample.items)
    again = _study.GridStudy(dataclasses.replace(settings, game="gan")).measure(0, None, lambda a, b: None)
    assert again.metrics["lower_quartile"] == pytest.approx(found.metrics["gan_lower_quartile"])


def test_a_diverged_cell_gets_the_worst_scores() -> None:
    class Even:
        def probabilities(self, images: Tensor) -> Tensor:
            return torch.eye(2).repeat(len(images) // 2, 1)

    cells = _grid.product("gan", layers=(2,), widths=(8, 16), dropouts=(0.0,))
    made = [torch.full((10, 1, 8, 8), math.nan), torch.zeros(10, 1, 8, 8)]
    scores = _study.judged(cells, made, Even())
    assert scores.score == [1.0, pytest.approx(2.0)] and scores.reversed[0] == 0.0
    ratio, low, high = _study.ratio_of_quartiles([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio, low, high) == pytest.approx((2.0, 2.0, 2.0))


def test_bad_settings_and_data() -> None:
    with pytest.raises(ConfigError, match="ladder network is fully connected"):
        dataclasses.replace(TINY, labels_per_class=2, arch="dcgan")
    with pytest.raises(ConfigError, match="no labels"):
        _recipe(_worlds.load(Source("world", "ring8")), labels_per_class=2)
    with pytest.raises(ConfigError, match="margin must be at least 0"):
        dataclasses.replace(TINY, margin=-1.0)
    with pytest.raises(ConfigError, match="preset 'large' is unknown"):
        _recipe().grid("large")
    with pytest.raises(ConfigError, match="game 'wgan'"):
        _grid.product("wgan", layers=(2,), widths=(8,), dropouts=(0.0,))
    with pytest.raises(ConfigError, match="at least 2 layers"):
        _grid.product("gan", layers=(1, 2), widths=(8,), dropouts=(0.0,))
    with pytest.raises(CapabilityError, match="only a model with classes"):
        _model().classify(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ShapeError, match="samples must be floats"):
        _model().energy(torch.zeros(2, 1, 9, 8))
    cells = [_grid.product(game, layers=(n,), widths=(8,), dropouts=(0.0,)) for game, n in (("gan", 2), ("ebgan", 3))]
    scores = [_study.Scores(part, [1.0], [0.0], torch.zeros(1, 1)) for part in cells]
    with pytest.raises(ConfigError, match="share no cell"):
        _study.by_cell(*scores)
