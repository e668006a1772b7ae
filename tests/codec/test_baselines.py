"""Sizes against the files' own structure, distortion against scikit-image, budgets kept."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cambrian.codec import baselines
from cambrian.errors import ConfigError, ShapeError


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[100:228, 150:278])


def test_a_jpegs_scan_is_what_streams_without_tables_hold(picture: np.ndarray) -> None:
    """Pillow's image-only stream is SOI, JFIF, frame and scan header, scan, EOI: 55 bytes beyond the scan for
    colour.
    """
    for quality in (5, 60):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=2, streamtype=2)
        assert baselines._jpeg_payload(buffer.getvalue()) == len(buffer.getvalue()) - 55
        coded = baselines.jpeg(picture, quality)
        assert coded.payload < coded.file - 200
        # optimised tables do not change the picture
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=2)
        assert np.array_equal(coded.picture, np.array(Image.open(buffer)))


def test_payloads_are_most_of_a_large_file(picture: np.ndarray) -> None:
    for coded in (
        baselines.jpeg2000(picture, 10.0), baselines.webp(picture, 60), baselines.png(picture),
        baselines.webp_lossless(picture), baselines.jpeg(picture, 90, subsample=False),
    ):  # fmt: skip
        assert 0.8 * coded.file < coded.payload < coded.file
        assert coded.picture.shape == picture.shape
        if coded.setting == "lossless":
            assert np.array_equal(coded.picture, picture)
    codestream = baselines.jpeg2000(picture, 40.0)
    assert abs(codestream.file - picture.size / 40) < 30
    assert 50 < codestream.file - codestream.payload < 250


def test_a_png_without_picture_bytes_is_57_bytes() -> None:
    flat = np.zeros((8, 8, 1), np.uint8)
    coded = baselines.png(flat)
    assert coded.file - coded.payload == 8 + 25 + 12 + 12  # signature, IHDR, IDAT's frame, IEND


def test_budgets_are_met_and_more_bytes_are_better(picture: np.ndarray) -> None:
    small = np.ascontiguousarray(picture[:64, :64])
    for codec in ("jpeg", "webp", "jpeg2000"):
        swept = baselines.sweep(codec, small)
        found = [baselines.at_budget(swept, small, budget) for budget in (300, 900)]
        assert all(c is not None for c in found)
        quality = [baselines.psnr(small, c.picture) for c in found]
        assert quality[1] > quality[0] + 1
        for coded, budget in zip(found, (300, 900), strict=True):
            assert 0.85 * budget < coded.payload < 1.2 * budget
        if codec == "jpeg":
            assert baselines.at_budget(swept, small, 100, headers=True) is None
    with pytest.raises(ConfigError):
        baselines.sweep("gif", small)


def test_montages_come_apart() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 6), np.uint8)
    sheet = baselines.montage(pictures)
    assert sheet.shape == (12, 18, 3)
    assert np.array_equal(sheet[4:8, 6:12], pictures[4].transpose(1, 2, 0))
    assert np.array_equal(baselines.unmontage(sheet, 7, 4, 6), pictures)
    with pytest.raises(ShapeError):
        baselines.montage(pictures.astype(float))


def test_distortion_equals_scikit_image(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    other = np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
    assert baselines.psnr(picture, other) == pytest.approx(peak_signal_noise_ratio(picture, other))
    assert baselines.psnr(picture, picture) == math.inf
    grey, noisy = picture[:20, :20, :1], other[:20, :20, :1]
    _, full = structural_similarity(
        grey[..., 0], noisy[..., 0], gaussian_weights=True, use_sample_covariance=False, data_range=255, full=True
    )
    assert baselines.ms_ssim(grey, noisy) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-3)  # one scale fits
    values = [baselines.ms_ssim(picture, x) for x in (picture, other, 255 - picture)]
    assert values[0] == pytest.approx(1.0)
    assert values[0] > values[1] > values[2]
    with pytest.raises(ShapeError):
        baselines.ms_ssim(picture[:8], picture[:8])
    with pytest.raises(ShapeError):
        baselines.png(picture.astype(float))
