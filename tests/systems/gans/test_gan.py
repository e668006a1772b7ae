"""The GAN recipe: nets and ranges, the two games, tricks, what its actions give, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.samples import Animation, Gallery, Images, Points, Table
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.nn.adversarial import DCGANGenerator, MinibatchDiscrimination
from cambrian.systems.gans.gan import _tools
from cambrian.systems.gans.gan.model import GAN
from cambrian.systems.gans.gan.recipe import Config, GANRecipe, labelled_subset, shuffle_pixels

TINY = Config(steps=4, batch=8, hidden=(16, 12), hidden_g=(16,), latent=6, base=4, kernels=4, dims=2, samples=32)
CONV = dataclasses.replace(TINY, arch="dcgan", labels_per_class=0, loss="ns")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path))


def _images(size: int = 8, channels: int = 1, count: int = 80) -> Data:
    """Two classes: dark pictures and bright ones."""
    label = torch.arange(count) % 2
    image = torch.randint(0, 60, (count, channels, size, size), generator=torch.Generator().manual_seed(0))
    image = (image + 180 * label[:, None, None, None]).to(torch.uint8)
    split = TensorSplit(image=image, label=label)
    info = {"shape": (channels, size, size), "classes": ["dark", "bright"], "scale": 255}
    return Data("shades", "images", split, split, split, info)


def _recipe(config: Config = TINY, data: Data | None = None, seed: int = 0, **changes: object) -> GANRecipe:
    return GANRecipe(dataclasses.replace(config, **changes), data=data or _images(), seed=seed)


def _train(recipe: GANRecipe, steps: int) -> dict[str, float]:
    scalars: dict[str, object] = {}
    train = recipe.data.split("train")
    for recipe.iteration in range(steps):
        index = (torch.arange(recipe.config.batch) + recipe.iteration) % len(train)
        scalars = dict(recipe.step({**train[index], "index": index}))
    recipe.iteration = steps
    return {name: float(value) for name, value in scalars.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "shape"), [("mlp", (1, 8, 8)), ("maxout", (1, 8, 8)), ("dcgan", (3, 16, 16)), ("cifar", (3, 16, 16))]
)
def test_every_architecture_samples_in_range_and_saves(arch: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    gan = GAN(shape=shape, arch=arch, outputs=3, latent=5, hidden=(12,), hidden_g=(12,), base=4).eval()
    images = gan.sample(3, seed=1)
    assert images.shape == (3, *shape)
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0
    assert torch.equal(images, gan.sample(3, seed=1)) and not torch.equal(images, gan.sample(3, seed=2))
    x = images.mul(2).sub(1) if gan.signed else images
    torch.testing.assert_close(gan.classify(x).sum(1), torch.ones(3))
    gan.save_pretrained(tmp_path)
    twin = GAN.from_pretrained(tmp_path).eval()
    assert torch.equal(twin.features(x), gan.features(x))


def test_paper_nets_have_the_papers_widths() -> None:
    mnist = GAN(shape=(1, 28, 28), arch="mlp", outputs=10, hidden=(1000, 500, 250, 250, 250))
    widths = [layer.direction.shape[0] for layer in mnist.discriminator.modules() if hasattr(layer, "direction")]
    assert widths == [1000, 500, 250, 250, 250, 10]
    cifar = GAN(shape=(3, 32, 32), arch="cifar", outputs=10, base=96)
    widths = [layer.direction.shape[0] for layer in cifar.discriminator.modules() if hasattr(layer, "direction")]
    assert widths == [96, 96, 96, 192, 192, 192, 192, 192, 192, 10]


def test_pixels_in_the_wrong_range_or_shape_are_named() -> None:
    gan = GAN(shape=(1, 8, 8), arch="dcgan", latent=4, base=4)
    unit = torch.rand(4, 1, 8, 8)
    with pytest.raises(ShapeError, match=r"\[-1, 1\] \(tanh\)"):
        gan.features(unit)
    assert gan.features(2 * unit - 1).shape[0] == 4
    with pytest.raises(ShapeError, match=r"\[0, 1\] \(sigmoid\)"):
        GAN(shape=(1, 8, 8), arch="mlp").features(2 * unit - 1)
    with pytest.raises(ShapeError, match="floats"):
        gan.features(torch.zeros(4, 3, 8, 8))
    with pytest.raises(ConfigError, match="no classes"):
        gan.classify(2 * unit - 1)
    with pytest.raises(ShapeError, match="square"):
        GAN(shape=(1, 8, 12), arch="dcgan")
    with pytest.raises(ShapeError, match="at least 12"):
        GAN(shape=(1, 8, 8), arch="cifar")
    with pytest.raises(ConfigError, match="unknown"):
        GAN(shape=(1, 8, 8), arch="stylegan")


@pytest.mark.parametrize(
    "changes",
    [
        {"tricks": ("minibatch", "history", "smoothing")},
        {"tricks": ("virtual-bn",), "loss": "minimax"},
        {"loss": "feature_matching", "ema": 0.9},
        {"arch": "maxout", "optimiser": "momentum", "decay": "exponential", "d_turns": 2},
        {"arch": "mlp", "decay": "third", "lr_d": 1e-4},
    ],
    ids=["tricks", "virtual", "matching", "2014", "decay"],
)
def test_the_unsupervised_game_moves_every_parameter(changes: dict[str, object]) -> None:
    recipe = _recipe(CONV, **changes)
    before = {name: p.detach().clone() for name, p in recipe.gan.named_parameters()}
    scalars = _train(recipe, 3)
    assert {"d_loss", "g_loss", "d_grad", "g_grad", "d_accuracy"} <= set(scalars)
    for name, p in recipe.gan.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert not torch.equal(p, before[name]) or not bool(p.grad.any()), name
    assert sum(not torch.equal(p, before[name]) for name, p in recipe.gan.named_parameters()) >= len(before) - 2


def test_one_batch_through_split_norm_gives_the_same_loss_as_two() -> None:
    recipe = _recipe(CONV)
    gan = recipe.gan
    real, fake = 2 * torch.rand(8, 1, 8, 8) - 1, 2 * torch.rand(8, 1, 8, 8) - 1
    together = gan.discriminate(torch.cat((real, fake)), (0, 1))
    apart = torch.cat((gan.discriminate(real, (0,)), gan.discriminate(fake, (1,))))
    torch.testing.assert_close(together, apart)


def test_labels_only_arm_uses_nothing_but_the_labels() -> None:
    recipe = _recipe(unlabelled="none")
    frozen = [p.detach().clone() for p in recipe.gan.generator.parameters()]
    other = _recipe(unlabelled="none")
    other.data = _images()
    other.data.split("train").fields["image"] = 255 - other.data.split("train").fields["image"]  # type: ignore[attr-defined]
    for r in (recipe, other):
        torch.manual_seed(0)
        _train(r, 3)
    assert all(torch.equal(a, b) for a, b in zip(frozen, recipe.gan.generator.parameters(), strict=True))
    pairs = zip(recipe.gan.discriminator.parameters(), other.gan.discriminator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_labelled_subset_is_balanced_seeded_and_reported_when_short() -> None:
    data = _images()
    chosen = labelled_subset(data, 3, seed=0)
    labels = data.split("train")[chosen]["label"]
    assert torch.bincount(labels).tolist() == [3, 3]
    assert not torch.equal(chosen.sort().values, labelled_subset(data, 3, seed=1).sort().values)
    with pytest.raises(DataError, match="'dark' of shades has 40"):
        labelled_subset(data, 41, seed=0)


def test_shuffled_pixels_keep_intensities_and_belong_to_the_position() -> None:
    x = torch.rand(4, 2, 5, 5)
    index = torch.tensor([3, 9, 4, 3])
    out = shuffle_pixels(x, index)
    assert torch.equal(out.flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    assert not torch.equal(out, x)
    assert torch.equal(shuffle_pixels(x[1:2], index[1:2]), out[1:2])
    ones = shuffle_pixels(x[:1].expand(2, -1, -1, -1), torch.tensor([3, 3]))
    assert torch.equal(ones[0], ones[1])


def test_minibatch_features_separate_runs_and_initialise_from_data() -> None:
    recipe = _recipe(CONV, tricks=("minibatch",))
    layer = recipe.gan.discriminator.head[0]
    assert isinstance(layer, MinibatchDiscrimination)
    assert not torch.equal(layer.bias, torch.full((4,), -1.0))
    real, fake = 2 * torch.rand(4, 1, 8, 8) - 1, 2 * torch.rand(4, 1, 8, 8) - 1
    alone = recipe.gan.discriminate(real, (0,))
    torch.testing.assert_close(recipe.gan.discriminate(torch.cat((real, fake)), (0, 1))[:4], alone)


def test_semi_supervised_smoke_beats_its_start_and_offers_a_target() -> None:
    data = GANRecipe.load_data(TINY, Source("world", "digits"))
    assert len(data.split("train")) == 1297
    recipe = GANRecipe(dataclasses.replace(GANRecipe.presets["smoke"], steps=80), data=data, seed=5)
    assert torch.bincount(recipe.labelled_y).tolist() == [10] * 10

    def accuracy() -> float:
        recipe.gan.eval()
        with torch.no_grad():
            found = recipe.evaluate("test", torch.Generator().manual_seed(0))["accuracy"]
        recipe.gan.train()
        return found

    before = accuracy()
    _train(recipe, 80)
    after = accuracy()
    assert after > max(before, 0.5)
    recipe.gan.eval()
    target = recipe.target()
    assert target.metric()["accuracy"] == pytest.approx(after)
    x, _, _ = next(target.batches("test", 5))
    assert target.features(x, ["body.3"])["body.3"].shape == (5, 64)


def test_convolutional_discriminator_features_can_be_probed_without_class_logits() -> None:
    recipe = _recipe(CONV, data=_images(16))
    target = recipe.target()
    x, _, _ = next(target.batches("test", 4))
    assert target.features(x, ["blocks.0"])["blocks.0"].shape == (4, 4, 8, 8)
    with pytest.raises(ShapeError, match="logits"):
        target.logits(x)
    table = recipe.probe(n=40)
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["features", "pixels"]
    assert table.rows[0][1] == 1.0  # dark against bright
    with pytest.raises(CapabilityError, match="reference batch"):
        _recipe(CONV, tricks=("virtual-bn",)).target()


def test_scores_and_pictures_of_an_unsupervised_run(tmp_path: Path) -> None:
    recipe = _recipe(CONV, ema=0.5, steps=12)
    _train(recipe, 12)
    assert recipe.extra["frames"].shape == (12, 16, 1, 8, 8)
    assert recipe.gan.training  # the frames are drawn in evaluation mode and the mode is restored
    with torch.no_grad():
        figures = recipe.evaluate("test", torch.Generator().manual_seed(0))
        sample = recipe.sample(4, torch.Generator().manual_seed(0))
    assert {"judge_accuracy", "classifier_score", "mode_score", "frechet", "kernel", "d_accuracy"} == set(figures)
    assert 1.0 <= figures["classifier_score"] <= 2.0 and figures["frechet"] > 0
    assert isinstance(sample, Gallery) and isinstance(sample.items["over time"], Animation)
    assert {path.suffix for path in sample.save(tmp_path, "sheet")} == {".png", ".gif"}
    assert recipe.interpolate(n=3, rows=2).tensor.shape == (6, 1, 8, 8)
    both = recipe.neighbours(n=2).tensor
    train = recipe.data.split("train")[torch.arange(80)]["image"].float() / 255
    nearest = (train - both[0]).square().flatten(1).sum(1).argmin()
    assert torch.equal(both[2], train[nearest])
    assert isinstance(recipe.parzen(samples=20).rows[0][0], float)


def test_points_are_played_with_plain_nets() -> None:
    data = GANRecipe.load_data(TINY, Source("world", "ring8"))
    recipe = _recipe(CONV, data=data, arch="mlp", tricks=("minibatch",))
    _train(recipe, 2)
    with torch.no_grad():
        assert recipe.evaluate("test", torch.Generator().manual_seed(0))["modes_touched"] in range(9)
        assert isinstance(recipe.sample(5, torch.Generator().manual_seed(0)), Points)
    for call in (recipe.target, recipe.interpolate, recipe.neighbours):
        with pytest.raises(CapabilityError):
            call()


def test_arithmetic_is_done_on_mean_latents() -> None:
    gan = GAN(shape=(1, 8, 8), arch="dcgan", latent=4, base=4).eval()
    plus, minus, other = (torch.randn(3, 4) for _ in range(3))
    grid = gan.arithmetic(plus, minus, other, generator=torch.Generator().manual_seed(0))
    centre = gan.show(gan.generate((plus.mean(0) - minus.mean(0) + other.mean(0))[None]))
    torch.testing.assert_close(grid[4:5], centre, atol=1e-6, rtol=1e-5)
    assert len({float(image.sum()) for image in grid}) == 9


class _Shade:
    """A judge that sees the mean grey level: class 0 below a half, class 1 above."""

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.flatten(1).mean(1)
        return torch.stack((1 - bright, bright), 1)


def test_exemplars_and_arithmetic_trial_with_a_decoder_whose_answer_is_known() -> None:
    draw = torch.Generator().manual_seed(0)

    def decode(z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(3 * z[:, :1])[:, :, None, None].expand(-1, 1, 2, 2)

    bright = _tools.exemplars(decode, lambda n: torch.randn(n, 3, generator=draw), _Shade(), 1, 5)  # type: ignore[arg-type]
    dark = _tools.exemplars(decode, lambda n: torch.randn(n, 3, generator=draw), _Shade(), 0, 5)  # type: ignore[arg-type]
    assert float(bright[:, 0].min()) > 1.0 and float(dark[:, 0].max()) < -1.0
    shares = _tools.arithmetic_trial(decode, [bright, dark, dark], _Shade(), 1, 10, draw)  # type: ignore[arg-type]
    assert shares == (1.0, 1.0)
    with pytest.raises(DataError, match="makes 0 samples of class 1"):
        _tools.exemplars(decode, lambda n: torch.full((n, 3), -1.0), _Shade(), 1, 5)  # type: ignore[arg-type]


def test_object_filters_are_found_and_removed() -> None:
    torch.manual_seed(0)
    up = DCGANGenerator(latent=4, channels=1, size=16, base=4).eval()
    z = torch.rand(30, 4) * 2 - 1
    boxes = torch.tensor([[-1.0, -1.0, 0.0, 1.0]]).expand(30, 4)  # the left half
    with torch.no_grad():  # let map 2 entering block 1 light up on the left only
        natural = up.blocks[0].forward

        def lit(x: torch.Tensor) -> torch.Tensor:
            maps = natural(x)
            maps[:, 2, :, :4] += 50.0
            return maps

        up.blocks[0].forward = lit  # type: ignore[method-assign]
        filters = _tools.object_filters(up, z, boxes, block=1)
        assert bool(filters[2])
        bare = _tools.without_filters(up, z, filters, block=1)
        maps = lit(up.start(z))
        maps[:, filters] = 0
        torch.testing.assert_close(bare, up.resume(maps, 1))
    with pytest.raises(CapabilityError, match="dcgan"):
        _tools.object_filters(torch.nn.Linear(2, 2), z, boxes, 0)
    with pytest.raises(DataError, match="boxes cover"):
        _tools.object_filters(up, z, boxes + 9, 1)


def test_inside_marks_cells_by_their_centres() -> None:
    cells = _tools.inside(torch.tensor([[-1.0, -0.6, 0.1, 0.6]]), 4)[0]
    assert cells.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tricks": ("virtual-bn",)}, "arch is 'mlp'"),
        ({"labels_per_class": 0, "unlabelled": "none"}, "nothing is left"),
        ({"d_turns": 3}, "labels_per_class=0"),
        ({"tricks": ("minibath",)}, "did you mean minibatch"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


def test_unlabelled_data_and_unknown_classes_are_named() -> None:
    data = _images()
    data.info["classes"] = []
    with pytest.raises(ConfigError, match="labels_per_class=0"):
        _recipe(data=data)
    with pytest.raises(ConfigError, match="classes: dark, bright"):
        _recipe(CONV).turn("dark", "blue")
    with pytest.raises(CapabilityError, match="faces"):
        _recipe(CONV).remove()


def test_a_user_folder_of_pictures_trains(tmp_path: Path) -> None:
    from PIL import Image

    for name, shade in (("day", 220), ("night", 20)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 16), (shade, shade // 2, i)).save(tmp_path / "pictures" / name / f"{i}.png")
    config = dataclasses.replace(CONV, size=16, batch=4)
    data = GANRecipe.load_data(config, Source("path", str(tmp_path / "pictures")))
    recipe = _recipe(config, data=data)
    _train(recipe, 2)
    with torch.no_grad():
        sheet = recipe.sample(4, torch.Generator().manual_seed(0))
    assert isinstance(sheet, Gallery) and isinstance(sheet.items["samples"], Images)
    assert sheet.items["samples"].tensor.shape == (4, 3, 16, 16)
