"""InfoGAN: the bound against closed forms, where its gradient goes, what codes do, what is refused."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch.distributions import Categorical, Normal

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Gallery
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL
from cambrian.systems.gans import _worlds
from cambrian.systems.gans.infogan import Codes, InfoGAN, cat, uniform
from cambrian.systems.gans.infogan._factors import moments
from cambrian.systems.gans.infogan.model import information_of
from cambrian.systems.gans.infogan.recipe import Config, InfoGANRecipe, within_groups
from cambrian.worlds import glyphs

TINY = Config(steps=6, batch=16, codes=("cat:3", "uniform:2"), latent=5, hidden=(16,), base=4, q_hidden=8, samples=64)


def _images(size: int = 8, labels: tuple[int, ...] = (0, 1, 2)) -> Data:
    image = torch.randint(0, 256, (60, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = TensorSplit(image=image, label=torch.tensor(labels).repeat(60 // len(labels)))
    return Data("noise", "images", split, split, split, {"shape": (1, size, size), "classes": ["a", "b", "c"], "scale": 255})  # fmt: skip


def _recipe(data: Data | None = None, **changes: object) -> InfoGANRecipe:
    return InfoGANRecipe(dataclasses.replace(TINY, **changes), data=data or _images())


def _train(recipe: InfoGANRecipe) -> list[dict[str, float]]:
    loop = Loop(recipe)
    return [loop.advance() for _ in range(recipe.config.steps)]


# -- the bound ---------------------------------------------------------------------------------------------------------


def test_an_invertible_generator_reaches_the_entropy_of_its_codes() -> None:
    codes = Codes([cat(10), cat(4)])
    c = codes.draw(500, torch.Generator().manual_seed(0))
    x = 3.0 * c - 1.0  # a hand-made G that writes its codes down
    read = (x + 1.0) / 3.0 * 50.0  # and a Q that reads them
    found = float(codes.information(read, c)["cat"])
    assert found == pytest.approx(math.log(10) + math.log(4), abs=1e-4)
    assert found == pytest.approx(codes.entropy["cat"], abs=1e-4)


def test_a_reader_that_knows_nothing_gets_no_information_and_a_wrong_one_less() -> None:
    codes = Codes([cat(5)])
    c = codes.draw(400, torch.Generator().manual_seed(1))
    assert float(codes.information(torch.zeros(400, 5), c)["cat"]) == pytest.approx(0.0, abs=1e-6)
    assert float(codes.information(9.0 * c.roll(1, 1), c)["cat"]) < -5


@pytest.mark.parametrize("fix_std", [True, False])
def test_the_bound_equals_torchs_distributions(fix_std: bool) -> None:
    codes = Codes([cat(3), uniform(2), cat(4)], fix_std)
    c = codes.draw(40, torch.Generator().manual_seed(2))
    params = torch.randn(40, codes.outputs, generator=torch.Generator().manual_seed(3))
    first = Categorical(logits=params[:, :3]).log_prob(c[:, :3].argmax(1))
    second = Categorical(logits=params[:, 3:7]).log_prob(c[:, 3:7].argmax(1))
    std = torch.ones(40, 2) if fix_std else params[:, 9:].exp()
    dense = Normal(params[:, 7:9], std).log_prob(c[:, 7:]).sum(1)
    found = codes.information(params, c)
    torch.testing.assert_close(found["cat"], (first + second).mean() + math.log(12))
    torch.testing.assert_close(found["cont"], dense.mean() + 2 * math.log(2))


def test_with_a_fixed_std_the_continuous_term_is_a_scaled_squared_error() -> None:
    codes = Codes([uniform(2)])
    c = codes.draw(30, torch.Generator().manual_seed(4))
    params = torch.randn(30, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(codes.information(params, c)["cont"], params)
    torch.testing.assert_close(slope, (c - params.detach()) / 30)


def test_codes_follow_their_laws() -> None:
    codes = Codes([cat(4), uniform(1)])
    c = codes.draw(8000, torch.Generator().manual_seed(5))
    assert (c[:, :4].sum(1) == 1).all() and float(c[:, 4].abs().max()) <= 1
    assert ((c[:, :4].mean(0) - 0.25).abs() < 0.03).all()
    assert float(c[:, 4].mean().abs()) < 0.05 and float(c[:, 4].square().mean()) == pytest.approx(1 / 3, abs=0.02)


# -- gradients ---------------------------------------------------------------------------------------------------------


def _model(**changes: object) -> InfoGAN:
    torch.manual_seed(0)
    return InfoGAN(shape=(1, 8, 8), codes=[cat(3), uniform(2)], noise=5, hidden=(16,), q_hidden=8, **changes)


def test_the_information_reaches_g_through_samples_only_and_never_the_real_or_fake_head() -> None:
    model = _model()
    z = model.prior(12, torch.Generator().manual_seed(0))
    fake = model.generate(z)
    term = sum(information_of(model, z, model.discriminator(fake, (FAKE,))[1]).values())
    up, head = list(model.generator.parameters()), list(model.discriminator.trunk.head.parameters())
    slopes = torch.autograd.grad(term, [*up, *head], allow_unused=True)
    assert all(s is not None and s.abs().sum() > 0 for s in slopes[: len(up) : 2])
    assert all(s is None for s in slopes[len(up) :])
    cut = sum(information_of(model, z, model.discriminator(fake.detach(), (FAKE,))[1]).values())
    assert all(s is None for s in torch.autograd.grad(cut, up, allow_unused=True))


def test_one_pass_for_both_heads_and_both_sources_equals_four() -> None:
    model = _model()
    x, fake = torch.rand(10, 1, 8, 8) * 2 - 1, torch.rand(10, 1, 8, 8) * 2 - 1
    logits, params = model.discriminator(torch.cat((x, fake)), (REAL, FAKE))
    parts = [model.discriminator(part, (source,)) for part, source in ((x, REAL), (fake, FAKE))]
    torch.testing.assert_close(logits, torch.cat([p[0] for p in parts]))
    torch.testing.assert_close(params, torch.cat([p[1] for p in parts]))


def test_a_round_with_weight_0_is_the_plain_game_and_posthoc_moves_the_reader_alone() -> None:
    recipe = _recipe(weight=0.0, weight_cont=0.0, posthoc=2)
    loop = Loop(recipe)
    q = [p.clone() for p in recipe.model.discriminator.q_out.parameters()]
    for _ in range(4):
        scalars = loop.advance()
    assert "g_loss" in scalars
    assert all(torch.equal(a, b) for a, b in zip(q, recipe.model.discriminator.q_out.parameters(), strict=True))
    up = [p.clone() for p in recipe.model.generator.parameters()]
    head = recipe.model.discriminator.trunk.head.weight.clone()
    scalars = [loop.advance() for _ in range(2)][-1]
    assert "q_loss" in scalars and "g_loss" not in scalars
    assert all(torch.equal(a, b) for a, b in zip(up, recipe.model.generator.parameters(), strict=True))
    assert torch.equal(head, recipe.model.discriminator.trunk.head.weight)
    assert not torch.equal(q[0], recipe.model.discriminator.q_out.weight)


def test_the_sabotage_asks_for_the_codes_of_another_sample() -> None:
    model = _model()
    z = model.prior(6, torch.Generator().manual_seed(0))
    perfect = torch.cat((50 * z[:, 5:8], z[:, 8:]), 1)
    assert float(information_of(model, z, perfect)["cat"]) == pytest.approx(math.log(3), abs=1e-4)
    assert float(information_of(model, z, perfect, shuffle=True)["cat"]) < -5


# -- the model ---------------------------------------------------------------------------------------------------------


def test_setting_codes_changes_these_columns_and_nothing_else() -> None:
    model = _model()
    z = model.prior(7, torch.Generator().manual_seed(0))
    put = model.with_codes(z, {"cat0": 2, "cont1": -1.5})
    assert put[:, 5:8].tolist() == [[0, 0, 1]] * 7 and put[:, 9].tolist() == [-1.5] * 7
    assert torch.equal(put[:, :5], z[:, :5]) and torch.equal(put[:, 8], z[:, 8])
    assert model.sample(4, seed=1, codes={"cat0": 1}).shape == (4, 1, 8, 8)
    assert torch.equal(model.sample(4, seed=1), model.sample(4, seed=1))


def test_a_traversal_turns_one_code_along_each_row() -> None:
    model = _model().eval()
    z, columns = model.turned("cont0", lo=-2, hi=2, steps=5, rows=3)
    grid = z.unflatten(0, (3, columns))
    torch.testing.assert_close(grid[1, :, 8], torch.linspace(-2, 2, 5))
    grid = torch.cat((grid[..., :8], grid[..., 9:]), -1)
    assert torch.equal(grid, grid[:, :1].expand_as(grid))
    assert model.traverse("cat0", rows=2).shape == (2, 3, 1, 8, 8)


def test_codes_of_an_image_do_not_depend_on_its_neighbours() -> None:
    model = _model().train()
    x = torch.rand(9, 1, 8, 8) * 2 - 1
    together, alone = model.encode(x), model.encode(x[:1])
    assert model.training
    assert together["cat"].shape == (9, 3) and together["cont"].shape == (9, 2)
    torch.testing.assert_close(together["cat"].sum(1), torch.ones(9))
    torch.testing.assert_close(together["cat"][:1], alone["cat"])
    torch.testing.assert_close(together["cont"][:1], alone["cont"])


def test_the_papers_mnist_net_has_its_layers() -> None:
    model = InfoGAN(shape=(1, 28, 28), arch="infogan")
    up, down = model.generator, model.discriminator
    assert [tuple(layer.weight.shape) for layer in up.full] == [(1024, 74), (6272, 1024)]
    assert [tuple(layer.weight.shape) for layer in up.up] == [(128, 64, 4, 4), (64, 1, 4, 4)]
    trunk = down.trunk
    shapes = [tuple(layer.weight.shape) for layer in (trunk.first, trunk.second, trunk.full, trunk.head)]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 6272), (1, 1024)]
    assert tuple(down.q_hidden.weight.shape) == (128, 1024) and tuple(down.q_out.weight.shape) == (12, 128)
    made = model.generate(model.prior(3, torch.Generator().manual_seed(0)))
    assert made.shape == (3, 1, 28, 28) and down(made)[1].shape == (3, 12)


def test_a_saved_model_comes_back(tmp_path) -> None:
    model = _model(fix_std=False).eval()
    model.save_pretrained(tmp_path)
    again = InfoGAN.from_pretrained(tmp_path)
    torch.testing.assert_close(again.sample(3, seed=2, codes={"cont0": 1.0}), model.sample(3, seed=2, codes={"cont0": 1.0}))  # fmt: skip


# -- the recipe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["ring8", "digits"])
def test_it_trains_judges_and_shows(world: str) -> None:
    recipe = _recipe(_worlds.load(Source("world", world)))
    _train(recipe)
    figures = evaluate(recipe)
    assert 0 <= figures["accuracy"] <= 1 and figures["h_cat"] == pytest.approx(math.log(3))
    assert figures["mi_cat"] <= figures["h_cat"] and "d_accuracy" in figures
    assert recipe.extra["bound"].shape == (6, 3)
    with inference(recipe, 0) as generator:
        shown = recipe.sample(8, generator)
    assert isinstance(shown, Gallery) and {"samples", "information", "codes and classes"} <= set(shown.items)
    assert ("code cont1" in shown.items) == (world == "digits")
    assert len(shown.html()) > 1000


@pytest.mark.parametrize("arch", ["infogan", "dcgan"])
def test_convolutional_nets_train_and_act(arch: str) -> None:
    recipe = _recipe(arch=arch, steps=2)
    _train(recipe)
    assert recipe.traverse("cat0", rows=2).tensor.shape == (6, 1, 8, 8)
    assert recipe.interpolate(n=3, rows=2).tensor.shape == (6, 1, 8, 8)
    assert [row[0] for row in recipe.factors(n=40).rows] == ["cont0", "cont1"]
    table = recipe.confusion()
    assert sum(sum(row[2:]) for row in table.rows) == 60 and len({row[1] for row in table.rows}) == 3


def test_codes_are_learnt_on_points() -> None:
    recipe = InfoGANRecipe(dataclasses.replace(TINY, steps=250, batch=64, codes=("cat:8",), hidden=(64, 64), lr_d=1e-3))
    _train(recipe)
    assert evaluate(recipe)["mi_cat"] > 0.6 * math.log(8)


def test_without_labels_or_continuous_codes_there_is_nothing_to_match_or_correlate() -> None:
    bare = _images()
    bare.info["classes"] = []
    recipe = _recipe(bare, codes=("cat:3",))
    assert "accuracy" not in evaluate(recipe)
    with pytest.raises(CapabilityError, match="labelled"):
        recipe.confusion()
    with pytest.raises(CapabilityError, match="continuous"):
        recipe.factors()


def test_uneven_classes_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="split frequent classes") as found:
        _recipe(_images(labels=(0, 0, 0, 1, 2)))
    assert "12 to 36 samples" in str(found[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _recipe()


def test_moments_follow_the_known_factors_of_glyphs() -> None:
    from cambrian.metrics.matching import rank_correlation

    fixed = {"rotation": (0.0, 0.0), "shift_x": (0.0, 0.0), "shift_y": (0.0, 0.0), "scale": (1.0, 1.0), "stroke": (0.0, 0.0)}  # fmt: skip
    world = glyphs.load(characters="08", train=10, valid=10, test=300, fonts=("DejaVuSans",), ranges=fixed)
    batch = world.split("test")[torch.arange(300)]
    found = moments(batch["image"].float() / 255)
    for digit in (0, 1):
        own = batch["label"] == digit
        for name in ("slant", "width"):
            assert rank_correlation(batch[name][own].double(), found[name][own]) > 0.95, (digit, name)


def test_a_code_that_turns_groups_opposite_ways_correlates_within_them_only() -> None:
    code = torch.linspace(-1, 1, 40).repeat(2)
    group = torch.arange(2).repeat_interleave(40)
    factor = torch.where(group == 0, code, -code)
    assert within_groups(code, factor, group) == pytest.approx(1.0)
    assert within_groups(code, factor, torch.zeros(80, dtype=torch.int64)) == pytest.approx(0.0, abs=1e-9)


def test_bad_settings_and_data() -> None:
    for names, match in ((["cat:1"], "cat:K"), (["normal:2"], "cat:K"), ([], "at least one code")):
        with pytest.raises(ConfigError, match=match):
            Codes(names)
    model = _model()
    z = model.prior(2, torch.Generator())
    with pytest.raises(ConfigError, match="no code 'cat1'; codes: cat0, cont0, cont1"):
        model.with_codes(z, {"cat1": 0})
    with pytest.raises(ConfigError, match="categories 0 to 2"):
        model.with_codes(z, {"cat0": 3})
    with pytest.raises(ShapeError, match="samples must be floats"):
        model.encode(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ShapeError, match="multiple of 4"):
        InfoGAN(shape=(1, 10, 10), arch="infogan")
    with pytest.raises(ConfigError, match="posthoc counts within steps"):
        dataclasses.replace(TINY, posthoc=6)
