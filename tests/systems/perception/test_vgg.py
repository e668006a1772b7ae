"""VGG: dense evaluation equals the FC head, weights are carried over exactly, and the recipe trains on anyone's pictures."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.engine.config import override
from cambrian.engine.loop import Loop, evaluate, fit, inference
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError
from cambrian.nn.zoo import VGG
from cambrian.systems.perception import vgg as system
from cambrian.systems.perception.vgg import SMALL_COLOUR_TARGET, SMALL_TARGET, VGGRecipe

TINY = {"classes": 4, "width": 0.06, "size": 64}


def tiny(plan: str = "A", seed: int = 0, **arguments: object) -> VGG:
    torch.manual_seed(seed)
    return system.vgg(plan, **{**TINY, **arguments}).eval()


def recipe_of(world: str = "glyphs", preset: str = "smoke", seed: int = 100, **settings: object) -> VGGRecipe:
    config = override(VGGRecipe.presets[preset], {"samples": 300, **settings})
    return VGGRecipe(config, data=VGGRecipe.load_data(config, Source("world", world)), seed=seed)


@pytest.mark.parametrize("head", ["fc", "gap"])
def test_fully_convolutional_net_is_the_same_function(head: str) -> None:
    """At exactly the trained size; 64 pixels leave 2x2 maps, so a wrong flatten order would show."""
    model = tiny(head=head).double()
    x = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    scores = system.to_fully_conv(model)(x)
    assert scores.shape == ((3, 4, 1, 1) if head == "fc" else (3, 4, 2, 2))
    torch.testing.assert_close(scores.mean((2, 3)), model(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(system.dense_predict(model, x, flips=False), model(x).softmax(1), rtol=1e-9, atol=1e-9)


def test_dense_evaluation_on_224_pixels_equals_the_fc_head() -> None:
    model = tiny("D", size=224, width=0.04, hidden=400)
    x = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(system.dense_predict(model, x, flips=False), model(x).softmax(1), atol=1e-4, rtol=0)


def test_dense_map_is_the_net_at_every_window() -> None:
    """With only the middle taps left, padding plays no part, so each cell of the map is the net on its window."""
    model = tiny(mean=(0.0,), std=(1.0,)).double()
    for layer in model.body:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.bias)
            layer.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0
    x = torch.rand(1, 3, 128, 96, dtype=torch.float64)
    scores = system.to_fully_conv(model)(x)
    assert scores.shape[2:] == (3, 2)
    for row in range(3):
        for column in range(2):
            window = x[:, :, 32 * row : 32 * row + 64, 32 * column : 32 * column + 64]
            torch.testing.assert_close(scores[:, :, row, column], model(window))


def test_predictions_average_views() -> None:
    model = tiny()
    x = torch.rand(2, 3, 80, 100)
    dense = system.dense_predict(model, x, scales=(64, 96))
    torch.testing.assert_close(dense.sum(1), torch.ones(2))
    torch.testing.assert_close(system.dense_predict(model, x.flip(-1), scales=(64, 96)), dense, atol=1e-5, rtol=1e-4)
    single = [system.dense_predict(model, x, scales=(side,)) for side in (64, 96)]
    torch.testing.assert_close((single[0] + single[1]) / 2, dense)
    crops = system.multi_crop_predict(model, x[:, :, :64, :64], grid=5, flips=False)
    torch.testing.assert_close(crops, model(x[:, :, :64, :64]).softmax(1))  # all crops are the picture
    with pytest.raises(ConfigError, match="at least the trained 64"):
        system.dense_predict(model, x, scales=(32,))


def test_deep_nets_start_from_a_shallow_one() -> None:
    shallow, deep = tiny("A", bn=True), tiny("E", seed=1, bn=True)
    before = deep.body.conv1_2.weight.clone()
    names = system.init_from(shallow, deep)
    assert [name for name in names if "conv" in name] == [f"body.conv{tag}" for tag in ("1_1", "2_1", "3_1", "3_2")]
    assert torch.equal(deep.body.conv3_2.weight, shallow.body.conv3_2.weight)
    assert torch.equal(deep.classifier.fc7.weight, shallow.classifier.fc7.weight)
    assert torch.equal(deep.body.conv1_2.weight, before)
    with pytest.raises(CapabilityError, match="use equal widths"):
        system.init_from(shallow, tiny("E", width=0.12, bn=True))


def torchvision_like(model: VGG, conv_bias: bool) -> nn.Module:
    """The same net in torchvision's layout, built by its own rules."""
    layers: list[nn.Module] = []
    for layer in model.body:
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=conv_bias))
        elif isinstance(layer, nn.BatchNorm2d):
            layers.append(nn.BatchNorm2d(layer.num_features))
        else:
            layers.append(nn.ReLU() if isinstance(layer, nn.ReLU) else nn.MaxPool2d(2))
    c = model.classifier
    head = nn.Sequential(
        nn.Linear(c.fc6.in_features, c.fc6.out_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(c.fc7.in_features, c.fc7.out_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(c.fc8.in_features, c.fc8.out_features),
    )  # fmt: skip
    net = nn.Sequential(OrderedDict(features=nn.Sequential(*layers), flat=nn.Flatten(), classifier=head))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("bgr", [False, True])
def test_torchvision_weights_give_the_same_logits(bn: bool, bgr: bool, tmp_path: Path) -> None:
    model = tiny("B", bn=bn, mean=system.model.IMAGENET_MEAN, std=system.model.IMAGENET_STD)
    other = torchvision_like(model, conv_bias=True)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    system.import_torchvision(model, tmp_path, bgr=bgr)
    x = torch.rand(2, 3, 64, 64)
    normal = (x - torch.tensor(system.model.IMAGENET_MEAN)[:, None, None]) / torch.tensor(system.model.IMAGENET_STD)[
        :, None, None
    ]
    torch.testing.assert_close(model(x), other(normal.flip(1) if bgr else normal), atol=1e-5, rtol=1e-4)


def test_foreign_weights_are_refused() -> None:
    weights: dict[str, Tensor] = torchvision_like(tiny("A"), conv_bias=True).state_dict()
    with pytest.raises(CheckpointError, match="VGG B"):
        system.import_torchvision(tiny("B"), weights)
    with pytest.raises(CheckpointError, match="lack 'body.conv1_1.bias'"):
        system.import_torchvision(tiny("A"), {k: v for k, v in weights.items() if k != "features.0.bias"})
    with pytest.raises(CheckpointError, match="the model \\["):
        system.import_torchvision(tiny("A", width=0.1), weights)


def test_boxes() -> None:
    model = tiny()
    localiser = system.to_localiser(model)
    x, label = torch.rand(2, 3, 64, 64), torch.tensor([3, 1])
    output = localiser(x)
    assert output.shape == (2, 16) and torch.equal(system.boxes_of(output, label)[0], output[0, 12:16])
    assert system.box_loss(output, label, system.boxes_of(output, label)) == 0
    shifted = system.boxes_of(output, label) + torch.tensor([0.0, 3.0, 0.0, 4.0])
    assert system.box_loss(output, label, shifted).item() == pytest.approx(25.0)
    single = system.to_localiser(model, per_class=False)(x)
    assert torch.equal(system.boxes_of(single, label), single)
    assert model(x).shape == (2, 4)  # the classifier is untouched


def test_batch_may_be_split_over_processes() -> None:
    """Without batch norm and dropout the gradient of a batch is the mean of its halves' gradients."""
    recipe = recipe_of(bn=False, crop=2, flip=True, zoom=1.2)
    recipe.model.double()
    batch = {name: column[:32] for name, column in recipe.data.train.fields.items()} | {"key": torch.arange(32)}

    def gradient(part: dict[str, Tensor]) -> Tensor:
        x = recipe.augmented(part["image"], part["key"]).double()
        loss = nn.functional.cross_entropy(recipe.model(x), part["label"])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(recipe.model.parameters()))])

    halves = [{name: column[half] for name, column in batch.items()} for half in (slice(0, 16), slice(16, 32))]
    torch.testing.assert_close((gradient(halves[0]) + gradient(halves[1])) / 2, gradient(batch), rtol=1e-9, atol=1e-12)


def test_learns_glyphs_and_serves_as_a_target() -> None:
    recipe = recipe_of("glyphs", samples=2000, steps=70, batch=64, plan="A", width=0.1)
    before = evaluate(recipe)["accuracy"]
    fit(Loop(recipe), 70)
    after = evaluate(recipe)
    assert before < 0.25 and after["accuracy"] > 0.5 and after["accuracy_top5"] > after["accuracy"]
    target = recipe.target()
    assert target.metric()["accuracy"] == pytest.approx(after["accuracy"])
    assert target.features(target.example(), ["body.relu2_1"])["body.relu2_1"].shape[2:] == (16, 16)
    with inference(recipe, 0) as generator:
        sample = recipe.sample(4, generator)
        table = recipe.dense(n=50)
    assert sample.items["pictures"].tensor.shape == (4, 1, 32, 32) and len(table.rows) == 4


def test_plateau_divides_the_rate_three_times_at_most() -> None:
    recipe = recipe_of(steps=40, schedule="plateau", look=1, patience=2, lr=0.1, batch=2, width=0.05, samples=10)
    recipe._figures = lambda split: {"loss": 1.0}  # never better after the first look
    rates: list[float] = []
    fit(Loop(recipe), 12, each=lambda step, scalars: rates.append(round(scalars["lr"], 6)))
    assert rates == [0.1] * 3 + [0.01] * 2 + [0.001] * 2 + [0.0001] * 5


def test_trains_on_a_folder_of_pictures(tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(20):
            colour = (level, level + number, 255 - number)
            Image.new("RGB", (40 + number, 50), colour).save(tmp_path / name / f"{number}.png")
    config = override(
        VGGRecipe.presets["smoke"], {"steps": 30, "batch": 8, "size": 24, "rescale": 28, "stages": 3, "flip": True}
    )
    recipe = VGGRecipe(config, data=VGGRecipe.load_data(config, Source("path", str(tmp_path))), seed=100)
    assert recipe.data.info["shape"] == (3, 28, 28) and recipe.side == 24
    fit(Loop(recipe), 30)
    assert evaluate(recipe)["accuracy"] == 1.0


def test_data_that_cannot_be_classified(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("L", (32, 32), number).save(tmp_path / f"{number}.png")
    config = VGGRecipe.presets["smoke"]
    with pytest.raises(DataError, match="no labels"):
        VGGRecipe(config, data=VGGRecipe.load_data(config, Source("path", str(tmp_path))))
    with pytest.raises(DataError, match="'ring8'"):
        VGGRecipe.load_data(config, Source("world", "ring8"))
    with pytest.raises(ConfigError, match="vanishes"):
        override(config, {"size": 16})
    with pytest.raises(ConfigError, match="rescale must be at least"):
        override(config, {"rescale": 16})


def test_small_targets_fit_the_config() -> None:
    grey, colour = (override(VGGRecipe.presets["laptop"], small) for small in (SMALL_TARGET, SMALL_COLOUR_TARGET))
    assert grey.steps <= 300 and colour.channels == 3


@pytest.mark.skipif("CAMBRIAN_DATA" not in os.environ, reason="CAMBRIAN_DATA is unset: no real digits to learn")
def test_learns_real_digits() -> None:
    config = override(VGGRecipe.presets["smoke"], {"steps": 40, "width": 0.1})
    source = Source("path", str(Path(os.environ["CAMBRIAN_DATA"]) / "mnist-10k"))
    recipe = VGGRecipe(config, data=VGGRecipe.load_data(config, source), seed=100)
    fit(Loop(recipe), 40)
    assert evaluate(recipe)["accuracy"] > 0.6
