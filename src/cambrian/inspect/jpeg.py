"""JPEG as a batched, differentiable tensor function: the loss of a stored picture without the file.

    levels -> YCbCr -> 8x8 blocks X -> D X D^T -> round(. / Q) * Q -> D^T . D -> RGB levels

Everything that baseline JPEG loses is lost here (rounding to 8 bits, chroma at half resolution, quantisation with the
tables of Annex K scaled as libjpeg does); entropy coding, which loses nothing, is left out. Rounding passes gradients
straight through.

Shapes: B batch, C = 1 or 3 channels, H W pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError

LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMA_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def straight_round(x: Tensor) -> Tensor:
    """Rounds; its gradient is that of the identity."""
    if not x.requires_grad:
        return x.round()
    return x + (x.detach().round() - x.detach())


def tables(quality: Tensor) -> Tensor:
    """Quantisation tables `[B, 2, 8, 8]` (luma, chroma) for qualities `[B]` from 1 to 100, as libjpeg scales them."""
    if bool(((quality < 1) | (quality > 100)).any()):
        raise ConfigError(f"JPEG quality must lie in 1..100, got {float(quality.min()):g}..{float(quality.max()):g}")
    quality = quality.float().round()
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    base = torch.tensor([LUMA_TABLE, CHROMA_TABLE], dtype=torch.float32, device=quality.device).view(1, 2, 8, 8)
    return torch.floor((base * scale.view(-1, 1, 1, 1) + 50) / 100).clamp(1, 255)


@lru_cache(maxsize=8)
def _dct(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of an 8x8 block read row by row, as one matrix `[64, 64]`."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return torch.kron(matrix, matrix).to(dtype).to(device)


def quantise(plane: Tensor, table: Tensor) -> Tensor:
    """What is left of planes `[B, P, H, W]` (centred at 0; H, W multiples of 8) under tables `[B, P, 8, 8]`."""
    d = _dct(plane.dtype, plane.device)
    b, p, h, w = plane.shape
    blocks = plane.view(b, p, h // 8, 8, w // 8, 8).transpose(3, 4).reshape(b, p, -1, 64)
    table = table.to(plane.dtype).reshape(-1, p, 1, 64)
    steps = (blocks @ d.T) / table
    whole = steps.detach().sign() * torch.floor(steps.detach().abs() + (0.5 + 1e-4))  # halves away from 0, as libjpeg
    whole = steps + (whole - steps.detach()) if steps.requires_grad else whole
    kept = (whole * table) @ d
    return kept.view(b, p, h // 8, w // 8, 8, 8).transpose(3, 4).reshape(b, p, h, w)


def jpeg(x: Tensor, quality: Tensor | float, subsample: bool = True) -> Tensor:
    """`x [B, 1|3, H, W]` in [0, 1] stored at that quality (one number, or `[B]`) and read again.

    With `subsample` colour is kept at half resolution (4:2:0). Raises `ShapeError`, and `ConfigError` for a quality
    outside 1..100.
    """
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise ShapeError(f"JPEG takes floating point pictures [B, 1|3, H, W], got {x.dtype} {list(x.shape)}")
    q = torch.as_tensor(quality, dtype=torch.float32, device=x.device).expand(len(x))
    table, (h, w) = tables(q), x.shape[2:]
    step = 16 if subsample and x.shape[1] == 3 else 8
    levels = F.pad(straight_round(x * 255), (0, -w % step, 0, -h % step), mode="replicate")
    if x.shape[1] == 1:
        out = quantise(levels - 128, table[:, :1]) + 128
    else:
        out = _colour(levels, table, subsample)
    return straight_round(out)[..., :h, :w].clamp(0, 255) / 255


def _colour(levels: Tensor, table: Tensor, subsample: bool) -> Tensor:
    ycc = straight_round(torch.einsum("dc,bchw->bdhw", levels.new_tensor(TO_YCC), levels))
    luma, chroma = ycc[:, :1] - 128, ycc[:, 1:]
    if subsample:
        chroma = straight_round(F.avg_pool2d(chroma, 2))
    luma = straight_round(quantise(luma, table[:, :1])).clamp(-128, 127) + 128
    chroma = straight_round(quantise(chroma.contiguous(), table[:, 1:].expand(-1, 2, -1, -1))).clamp(-128, 127)
    if subsample:
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.einsum("cd,bdhw->bchw", levels.new_tensor(TO_RGB), torch.cat([luma, chroma], 1))
