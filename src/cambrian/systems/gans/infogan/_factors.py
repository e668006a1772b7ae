"""Slant, width and ink of pictures by image moments: what a continuous code may have found.

    m = sum of ink, (cx, cy) its centre, mu_ab = sum ink (x - cx)^a (y - cy)^b / m
    slant = -mu_11 / mu_02   (rows point down, so that leaning right is positive)
    width = sqrt(mu_20 - mu_11^2 / mu_02)   (what is left of the horizontal spread once the slant is taken out)

Shapes: N pictures, C H W a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTORS = ("slant", "width", "height", "ink")


def moments(images: Tensor) -> dict[str, Tensor]:
    """Factors `[N]` each of pictures `[N, C, H, W]` in [0, 1], bright on dark; lengths in picture sides."""
    ink = images.double().mean(1)
    height, width = ink.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, height), torch.linspace(-0.5, 0.5, width), indexing="ij")
    y, x = y.to(ink), x.to(ink)
    mass = ink.flatten(1).sum(1).clamp_min(1e-9)

    def mean(weight: Tensor) -> Tensor:
        return (ink * weight).flatten(1).sum(1) / mass

    cx, cy = mean(x), mean(y)
    mu20, mu02, mu11 = mean(x * x) - cx * cx, mean(y * y) - cy * cy, mean(x * y) - cx * cy
    safe = mu02.clamp_min(1e-9)
    left = (mu20 - mu11.square() / safe).clamp_min(0.0)
    values = (-mu11 / safe, left.sqrt(), mu02.clamp_min(0.0).sqrt(), mass / (height * width))
    return dict(zip(FACTORS, values, strict=True))
