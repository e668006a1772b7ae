"""The recipe: worlds, coins, schedules, measures, actions, and what is refused."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cambrian.data.random import sample_keys
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, TensorSplit
from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.samples import Gallery, Images, Plot, Sample
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.likelihood.vae import _worlds
from cambrian.systems.likelihood.vae._semi import labelled_positions
from cambrian.systems.likelihood.vae.recipe import Config, VAERecipe

SMALL = dict(steps=12, batch=16, hidden=(16,), latent=3, train_size=200, test_size=60, eval_samples=10, base=4)


def data_for(**options: object) -> Data:
    config = Config(**{**SMALL, **options})
    return VAERecipe.load_data(config, Source("world", "glyphs"))


@pytest.fixture(scope="module")
def data() -> Data:
    return data_for()


def recipe(data: Data, **options: object) -> VAERecipe:
    return VAERecipe(Config(**{**SMALL, **options}), data=data, seed=100)


def batch_of(data: Data, n: int = 16) -> Batch:
    index = torch.arange(n)
    return {**data.train[index], "key": sample_keys(0, 0, index)}


def trained(data: Data, **options: object) -> VAERecipe:
    loop = Loop(recipe(data, **options))
    for _ in range(SMALL["steps"]):
        loop.advance()
    return loop.recipe


# -- data ----------------------------------------------------------------------------------------------------------------


def test_coins_fall_once_with_the_chance_of_the_grey_value() -> None:
    grey = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2).repeat(4000, 1, 1, 1)
    label = torch.zeros(4000, dtype=torch.int64)
    made = _worlds.binary(Data("d", "images", *[TensorSplit(image=grey, label=label)] * 3))
    again = _worlds.binary(Data("d", "images", *[TensorSplit(image=grey, label=label)] * 3))
    image = made.train[torch.arange(4000)]["image"]
    assert torch.equal(image, again.train[torch.arange(4000)]["image"])
    assert set(image.unique().tolist()) == {0, 255}
    rates = (image == 255).double().mean(0).flatten()
    torch.testing.assert_close(rates, torch.tensor([0, 64 / 255, 128 / 255, 1]).double(), atol=0.03, rtol=0)
    assert not torch.equal(image, made.test[torch.arange(4000)]["image"])


def test_dynamic_coins_leave_what_is_measured_alone(data: Data) -> None:
    dynamic = data_for(binarise="dynamic")
    index = torch.arange(60)
    assert torch.equal(dynamic.test[index]["image"], data.test[index]["image"])
    assert not _worlds.is_binary(dynamic.train)
    run = recipe(dynamic, binarise="dynamic")
    batch = batch_of(dynamic)
    first = run._seen(batch)
    other = run._seen({**batch, "key": batch["key"] + 1})
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, other)


def test_grey_pixels_under_coins_are_warned_of(data: Data) -> None:
    grey = data_for(binarise="none")
    with pytest.warns(UserWarning, match="Bernoulli"):
        recipe(grey, binarise="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recipe(data).model.pixels.bins == 2
        assert recipe(grey, likelihood="logistic").model.pixels.bins == 256


def test_worlds_and_folders(tmp_path: Path) -> None:
    config = Config(**SMALL)
    with pytest.raises(ConfigError, match="glyphs"):
        VAERecipe.load_data(config, Source("world", "ring8"))
    assert VAERecipe.load_data(config, Source("world", "digits")).info["shape"] == (1, 8, 8)
    faces = VAERecipe.load_data(Config(**SMALL, likelihood="logistic", size=16), Source("world", "faces"))
    assert recipe(faces, likelihood="logistic").model.shape == (3, 16, 16)
    draw = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(draw.integers(0, 255, (12, 15, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    mine = VAERecipe.load_data(Config(**SMALL, size=9, likelihood="gaussian"), Source("path", str(tmp_path)))
    run = trained(mine, likelihood="gaussian", arch="conv", size=9)
    assert math.isfinite(evaluate(run)["nll"])
    assert run.model.shape == (3, 9, 9)
    with pytest.raises(DataError, match="no classes"):
        recipe(mine, model="cvae", likelihood="gaussian")
    (tmp_path / "5.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"5\.png"):
        VAERecipe.load_data(Config(**SMALL, size=9), Source("path", str(tmp_path)))


# -- training ------------------------------------------------------------------------------------------------------------


def test_uniform_weights_undo_importance_weighting(data: Data) -> None:
    """The sabotaged arm is the baseline, to the last bit of the gradient."""
    runs = [
        recipe(data, objective="iwae", samples=5, uniform_weights=True),
        recipe(data, objective="elbo-sampled", samples=5),
    ]
    weighted = recipe(data, objective="iwae", samples=5)
    for run in (*runs, weighted):
        run.step(batch_of(data))
    pairs = [[p.grad for p in run.model.parameters()] for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    assert any(not torch.equal(a, p.grad) for a, p in zip(pairs[0], weighted.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"objective": "dreg", "samples": 3}, {"objective": "stl"}, {"second": 2, "objective": "iwae", "samples": 3},
     {"flow": "iaf"}, {"flow": "planar"}, {"arch": "conv"}, {"model": "cvae", "learned_prior": True}, {"model": "m2", "labels": 20},
     {"likelihood": "gaussian-scalar"}, {"likelihood": "categorical"}, {"likelihood": "dmol"}, {"objective": "wake-sleep"}, {"optimiser": "adagrad"}],
    ids=str,
)  # fmt: skip
def test_every_variant_learns(data: Data, options: dict[str, object]) -> None:
    run = recipe(data, **options, lr=3e-3)
    before = evaluate(run)
    for run.iteration in range(SMALL["steps"]):
        scalars = run.step(batch_of(data))
    assert all(math.isfinite(float(v)) for v in scalars.values())
    after = evaluate(run)
    assert after["nll"] < before["nll"]
    for name, parameter in run.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_schedules_act_in_training_and_not_in_evaluation(data: Data) -> None:
    seen: dict[str, list[float]] = {}
    for schedule in ("constant", "linear", "exponential", "cyclic"):
        run = recipe(data, schedule=schedule, beta=0.5, steps=40)
        values = []
        for run.iteration in (0, 5, 20, 39):
            values.append(run._beta())
        seen[schedule] = values
    assert seen["constant"] == [0.5] * 4
    assert seen["linear"] == pytest.approx([0.0, 0.125, 0.5, 0.5])
    assert seen["exponential"][0] == 0.0
    assert seen["exponential"][2] == pytest.approx(0.5 * (1 - 1e-3))
    assert seen["cyclic"] == pytest.approx([0.0, 0.0, 0.5, 0.5])
    annealed = recipe(data, schedule="linear")
    assert float(annealed.step(batch_of(data))["beta"]) == 0.0
    plain = recipe(data)
    plain.model.load_state_dict(annealed.model.state_dict())
    assert evaluate(plain) == evaluate(annealed)


def test_the_step_size_decays(data: Data) -> None:
    run = recipe(data, lr=0.01, lr_end=0.1)
    run.iteration = 6
    run.step(batch_of(data))
    assert run.optim.param_groups[0]["lr"] == pytest.approx(0.01 * 10**-0.5)


def test_shuffled_labels_are_of_other_pictures(data: Data) -> None:
    batch = batch_of(data)
    assert torch.equal(recipe(data, model="cvae")._told(batch), batch["label"])
    shuffled = recipe(data, model="cvae", shuffle_labels=True)._told(batch)
    assert torch.equal(shuffled, batch["label"].roll(1))


def test_the_known_labels_are_balanced() -> None:
    label = torch.arange(90) % 4
    kept = labelled_positions(label, 10, 4, seed=0)
    assert torch.bincount(label[kept]).tolist() == [3, 3, 2, 2]
    assert not torch.equal(kept, labelled_positions(label, 10, 4, seed=1))
    with pytest.raises(ConfigError, match="need"):
        labelled_positions(label, 100, 4, seed=0)


def test_a_classifier_judges_conditional_samples(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMBRIAN_CACHE", str(tmp_path))
    found = evaluate(recipe(data, model="cvae", judge=True))
    assert 0.0 <= found["judged"] <= 1.0
    assert 0.0 < found["judge_accuracy"] <= 1.0


def test_measured_figures_hang_together(data: Data) -> None:
    run = trained(data, samples=2)
    found = evaluate(run)
    assert found["elbo"] == pytest.approx(found["reconstruction"] - found["kl"])
    assert found["nll"] < -found["elbo"]
    assert 0 <= found["active_units"] <= 3
    few = recipe(data, eval_rows=20)
    assert set(evaluate(few)) == set(found)
    wide = data_for(likelihood="logistic")
    bits = evaluate(recipe(wide, likelihood="logistic"))
    assert bits["bits_per_dim"] == pytest.approx(bits["nll"] / math.log(2) / 256)


@pytest.mark.parametrize(
    "options",
    [{"objective": "iwae", "beta": 0.5}, {"objective": "stl", "free_bits": 0.1}, {"objective": "iwae", "schedule": "linear"},
     {"free_bits": 0.1, "flow": "iaf"}, {"uniform_weights": True}, {"flow": "iaf", "objective": "dreg"}, {"flow": "iaf", "second": 2},
     {"objective": "wake-sleep", "second": 3}, {"model": "m2", "objective": "iwae"}, {"learned_prior": True},
     {"judge": True}],
    ids=str,
)  # fmt: skip
def test_options_that_exclude_each_other(data: Data, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        recipe(data, **options)


# -- actions -------------------------------------------------------------------------------------------------------------


def images(sample: Sample) -> Tensor:
    assert isinstance(sample, Images)
    return sample.tensor


@pytest.mark.parametrize(
    "options", [{}, {"model": "cvae"}, {"model": "m2", "labels": 20}, {"second": 2}, {"flow": "iaf"}], ids=str
)
def test_actions(data: Data, options: dict[str, object], tmp_path: Path) -> None:
    run = trained(data, **options)
    shown = run.sample(6, torch.Generator().manual_seed(0))
    assert isinstance(shown, Gallery)
    assert images(shown.items["samples"]).shape == (6, 1, 16, 16)
    assert ("classes" in shown.items) == bool(options.get("model"))
    assert isinstance(run.gallery(n=4), Gallery)
    assert len(images(run.reconstruct(n=4))) == 8
    assert len(images(run.interpolate(rows=2, n=3))) == 10
    assert len(images(run.traverse(units=2, n=5))) == 10
    assert len(images(run.manifold(n=3))) == 9
    assert isinstance(run.aggregate(), Plot)
    assert run.aggregate().save(tmp_path, "map")[0].stat().st_size > 1000
    assert len(run.units().rows) == 3
    counts, bounds, errors = zip(*run.likelihood(samples=50, rows=60).rows, strict=True)
    assert counts == (1, 5, 50)
    assert bounds[2] > bounds[0] - 0.5
    assert min(errors) > 0
    if options.get("model"):
        grid = images(run.class_grid(n=3)).view(10, 3, 256)
        assert (grid[0] - grid[5]).abs().max() > 1e-4
        assert len(images(run.manifold(n=2, label="7"))) == 4
        with pytest.raises(ConfigError, match="no class"):
            run.manifold(label="x")
    else:
        with pytest.raises(CapabilityError, match="cvae"):
            run.class_grid()


def test_a_users_picture_is_reconstructed(data: Data, tmp_path: Path) -> None:
    run = trained(data)
    Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(tmp_path / "mine.png")
    shown = images(run.reconstruct(picture=str(tmp_path / "mine.png")))
    assert shown.shape == (2, 1, 16, 16)
    (tmp_path / "bad.png").write_text("no picture")
    for name in ("bad.png", "none.png"):
        with pytest.raises(DataError, match=name):
            run.reconstruct(picture=str(tmp_path / name))
    for call in (lambda: run.reconstruct(n=1000), lambda: run.traverse(index=99)):
        with pytest.raises(ConfigError):
            call()
    flat = trained(data, latent=1)
    with pytest.raises(CapabilityError, match="plane"):
        flat.manifold()
    assert isinstance(flat.aggregate(), Plot)
    assert "manifold" in trained(data, latent=2).sample(2, torch.Generator().manual_seed(0)).items
