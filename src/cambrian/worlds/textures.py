"""Patches of the photographed textures that scikit-image ships (brick, grass, gravel), as grounds for other worlds."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cambrian.data.random import integers
from cambrian.worlds.photographs import photograph

NAMES = ("brick", "grass", "gravel")


@lru_cache(maxsize=1)
def _stack() -> Tensor:
    """The textures `[3, 512, 512]`, each with mean 0 and standard deviation 0.12."""
    stack = torch.stack([photograph(name)[:, :512, :512].to(torch.float32).mean(0) for name in NAMES])
    return 0.12 * (stack - stack.mean((1, 2), keepdim=True)) / stack.std((1, 2), keepdim=True)


def texture(key: Tensor, size: int) -> Tensor:
    """A window `[N, 1, size, size]` of a random texture at a random place for each key; mean about 0."""
    stack = _stack()
    kind = integers(key, 1, len(stack), stream=20)
    corner = integers(key, 2, stack.shape[1] - size + 1, stream=21)
    rows = (corner[:, :1] + torch.arange(size))[:, :, None]
    columns = (corner[:, 1:] + torch.arange(size))[:, None, :]
    return stack[kind[:, :, None], rows, columns][:, None]
