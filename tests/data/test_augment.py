"""Keyed augmentation is a function of (image, key) alone, and cuts what it says."""

from __future__ import annotations

import pytest
import torch

from cambrian.data import augment, digits
from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError, ShapeError

KEY = sample_keys(0, 0, torch.arange(200))
IMAGE = torch.randint(0, 256, (200, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", [augment.flip, augment.crop, lambda x, k: augment.window(x, k, (5, 6))])
def test_a_sample_changes_alike_in_any_batch(change: object) -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:17]
    assert torch.equal(change(IMAGE, KEY)[order], change(IMAGE[order], KEY[order]))


def test_flip_mirrors_half() -> None:
    out = augment.flip(IMAGE, KEY)
    same = (out == IMAGE).flatten(1).all(1)
    assert torch.equal(out[~same], IMAGE[~same].flip(-1)) and 70 < int(same.sum()) < 130
    assert torch.equal(augment.flip(IMAGE, KEY, chance=1.0), IMAGE.flip(-1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "zero"])
def test_crops_are_windows_of_the_padded_image(mode: str) -> None:
    padded = torch.nn.functional.pad(IMAGE.float(), [3] * 4, mode="constant" if mode == "zero" else mode)
    out = augment.crop(IMAGE, KEY, padding=3, mode=mode).float()
    windows = padded.unfold(2, 10, 1).unfold(3, 12, 1).permute(0, 2, 3, 1, 4, 5)
    hits = (windows == out[:, None, None]).flatten(3).all(3)
    assert hits.flatten(1).any(1).all()
    places = hits.float().flatten(1).argmax(1)
    assert len(places.unique()) > 40  # of 49


def test_colour_noise_follows_the_principal_components() -> None:
    pixels = (
        torch.randn(4, 3, 30, 30, generator=torch.Generator().manual_seed(0))
        * torch.tensor([3.0, 1.0, 0.1])[:, None, None]
    )
    basis = augment.colour_basis(pixels)
    flat = pixels.transpose(0, 1).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.cov(flat, correction=0), atol=1e-4, rtol=1e-4)
    added = augment.colour_noise(pixels.repeat(50, 1, 1, 1), KEY, basis, std=1.0) - pixels.repeat(50, 1, 1, 1)
    assert (added.std((2, 3)) < 1e-5).all()  # one shift for all pixels of a sample
    assert added[:, :, 0, 0].std(0).tolist() == pytest.approx([3.0, 1.0, 0.1], rel=0.25)


def test_wrong_arguments() -> None:
    with pytest.raises(ShapeError, match="keys"):
        augment.flip(IMAGE, KEY[:3])
    with pytest.raises(ShapeError, match="does not fit"):
        augment.window(IMAGE, KEY, (11, 5))
    with pytest.raises(ConfigError, match="does not fit"):
        augment.crop(IMAGE, KEY, padding=10)
    with pytest.raises(ConfigError, match="mode must be"):
        augment.crop(IMAGE, KEY, mode="wrap")


def test_digits_are_split_once() -> None:
    data = digits.load()
    assert (len(data.train), data.valid, len(data.test)) == (1400, None, 397)
    assert data.train.fields["image"].shape[1:] == data.info["shape"] and int(data.train.fields["image"].max()) == 255
    held = digits.load(valid=200)
    assert (len(held.train), len(held.valid)) == (1200, 200)
    assert torch.equal(held.test.fields["image"], data.test.fields["image"])
    joined = torch.cat([held.train.fields["image"], held.valid.fields["image"]])
    assert torch.equal(joined, data.train.fields["image"])
    with pytest.raises(ConfigError, match="valid must lie"):
        digits.load(valid=1400)
