"""Photograph crops: disjoint splits, nothing given away by brightness, a pure function of the key."""

from __future__ import annotations

import pytest
import torch

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError, DataError
from cambrian.worlds import photos
from cambrian.worlds.photographs import FILES, photograph

THREE = ("camera", "grass", "coins")


def test_every_photograph_is_in_the_wheels() -> None:
    for name in FILES:
        picture = photograph(name)
        assert picture.dtype == torch.uint8 and picture.shape[0] == 3 and min(picture.shape[1:]) >= 256
    with pytest.raises(DataError, match="no photograph 'lena'"):
        photograph("lena")


def test_splits_share_no_cell() -> None:
    seen: set[bytes] = set()
    total = 0
    for split in photos.SPLITS:
        pixels, start, count = photos.cells(THREE, 64, 1, split)
        assert int(count.sum()) == len(pixels) and count.min() >= 3 and start[0] == 0
        seen |= {cell.numpy().tobytes() for cell in pixels}
        total += len(pixels)
    assert len(seen) == total


def test_crops_lie_in_a_cell_of_their_photograph() -> None:
    crops = photos.Crops(size=12, names=THREE, standardise=False)
    batch = photos.cut(crops, "test", sample_keys(0, 2, torch.arange(30)))
    pixels, start, count = photos.cells(THREE, 64, 1, "test")
    for image, label in zip(batch["image"], batch["label"], strict=True):
        own = pixels[start[label] : start[label] + count[label]]
        windows = own.unfold(2, 12, 1).unfold(3, 12, 1)  # [M, 1, 53, 53, 12, 12]
        assert (windows == image[None, :, None, None]).flatten(4).all(4).any()


def test_standardised_and_pure() -> None:
    data = photos.load(train=60, valid=10, test=60, names=THREE)
    image = data.train.fields["image"].to(torch.float32)
    assert data.info["shape"] == (1, 32, 32) and data.info["classes"] == list(THREE)
    assert (image.mean((1, 2, 3)) - 127.5).abs().max() < 4
    stream = photos.load(train=60, valid=10, test=60, names=THREE, stream=True)
    index = torch.tensor([41, 3])
    assert torch.equal(stream.train[index]["image"], data.train[index]["image"])
    colour = photos.load(train=8, valid=4, test=4, names=("coffee", "china"), channels=3, size=16, standardise=False)
    assert colour.train.fields["image"].shape == (8, 3, 16, 16)


def test_wrong_crops() -> None:
    with pytest.raises(ConfigError, match="channels must be 1 or 3"):
        photos.load(channels=2)
    with pytest.raises(ConfigError, match="too few cells"):
        photos.load(cell=250, names=("coins", "grass"))
