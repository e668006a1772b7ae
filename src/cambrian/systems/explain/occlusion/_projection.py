"""What drives a feature: its projection to the pixels, the pictures that it likes best, and how it answers to changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect.hooks import capture
from cambrian.inspect.target import Target
from cambrian.systems.explain.saliency.model import relu_rule

CHANGES = ("translate", "scale", "rotate")


# -- the deconvnet -----------------------------------------------------------------------------------------------------


def deconvnet(
    target: Target, x: Tensor, layer: str, channel: int | Tensor, position: str | tuple[int, int] = "max", *,
    rule: str = "deconvnet",
) -> Tensor:  # fmt: skip
    """Project one activation of `layer`'s map `channel` (an int, or int64 `[B]`) back to the pixels: `[B,C,H,W]`.

    `position`: "max" the largest of the map, "all" the whole map, or (row, column). All other activations are set to zero;
    on the way down poolings use the switches of the picture (overlapping ones add up), ReLUs act on the signal itself
    (`rule="guided"`: also on where the unit was silent) and filters are transposed. Nothing comes back for an activation
    of 0.
    """
    target.check(x)
    with target.quiet() as module, torch.enable_grad(), relu_rule(rule) as check:
        moved = x.detach().requires_grad_(True)
        maps = _maps(capture(module, moved.clone(), [layer], grad=True)[layer], layer)
        own = _channel(maps, channel)
        kept = _kept(own, position)
        if not own.requires_grad:
            raise CapabilityError(f"layer {layer!r} does not depend on the picture")
        check(own.sum())
        return torch.autograd.grad(own, moved, grad_outputs=own.detach() * kept)[0]


def _maps(maps: Tensor, layer: str) -> Tensor:
    if maps.dim() != 4:
        raise CapabilityError(f"a projection starts at feature maps [B,K,h,w]; {layer!r} gives {list(maps.shape)}")
    return maps


def _channel(maps: Tensor, channel: int | Tensor) -> Tensor:
    """`[B,h,w]` of one channel, or of one for each picture."""
    wanted = torch.as_tensor(channel, device=maps.device).expand(len(maps))
    if int(wanted.min()) < 0 or int(wanted.max()) >= maps.shape[1]:
        raise ConfigError(f"channel must lie in 0..{maps.shape[1] - 1}, got {wanted.unique().tolist()}")
    return maps[torch.arange(len(maps), device=maps.device), wanted]


def _kept(own: Tensor, position: str | tuple[int, int]) -> Tensor:
    """1 at the activation that is projected, `[B,h,w]`."""
    if position == "all":
        return torch.ones_like(own)
    height, width = own.shape[1:]
    if position == "max":
        place = own.detach().flatten(1).argmax(1)
    elif isinstance(position, tuple) and 0 <= position[0] < height and 0 <= position[1] < width:
        place = torch.full((len(own),), position[0] * width + position[1], device=own.device)
    else:
        raise ConfigError(f"position must be max, all or a place in {height}x{width}, not {position!r}")
    return F.one_hot(place, height * width).view_as(own).to(own)


# -- the pictures that a feature likes best ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Top:
    """The strongest activations of one map, strongest first: dataset positions `index [n]`, place in the map
    `position [n,2]` (row, column) and `value [n]`.
    """

    index: Tensor
    position: Tensor
    value: Tensor


@torch.no_grad()
def top_activations(
    target: Target, layer: str, channels: Sequence[int], *, split: str = "test", n: int = 9, limit: int | None = None
) -> dict[int, Top]:
    """For each channel the `n` pictures of a split (its first `limit`) with the largest activation, one place each."""
    total = target.size(split) if limit is None else min(limit, target.size(split))
    if not 1 <= n <= total:
        raise DataError(f"n must lie in 1..{total}, the pictures of {split!r} that are looked at, not {n}")
    best: list[Tensor] = []
    places: list[Tensor] = []
    width = 0
    for index in torch.arange(total).split(256):
        x, _, _ = target.draw(split, index)
        maps = _maps(target.features(x, [layer])[layer], layer)
        bad = [c for c in channels if not 0 <= c < maps.shape[1]]
        if bad:
            raise ConfigError(f"channel must lie in 0..{maps.shape[1] - 1}, not {bad[0]}")
        width = maps.shape[3]
        value, place = maps[:, list(channels)].flatten(2).max(2)
        best.append(value), places.append(place)
    value, place = torch.cat(best), torch.cat(places)
    order = value.argsort(dim=0, descending=True, stable=True)[:n]
    found = {}
    for i, channel in enumerate(channels):
        at = place[order[:, i], i]
        found[channel] = Top(order[:, i], torch.stack([at // width, at % width], 1), value[order[:, i], i])
    return found


def receptive_box(target: Target, layer: str, position: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (half open) of the pixels that a place of a layer's map sees, cut at the border."""
    field = {row.name: row.field for row in target.layers()}.get(layer)
    if field is None:
        raise CapabilityError(
            f"layer {layer!r} has no receptive field: no layer that is known by size, stride and offset"
        )
    height, width = target.space.shape[1:]
    box = []
    for place, edge in zip(position, (height, width), strict=True):
        centre, half = field.offset + place * field.stride, field.size / 2
        box.append((max(0, math.ceil(centre - half)), min(edge, math.floor(centre + half) + 1)))
    return box[0][0], box[1][0], box[0][1], box[1][1]


# -- correspondence ----------------------------------------------------------------------------------------------------


def correspondence(target: Target, x: Tensor, masks: Tensor, layer: str, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Delta of one part in `x [B,C,H,W]` (section 4.3): mean over ordered pairs of the share of differing signs of
    `e_i = l(x_i) - l(x_i with the part covered)`; `masks [B,1,H,W]` cover the part, `fill` (shape of `x`) shows there.

    Returns Delta (a scalar; 0: the part does the same everywhere) and the mean Hamming distance `[B]` of each picture to
    the others. Needs two pictures.
    """
    target.check(x)
    if masks.shape != (len(x), 1, *x.shape[2:]) or len(x) < 2:
        raise ShapeError(
            f"correspondence needs masks [B,1,H,W] for B >= 2 pictures {list(x.shape)}, got {list(masks.shape)}"
        )
    covered = torch.where(masks.bool(), fill, x)
    before, after = (target.features(part, [layer])[layer].flatten(1) for part in (x, covered))
    signs = (before - after).sign()
    differ = torch.stack([(signs != one).float().mean(1) for one in signs])  # [B,B], 0 on the diagonal
    each = differ.sum(1) / (len(x) - 1)
    return each.mean(), each


# -- invariance and evolution ------------------------------------------------------------------------------------------


@torch.no_grad()
def invariance(target: Target, x: Tensor, layer: str, change: str, amounts: Sequence[float]) -> Tensor:
    """Distance in a layer between a picture and its changed copy, `[T,B]`, as a share of the picture's own norm there.

    `change`: "translate" by so many pixels downwards, "scale" by a factor, "rotate" by degrees; pixels from outside are
    those of the border.
    """
    target.check(x)
    if change not in CHANGES or not amounts:
        raise ConfigError(f"change must be one of {', '.join(CHANGES)} with at least one amount, not {change!r}")
    own = target.features(x, [layer])[layer].flatten(1)
    curves = []
    for amount in amounts:
        other = target.features(changed(x, change, amount), [layer])[layer].flatten(1)
        curves.append((other - own).norm(dim=1) / own.norm(dim=1).clamp_min(1e-12))
    return torch.stack(curves)


def changed(x: Tensor, change: str, amount: float) -> Tensor:
    """`x [B,C,H,W]` translated (pixels), scaled (factor) or rotated (degrees) about the centre."""
    turn, zoom, shift = 0.0, 1.0, 0.0
    if change == "translate":
        shift = -2.0 * amount / x.shape[2]
    elif change == "scale":
        if not amount > 0:
            raise ConfigError(f"a scale must be above 0, not {amount}")
        zoom = 1 / amount
    else:
        turn = math.radians(amount)
    ratio = x.shape[2] / x.shape[3]
    rows = [[zoom * math.cos(turn), -zoom * math.sin(turn) * ratio, 0.0],
            [zoom * math.sin(turn) / ratio, zoom * math.cos(turn), shift]]  # fmt: skip
    grid = F.affine_grid(
        torch.tensor([rows], dtype=x.dtype, device=x.device).expand(len(x), -1, -1), list(x.shape), False
    )
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def evolution(
    snapshots: Mapping[int, Target], layer: str, channels: Sequence[int], *, split: str = "test", limit: int = 500
) -> dict[int, dict[int, tuple[int, Tensor]]]:
    """Features during training (figure 4): for each snapshot (step -> target) and channel, the picture of the split that
    excites it most, as (dataset position, projection `[C,H,W]`); jumps of the position are changes of what it likes.
    """
    found: dict[int, dict[int, tuple[int, Tensor]]] = {}
    for step, target in snapshots.items():
        found[step] = {}
        for channel, top in top_activations(target, layer, channels, split=split, n=1, limit=limit).items():
            x, _, _ = target.draw(split, top.index)
            found[step][channel] = int(top.index[0]), deconvnet(target, x, layer, channel)[0]
    return found
