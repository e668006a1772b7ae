"""ALI against linear-Gaussian closed forms; its nets, its forms with labels and conditions, what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Gallery, Images, Plot, Table
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import (
    ConnectedNet,
    Flat,
    JointDiscriminator,
    JointPairs,
    joint_discriminator_loss,
    joint_opponents_loss,
)
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.gans._joint import reconstruction_ratio
from cambrian.systems.gans.ali import ALI, ALIRecipe, Config, _nets
from cambrian.systems.gans.ali._show import flattened, quantiles

TINY = Config(steps=3, batch=16, latent=6, hidden=(16, 16), base=4, samples=64)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path_factory.getbasetemp() / "judges"))  # one judge for this file


def _images(size: int = 8, channels: int = 1, count: int = 80) -> Data:
    """Two classes: dark pictures and bright ones."""
    label = torch.arange(count) % 2
    image = torch.randint(0, 60, (count, channels, size, size), generator=torch.Generator().manual_seed(0))
    image = (image + 180 * label[:, None, None, None]).to(torch.uint8)
    split = TensorSplit(image=image, label=label)
    info = {"shape": (channels, size, size), "classes": ["dark", "bright"], "scale": 255}
    return Data("shades", "images", split, split, split, info)


def _loop(data: Data | str, steps: int = 3, seed: int = 0, **changes: object) -> Loop:
    config = dataclasses.replace(TINY, **changes)
    held = ALIRecipe.load_data(config, Source("world", data)) if isinstance(data, str) else data
    loop = Loop(ALIRecipe(config, data=held, seed=seed))
    for _ in range(steps):
        loop.advance()
    return loop


# -- oracles ------------------------------------------------------------------------------------------------------------


class Linear:
    """`z ~ N(0, 1)`, `x|z ~ N(a z, s^2)`; the data have the same marginal, so the best q(z|x) is the posterior."""

    a, s = 1.0, 1.0

    def pairs(self, slope, shift, deviation, count: int, draw: torch.Generator) -> JointPairs:
        x, noise, z, other = (torch.randn(count, 1, generator=draw) for _ in range(4))
        x = math.sqrt(self.a**2 + self.s**2) * x
        return JointPairs(x, slope * x + shift + deviation * noise, self.a * z + self.s * other, z)

    def log_ratio(self, x: Tensor, z: Tensor, slope: float, shift: float, deviation: float) -> Tensor:
        """`log q(x, z) - log p(x, z)` in closed form."""

        def log_normal(value: Tensor, mean: Tensor | float, sd: float) -> Tensor:
            return -0.5 * ((value - mean) / sd).square() - math.log(sd)

        q = log_normal(x, 0.0, math.sqrt(self.a**2 + self.s**2)) + log_normal(z, slope * x + shift, deviation)
        return q - log_normal(z, 0.0, 1.0) - log_normal(x, self.a * z, self.s)


def test_the_best_discriminator_of_a_linear_gaussian_game_has_the_log_ratio_as_its_logit() -> None:
    world, encoder, draw = Linear(), (0.3, 0.3, 0.85), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    body = ConnectedNet(inputs=(2,), outputs=(1,), hidden=(32, 32), act="softplus")
    discriminator = JointDiscriminator(x_tower=Flat(), z_tower=Flat(), joint=body)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for step in range(700):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 700)
        loss = joint_discriminator_loss(*world.pairs(*encoder, 3000, draw).logits(discriminator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    held = world.pairs(*encoder, 5000, draw)
    with torch.no_grad():
        q, p = held.logits(discriminator)
    errors = (q - world.log_ratio(held.x, held.z_hat, *encoder), p - world.log_ratio(held.x_tilde, held.z, *encoder))
    assert float(torch.cat(errors).square().mean().sqrt()) < 0.1


class Quadratic(nn.Module):
    """The family in which the log ratio of two Gaussians lies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 1))

    def forward(self, h: Tensor, sources: tuple[int, ...] = (0,)) -> Tensor:
        x, z = h.split(1, dim=1)
        return torch.cat((torch.ones_like(x), x, z, x * x, x * z, z * z), dim=1) @ self.weight


def test_at_the_optimum_the_encoder_is_the_true_posterior() -> None:
    world, draw, steps = Linear(), torch.Generator().manual_seed(0), 700
    discriminator = JointDiscriminator(x_tower=Flat(), z_tower=Flat(), joint=Quadratic())
    encoder, seen = nn.Parameter(torch.tensor([0.0, 0.5, 0.5])), []
    d = torch.optim.Adam(discriminator.parameters(), lr=3e-2, betas=(0.5, 0.999))
    e = torch.optim.Adam([encoder], lr=1e-2, betas=(0.5, 0.999))
    for step in range(steps):
        e.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        for optimiser, turns in ((d, 3), (e, 1)):
            for _ in range(turns):
                pairs = world.pairs(encoder[0], encoder[1], encoder[2].exp(), 2000, draw)
                if optimiser is d:
                    loss = joint_discriminator_loss(*pairs.detached().logits(discriminator))
                else:
                    loss = joint_opponents_loss(*pairs.logits(discriminator))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        seen.append(encoder.detach().clone())
    slope, shift, log_deviation = torch.stack(seen[steps // 2 :]).mean(0).tolist()
    total = world.a**2 + world.s**2
    assert slope == pytest.approx(world.a / total, rel=0.05)
    assert math.exp(2 * log_deviation) == pytest.approx(world.s**2 / total, rel=0.05)
    assert abs(shift) < 0.05


def test_k_outputs_are_the_softmax_of_k_plus_one_with_the_last_logit_at_zero() -> None:
    model = ALI(shape=(1, 8, 8), latent=5, hidden=(8, 8), classes=4)
    logits = 30 * torch.randn(20, 4, dtype=torch.float64)
    every = F.pad(logits, (0, 1)).softmax(1)
    torch.testing.assert_close(torch.sigmoid(model.source(logits)), 1 - every[:, 4], atol=1e-12, rtol=0)
    # any of K for the encoder's pairs, K + 1 for the decoder's: the plain game on the log-sum-exp
    other = 30 * torch.randn(20, 4, dtype=torch.float64)
    loss = joint_discriminator_loss(model.source(logits), model.source(other))
    last = F.pad(other, (0, 1)).log_softmax(1)[:, 4]
    any_of = F.pad(logits, (0, 1)).log_softmax(1)[:, :4].logsumexp(1)
    torch.testing.assert_close(loss, -any_of.mean() - last.mean())


def test_both_moments_of_the_encoder_learn_and_one_draw_serves_both_losses() -> None:
    torch.manual_seed(0)
    model = ALI(shape=(1, 8, 8), latent=5, hidden=(8, 8), dropout_in=0.0, dropout=0.0)
    x, z = torch.rand(12, 1, 8, 8) * 2 - 1, torch.randn(12, 5)
    posterior = model.posterior(x)
    mean, logvar = posterior.mean.detach().requires_grad_(), posterior.logvar.detach().requires_grad_()
    z_hat = DiagGaussian(mean, logvar).sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(z_hat, model.code(x, torch.Generator().manual_seed(3)))
    pairs = JointPairs(x, z_hat, model.generate(z), z)
    joint_discriminator_loss(*pairs.detached().logits(model.discriminator)).backward()
    assert mean.grad is None
    joint_opponents_loss(*pairs.logits(model.discriminator)).backward()
    assert bool((mean.grad != 0).all()) and bool((logvar.grad != 0).any())


def test_log_sigma_stays_in_its_bounds() -> None:
    model = ALI(shape=(2,), latent=3, hidden=(8,)).eval()
    with torch.no_grad():
        out = model.posterior(1e6 * torch.randn(9, 2))
    assert float(out.logvar.min()) >= -10.0 and float(out.logvar.max()) <= 4.0


# -- nets ---------------------------------------------------------------------------------------------------------------


def test_the_table_of_cifar() -> None:
    model = ALI(shape=(3, 32, 32), arch="cifar", latent=64, base=32, dropout=0.5)
    shapes = [tuple(conv.weight.shape) for conv in model.encoder.convs]
    assert shapes == [(32, 3, 5, 5), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (512, 512, 1, 1)]  # fmt: skip
    assert tuple(model.encoder.head.weight.shape) == (128, 512, 1, 1)
    up = [tuple(m.weight.shape) for m in model.generator.layers if hasattr(m, "weight") and m.weight.ndim == 4]
    assert up == [(64, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4), (32, 32, 5, 5), (32, 32, 1, 1), (3, 32, 1, 1)]  # fmt: skip
    d = model.discriminator
    assert not any("BatchNorm" in type(m).__name__ for m in d.modules()), "batch norm in D ruins this game"
    of_x = [m.conv.weight.shape[0] for m in d.x_tower if isinstance(m, _nets.MaxoutConv2d)]
    assert of_x == [64, 128, 256, 512, 1024]  # two pieces each
    assert [m.p for m in d.x_tower if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5, 0.5, 0.5]
    widths = [m.linear.weight.shape for m in [*d.z_tower, *d.joint] if hasattr(m, "linear")]
    assert widths == [(1024, 64), (1024, 512), (2048, 1024), (2048, 1024)]
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert model.code(x).shape == (2, 64) and model.generate(torch.randn(2, 64)).shape == x.shape


def test_the_untied_bias_starts_at_the_mean_picture() -> None:
    model = ALI(shape=(1, 20, 20), arch="cifar", latent=4, base=2, init=1e-4).eval()
    mean = torch.rand(1, 20, 20) * 0.9 + 0.05
    model.initialise(mean)
    torch.testing.assert_close(model.decode(torch.randn(3, 4)), mean.expand(3, -1, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("edge", [8, 18, 30])
def test_sizes_that_the_table_cannot_take_are_named(edge: int) -> None:
    with pytest.raises(ShapeError, match=f"multiple of 4 from 20 up, got {edge}"):
        ALI(shape=(3, edge, edge), arch="cifar", base=2)
    with pytest.raises(ShapeError, match="square"):
        ALI(shape=(3, 20, 24), arch="cifar", base=2)


@pytest.mark.parametrize(("arch", "shape"), [("connected", (1, 8, 8)), ("connected", (2,)), ("dcgan", (3, 16, 16)), ("cifar", (1, 20, 20))])  # fmt: skip
def test_every_architecture_in_use(arch: str, shape: tuple[int, ...], tmp_path) -> None:
    torch.manual_seed(0)
    model = ALI(shape=shape, arch=arch, latent=5, hidden=(8, 8), base=4).eval()
    x = torch.rand(4, *shape) * 2 - 1
    z = model.encode(x)
    assert z.shape == (4, 5) and not torch.equal(z, model.encode(x, seed=1))
    assert torch.equal(model.encode(x, sample=False), model.posterior(x).mean)
    assert torch.equal(model.reconstruct(x, seed=2), model.decode(model.encode(x, seed=2)))
    way = model.interpolate(x[:2], x[2:], steps=5)
    assert way.shape == (2, 5, *shape)
    torch.testing.assert_close(way[:, -1], model.reconstruct(x[2:], sample=False))
    assert len(model.features(x)) == 4 and model.features(x).shape[1] > 5
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(ALI.from_pretrained(tmp_path).features(x), model.features(x))


def test_bad_input_is_named() -> None:
    model = ALI(shape=(1, 8, 8), latent=5, hidden=(8, 8)).eval()
    with pytest.raises(ShapeError, match="rescale"):
        model.encode(torch.full((2, 1, 8, 8), 9.0))
    with pytest.raises(ShapeError, match=r"\[batch, 5\]"):
        model.decode(torch.zeros(2, 6))
    with pytest.raises(ConfigError, match="no classes"):
        model.classify(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="unknown"):
        ALI(shape=(1, 8, 8), arch="mlp")
    told = ALI(shape=(1, 8, 8), latent=5, hidden=(8, 8), conditions=3).eval()
    with pytest.raises(ShapeError, match=r"\[2, 3\], got None"):
        told.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="exclude"):
        Config(conditional=True, labels_per_class=2)
    with pytest.raises(ConfigError, match="game=ali"):
        Config(game="gan", pair="permuted")
    with pytest.raises(ConfigError, match="stochastic"):
        Config(game="vae", stochastic=False)


# -- the recipe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["ring8", "digits"])
@pytest.mark.parametrize("game", ["ali", "gan", "vae"])
def test_games_of_points_and_pictures(world: str, game: str) -> None:
    loop = _loop(world, game=game)
    figures = evaluate(loop.recipe)
    assert ("d_accuracy" in figures) == (game != "vae")
    assert figures["reconstruction_ratio"] > 0 and 0 <= figures["kept_class"] <= 1
    with inference(loop.recipe, 0) as draw:
        shown = loop.recipe.sample(4, draw)
    assert isinstance(shown, Gallery) and {"codes", "reconstructions"} <= set(shown.items)


def test_the_plain_gans_discriminator_and_generator_never_see_codes() -> None:
    loop = _loop(_images(), steps=0, game="gan")
    recipe, x = loop.recipe, loop.recipe.real(loop.batch(0))
    d, _ = recipe.players(x, loop.batch(0))
    recipe.model.discriminator.eval()
    loss = d.loss(0)[0]
    with torch.no_grad():
        recipe.model.discriminator.joint[1].linear.weight[:, 64:] += 100.0  # what D would read of a code
    torch.testing.assert_close(d.loss(0)[0], loss)


def test_permuted_pairs_train_on_the_same_marginals() -> None:
    kept, lost = _loop(_images()), _loop(_images(), pair="permuted")
    assert set(kept.recipe.state_dict()["parts"]) == set(lost.recipe.state_dict()["parts"])
    pair = zip(kept.recipe.model.parameters(), lost.recipe.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pair)


def test_few_labels_teach_the_discriminator_classes() -> None:
    loop = _loop(_images(), steps=60, labels_per_class=4, lr=3e-3)
    assert evaluate(loop.recipe)["accuracy"] > 0.9
    with inference(loop.recipe, 0):
        shares = loop.recipe.model.classify(loop.recipe.real(loop.batch(0)))
    torch.testing.assert_close(shares.sum(1), torch.ones(16))
    assert len(loop.recipe.labelled_y) == 8
    unlabelled = _images()
    unlabelled.info["classes"] = []
    with pytest.raises(ConfigError, match="no labels"):
        _loop(unlabelled, labels_per_class=4)


def test_conditions_reach_encoder_decoder_and_discriminator() -> None:
    loop = _loop(_images(), conditional=True)
    recipe = loop.recipe
    with inference(recipe, 0):
        x, told = recipe.real(loop.batch(0)), torch.eye(2)[loop.batch(0)["label"]]
        other, z = told.flip(1), torch.randn(16, 6)
        assert not torch.equal(recipe.model.encode(x, False, told), recipe.model.encode(x, False, other))
        assert not torch.equal(recipe.model.decode(z, told), recipe.model.decode(z, other))
        logits = [recipe.model.discriminator(x, recipe.model.beside(z, c)) for c in (told, other)]
        assert not torch.equal(*logits)
        assert recipe.conditions(n=3).tensor.shape[0] == 6
    prior = recipe.model.prior(50, torch.Generator().manual_seed(0))
    assert prior.shape == (50, 8) and torch.equal(prior[:, 6:].sum(1), torch.ones(50))
    with pytest.raises(CapabilityError, match="told no classes"):
        _loop(_images(), steps=0).recipe.conditions()


def test_actions_show_and_measure() -> None:
    recipe = _loop(_images()).recipe
    with inference(recipe, 0):
        assert isinstance(recipe.codes(), Plot) and isinstance(recipe.reconstruct(3), Images)
        assert recipe.between(n=4, rows=2).tensor.shape == (8, 1, 8, 8)
        table = recipe.svm(labels=20, draws=3)
    assert isinstance(table, Table) and table.rows[0][table.columns.index("accuracy")] > 0.9
    with pytest.raises(CapabilityError, match="needs images"):
        _loop("ring8", steps=0).recipe.svm()


def test_figures_of_reconstructions() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=draw)
    assert reconstruction_ratio(x, x, draw) == 0.0
    assert reconstruction_ratio(x, torch.zeros(50, 3), draw) == pytest.approx(1.0)
    recipe = _loop(_images(), steps=0).recipe
    held = recipe.data.split("test")[torch.arange(20)]
    assert torch.equal(recipe.nearest_class(recipe.real(held)), held["label"])
    points = _loop("grid25", steps=0).recipe
    held = points.data.split("test")[torch.arange(200)]
    assert float((points.nearest_class(held["point"]) == held["label"]).float().mean()) > 0.97
    assert points.nearest_class(torch.tensor([[1.0, 1.0]])).tolist() == [-1]


def test_quantiles_of_the_prior_lie_on_the_diagonal() -> None:
    z = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    prior, found = quantiles(z)
    assert float((prior - found)[10:-10].abs().max()) < 0.05
    flat = flattened(z * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0]))
    torch.testing.assert_close(flat.std(0), torch.tensor([9.0, 4.0]), rtol=0.1, atol=0)
    assert flattened(torch.ones(4, 1)).shape == (4, 2)
