"""What keeps a maximised picture legible: terms of the objective, changes of the view, and changes after a step.

A regulariser is written `name:value[:value]`, for example `blur:0.5:4`; `SETS` names some combinations. All act on
offsets `z [B, C, H, W]` from the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import ConfigError
from cambrian.inspect.maps import blurred

# name -> (default values, lowest and highest first value, what it does)
KNOWN: dict[str, tuple[tuple[float, ...], float, float]] = {
    "penalty": ((1e-3,), 0.0, math.inf),  # lambda |z|^2 (Simonyan)
    "tv": ((1e-3,), 0.0, math.inf),  # total variation
    "diversity": ((1.0,), 0.0, math.inf),  # cosine between the features of pictures with one aim
    "decay": ((0.01,), 0.0, 1.0),  # z <- (1 - v) z (Yosinski)
    "blur": ((0.5, 4.0), 0.0, 50.0),  # standard deviation; every so many steps (Yosinski)
    "norm": ((20.0,), 0.0, 100.0),  # percentile of pixels of small norm that are zeroed (Yosinski)
    "contribution": ((50.0,), 0.0, 100.0),  # percentile of pixels of small |z grad| that are zeroed (Yosinski)
    "ball": ((1.0,), 0.0, math.inf),  # |z| at most so large
    "jitter": ((2.0,), 0.0, 1000.0),  # pixels of random shift
    "rotate": ((5.0,), 0.0, 180.0),  # degrees
    "zoom": ((0.1,), 0.0, 0.9),  # share by which the view grows or shrinks
}
TERMS, VIEWS = ("penalty", "tv", "diversity"), ("jitter", "rotate", "zoom")
SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "simonyan": ("penalty:0.001",),
    "yosinski-1": ("blur:0.5:4", "norm:50"),
    "yosinski-2": ("decay:0.3", "norm:20"),
    "yosinski-3": ("decay:0.0001", "blur:1.0:4"),
    "yosinski-4": ("blur:0.5:4", "contribution:90"),
    "small": ("tv:1", "blur:0.6:2", "jitter:3", "rotate:10", "zoom:0.1"),
}  # Yosinski's four from memory, unchecked; "small" for pictures of about 32 pixels


@dataclass(frozen=True)
class Regulariser:
    """One of `KNOWN` with its values."""

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Regulariser:
        """`name`, `name:value` or `name:value:value`. Raises `ConfigError` for an unknown name or a value out of range."""
        name, *given = text.split(":")
        if name not in KNOWN:
            raise ConfigError(f"no regulariser {name!r}; choose among {', '.join(KNOWN)} or the sets {', '.join(SETS)}")
        default, low, high = KNOWN[name]
        try:
            values = tuple(float(v) for v in given) + default[len(given) :]
        except ValueError as problem:
            raise ConfigError(f"regulariser {text!r} needs numbers after its name") from problem
        if len(values) > len(default) or not low <= values[0] <= high:
            raise ConfigError(f"regulariser {text!r} takes {len(default)} value(s), the first in {low:g}..{high:g}")
        if name == "blur" and (values[1] < 1 or values[1] % 1):
            raise ConfigError(f"blur is repeated every whole number of steps, not every {values[1]}")
        return cls(name, values)


def regularisers(texts: Sequence[str]) -> list[Regulariser]:
    """Names of sets and single regularisers, in order."""
    return [Regulariser.parse(one) for text in texts for one in SETS.get(text, (text,))]


def term(reg: Regulariser, z: Tensor, features: Tensor, groups: Tensor) -> Tensor:
    """What is subtracted from the objective of each picture, `[B]`; `groups [B]` numbers their aims."""
    weight = reg.values[0]
    if reg.name == "penalty":
        return weight * z.square().flatten(1).sum(1)
    if reg.name == "tv":
        steps = (z.diff(dim=2).square().flatten(1).sum(1), z.diff(dim=3).square().flatten(1).sum(1))
        return weight * sum(steps)
    unit = F.normalize(features.flatten(1), dim=1)
    same = (groups[:, None] == groups) & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    return weight * ((unit @ unit.T) * same).sum(1)


def viewed(regs: Sequence[Regulariser], x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures under a random shift, turn and zoom, another for each; differentiable."""
    amounts = {reg.name: reg.values[0] for reg in regs if reg.name in VIEWS}
    if not amounts:
        return x
    draw = (2 * torch.rand(4, len(x), generator=generator) - 1).to(x)
    angle = draw[0] * math.radians(amounts.get("rotate", 0.0))
    scale = 1 + draw[1] * amounts.get("zoom", 0.0)
    jitter = amounts.get("jitter", 0.0)
    shift = [(draw[2 + i] * jitter).round() * 2 / x.shape[3 - i] for i in range(2)]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def after_step(regs: Sequence[Regulariser], z: Tensor, grad: Tensor, step: int) -> Tensor:
    """`z [B,C,H,W]` after the ascent step number `step` (from 1), changed by the regularisers in their order."""
    for reg in regs:
        value = reg.values[0]
        if reg.name == "decay":
            z = z * (1 - value)
        elif reg.name == "blur" and value > 0 and step % int(reg.values[1]) == 0:
            z = blurred(z, value)
        elif reg.name == "norm":
            z = _without(z, z.norm(dim=1), value)
        elif reg.name == "contribution":
            z = _without(z, (z * grad).sum(1).abs(), value)
        elif reg.name == "ball":
            size = z.flatten(1).norm(dim=1).clamp_min(1e-12)
            z = z * (value / size).clamp_max(1.0).view(-1, 1, 1, 1)
    return z


def _without(z: Tensor, weight: Tensor, percent: float) -> Tensor:
    """Zero the pixels of the lowest `percent` of each picture's `weight [B,H,W]`."""
    bar = weight.flatten(1).quantile(percent / 100, dim=1).view(-1, 1, 1, 1)
    return z * (weight[:, None] >= bar)
