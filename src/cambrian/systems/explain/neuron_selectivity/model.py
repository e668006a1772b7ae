"""The images that drive each unit, what they have in common, and what the unit loses when something is taken from them.

Shapes: U units of a layer, N images kept for each, C channels, H W pixels, r edge of the receptive field, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.hooks import find
from cambrian.inspect.layers import Field
from cambrian.inspect.target import Target
from cambrian.systems.explain.neuron_selectivity._colour import achromatic

AFTER = ("BatchNorm", "ReLU", "ELU", "SELU", "GELU", "SiLU", "Tanh", "Sigmoid", "LocalResponseNorm")
CHUNK = 256  # pictures or variants in one forward pass
Transform = Callable[[Tensor], Tensor]


@dataclass
class Top:
    """The winners of one layer: `values [U,N]` falling, `images [U,N]` positions in the split, `places [U,N]` flat
    positions in the feature map of `shape`, and the units' receptive field (None: the whole picture).
    """

    values: Tensor
    images: Tensor
    places: Tensor
    shape: tuple[int, ...]
    field: Field | None = None

    @property
    def dead(self) -> Tensor:
        """bool `[U]`: no picture gives a positive activation."""
        return self.values[:, 0] <= 0

    @property
    def weights(self) -> Tensor:
        """`w = a / a_max [U,N]` in [0, 1], NaN for dead units."""
        peak = self.values[:, :1].double()
        return (self.values.double().clamp_min(0) / peak).masked_fill(peak <= 0, math.nan)

    def corners(self, height: int, width: int) -> tuple[Tensor, Tensor, int]:
        """Top and left `[U,N]` (negative outside the picture) and edge r of the winners' receptive fields."""
        if self.field is None or len(self.shape) != 2:
            return torch.zeros_like(self.places), torch.zeros_like(self.places), max(height, width)
        rows, columns = self.places // self.shape[1], self.places % self.shape[1]
        first = self.field.offset - (self.field.size - 1) / 2
        top, left = ((first + self.field.stride * place).floor().long() for place in (rows, columns))
        return top, left, math.ceil(self.field.size)


def unit_layers(target: Target) -> list[str]:
    """For every convolution, the last normalisation or activation that follows it before the next layer of weights."""
    names: list[str] = []
    following = False
    for layer in target.layers():
        if "Conv" in layer.kind:
            names.append(layer.name)
            following = True
        elif following and layer.kind.startswith(AFTER):
            names[-1] = layer.name
        else:
            following = False
    if not names:
        raise CapabilityError("the network has no convolutions; name the layers whose units are meant")
    return names


def field_of(target: Target, name: str) -> Field | None:
    """Receptive field of a layer's units; of a compound module, the widest of its parts."""
    table = target.layers()
    own = [layer.field for layer in table if layer.name == name or layer.name.startswith(f"{name}.")]
    if not own or any(field is None for field in own):
        return None
    return max(own, key=lambda field: field.size)


@dataclass(frozen=True)
class TopActivations:
    """Finds the `n` images of highest activation for every unit in one streamed pass; memory grows with units times n."""

    target: Target
    layers: Sequence[str] = ()
    n: int = 100
    split: str = "test"
    samples: int | None = None

    def names(self) -> list[str]:
        """The layers; by default `unit_layers`."""
        for name in self.layers:
            find(self.target.module, name)
        return list(self.layers) or unit_layers(self.target)

    @torch.no_grad()
    def collect(self) -> dict[str, Top]:
        """One `Top` for each layer, each unit's best place of each picture only. Raises `ConfigError` for fewer than 2 or
        more images than there are, `CapabilityError` for a target that takes no pictures.
        """
        if self.target.space.kind != "image":
            raise CapabilityError(f"units are shown by pictures; this target takes {self.target.space.kind}")
        size = min(self.samples or self.target.size(self.split), self.target.size(self.split))
        if not 2 <= self.n <= size:
            raise ConfigError(f"n must lie in 2..{size} (the pictures looked at), not {self.n}")
        names, found = self.names(), {}
        for index in torch.arange(size).split(CHUNK):
            x, _, _ = self.target.draw(self.split, index)
            for name, h in self.target.features(x, names).items():
                values, places = h.flatten(2).max(2) if h.dim() > 2 else (h, torch.zeros_like(h, dtype=torch.int64))
                seen = Top(values.T, index.to(h.device).expand(h.shape[1], -1), places.T, tuple(h.shape[2:]))
                found[name] = _merged(found.get(name), seen, self.n)
        for name, top in found.items():
            top.field = field_of(self.target, name)
        return found


def _merged(old: Top | None, new: Top, n: int) -> Top:
    if old is not None:
        joined = (
            torch.cat(pair, 1)
            for pair in ((old.values, new.values), (old.images, new.images), (old.places, new.places))
        )
        new = Top(*joined, new.shape)
    values, order = new.values.topk(min(n, new.values.shape[1]), dim=1)
    return Top(values, new.images.gather(1, order), new.places.gather(1, order), new.shape)


# -- what they look like -----------------------------------------------------------------------------------------------


def cut_fields(x: Tensor, tops: Tensor, lefts: Tensor, size: int, fill: float) -> Tensor:
    """Squares of `x [M,C,H,W]` with corners `[M]`, `[M]`; what lies outside the picture is `fill`: `[M,C,size,size]`."""
    pixel, rows, columns, inside = _squares(x, tops, lefts, size)
    return torch.where(inside, x[pixel[0], pixel[1], rows, columns], fill)


def paste_fields(x: Tensor, squares: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """A copy of `x [M,C,H,W]` with the parts of `squares [M,C,size,size]` that lie inside it at those corners."""
    pixel, rows, columns, inside = _squares(x, tops, lefts, squares.shape[2])
    inside = inside.expand_as(squares)
    place = [i.expand_as(squares)[inside] for i in (*pixel, rows, columns)]
    return x.clone().index_put(tuple(place), squares[inside])


def _squares(x: Tensor, tops: Tensor, lefts: Tensor, size: int):
    line = torch.arange(size, device=x.device)
    rows, columns = (tops[:, None] + line)[:, None, :, None], (lefts[:, None] + line)[:, None, None, :]
    inside = (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])
    pixel = (
        torch.arange(len(x), device=x.device)[:, None, None, None],
        torch.arange(x.shape[1], device=x.device)[None, :, None, None],
    )
    return pixel, rows.clamp(0, x.shape[2] - 1), columns.clamp(0, x.shape[3] - 1), inside


def crops(target: Target, top: Top, split: str, units: Tensor | None = None) -> Tensor:
    """The receptive fields of the winners of some units, `[U,N,C,r,r]`, padded with the middle of the input range."""
    units = torch.arange(len(top.values)) if units is None else units
    space = target.space
    tops, lefts, size = top.corners(*space.shape[1:])
    x = target.draw(split, top.images[units].flatten().cpu())[0]
    middle = (space.lo + space.hi) / 2
    cut = cut_fields(x, tops[units].flatten(), lefts[units].flatten(), size, middle)
    return cut.unflatten(0, (len(units), -1))


def neuron_feature(target: Target, top: Top, split: str) -> Tensor:
    """`NF = 1/N sum_j w_j I_j`, `[U,C,r,r]`; NaN for dead units. A blurred one belongs to a unit without one pattern."""
    parts = []
    for units in torch.arange(len(top.values)).split(8):
        found = crops(target, top, split, units)
        parts.append((top.weights[units].to(found)[:, :, None, None, None] * found).mean(1))
    return torch.cat(parts)


# -- indices -----------------------------------------------------------------------------------------------------------


def _index(top: Top, changed: Tensor) -> Tensor:
    """`1 - sum w' / sum w [U]`, both relative to the unchanged maximum."""
    after = changed.double().clamp_min(0).sum(1)
    return (1 - after / top.values.double().clamp_min(0).sum(1)).masked_fill(top.dead, math.nan)


@torch.no_grad()
def color_index(target: Target, tops: Mapping[str, Top], split: str) -> dict[str, Tensor]:
    """`alpha [U]` of every layer: 0 for units blind to colour, near 1 for units that need it, NaN for dead ones.

    One pass over the achromatic copies of all winning pictures serves all layers; every unit is read where its coloured
    maximum was. Raises `CapabilityError` for a target without colour.
    """
    names = list(tops)
    wanted = torch.cat([top.images.flatten() for top in tops.values()]).unique().cpu()
    changed = {name: torch.zeros_like(top.values) for name, top in tops.items()}
    for part in wanted.split(CHUNK):
        x, _, _ = target.draw(split, part)
        where = torch.full((int(wanted.max()) + 1,), -1)
        where[part] = torch.arange(len(part))
        for name, h in target.features(achromatic(x), names).items():
            row = where.to(h.device)[tops[name].images]
            unit, rank = (row >= 0).nonzero(as_tuple=True)
            flat = h.reshape(len(h), h.shape[1], -1)
            changed[name][unit, rank] = flat[row[unit, rank], unit, tops[name].places[unit, rank]]
    return {name: _index(top, changed[name]) for name, top in tops.items()}


def symmetry_index(target: Target, tops: Mapping[str, Top], split: str, axis: str = "vertical") -> dict[str, Tensor]:
    """What a unit loses `[U]` when its crops are mirrored at the vertical or horizontal axis: 0 for a symmetric unit."""
    if axis not in ("vertical", "horizontal"):
        raise ConfigError(f"axis must be vertical or horizontal, not {axis!r}")
    return crop_index(target, tops, split, lambda cut: cut.flip(-1 if axis == "vertical" else -2))


def orientation_index(target: Target, tops: Mapping[str, Top], split: str, degrees: float = 90.0) -> dict[str, Tensor]:
    """What a unit loses `[U]` when its crops are turned counter-clockwise: 0 for a unit without preferred orientation.

    Multiples of 90 degrees move pixels; other angles interpolate and repeat the crop's border.
    """
    if float(degrees) % 90 == 0:
        return crop_index(target, tops, split, lambda cut: torch.rot90(cut, int(degrees // 90), (-2, -1)))
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)

    def turn(cut: Tensor) -> Tensor:
        matrix = cut.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(cut), -1, -1)
        grid = F.affine_grid(matrix, list(cut.shape), align_corners=False)
        return F.grid_sample(cut, grid, padding_mode="border", align_corners=False)

    return crop_index(target, tops, split, turn)


@torch.no_grad()
def crop_index(target: Target, tops: Mapping[str, Top], split: str, transform: Transform) -> dict[str, Tensor]:
    """The index of any change of the crops `[M,C,r,r]`, put back into their pictures: one variant for each winner, all
    winners of a layer in full batches.
    """
    found = {}
    middle = (target.space.lo + target.space.hi) / 2
    for name, top in tops.items():
        tops_, lefts, size = (
            part.flatten() if isinstance(part, Tensor) else part for part in top.corners(*target.space.shape[1:])
        )
        units = torch.arange(len(top.values)).repeat_interleave(top.values.shape[1])
        changed = []
        for part in torch.arange(len(units)).split(CHUNK):
            x = target.draw(split, top.images.flatten()[part].cpu())[0]
            cut = transform(cut_fields(x, tops_[part], lefts[part], size, middle))
            h = target.features(paste_fields(x, cut, tops_[part], lefts[part]), [name])[name]
            changed.append(
                h.reshape(len(h), h.shape[1], -1)[torch.arange(len(h)), units[part], top.places.flatten()[part]]
            )
        found[name] = _index(top, torch.cat(changed).view_as(top.values))
    return found


def class_shares(top: Top, labels: Tensor, classes: int) -> Tensor:
    """Relative activation `f_c [U,K]` of the winners of each class, float64; NaN for dead units."""
    if labels.shape != top.images.shape or labels.dtype != torch.int64:
        raise ShapeError(f"labels must be int64 {list(top.images.shape)} as the winners, got {list(labels.shape)}")
    sums = torch.zeros(len(labels), classes, dtype=torch.float64, device=labels.device)
    sums.scatter_add_(1, labels, top.weights)
    return sums / sums.sum(1, keepdim=True)


def class_index(top: Top, labels: Tensor, classes: int, threshold: float = 1.0) -> Tensor:
    """`gamma = (N - M) / (N - 1)`, `[U]`: 1 when one class makes up the threshold, 0 when N do, NaN for dead units.

    With K < N classes gamma cannot fall below `class_floor`.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold must lie in (0, 1], not {threshold}")
    falling = class_shares(top, labels, classes).sort(1, descending=True).values.cumsum(1)
    fewest = 1 + (falling < threshold - 1e-9).sum(1)
    n = labels.shape[1]
    return ((n - fewest).double() / (n - 1)).masked_fill(top.dead, math.nan)


def class_floor(n: int, classes: int) -> float:
    """The least value that `class_index` can have."""
    return max(n - classes, 0) / (n - 1)
