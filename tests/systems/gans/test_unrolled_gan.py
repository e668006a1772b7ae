"""Unrolled GAN: its step against a plain GAN's and against finite differences; what it shows; what it refuses."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.samples import Curves, Images
from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.adversarial import InnerAdam, InnerSGD, discriminator_loss
from cambrian.systems.gans._judging import judged
from cambrian.systems.gans.unrolled_gan import Config, PointNet, UnrolledGANRecipe, look_ahead

TINY = Config(steps=6, batch=16, unroll=2, latent=4, hidden=8, look=2, looked_at=64)


def _recipe(seed: int = 0, data: Data | None = None, **changes: object) -> UnrolledGANRecipe:
    return UnrolledGANRecipe(dataclasses.replace(TINY, **changes), seed=seed, data=data)


def _train(recipe: UnrolledGANRecipe, steps: int) -> None:
    train = recipe.data.split("train")
    for recipe.iteration in range(steps):
        recipe.step(train[torch.arange(recipe.config.batch) + recipe.iteration])
    recipe.iteration = steps


def _images(size: int = 8, count: int = 40) -> Data:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    split = TensorSplit(image=image, label=torch.zeros(count, dtype=torch.int64))
    return Data("noise", "images", split, split, split, {"shape": (1, size, size), "classes": [], "scale": 255})


def test_without_unrolling_both_gradients_are_the_plain_gans() -> None:
    torch.manual_seed(0)
    d = PointNet(inputs=2, outputs=1, hidden=8, depth=2, gain=0.8, scale=0.25)
    x, fake = torch.randn(6, 2), torch.randn(6, 2, requires_grad=True)
    value, ours = look_ahead(d, x, fake, steps=0, inner=InnerSGD(0.1))
    (slope,) = torch.autograd.grad(value, fake)
    loss = discriminator_loss(*d(torch.cat((x, fake))).chunk(2))
    plain = torch.autograd.grad(loss, [fake, *d.parameters()])
    assert torch.equal(slope, -plain[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, plain[1:], strict=True))


@pytest.mark.parametrize("inner", [InnerSGD(0.2), InnerAdam(0.02)], ids=["sgd", "adam"])
def test_look_ahead_equals_a_deep_copy_that_really_took_the_steps(inner: InnerSGD | InnerAdam) -> None:
    torch.manual_seed(1)
    d = PointNet(inputs=2, outputs=1, hidden=8, depth=2, gain=0.8)
    before = copy.deepcopy(d.state_dict())
    x, fake = torch.randn(6, 2), torch.randn(6, 2)
    value, _ = look_ahead(d, x, fake.requires_grad_(), steps=3, inner=inner)
    twin = copy.deepcopy(d)
    settings = {"lr": inner.lr} if isinstance(inner, InnerSGD) else {"lr": inner.lr, "betas": inner.betas}
    factory = torch.optim.SGD if isinstance(inner, InnerSGD) else torch.optim.Adam
    optimiser = factory(twin.parameters(), **settings)
    for _ in range(3):
        optimiser.zero_grad()
        discriminator_loss(*twin(torch.cat((x, fake.detach()))).chunk(2)).backward()
        optimiser.step()
    after = -discriminator_loss(*twin(torch.cat((x, fake.detach()))).chunk(2))
    torch.testing.assert_close(value, after, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(v, d.state_dict()[k]) for k, v in before.items())


def test_generator_gradient_of_the_unrolled_game_equals_central_differences() -> None:
    torch.manual_seed(2)
    d = PointNet(inputs=2, outputs=1, hidden=6, depth=1, gain=1.0).double()
    d.layers[1] = nn.Tanh()  # smooth, so that differences converge
    x, z = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)

    def value(theta: Tensor) -> Tensor:
        return look_ahead(d, x, z @ theta, steps=3, inner=InnerAdam(0.05))[0]

    theta = torch.randn(3, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value(theta.requires_grad_()), theta)
    for i, j in ((0, 0), (1, 1), (2, 0)):
        step = torch.zeros_like(theta)
        step[i, j] = 1e-6
        numeric = (value(theta.detach() + step) - value(theta.detach() - step)) / 2e-6
        assert gradient[i, j].item() == pytest.approx(numeric.item(), abs=1e-6, rel=1e-6)


def test_the_sabotage_makes_the_look_ahead_a_plain_gan() -> None:
    plain, still = _recipe(unroll=0), _recipe(inner_lr=0.0)
    _train(plain, 3)
    _train(still, 3)
    for a, b in zip(plain.generator.parameters(), still.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    ahead = _recipe()
    _train(ahead, 3)
    pairs = zip(plain.generator.parameters(), ahead.generator.parameters(), strict=True)
    assert not all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_the_discriminator_takes_one_ordinary_step_whatever_k_is() -> None:
    plain, ahead = _recipe(unroll=0), _recipe(unroll=3)
    _train(plain, 1)
    _train(ahead, 1)
    for a, b in zip(plain.discriminator.parameters(), ahead.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_looks_are_kept_averaged_and_shown(tmp_path) -> None:
    recipe = _recipe(steps=10)
    start = recipe.evaluate("test", torch.Generator().manual_seed(0))
    assert start["modes_touched"] in range(9)
    _train(recipe, 10)
    assert recipe.extra["looks"][:, 0].tolist() == [2, 4, 6, 8, 10]
    assert recipe.extra["strip"].shape == (5, 400, 2)
    recipe.extra["looks"] = torch.tensor([[1.0, 8, 0], [2, 1, 0], [3, 2, 0], [4, 3, 0], [5, 4, 0], [6, 5, 0]])
    with torch.no_grad():
        figures = recipe.evaluate("test", torch.Generator().manual_seed(0))
        assert figures["modes_touched"] == 3.0  # the mean of the last five
        (path,) = recipe.sample(50, torch.Generator().manual_seed(0)).save(tmp_path, "strip")
    assert path.stat().st_size > 5000
    assert isinstance(recipe.curve(), Curves)


def test_compare_trains_the_plain_twin_and_leaves_the_run_alone(tmp_path) -> None:
    recipe = _recipe()
    _train(recipe, 6)
    before, drawn = copy.deepcopy(recipe.generator.state_dict()), recipe.rng.get_state()
    with torch.no_grad():
        (path,) = recipe.compare().save(tmp_path, "compare")
    assert path.stat().st_size > 5000
    assert torch.equal(drawn, recipe.rng.get_state())
    assert all(torch.equal(v, recipe.generator.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize(("arch", "stack"), [("dcgan", False), ("lstm", False), ("dcgan", True)])
def test_images_train_invert_and_show(arch: str, stack: bool) -> None:
    recipe = _recipe(data=_images(), arch=arch, stack=stack, base=4, base_d=2, inner="sgd", batch=8)
    _train(recipe, 2)
    for module in recipe.modules().values():
        module.eval()
    with torch.no_grad():
        sheet = recipe.sample(4, torch.Generator().manual_seed(0))
    assert isinstance(sheet, Images) and sheet.tensor.shape == (4, 3 if stack else 1, 8, 8)
    drawn = recipe.rng.get_state()
    with torch.no_grad():
        assert set(recipe.evaluate("test", torch.Generator().manual_seed(0))) == {"d_accuracy"}
    assert torch.equal(drawn, recipe.rng.get_state())  # evaluation draws from its own generator
    gallery = recipe.invert(n=3, restarts=2, steps=5)
    assert gallery.items["inverted"].tensor.shape[0] == 6
    with pytest.raises(CapabilityError, match="points"):
        recipe.curve()


def test_stacked_modes_are_counted_by_a_judge(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(200) % 2
    image = torch.randint(0, 30, (200, 1, 8, 8), generator=generator, dtype=torch.uint8)
    image[label == 1] += 200
    split = TensorSplit(image=image, label=label)
    data = Data("shades", "images", split, split, split, {"shape": (1, 8, 8), "classes": ["0", "1"], "scale": 255})
    recipe = _recipe(data=data, stack=True, base=4, base_d=2, batch=8)
    bright = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 1, 1]])
    made = (bright.float() * 1.6 - 0.9)[:, :, None, None].expand(-1, -1, 8, 8)
    found = judged(recipe.data, made.add(1).div(2), stack=3)
    assert found["modes_reached"] == 3.0 and found["modes_missed"] == 5.0 and found["judge_accuracy"] >= 0.97
    entropy = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(4.0).log()
    assert found["kl_to_uniform"] == pytest.approx(float(torch.tensor(8.0).log() - entropy), abs=1e-5)


def test_bad_settings_and_data() -> None:
    with pytest.raises(ConfigError, match="inner must be one of"):
        dataclasses.replace(TINY, inner="rmsprop")
    with pytest.raises(ConfigError, match="unroll must be at least 0"):
        dataclasses.replace(TINY, unroll=-1)
    with pytest.raises(ConfigError, match="do not train on the world 'ring9'"):
        UnrolledGANRecipe.load_data(TINY, Source("world", "ring9"))
    wide = _images()
    wide.info["shape"] = (1, 8, 12)
    with pytest.raises(ConfigError, match="8x12"):
        _recipe(data=wide)
