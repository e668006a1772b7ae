"""Generative targets: a linear autoencoder in closed form, modes and shapes, and the VAE recipe's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.engine.config import override
from cambrian.errors import CapabilityError, ShapeError
from cambrian.inspect import GenTarget, Space, wrap_generative
from cambrian.systems.likelihood.vae.recipe import VAERecipe


def linear() -> tuple[nn.Linear, GenTarget]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 2, bias=False)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        z = layer(x)
        return z, torch.zeros_like(z)

    target = wrap_generative(
        layer, space=Space.vector(6, 0.0, 1.0), latent_shape=(2,), encode=encode, decode=lambda z: z @ layer.weight
    )
    return layer, target


def test_reconstruction_and_its_gradient_are_those_of_the_matrices() -> None:
    layer, target = linear()
    assert isinstance(target, GenTarget)
    x = torch.rand(3, 6, requires_grad=True)
    again = target.rec(x)
    torch.testing.assert_close(again, x @ layer.weight.T @ layer.weight)
    (grad,) = torch.autograd.grad(target.encode(x)[0].sum(), x)
    torch.testing.assert_close(grad, layer.weight.sum(0).expand(3, -1))
    assert layer.weight.grad is None and layer.training


def test_what_does_not_fit_is_refused() -> None:
    _, target = linear()
    with pytest.raises(ShapeError, match="inputs must be"):
        target.encode(torch.rand(3, 5))
    with pytest.raises(ShapeError, match="lie in"):
        target.rec(torch.full((1, 6), 2.0))
    with pytest.raises(ShapeError, match="codes must be"):
        target.decode(torch.rand(3, 3))
    with pytest.raises(CapabilityError, match="no likelihood"):
        target.neg_elbo(torch.rand(1, 6))


def test_the_vae_recipe_offers_one() -> None:
    config = override(VAERecipe.presets["smoke"], {"size": 8, "train_size": 100, "test_size": 20, "hidden": (8,)})
    recipe = VAERecipe(config, data=VAERecipe.load_data(config, Source("world", "glyphs")), seed=0)
    target = recipe.gen_target()
    x = recipe.data.split("test")[torch.arange(4)]["image"].float() / 255
    assert target.rec(x).shape == x.shape and target.latent_shape == (8,)
    torch.testing.assert_close(target.rec(x), recipe.model.reconstruct(x))
    assert torch.equal(target.neg_elbo(x), target.neg_elbo(x)) and target.neg_elbo(x).shape == (4,)
