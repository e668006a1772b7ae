"""Camera: JPEG against Pillow, the homography against known maps, marks to a tenth of a pixel, and photographs that are pure
functions of seed and index.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cambrian.errors import ConfigError, ShapeError
from cambrian.inspect.camera import (
    HARSH,
    MILD,
    Layout,
    PhotoConfig,
    _demosaic,
    _mosaic,
    _thresholds,
    developed,
    photo,
    printed,
    softened,
)
from cambrian.inspect.fiducials import homography, locate, mark, transform, warp
from cambrian.inspect.jpeg import jpeg, quantise, tables
from cambrian.worlds import glyphs

CLEAN = PhotoConfig(
    dots=8, halftone="none", saturation=1.0, black=0.0, dot_gain=0.0, ink_noise=0.0, defocus=(0.0, 0.0), motion=0.0,
    exposure=(1.0, 1.0), white_balance=0.0, vignette=0.0, electrons=1e9, read_noise=0.0, bayer=False, quality=(0, 0),
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    data = glyphs.load(train=12, valid=1, test=1, size=32, colour=True, characters=glyphs.ALNUM)
    return data.train[torch.arange(12)]["image"].float() / 255


# -- JPEG ----------------------------------------------------------------------------------------------------------------


def by_pillow(levels: torch.Tensor, quality: int, subsampling: int) -> torch.Tensor:
    array = levels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    back = torch.from_numpy(np.array(Image.open(io.BytesIO(file.getvalue())))).float()
    return back[None] if back.dim() == 2 else back.permute(2, 0, 1)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(pictures, quality: int, channels: int):
    grain = 0.05 * torch.randn(12, channels, 27, 30, generator=torch.Generator().manual_seed(0))
    levels = ((pictures[:, :channels, :27, :30] + grain).clamp(0, 1) * 255).round().to(torch.uint8)
    for subsampling in (0, 2)[: 1 + (channels == 3)]:
        ours = jpeg(levels.float() / 255, quality, subsample=subsampling == 2) * 255
        theirs = torch.stack([by_pillow(one, quality, subsampling) for one in levels])
        gap = (ours - theirs).abs()  # their DCT is in whole numbers: a few coefficients fall to the other side
        assert float(gap.mean()) < 1.5 and float((gap <= 1.5).float().mean()) > 0.65
        loss = [float((back - levels).square().mean()) for back in (ours, theirs)]
        assert loss[0] == pytest.approx(loss[1], rel=0.05)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_quantisation_tables_equal_pillows(quality: int):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    written = Image.open(io.BytesIO(file.getvalue())).quantization
    ours = tables(torch.tensor([float(quality)]))[0].flatten(1)
    assert [written[0], written[1]] == ours.int().tolist()


def test_blocks_are_transformed_as_scipy_does():
    from scipy.fft import dctn, idctn

    plane = torch.randn(2, 1, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    table = 1 + torch.arange(64.0).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    kept = quantise(plane, table)
    for i in range(2):
        for top in (0, 8):
            steps = np.round(dctn(plane[i, 0, top : top + 8].numpy(), norm="ortho") / table[i, 0].numpy())
            expected = idctn(steps * table[i, 0].numpy(), norm="ortho")
            assert np.allclose(kept[i, 0, top : top + 8].numpy(), expected)


def test_jpeg_takes_a_quality_per_picture_and_passes_gradients(pictures):
    quality = torch.tensor([20.0, 90.0])
    both = jpeg(pictures[:2], quality)
    assert torch.equal(both[:1], jpeg(pictures[:1], 20)) and torch.equal(both[1:], jpeg(pictures[1:2], 90))
    x = pictures[:2].clone().requires_grad_(True)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((jpeg(x, 100, subsample=False) * weight).sum(), x)
    inside = (pictures[:2] > 0.02) & (pictures[:2] < 0.98)  # the identity where nothing is clipped
    assert float((slope - weight)[inside].abs().median()) < 1e-3
    assert torch.equal(tables(torch.tensor([50.0]))[0, 0, 0, :3], torch.tensor([16.0, 11.0, 10.0]))
    assert float(tables(torch.tensor([100.0])).max()) == 1.0
    for bad in (0, 101):
        with pytest.raises(ConfigError, match="quality"):
            jpeg(pictures, bad)
    for wrong in (pictures[0], pictures[:, :2], (pictures * 255).to(torch.uint8)):
        with pytest.raises(ShapeError):
            jpeg(wrong, 50)


# -- geometry ------------------------------------------------------------------------------------------------------------


def test_homography_recovers_known_maps():
    generator = torch.Generator().manual_seed(0)
    known = torch.eye(3) + 0.1 * torch.rand(20, 3, 3, generator=generator)
    known[:, 2, :2] *= 0.01
    known = known / known[:, 2:, 2:]
    square = torch.tensor([[0.0, 0.0], [50.0, 0.0], [50.0, 40.0], [0.0, 40.0]]).expand(20, -1, -1)
    found = homography(square, transform(known, square))
    assert torch.allclose(found, known, atol=1e-5)
    elsewhere = 50 * torch.rand(20, 7, 2, generator=generator)
    assert float((transform(found, elsewhere) - transform(known, elsewhere)).abs().max()) < 1e-3
    line = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    assert bool(torch.isnan(homography(line, square[:1]).flatten()[:8]).all())
    with pytest.raises(ShapeError):
        homography(square[:, :3], square[:, :3])


def test_warp_moves_by_whole_pixels_and_fills_outside(pictures):
    move = torch.tensor([[[1.0, 0, 3], [0, 1, -2], [0, 0, 1]]]).expand(12, -1, -1)
    moved = warp(pictures, move, (32, 32), fill=0.25)
    assert torch.allclose(moved[:, :, 2:, :29], pictures[:, :, :30, 3:], atol=1e-5)
    assert torch.allclose(moved[:, :, 1, :], torch.tensor(0.25))


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_marks_are_found_to_a_tenth_of_a_pixel_and_put_upright(turn: int):
    sheet = torch.ones(160, 120)
    centres = torch.tensor([[20.3, 21.7], [97.4, 19.2], [101.6, 139.5], [18.8, 136.1]])
    for number, (x, y) in enumerate(centres.tolist()):
        left, top = int(x) - 10, int(y) - 10
        sheet[top : top + 20, left : left + 20] = mark(7.0, number > 0, 20, (x - left, y - top))
    sheet[60:100, 40:80] = 0.3
    turned = torch.rot90(sheet, turn)
    where, (h, w) = centres.clone(), sheet.shape
    for _ in range(turn):
        where, h, w = torch.stack([where[:, 1], w - where[:, 0]], 1), w, h
    found, score = locate(turned[None], 6.5)
    assert float(score) > 0.7 and float((found[0] - where).norm(dim=1).max()) < 0.1
    assert float(locate(torch.ones(1, 80, 80), 6.0)[1]) == 0.0


def test_corners_of_photographs_are_recovered(pictures):
    shot = photo(MILD, 5).shoot(pictures)
    gap = (shot.corners - shot.truth).norm(dim=2)
    assert bool(shot.found.all()) and float(gap.mean()) < 0.1 and float(gap.max()) < 0.3
    harsh = photo(HARSH, 5).shoot(pictures)
    assert float((harsh.corners - harsh.truth).norm(dim=2)[harsh.found].max()) < 1.0


# -- light ---------------------------------------------------------------------------------------------------------------


def test_a_perfect_camera_gives_the_picture_back(pictures):
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(pictures, (2,) * 4, mode="replicate"), 5, 1)
    back = photo(CLEAN, 1)(smooth)
    gap = (back - smooth).abs()[:, :, 2:-2, 2:-2]  # the border mixes with the paper
    assert float(gap.mean()) < 0.01 and float(gap.max()) < 0.1


def test_photographs_depend_on_seed_and_index_alone(pictures):
    whole = photo(PhotoConfig(), 3).shoot(pictures)
    part = photo(PhotoConfig(), 3).shoot(pictures[[7, 2]], torch.tensor([7, 2]))
    assert torch.allclose(part.crops, whole.crops[[7, 2]], atol=1e-6)
    twin = photo(PhotoConfig(), 3).shoot(1 - pictures)
    assert torch.equal(twin.truth, whole.truth)  # the same conditions for another picture at the same place
    other = photo(PhotoConfig(), 4).shoot(pictures)
    assert float((other.truth - whole.truth).abs().min(2).values.mean()) > 0.5
    assert float(whole.crops.min()) >= 0 and float(whole.crops.max()) <= 1
    grey = photo(PhotoConfig(), 3)(pictures[:, :1])
    assert grey.shape == (12, 1, 32, 32)


def test_dither_keeps_the_tone_and_uses_every_threshold():
    assert sorted((_thresholds(8, 8, "cpu")[0].flatten() * 64 - 0.5).tolist()) == list(range(64))
    c = replace(PhotoConfig(), saturation=1.0, black=0.0, dot_gain=0.0, ink_noise=0.0, dots=8)
    tones = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    keys = torch.arange(9)
    on_paper = printed(tones, c, keys)
    assert torch.allclose(on_paper.mean((1, 2, 3)), tones.square().mean((1, 2, 3)), atol=0.02)
    assert len(on_paper.unique()) <= c.inks
    darker = printed(tones, replace(c, dot_gain=0.4), keys).mean((1, 2, 3))
    assert bool((darker <= on_paper.mean((1, 2, 3)) + 1e-6).all()) and float(darker[5]) < float(on_paper[5].mean())


def test_the_sensor_keeps_plain_colours_and_its_noise_has_the_stated_size():
    colour = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    raw = _mosaic(colour)
    assert torch.allclose(raw[0, 0, :2, :2], torch.tensor([[0.2, 0.5], [0.5, 0.7]]))
    assert torch.allclose(_demosaic(raw), colour, atol=1e-6)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert torch.allclose(_demosaic(_mosaic(ramp))[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-5)
    c = replace(CLEAN, electrons=1000.0, read_noise=0.01, exposure=(1.0, 1.0))
    grey = torch.full((4, 3, 64, 64), 0.5)
    noise = developed(grey, c, torch.arange(4) * 977).square() - 0.5
    assert float(noise.std()) == pytest.approx((0.5 / 1000 + 0.0001) ** 0.5, rel=0.1)


def test_gradients_run_through_print_and_camera(pictures):
    config, x = softened(PhotoConfig(quality=(0, 0))), pictures[:3].clone().requires_grad_(True)
    weight = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((photo(config, 2)(x) * weight).sum(), x)
    away = torch.nn.functional.avg_pool2d(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), 3, 1, 1)
    low, high = ((pictures[:3] + h * away).clamp(0, 1) for h in (-0.1, 0.1))
    change = ((photo(config, 2)(high) - photo(config, 2)(low)) * weight).flatten(1).sum(1)
    expected = (slope * (high - low)).flatten(1).sum(1)
    assert torch.allclose(change, expected, rtol=0.35, atol=0.5)
    (hard,) = torch.autograd.grad(photo(PhotoConfig(), 2)(x).sum(), x)
    assert bool(torch.isfinite(hard).all()) and float(hard.abs().mean()) > 0.05


def test_settings_and_pictures_are_checked(pictures):
    for bad in (
        {"dots": 0}, {"halftone": "newsprint"}, {"ink_noise": 2.0}, {"quality": (90, 80)}, {"tilt": 90.0},
        {"exposure": (0.0, 1.0)}, {"sampling": 0.5},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            PhotoConfig(**bad)
    for wrong in (pictures[0], pictures * 2, pictures / 0, pictures[:, :2], pictures[:0]):
        with pytest.raises(ShapeError):
            photo()(wrong)
    layout = Layout.of(32, 48)
    assert layout.size == (58.0, 74.0) and layout.corners()[0, 2].tolist() == [61.0, 45.0]
    assert photo(PhotoConfig(), 0)(torch.rand(2, 3, 24, 40)).shape == (2, 3, 24, 40)
