"""BiGAN on a game small enough to enumerate; its comparisons, features, probes, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate, inference
from cambrian.engine.samples import Curves, Gallery, Images
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.metrics.neighbours import neighbour_accuracy
from cambrian.nn.adversarial import (
    ConnectedNet,
    Flat,
    JointDiscriminator,
    JointPairs,
    SplitBatchNorm,
    joint_discriminator_loss,
    joint_opponents_loss,
)
from cambrian.systems.gans.bigan import BiGAN, BiGANRecipe, Config

TINY = Config(steps=4, batch=16, latent=6, hidden=(16, 16), base=4, samples=64, look=2)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path_factory.getbasetemp() / "judges"))  # one judge for this file


def _shades(size: int = 8, channels: int = 1, classes: tuple[str, ...] = ("dark", "bright")) -> Data:
    label = torch.arange(90) % 2
    image = torch.randint(0, 90, (90, channels, size, size), generator=torch.Generator().manual_seed(1))
    image = (image + 150 * label[:, None, None, None]).to(torch.uint8)
    split = TensorSplit(image=image, label=label)
    info = {"shape": (channels, size, size), "classes": list(classes), "scale": 255}
    return Data("shades", "images", split, split, split, info)


def _trained(data: Data | str = "", steps: int = 4, **changes: object) -> Loop:
    config = dataclasses.replace(TINY, **changes)
    held = BiGANRecipe.load_data(config, Source("world", data)) if isinstance(data, str) and data else data or _shades()
    loop = Loop(BiGANRecipe(config, data=held))
    while loop.recipe.iteration < steps:
        loop.advance()
    return loop


def test_on_four_images_and_four_latents_the_game_makes_encoder_and_generator_inverse_permutations() -> None:
    """Ten games at once, all pairs in every batch. Pairs carry the same noise on both sides: without, D is sure before
    E and G have moved, and their tables freeze at a wrong corner."""
    games, noise, draw = 10, 0.4, torch.Generator().manual_seed(0)
    nets = []
    for seed in range(games):
        torch.manual_seed(seed)
        body = ConnectedNet(inputs=(8,), outputs=(1,), hidden=(32, 32), act="lrelu")
        nets.append(JointDiscriminator(x_tower=Flat(), z_tower=Flat(), joint=body))
    weights, _ = stack_module_state(nets)
    tables = [nn.Parameter(0.1 * torch.randn(games, 4, 4, generator=draw)) for _ in range(2)]
    d = torch.optim.Adam(weights.values(), lr=1e-2, betas=(0.5, 0.999))
    eg = torch.optim.Adam(tables, lr=2e-2, betas=(0.5, 0.999))

    def judge(weight, x, z_hat, x_tilde, z):
        return JointPairs(x, z_hat, x_tilde, z).logits(lambda *pair: functional_call(nets[0], weight, pair))

    def shaken(pairs: JointPairs) -> list[torch.Tensor]:
        parts = (pairs.x, pairs.z_hat, pairs.x_tilde, pairs.z)
        return [part + noise * torch.randn(part.shape, generator=draw) for part in parts]

    eye = torch.eye(4).expand(games, 4, 4)
    for _ in range(800):
        encoder, generator = (table.softmax(2) for table in tables)
        pairs = JointPairs(eye, encoder, generator, eye)
        for optimiser, seen, loss in (
            (d, pairs.detached(), joint_discriminator_loss),
            (eg, pairs, joint_opponents_loss),
        ):
            optimiser.zero_grad()
            (games * loss(*vmap(judge)(weights, *shaken(seen)))).backward()
            optimiser.step()
    encoder, generator = (table.argmax(2) for table in tables)
    inverse = (encoder.gather(1, generator) == torch.arange(4)).all(1)
    assert int(inverse.sum()) >= 8
    assert all(sorted(row.tolist()) == [0, 1, 2, 3] for row in generator[inverse])


def test_codes_have_the_scale_of_the_prior() -> None:
    for prior, deviation in (("uniform", 3**-0.5), ("normal", 1.0)):
        model = BiGAN(shape=(1, 8, 8), latent=7, hidden=(16, 16), prior=prior)
        z = model.code(torch.rand(64, 1, 8, 8) * 2 - 1).detach()
        torch.testing.assert_close(z.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std(0, unbiased=False), torch.full((7,), deviation), atol=1e-2, rtol=0)
        drawn = model.prior(4000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn.std(0), torch.full((7,), deviation), atol=0.03, rtol=0)


def test_both_players_get_the_gradient_of_both_pairs() -> None:
    recipe = _trained(steps=0).recipe
    x = recipe.real(recipe.data.split("train")[torch.arange(16)])
    d, eg = recipe.players(x, {})
    d.loss(0)[0].backward()
    assert all(p.grad is None for p in [*recipe.model.encoder.parameters(), *recipe.model.generator.parameters()])
    eg.loss(0).backward()
    assert all(bool(p.grad.ne(0).any()) for p in recipe.model.encoder.head.parameters() if p.ndim > 1)
    assert all(bool(p.grad.ne(0).any()) for p in recipe.model.generator.head.parameters())


def test_the_joint_regressor_passes_a_share_of_the_regression_to_the_generator() -> None:
    gradients = {}
    for name, changes in (("lr", {}), ("jlr", {}), ("half", {"method": "jlr", "regress": 0.5})):
        recipe = _trained(steps=0, **({"method": name} | changes)).recipe
        x = recipe.real(recipe.data.split("train")[torch.arange(16)])
        loss, _ = recipe.players(x, {})[1].loss(0)
        nets = recipe.model.generator.head.weight, recipe.model.encoder.head.weight
        gradients[name] = torch.autograd.grad(loss, nets)
    quarter = gradients["jlr"][0] - gradients["lr"][0]
    torch.testing.assert_close(gradients["half"][0] - gradients["lr"][0], 2 * quarter, atol=1e-6, rtol=1e-3)
    assert float(quarter.abs().max()) > 0
    torch.testing.assert_close(gradients["jlr"][1], gradients["lr"][1])  # the encoder's loss is the same


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_autoencoders_minimise_their_error(norm: str) -> None:
    loop = _trained(steps=0, method=f"ae-{norm}", lr=3e-3, look=0)
    x = loop.recipe.real(loop.batch(0))
    error = x - loop.recipe.model.generate(loop.recipe.model.code(x))
    first = float(loop.recipe._rebuilding(x).detach())
    expected = error.square().mean() if norm == "l2" else error.abs().mean()
    assert first == pytest.approx(float(expected.detach()), rel=1e-4)
    for _ in range(80):
        last = loop.advance()["eg_loss"]
    assert last < 0.7 * first
    assert "d_accuracy" not in evaluate(loop.recipe)


@pytest.mark.parametrize("world", ["ring8", "digits"])
@pytest.mark.parametrize("method", ["bigan", "jlr"])
def test_points_and_digits_train_judge_and_show(world: str, method: str) -> None:
    loop = _trained(world, method=method)
    figures = evaluate(loop.recipe)
    assert {"d_accuracy", "reconstruction_ratio", "kept_class", "knn", "knn_code"} <= set(figures)
    assert loop.recipe.extra["looks"][:, 0].tolist() == [2, 4]
    with inference(loop.recipe, 0) as draw:
        assert isinstance(loop.recipe.sample(4, draw), Gallery)
    assert isinstance(loop.recipe.curve(), Curves)


def test_looks_use_the_validation_split_and_disturb_nothing() -> None:
    looking, blind = _trained(), _trained(look=0)
    pairs = zip(looking.recipe.model.parameters(), blind.recipe.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(looking.recipe.extra["looks"]) == 2 and not len(blind.recipe.extra["looks"])
    with inference(looking.recipe, 0):
        assert looking.recipe.extra["looks"][-1, 1] == pytest.approx(looking.recipe.knn("penultimate", "valid"))


def test_features_are_activations_of_the_layer_that_is_named() -> None:
    model = BiGAN(shape=(1, 8, 8), latent=5, hidden=(12, 9)).eval()
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    assert [model.features(x, name).shape[1] for name in model.layers()] == [12, 9, 5]
    assert torch.equal(model.features(x), model.features(x, "layer2"))
    last = model.features(x)
    torch.testing.assert_close(model.encode(x), model.rescale(model.encoder.head(last)).detach())
    of_d = BiGAN(shape=(1, 8, 8), latent=5, hidden=(12, 9), method="discriminator").eval()
    assert torch.equal(of_d.features(x), of_d.discriminator.features(x).detach())
    with pytest.raises(ConfigError, match="layer 'fc8' is unknown"):
        model.features(x, "fc8")


def test_probes_of_every_layer() -> None:
    recipe = _trained(arch="dcgan").recipe
    with inference(recipe, 0):
        knn, linear = recipe.knn_probe(), recipe.linear_probe()
        assert [row[0] for row in knn.rows] == recipe.model.layers()
        train, test = (recipe._features("code", part, 99) for part in ("train", "test"))
        assert knn.rows[-1][1] == neighbour_accuracy(train, test) == recipe.knn("code")
        assert isinstance(recipe.reconstruct(3), Images) and isinstance(recipe.neighbours(2), Images)
    assert linear.rows[0][2] > 0.9  # dark against bright
    with pytest.raises(CapabilityError, match="needs images"):
        _trained("ring8", steps=0).recipe.knn_probe()


def test_the_generalised_form_encodes_at_twice_the_generators_edge() -> None:
    loop = _trained(_shades(size=16, channels=3), encoder="alexnet", arch="dcgan", zoom=2, base=6)
    model = loop.recipe.model.eval()
    x = loop.recipe.real(loop.batch(0))
    with torch.no_grad():
        z = model.code(x)
        assert model.generate(z).shape == (16, 3, 8, 8) and model.decode(z).shape == (16, 3, 16, 16)
        torch.testing.assert_close(model.seen(x)[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    names = model.layers()
    assert names == [f"layer{i}" for i in range(1, 8)] + ["code"]
    assert evaluate(loop.recipe)["reconstruction_ratio"] > 0
    with pytest.raises(ShapeError, match="zoom=1"):
        BiGAN(shape=(1, 9, 9), zoom=2)


def test_batch_norm_stands_where_the_paper_has_it() -> None:
    model = BiGAN(shape=(1, 8, 8), latent=5, hidden=(12, 9, 9))
    for net in (model.encoder, model.discriminator.joint):
        assert [isinstance(norm, SplitBatchNorm) for norm in net.norms] == [False, True, True]
    assert all(isinstance(norm, SplitBatchNorm) for norm in model.generator.norms)
    plain = BiGAN(shape=(1, 8, 8), latent=5, hidden=(12, 9), norm_d=False)
    assert not any(isinstance(m, SplitBatchNorm) for m in plain.discriminator.modules())


def test_rates_fall_to_zero_over_the_second_half_and_weights_decay() -> None:
    loop = _trained(steps=2, decay=True, weight_decay=0.1)
    recipe = loop.recipe
    assert recipe.eg_optim.param_groups[0]["lr"] == TINY.lr
    loop.advance()
    loop.advance()
    assert recipe.d_optim.param_groups[0]["lr"] == pytest.approx(TINY.lr / 2)
    assert recipe.d_optim.param_groups[0]["weight_decay"] == 0.1


def test_saved_models_come_back_and_bad_input_is_named(tmp_path) -> None:
    torch.manual_seed(0)
    model = BiGAN(shape=(3, 16, 16), arch="dcgan", latent=5, hidden=(8, 8), base=4).eval()
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(BiGAN.from_pretrained(tmp_path).encode(x), model.encode(x))
    with pytest.raises(ShapeError, match=r"\[batch >= 1, 3, 16, 16\]"):
        model.features(x[:, :1])
    with pytest.raises(ShapeError, match=r"\[batch, 5\]"):
        model.decode(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="method is one of"):
        BiGAN(shape=(1, 8, 8), method="vae")
    with pytest.raises(ConfigError, match="must be one of"):
        Config(pair="shuffled")
    bare = _shades(classes=())
    assert not {"knn", "kept_class"} & set(evaluate(_trained(bare).recipe))
