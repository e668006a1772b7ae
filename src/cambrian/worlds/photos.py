"""Which photograph does a small crop come from? A hard, purely visual task on real pictures that needs no file.

Every photograph is cut into square cells; each cell belongs to train, valid or test (5/8, 1/8, 2/8 of the cells of each
photograph, spread over it at random), and a crop lies inside one cell, so no pixel is shared between splits. Cells with
next to no contrast (sky, borders) are left out. With `standardise` each crop has mean 127.5 and standard deviation 45,
so brightness and contrast give nothing away. Sample `i` of a split is a pure function of (seed, split, i).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cambrian.data.random import integers, sample_keys
from cambrian.data.split import Batch, Data, Split, TensorSplit, WorldSplit
from cambrian.errors import ConfigError
from cambrian.worlds.photographs import FILES, photograph

SPLITS = ("train", "valid", "test")
SHARES = (5, 1, 2)  # of eight cells
FLAT = 6.0  # grey levels of standard deviation below which a cell is left out
CHUNK = 2048


@dataclass(frozen=True)
class Crops:
    """What is cut: `size` pixels from cells of `cell` pixels, of the photographs `names`, grey (1) or RGB (3)."""

    size: int = 32
    channels: int = 1
    standardise: bool = True
    cell: int = 64
    names: tuple[str, ...] = tuple(FILES)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or not 4 <= self.size <= self.cell:
            raise ConfigError(
                f"channels must be 1 or 3 and size lie in 4..cell, not {self.channels}, {self.size} of {self.cell}"
            )


def load(
    *, train: int = 6000, valid: int = 1000, test: int = 2000, seed: int = 0, stream: bool = False, **crops: object
) -> Data:
    """Crops as `Data` of kind `images`: `image` uint8 `[N, C, size, size]`, `label` int64 `[N]`: which photograph.

    `crops` are fields of `Crops`. Held in memory, or with `stream` cut whenever asked for.
    """
    what = Crops(**crops)  # type: ignore[arg-type]
    sizes = {"train": train, "valid": valid, "test": test}
    splits = {name: _split(what, seed, name, count, stream) for name, count in sizes.items()}
    info = {"shape": (what.channels, what.size, what.size), "classes": list(what.names), "scale": 255}
    return Data("photos", "images", splits["train"], splits["valid"], splits["test"], info)


def _split(crops: Crops, seed: int, name: str, count: int, stream: bool) -> Split:
    number = SPLITS.index(name)

    def make(index: Tensor) -> Batch:
        return cut(crops, name, sample_keys(seed, number, index))

    if stream:
        return WorldSplit(make, count)
    parts = [make(index) for index in torch.arange(count).split(CHUNK)]
    return TensorSplit(**{field: torch.cat([part[field] for part in parts]) for field in parts[0]})


def cut(crops: Crops, split: str, key: Tensor) -> Batch:
    """The crops of keys `[N]` from the cells of `split`; every photograph is equally likely, then every cell."""
    pixels, start, count = cells(crops.names, crops.cell, crops.channels, split)
    label = integers(key, 1, len(crops.names), stream=1)[:, 0]
    cell = start[label] + integers(key, 1, 1 << 30, stream=2)[:, 0] % count[label]
    corner = integers(key, 2, crops.cell - crops.size + 1, stream=3)
    rows = (corner[:, :1] + torch.arange(crops.size))[:, None, :, None]
    columns = (corner[:, 1:] + torch.arange(crops.size))[:, None, None, :]
    channel = torch.arange(crops.channels)[None, :, None, None]
    image = pixels[cell[:, None, None, None], channel, rows, columns]
    if crops.standardise:
        image = _standardise(image)
    return {"image": image, "label": label}


def _standardise(image: Tensor) -> Tensor:
    values = image.to(torch.float32)
    mean, std = values.mean((1, 2, 3), keepdim=True), values.std((1, 2, 3), keepdim=True)
    return (127.5 + 45.0 * (values - mean) / std.clamp_min(1.0)).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=12)
def cells(names: tuple[str, ...], side: int, channels: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of a split: pixels uint8 `[M, C, side, side]`, and each photograph's first cell and number of cells."""
    chosen: list[Tensor] = []
    for name in names:
        grid = _grid(name, side, channels)
        # the partition belongs to the world, not to the run's seed
        order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(len(grid)))
        bounds = [0, *(len(grid) * sum(SHARES[: number + 1]) // sum(SHARES) for number in range(3))]
        number = SPLITS.index(split)
        part = grid[order[bounds[number] : bounds[number + 1]]]
        if not len(part):
            raise ConfigError(f"photograph {name!r} has too few cells of {side} pixels for a {split} split; use less")
        chosen.append(part)
    count = torch.tensor([len(part) for part in chosen])
    return torch.cat(chosen), count.cumsum(0) - count, count


@lru_cache(maxsize=64)
def _grid(name: str, side: int, channels: int) -> Tensor:
    """The cells of one photograph that have some contrast, row by row: uint8 `[M, C, side, side]`."""
    picture = photograph(name)
    if channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        picture = (picture.to(torch.float32) * weights).sum(0, keepdim=True).round().to(torch.uint8)
    grid = picture.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return grid[grid.to(torch.float32).std((1, 2, 3)) >= FLAT]
