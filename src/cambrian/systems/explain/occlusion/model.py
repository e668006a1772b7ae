"""A square slid over the picture: what the network answers at every place, and the map that follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect.maps import filled, pass_size
from cambrian.inspect.target import Target
from cambrian.systems.explain.occlusion._regional import Regional
from cambrian.systems.explain.saliency.model import last_spatial, layer_outputs, score

VALUES = ("data", "zero", "grey", "mean", "blur", "lo", "hi")
SMALLER = 4  # so many more squares fit into a pass when early layers hold patches and not whole maps
WAYS = ("centre", "average")


def windows(height: int, width: int, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Upper edges `[R]` and left edges `[Q]` of the squares: every `stride` pixels, the last one reaching the border.

    A square that sticks out of the picture is cut at the border (as Captum does). Raises `ConfigError` for a square that is
    larger than the picture, or a stride above the size, which would leave pixels uncovered.
    """
    if not 1 <= size <= min(height, width):
        raise ConfigError(f"the square's size must lie in 1..{min(height, width)} pixels, not {size}")
    if not 1 <= stride <= size:
        raise ConfigError(f"stride must lie in 1..{size} (the square's size), not {stride}")
    rows, columns = (stride * torch.arange(math.ceil((edge - size) / stride) + 1) for edge in (height, width))
    return rows, columns


def cover(height: int, width: int, size: int, tops: Tensor, lefts: Tensor) -> Tensor:
    """bool `[N,1,H,W]`: True under the squares whose corners are `tops [N]`, `lefts [N]`."""
    rows, columns = torch.arange(height, device=tops.device), torch.arange(width, device=tops.device)
    tall = (rows >= tops[:, None]) & (rows < tops[:, None] + size)
    wide = (columns >= lefts[:, None]) & (columns < lefts[:, None] + size)
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def stand_in(target: Target, x: Tensor, value: str | Tensor) -> Tensor:
    """What the square shows, shape of `x`: "data" the mean colour of the training pictures (the paper's grey), "zero" the
    pixel value 0 as far as the box allows, or what `inspect.maps.filled` offers. Pixels, never normalised values.
    """
    if isinstance(value, str) and value == "data":
        count = min(1000, target.size("train"))
        if not count:
            raise DataError("the target has no training pictures to take the mean of; choose another value")
        pixels, _, _ = target.draw("train", torch.arange(count))
        return pixels.mean((0, 2, 3))[:, None, None].to(x).expand_as(x)
    if isinstance(value, str) and value == "zero":
        return torch.full_like(x, min(max(0.0, target.space.lo), target.space.hi))
    return filled(target, x, value)


@torch.no_grad()
def occlude(
    target: Target,
    x: Tensor,
    c: Tensor,
    size: int = 6,
    stride: int = 2,
    value: str | Tensor = "data",
    *,
    of: str = "prob",
    layer: str | None = "top",
    regional: bool = True,
    cap_mb: float | None = None,
) -> dict[str, Tensor]:
    """Slide a square of `value` over `x [B,C,H,W]` and watch class `c [B]`. Every entry has one number a place:

    `prob [B,R,Q]` the score of `c` (`of`: prob, logit or log-odds) and `label [B,R,Q]` the answer; `activation [B,R,Q]` the
    total of one feature map of `layer` ("top": the last with feature maps, if there is one; None: not computed), the one
    that is strongest on the whole picture; `clean [B]` and `strongest [B]` are score and feature map of the picture itself; `tops [R]`,
    `lefts [Q]` the places.

    With `regional`, early layers are computed again only where the square can have changed them (equal to rounding).
    Raises `ShapeError`, `ConfigError` for bad input, `CapabilityError` for targets that are not pictures or have no such
    layer.
    """
    if target.space.kind != "image":
        raise CapabilityError(f"a square covers pictures; this target takes {target.space.kind}")
    target.check(x, c)
    tops, lefts = windows(*x.shape[2:], size, stride)
    name = top_layer(target) if layer == "top" else layer
    fill = stand_in(target, x, value)
    with target.quiet() as module:
        clean, maps = _answers(module, x, name)
        strongest = None if maps is None else maps.sum((2, 3)).argmax(1)
        keep = _Watch(c, of, strongest, name)
        whole = score(clean, c, of)
        region = Regional.find(target, module, x[:1], size, name) if regional else None
        limit = pass_size(target, cap_mb) * (SMALLER if region else 1)
        for who, where in _pairs(len(x), len(tops) * len(lefts), limit):
            at = (tops[where // len(lefts)].to(x.device), lefts[where % len(lefts)].to(x.device))
            covered = torch.where(cover(*x.shape[2:], size, *at), fill[who], x[who])
            with region.patched(module, x, covered, who, *at) if region else nullcontext():
                keep.add(*_answers(module, covered, name), who)
    grid = (len(x), len(tops), len(lefts))
    found = {key: value.view(grid) for key, value in keep.joined().items()}
    found |= {"clean": whole, "tops": tops, "lefts": lefts}
    return found if strongest is None else {**found, "strongest": strongest}


def top_layer(target: Target) -> str | None:
    """The last layer with feature maps, None where the network has none."""
    try:
        return last_spatial(target)
    except CapabilityError:
        return None


def _pairs(pictures: int, places: int, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(picture, place) numbers of each pass, picture by picture."""
    for pair in torch.arange(pictures * places).split(limit):
        yield pair // places, pair % places


def _answers(module: nn.Module, x: Tensor, name: str | None) -> tuple[Tensor, Tensor | None]:
    """Logits, and the feature maps of `name`."""
    if name is None:
        return module(x), None
    with layer_outputs(module, name) as held:
        logits = module(x)
    if len(held) != 1 or held[0].dim() != 4:
        raise CapabilityError(
            f"occlusion watches one layer with feature maps; {name!r} ran {len(held)} times, or has none"
        )
    return logits, held[0].detach()


class _Watch:
    """Collects what is recorded at each place."""

    def __init__(self, c: Tensor, of: str, strongest: Tensor | None, name: str | None) -> None:
        self.c, self.of, self.strongest = c, of, strongest
        self.parts: dict[str, list[Tensor]] = {"prob": [], "label": []}
        if strongest is not None:
            self.parts["activation"] = []

    def add(self, logits: Tensor, maps: Tensor | None, who: Tensor) -> None:
        self.parts["prob"].append(score(logits, self.c[who], self.of))
        self.parts["label"].append(logits.argmax(1))
        if maps is not None and self.strongest is not None:
            own = maps[torch.arange(len(maps)), self.strongest[who]]
            self.parts["activation"].append(own.sum((1, 2)))

    def joined(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self.parts.items()}


# -- from the grid to a map --------------------------------------------------------------------------------------------


def spread(grid: Tensor, tops: Tensor, lefts: Tensor, size: int, height: int, width: int) -> Tensor:
    """`[B,R,Q]` -> `[B,1,H,W]`: linear between the centres of the squares, constant outside of them."""
    down, across = _between(tops, size, height).to(grid), _between(lefts, size, width).to(grid)
    return torch.einsum("hr,brq,wq->bhw", down, grid, across)[:, None]


def _between(starts: Tensor, size: int, edge: int) -> Tensor:
    """Weights `[edge, R]` of linear interpolation from the centres of squares (cut at the border) to pixels."""
    ends = (starts + size).clamp(max=edge)
    centres = (starts + ends - 1).double() / 2
    pixels = torch.arange(edge).double().clamp(float(centres[0]), float(centres[-1]))
    if len(centres) == 1:
        return torch.ones(edge, 1, dtype=torch.float64)
    left = (torch.searchsorted(centres, pixels, right=True) - 1).clamp(0, len(centres) - 2)
    share = (pixels - centres[left]) / (centres[left + 1] - centres[left])
    weights = torch.zeros(edge, len(centres), dtype=torch.float64)
    weights.scatter_(1, left[:, None], (1 - share)[:, None])
    return weights.scatter_(1, left[:, None] + 1, share[:, None])


def average(grid: Tensor, tops: Tensor, lefts: Tensor, size: int, height: int, width: int) -> Tensor:
    """`[B,R,Q]` -> `[B,1,H,W]`: for each pixel the mean over the squares that cover it (Captum's convention)."""

    def inside(starts: Tensor, edge: int) -> Tensor:
        pixels = torch.arange(edge)[:, None]
        return ((pixels >= starts) & (pixels < starts + size)).to(grid)

    down, across = inside(tops, height), inside(lefts, width)
    total = torch.einsum("hr,brq,wq->bhw", down, grid, across)
    return (total / (down.sum(1)[:, None] * across.sum(1)))[:, None]


def occlusion_map(
    target: Target,
    x: Tensor,
    c: Tensor,
    size: int = 6,
    stride: int = 2,
    value: str | Tensor = "data",
    *,
    of: str = "prob",
    way: str = "centre",
    regional: bool = True,
    cap_mb: float | None = None,
) -> Tensor:
    """How much the score of `c` falls when a square covers a pixel: `[B,1,H,W]`, negative where it rises.

    `way`: "centre" interpolates between the squares' centres, "average" takes the mean over the squares on a pixel.
    """
    if way not in WAYS:
        raise ConfigError(f"way must be one of {', '.join(WAYS)}, not {way!r}")
    found = occlude(target, x, c, size, stride, value, of=of, layer=None, regional=regional, cap_mb=cap_mb)
    drop = found["clean"][:, None, None] - found["prob"]
    place = spread if way == "centre" else average
    return place(drop, found["tops"], found["lefts"], size, *x.shape[2:])
