"""ResNet: every network of the zoo trains by the recipe, and becomes a target of the verbs."""

from __future__ import annotations

import pytest
import torch

from cambrian.data.source import Source
from cambrian.engine.config import override
from cambrian.engine.loop import Loop, evaluate, fit
from cambrian.errors import ConfigError
from cambrian.systems.perception.resnet import GLYPH_TARGETS, ResNetRecipe


def recipe_of(world: str = "glyphs", **settings: object) -> ResNetRecipe:
    config = override(ResNetRecipe.presets["smoke"], {"samples": 300, **settings})
    return ResNetRecipe(config, data=ResNetRecipe.load_data(config, Source("world", world)), seed=100)


@pytest.mark.parametrize("net", ["lenet-5", "lenet-300-100", "inception-mini", "wide-elu"])
def test_networks_train_and_answer(net: str) -> None:
    recipe = recipe_of(net=net, steps=2, batch=8, channels=3)
    before = {name: p.clone() for name, p in recipe.model.named_parameters()}
    fit(Loop(recipe), 2)
    assert all(not torch.equal(p, before[name]) for name, p in recipe.model.named_parameters())
    target = recipe.target()
    assert target.logits(target.example()).shape == (1, 10)


def test_learns_glyphs() -> None:
    recipe = recipe_of(samples=2000, steps=120, size=16, lr=0.1)
    before = evaluate(recipe)["accuracy"]
    fit(Loop(recipe), 120)
    assert before < 0.3 and evaluate(recipe)["accuracy"] > before + 0.3


def test_the_plain_arm_has_no_shortcut_weights() -> None:
    residual, plain = (recipe_of(plain=flag).model for flag in (False, True))
    names = {name for name, _ in residual.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names and all(".shortcut." in name for name in names)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="lenet-5 has none"):
        recipe_of(net="lenet-5", plain=True)
    with pytest.raises(ConfigError, match="takes no width"):
        recipe_of(net="lenet-5", width=0.5)
    for settings in GLYPH_TARGETS.values():
        assert override(ResNetRecipe.presets["laptop"], settings).channels == 3
