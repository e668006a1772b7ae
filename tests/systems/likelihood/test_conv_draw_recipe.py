"""The recipe of conv-draw: arms of other codecs, rates that are kept, files by actions, worlds by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cambrian.codec import baselines
from cambrian.data.source import Source
from cambrian.data.split import Data
from cambrian.engine.loop import evaluate
from cambrian.engine.samples import Gallery, Images, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.likelihood.conv_draw import _measure
from cambrian.systems.likelihood.conv_draw.recipe import Config, ConvDRAWRecipe
from cambrian.worlds import figures

TINY = {"steps": 40, "batch": 8, "hidden": 8, "latent": 2, "draws": 2, "montage": 64, "evaluated": 64, "beta_start": 20.0,
        "beta": 20.0}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    return figures.load(train=320, valid=8, test=80)


def recipe(data: Data, **options: object) -> ConvDRAWRecipe:
    return ConvDRAWRecipe(Config(**{**TINY, **options}), data=data)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(data: Data) -> ConvDRAWRecipe:
    run = recipe(data)
    for run.iteration in range(40):
        run.step(data.train[torch.arange(8 * run.iteration, 8 * run.iteration + 8)])
    run.model.eval()
    return run


def test_evaluation_keeps_the_rate_and_its_parts_add_up(trained: ConvDRAWRecipe) -> None:
    found = evaluate(trained)
    assert found["rate"] <= 0.2
    assert found["rate"] < found["file_rate"] < found["rate"] + 0.02
    assert found["bits_per_dim"] == pytest.approx(found["pixels"] + found["latents"])
    assert found["psnr"] > 10
    assert evaluate(trained) == found


def test_other_codecs_get_at_least_the_rate_and_learn_nothing(data: Data) -> None:
    """Their budget is ours or a step more, in their favour; their step leaves the network alone."""
    shown = data.test[torch.arange(64)]["image"].numpy()
    for codec in ("jpeg", "jpeg2000", "webp"):
        run = recipe(data, codec=codec)
        before = [p.clone() for p in run.model.parameters()]
        assert run.step(data.train[torch.arange(8)]) == {"loss": 0.0}
        assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
        found = evaluate(run)
        assert 0.17 < found["rate"] < 0.23
        assert found["file_rate"] > found["rate"]
        more = _measure.other(codec, shown, 0.4)
        assert more["psnr"] > found["psnr"] + 0.5
        with pytest.raises(CapabilityError, match="only measures"):
            run.lossless()
    flat = np.full_like(shown, 128)
    assert _measure.other("jpeg", flat, 0.2)["psnr"] > 40
    with pytest.raises(ConfigError, match="cannot code"):
        _measure.other("jpeg2000", shown[:1], 0.001)


def test_keeping_nothing_sends_nothing(data: Data) -> None:
    run = recipe(data, keep=0)
    found = run.lossy(data.test[torch.arange(64)]["image"])
    assert found["rate"] < 0.01


def test_the_schedules(data: Data) -> None:
    run = recipe(data, steps=1000, beta=0.5, beta_start=8.0)
    found = []
    for run.iteration in (0, 300, 600, 1000):
        found.append((run._beta(), run._fall()))
    assert [b for b, _ in found] == pytest.approx([8.0, 2.0, 0.5, 0.5])
    assert found[0][1] == pytest.approx(1 / 50)
    assert found[3][1] == pytest.approx(0.05)


@pytest.mark.parametrize("shape", [(16, 16, 3), (21, 30, 3), (18, 11)])
def test_files_by_actions(trained: ConvDRAWRecipe, tmp_path: Path, shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(80, 160, shape, np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    exact = trained.encode(str(tmp_path / "in.png"), lossless=True)
    assert exact["bytes"] == (tmp_path / "in.cmb").stat().st_size
    done = trained.decode(str(tmp_path / "in.cmb"))
    back = np.array(Image.open(done["file"]))
    assert np.array_equal(back, picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))
    out = str(tmp_path / "small.cmb")
    for options in ({"steps": 1}, {"bits_per_dim": 0.5}, {}, {"steps": 1, "rest": "sample"}):
        row = trained.encode(str(tmp_path / "in.png"), output=out, **options)  # type: ignore[arg-type]
        assert row["file"] == out
        found = np.array(Image.open(trained.decode(out, output=str(tmp_path / "back.png"))["file"]))
        assert found.shape[:2] == shape[:2]
        if picture.ndim == 3:
            assert baselines.psnr(picture, found) == pytest.approx(row["psnr"])
    many = trained.encode(str(tmp_path), steps=0)
    assert len(many["files"]) == 3


def test_actions_show_something(trained: ConvDRAWRecipe) -> None:
    strip = trained.progressive(n=3)
    assert isinstance(strip, Images)
    assert len(strip.tensor) == 3 * 4
    assert len(trained.sample(5, torch.Generator()).tensor) == 5
    trained.information(n=16)
    curves = trained.rate_distortion(n=36)
    assert isinstance(curves, Gallery)
    table = curves.items["table"]
    assert isinstance(table, Table)
    assert {row[0] for row in table.rows} == {"conv-draw", "jpeg", "jpeg2000", "webp"}
    assert "conv-draw" in next(iter(trained.side_by_side(n=2).items))
    exact = trained.lossless(n=9)
    assert [row[0] for row in exact.rows][-2:] == ["png", "webp-lossless"]


def test_worlds_and_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="figures, photos"):
        ConvDRAWRecipe.load_data(Config(), Source("world", "ring8"))
    for i in range(4):
        Image.fromarray(np.full((20, 24), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    own = ConvDRAWRecipe.load_data(Config(), Source("path", str(tmp_path)))
    assert own.info["shape"] == (1, 16, 16)
    run = ConvDRAWRecipe(Config(**TINY), data=own)  # type: ignore[arg-type]
    assert np.isfinite(float(run.step(own.train[torch.arange(2)])["loss"]))
    with pytest.raises(CapabilityError, match="figures"):
        run.ordering(n=1)


def test_bad_requests_are_typed_errors(trained: ConvDRAWRecipe, tmp_path: Path) -> None:
    for act in (trained.encode, trained.decode):
        with pytest.raises(DataError, match="cannot be read"):
            act(str(tmp_path / "none.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png"):
        trained.encode(str(tmp_path / "text.png"))
    with pytest.raises(DataError, match="not a coded picture"):
        trained.decode(str(tmp_path / "text.png"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="is the input"):
        trained.encode(str(tmp_path / "a.png"), output=str(tmp_path / "a.png"))
    with pytest.raises(ConfigError, match="rest"):
        trained.encode(str(tmp_path / "a.png"), rest="noise")
    for options in ({"keep": 9}, {"kernel": 2}):
        with pytest.raises(ConfigError):
            Config(**options)  # type: ignore[arg-type]
