"""What a VAE trains on: glyphs, digits, faces, or a user's pictures, made binary once and for all where coins are to fall.

Shapes: N pictures [N, C, H, W].
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cambrian.data import digits, images
from cambrian.data.random import sample_keys, uniform
from cambrian.data.source import Source
from cambrian.data.split import Data, Split, TensorSplit
from cambrian.errors import ConfigError
from cambrian.worlds import faces, glyphs

BINARISATIONS = ("static", "dynamic", "none")
COINS = 1404  # seed of the coins that make pictures binary: a property of the data, not of a run
GLYPH_SIZE = 16
CHUNK = 1024


def load(
    source: Source, *, size: int | None, channels: int | None, train: int, test: int, characters: str, binarise: str
) -> Data:
    """The splits of `source`; `train`, `test` and `characters` shape the embedded glyphs. Raises `ConfigError`."""
    if source.kind != "world":
        data = images.load(source, size=size, channels=channels)
    elif source.value == "glyphs":
        style = {"size": size or GLYPH_SIZE, "characters": characters, "colour": channels == 3}
        data = glyphs.load(train=train, valid=max(100, test // 2), test=test, **style)
    elif source.value == "digits":
        data = digits.load(valid=103)
    elif source.value == "faces":
        data = faces.load(size=size or 32)
    else:
        raise ConfigError(f"vae does not train on the world {source.value!r}; use one of glyphs, digits, faces")
    return data if binarise == "none" else binary(data, dynamic=binarise == "dynamic")


def binary(data: Data, *, dynamic: bool = False) -> Data:
    """Pictures of 0 and 255 only, each pixel white with the chance of its grey value, by a fixed seed.

    `dynamic` leaves the training split grey, for a recipe that tosses new coins at every visit; what is measured on stays
    fixed, since figures on other coins could not be compared.
    """
    names = {"train": data.train, "valid": data.valid, "test": data.test}
    made = {
        name: split if split is None or (dynamic and name == "train") else _tossed(split, number)
        for number, (name, split) in enumerate(names.items())
    }
    info = {**data.info, "binary": "dynamic" if dynamic else "static"}
    return replace(data, train=made["train"], valid=made["valid"], test=made["test"], info=info)


def _tossed(split: Split, number: int) -> TensorSplit:
    parts, labels = [], []
    for index in torch.arange(len(split)).split(CHUNK):
        batch = split[index]
        parts.append(toss(batch["image"], sample_keys(COINS, number, index)))
        labels.append(batch["label"])
    return TensorSplit(image=torch.cat(parts), label=torch.cat(labels))


def toss(image: Tensor, key: Tensor) -> Tensor:
    """uint8 pictures of 0 and 255 from grey ones, by one key [N] a picture."""
    draws = uniform(key, image[0].numel()).view_as(image)
    return (draws < images.unit(image)).to(torch.uint8) * 255


def is_binary(split: Split, rows: int = 256) -> bool:
    """Whether the first `rows` pictures hold 0 and 255 only."""
    image = split[torch.arange(min(rows, len(split)))]["image"]
    return bool(((image == 0) | (image == 255)).all())
