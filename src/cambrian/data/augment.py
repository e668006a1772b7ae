"""Keyed augmentation: pure functions of (images, keys), so a sample is changed alike in any batch, worker or process.

Shapes: B batch, C channels, H height, W width; `key` int64 [B] as in `batch["key"]`. Any pixel dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cambrian.data.random import integers, normal, uniform
from cambrian.errors import ConfigError, ShapeError


def flip(image: Tensor, key: Tensor, chance: float = 0.5, stream: int = 1) -> Tensor:
    """Mirror each image left to right with probability `chance`: `[B, C, H, W]` -> the same shape."""
    _check(image, key)
    mirrored = uniform(key, 1, stream=stream)[:, 0] < chance
    return torch.where(mirrored[:, None, None, None], image.flip(-1), image)


def crop(image: Tensor, key: Tensor, padding: int = 4, mode: str = "reflect", stream: int = 2) -> Tensor:
    """Pad by `padding` pixels and cut a window of the old size at a random place: `[B, C, H, W]` -> the same shape.

    `mode` is `reflect`, `replicate` or `zero`.
    """
    _check(image, key)
    if mode not in ("reflect", "replicate", "zero"):
        raise ConfigError(f"mode must be reflect, replicate or zero, not {mode!r}")
    if padding < 0 or (mode == "reflect" and padding >= min(image.shape[2:])):
        raise ConfigError(
            f"padding {padding} does not fit images of {tuple(image.shape[2:])}; use less or mode='replicate'"
        )
    return window(_pad(image, padding, mode), key, tuple(image.shape[2:]), stream)


def window(image: Tensor, key: Tensor, size: tuple[int, int], stream: int = 2) -> Tensor:
    """Cut a window of `size` (h, w) at a random place: `[B, C, H, W]` -> `[B, C, h, w]`."""
    _check(image, key)
    height, width = image.shape[2:]
    if size[0] > height or size[1] > width:
        raise ShapeError(f"a window of {size} does not fit images of {(height, width)}")
    top = integers(key, 1, height - size[0] + 1, stream=stream)
    left = integers(key, 1, width - size[1] + 1, stream=stream + (1 << 16))
    rows = (top + torch.arange(size[0], device=image.device))[:, None, :, None]
    columns = (left + torch.arange(size[1], device=image.device))[:, None, None, :]
    sample = torch.arange(len(image), device=image.device)[:, None, None, None]
    channel = torch.arange(image.shape[1], device=image.device)[None, :, None, None]
    return image[sample, channel, rows, columns]


def zoom(image: Tensor, key: Tensor, most: float, stream: int = 4) -> Tensor:
    """Enlarge each image by a factor in [1, most] and cut a window of the old size at a random place (bilinear).

    Scale jitter as in Simonyan and Zisserman 2015, section 3.1.1. `image` is floating point `[B, C, H, W]`.
    """
    _check(image, key)
    draw = uniform(key, 3, stream=stream)
    share = 1.0 / (1.0 + (most - 1.0) * draw[:, 0])  # of the picture that stays in view
    centre = (2.0 * draw[:, 1:] - 1.0) * (1.0 - share)[:, None]
    matrix = torch.zeros(len(image), 2, 3, device=image.device)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = share, share, centre
    grid = functional.affine_grid(matrix.to(image.dtype), list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def colour_noise(image: Tensor, key: Tensor, basis: Tensor, std: float = 0.1, stream: int = 3) -> Tensor:
    """Add `basis @ (std * normal)` to every pixel of a sample: PCA colour noise, Krizhevsky et al. 2012, section 4.1.

    `basis` [C, C], from `colour_basis`, holds principal components of the pixels, each times its standard deviation.
    `image` is floating point `[B, C, H, W]`.
    """
    _check(image, key)
    shift = std * normal(key, basis.shape[1], stream=stream) @ basis.T.to(image.dtype)
    return image + shift[:, :, None, None]


def colour_basis(image: Tensor) -> Tensor:
    """Principal components of the pixels of `[N, C, H, W]`, scaled by their standard deviations: `[C, C]`."""
    pixels = image.transpose(0, 1).flatten(1).to(torch.float64)
    pixels = pixels - pixels.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1])
    return (vectors * values.clamp_min(0).sqrt()).to(torch.float32)


def _pad(image: Tensor, padding: int, mode: str) -> Tensor:
    if mode == "zero":
        return functional.pad(image, [padding] * 4)
    height, width = image.shape[2:]
    rows = torch.arange(-padding, height + padding, device=image.device)
    columns = torch.arange(-padding, width + padding, device=image.device)
    place = _reflect if mode == "reflect" else _clamp
    return image[:, :, place(rows, height)][:, :, :, place(columns, width)]


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()


def _clamp(index: Tensor, size: int) -> Tensor:
    return index.clamp(0, size - 1)


def _check(image: Tensor, key: Tensor) -> None:
    if image.ndim != 4 or key.shape != (len(image),):
        raise ShapeError(
            f"images [B, C, H, W] and keys [B] are expected, not {tuple(image.shape)} and {tuple(key.shape)}"
        )
