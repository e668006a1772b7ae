"""Opponent colours: the achromatic copy of a picture, and the hue that a neuron feature has.

Shapes: pictures `[..., 3, H, W]`, neuron features `[U, 3, r, r]`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cambrian.errors import CapabilityError

OPPONENT = torch.tensor([
    [1 / math.sqrt(2), -1 / math.sqrt(2), 0.0],
    [1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)],
    [1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)],
])  # fmt: skip


def _coloured(x: Tensor) -> None:
    if x.dim() < 3 or x.shape[-3] != 3:
        raise CapabilityError(f"colour needs pictures of 3 channels, got {list(x.shape)}")


def opponent(x: Tensor) -> Tensor:
    """`[...,3,H,W]` RGB -> red-green, yellow-blue and intensity (O1, O2, O3): an orthonormal change of axes."""
    _coloured(x)
    return torch.einsum("oc,...chw->...ohw", OPPONENT.to(x), x)


def achromatic(x: Tensor) -> Tensor:
    """The picture with O1 = O2 = 0: its mean over the channels in each of them."""
    _coloured(x)
    return x.mean(-3, keepdim=True).expand_as(x)


def hue_axis(features: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axis of each neuron feature's pixels in the chromatic plane: degrees `[U]` in [0, 180) from O1 (red-green)
    towards O2 (yellow-blue), and its share of the chromatic variance `[U]`. Two opponent hues lie on one axis. NaN where
    there is no colour.
    """
    plane = opponent(features)[:, :2].flatten(2).double()
    values, axes, total = _principal(plane)
    angle = torch.rad2deg(torch.atan2(axes[:, 1], axes[:, 0])) % 180
    flat = total <= 1e-10
    return angle.masked_fill(flat, math.nan), (values / total.clamp_min(1e-300)).masked_fill(flat, math.nan)


def axis_tilt(features: Tensor) -> Tensor:
    """Angle `[U]` in degrees between the principal axis of each feature's colours and the intensity axis: 0 for a feature
    in black and white, 90 for one that differs in hue only. NaN where all pixels are alike.
    """
    _, axes, total = _principal(opponent(features).flatten(2).double())
    tilt = torch.rad2deg(torch.acos(axes[:, 2].abs().clamp(max=1)))
    return tilt.masked_fill(total <= 1e-10, math.nan)


def _principal(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest variance `[U]`, its direction `[U,D]` and the total variance of point clouds `[U,D,P]`."""
    centred = points - points.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2) / points.shape[2])
    return values[:, -1], vectors[:, :, -1], values.sum(1)
