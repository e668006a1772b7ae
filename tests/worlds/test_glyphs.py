"""Glyphs: pure in (seed, split, index), factors that move the ink as they say, contrast as promised."""

from __future__ import annotations

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError, DataError
from cambrian.worlds import glyphs
from cambrian.worlds.glyph_outlines import _distance, outlines

FEW = ("DejaVuSans", "STIXGeneral", "cmr10")
KEYS = sample_keys(5, 0, torch.arange(64))


def neutral(style: glyphs.Style, **factors: float) -> torch.Tensor:
    """Coverage of the style's first character in its first font with all factors neutral but those given."""
    values = {name: torch.tensor([factors.get(name, float(name in ("width", "scale")))]) for name in glyphs.RANGES}
    return glyphs.alpha(style, {"label": torch.tensor([0]), "font": torch.tensor([0]), **values})[0, 0]


def moments(coverage: torch.Tensor) -> tuple[float, float, float, float]:
    """Centre (x, y) and spread (sx, sy) of the ink, in pixels."""
    rows, columns = torch.meshgrid(torch.arange(len(coverage)), torch.arange(len(coverage)), indexing="ij")
    total = coverage.sum()
    x, y = (coverage * columns).sum() / total, (coverage * rows).sum() / total
    sx, sy = (coverage * (columns - x) ** 2).sum() / total, (coverage * (rows - y) ** 2).sum() / total
    return float(x), float(y), float(sx.sqrt()), float(sy.sqrt())


def test_a_sample_depends_on_its_key_alone() -> None:
    style = glyphs.Style(fonts=FEW, colour=True, noise=0.05, distractors=1, ground="texture", mask=True)
    whole = glyphs.draw(style, KEYS)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:20]
    part = glyphs.draw(style, KEYS[order])
    for name, column in whole.items():
        assert torch.equal(column[order], part[name]), name


def test_memory_and_stream_agree_and_splits_differ() -> None:
    sizes = {"train": 40, "valid": 10, "test": 40, "fonts": FEW}
    memory, stream = glyphs.load(**sizes), glyphs.load(stream=True, **sizes)
    index = torch.tensor([0, 7, 39])
    for name, column in memory.train[index].items():
        assert torch.equal(column, stream.train[index][name])
    assert not torch.equal(memory.train[index]["image"], memory.test[index]["image"])
    assert not torch.equal(memory.train[index]["image"], glyphs.load(seed=1, **sizes).train[index]["image"])
    image = memory.train[index]["image"]
    assert image.dtype == torch.uint8 and image.shape == (3, *memory.info["shape"])


def test_factors_move_the_ink() -> None:
    style = glyphs.Style(characters="HI", fonts=("DejaVuSans",), size=64)
    x, y, sx, sy = moments(neutral(style))
    assert abs(x - 31.5) < 0.7 and abs(y - 31.5) < 0.7  # H is centred
    height = (neutral(style).sum(1) > 0.5).sum()
    assert abs(int(height) - 0.68 * 64) <= 2  # a capital fills 0.68 of the picture at scale 1
    right, low, _, _ = moments(neutral(style, shift_x=0.1, shift_y=-0.05))
    assert right - x == pytest.approx(6.4, abs=0.2) and low - y == pytest.approx(-3.2, abs=0.2)
    assert moments(neutral(style, width=1.2))[2] / sx == pytest.approx(1.2, abs=0.03)
    assert moments(neutral(style, scale=0.5))[3] / sy == pytest.approx(0.5, abs=0.02)
    assert neutral(style, stroke=0.02).sum() > neutral(style).sum() * 1.1
    turned = moments(neutral(style, rotation=90.0))
    assert turned[2] == pytest.approx(sy, abs=0.3) and turned[3] == pytest.approx(sx, abs=0.3)


def test_slant_and_rotation_have_the_promised_sign() -> None:
    style = glyphs.Style(characters="IJ", fonts=("DejaVuSans",), size=64)
    lean = neutral(style, slant=0.2)
    assert moments_of_half(lean, top=True) > moments_of_half(lean, top=False) + 2  # the head leans right
    turned = neutral(style, rotation=15.0)
    assert moments_of_half(turned, top=True) < moments_of_half(turned, top=False) - 2  # counter-clockwise


def moments_of_half(coverage: torch.Tensor, top: bool) -> float:
    """The x of the ink's centre in the upper or lower half."""
    half = coverage[:32] if top else coverage[32:]
    return float((half.sum(0) * torch.arange(64)).sum() / half.sum())


def test_distance_field_is_euclidean() -> None:
    inside = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(1)) > 0.97
    where = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij"), -1).view(-1, 2).double()
    for mask, found in zip(inside, _distance(inside), strict=True):
        brute = torch.cdist(where, where[mask.view(-1)]).min(1).values.view(20, 20).clamp_max(14)
        torch.testing.assert_close(found.double(), brute)


def test_colours_keep_their_contrast() -> None:
    batch = glyphs.draw(glyphs.Style(fonts=FEW, colour=True), KEYS)
    luma = torch.tensor(glyphs.LUMA)
    difference = (batch["ink"] @ luma - batch["ground"] @ luma).abs()
    assert difference.min() >= 0.35 - 1e-5
    assert batch["ink"].min() >= -1e-6 and batch["ink"].max() <= 1 + 1e-6
    torch.testing.assert_close(batch["image"][:, :, 0, 0] / 255.0, batch["ground"], atol=0.003, rtol=0)


def test_stacked_labels_name_the_three_channels() -> None:
    style = glyphs.Style(mode="stacked", fonts=FEW)
    batch = glyphs.draw(style, KEYS)
    assert batch["image"].shape == (64, 3, 28, 28) and len(style.classes) == 1000
    single = glyphs.Style(fonts=FEW)
    for number in range(3):
        own = glyphs._single(single, glyphs.mix(KEYS + number + 1), grey=True)
        assert torch.equal(own["image"][:, 0], batch["image"][:, number])
        digit = batch["label"] // 10 ** (2 - number) % 10
        assert torch.equal(own["label"], digit)
    assert style.classes[int(batch["label"][0])] == f"{int(batch['label'][0]):03d}"


def test_mask_covers_the_ink() -> None:
    batch = glyphs.draw(glyphs.Style(fonts=FEW, mask=True), KEYS)
    assert torch.equal(batch["mask"], (batch["image"] >= 128).to(torch.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"characters": "00"}, "two or more different"),
        ({"mode": "double"}, "mode is single or stacked"),
        ({"mode": "stacked", "colour": True}, "grey and plain"),
        ({"size": 4}, "size must lie"),
        ({"ranges": {"tilt": (0, 1)}}, "no factor 'tilt'"),
    ],
)
def test_wrong_styles(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        glyphs.load(**wrong)


def test_missing_fonts_and_characters() -> None:
    with pytest.raises(DataError, match="ships no font"):
        outlines("01", ("Comic",))
    with pytest.raises(DataError, match="draws nothing"):
        outlines("0 ", ("DejaVuSans",))
