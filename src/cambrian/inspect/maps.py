"""How good is an attribution map? The same measures for every explainer, so that maps are compared and not only shown.

A map says for each pixel how much it speaks for the class: float32 `[B, 1 | C, H, W]`, signed, in the input's geometry and
as the method gave it (nothing is clipped or scaled before it is measured). A pixel's relevance is the sum of the map over
channels. Equal relevances are ordered by one fixed scattered permutation, so that a flat map favours no corner.

    deletion   area under p(class) while pixels are removed, most relevant first: low is good       (Petsiuk et al. 2018)
    insertion  the same while they are put into an image of the fill: high is good
    pointing   the most relevant pixel lies on the object                                           (Zhang et al. 2016)
    mask mass  share of the positive relevance that lies on the object
    randomised Spearman correlation with the map of the same network with fresh weights: should be near 0
                                                                                                    (Adebayo et al. 2018)

Shapes: B batch, C channels, H W pixels, N = H W.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.controls import reinitialised, spearman
from cambrian.inspect.results import Row
from cambrian.inspect.target import Target

Explain = Callable[[Target, Tensor, Tensor], Tensor]
"""`(target, x [B,C,H,W], y [B]) -> maps [B,1|C,H,W]`."""
_ASIDE = ContextVar("aside", default=False)
FILLS = ("grey", "mean", "blur", "lo", "hi")


def check_maps(maps: Tensor, batch: int, height: int, width: int) -> None:
    """Raise `ShapeError` unless `maps` are finite float `[batch, channels, height, width]`."""
    shape = list(maps.shape)
    if maps.dim() != 4 or shape[0] != batch or shape[2:] != [height, width] or not shape[1]:
        raise ShapeError(f"maps must be [{batch}, 1 or more, {height}, {width}] as the inputs are, got {shape}")
    if not maps.is_floating_point() or not bool(torch.isfinite(maps).all()):
        raise ShapeError(f"maps must be finite floating point, got {maps.dtype}, perhaps with NaN or infinity")


def relevance(maps: Tensor) -> Tensor:
    """Sum over channels: `[B,C,H,W]` -> `[B,H,W]`."""
    return maps.sum(1)


def ranking(maps: Tensor) -> Tensor:
    """Pixel numbers `[B, N]` from most to least relevant."""
    flat = relevance(maps).flatten(1)
    scatter = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    return scatter[flat[:, scatter].argsort(dim=1, descending=True, stable=True)]


# -- deletion and insertion --------------------------------------------------------------------------------------------


def filled(target: Target, x: Tensor, fill: str | Tensor) -> Tensor:
    """What stands where a pixel was removed, `[B,C,H,W]`: "grey" the middle of the box, "mean" each picture's own mean
    colour, "blur" the picture without detail (a Gaussian of an eighth of the side), "lo" and "hi" the ends of the box, or
    a tensor that broadcasts to `x`.
    """
    space = target.space
    if isinstance(fill, Tensor):
        try:
            return fill.to(x).expand_as(x)
        except RuntimeError:
            raise ShapeError(f"a fill of shape {list(fill.shape)} does not fit inputs {list(x.shape)}") from None
    if fill == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    if fill == "blur":
        return blurred(x, max(x.shape[2:]) / 8)
    levels = {"grey": (space.lo + space.hi) / 2, "lo": space.lo, "hi": space.hi}
    if fill not in levels:
        raise ConfigError(f"fill must be one of {', '.join(FILLS)} or a tensor, not {fill!r}")
    return torch.full_like(x, levels[fill])


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[B,C,H,W]` by `sigma` pixels, mirrored at the borders (truncated at three sigma or the side)."""
    if not sigma > 0:
        raise ConfigError(f"sigma of a blur must be above 0 pixels, not {sigma}")
    for dim in (2, 3):
        radius = min(math.ceil(3 * sigma), x.shape[dim] - 1)
        steps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-(steps**2) / (2 * sigma**2))
        kernel = (
            (weights / weights.sum()).view((1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)).expand(x.shape[1], 1, -1, -1)
        )
        edges = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        x = F.conv2d(F.pad(x, edges, mode="reflect"), kernel.contiguous(), groups=x.shape[1])
    return x


@torch.no_grad()
def perturbation_curves(
    target: Target,
    x: Tensor,
    y: Tensor,
    maps: Tensor,
    *,
    steps: int = 16,
    fill: str | Tensor = "grey",
    insert: bool = False,
) -> Tensor:
    """Probability of class `y [B]` after 0, 1, ... `steps` equal portions of pixels: `[B, steps + 1]`.

    Costs `steps + 1` forward passes. Raises `ShapeError` for bad inputs or maps, `ConfigError` for fewer than 1 or more
    steps than pixels.
    """
    _check(target, x, y, maps)
    pixels = x.shape[2] * x.shape[3]
    if not 1 <= steps <= pixels:
        raise ConfigError(f"steps must lie in 1..{pixels} (the number of pixels), not {steps}")
    order = ranking(maps)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=x.device).expand_as(order))
    place = place.view(-1, 1, *x.shape[2:])
    start, end = (filled(target, x, fill), x) if insert else (x, filled(target, x, fill))
    curve = []
    with target.quiet() as module:
        for i in range(steps + 1):
            mixed = torch.where(place < round(i * pixels / steps), end, start)
            curve.append(module(mixed).softmax(1).gather(1, y[:, None])[:, 0])
    return torch.stack(curve, 1)


def area(curves: Tensor) -> Tensor:
    """Area under `[B, T]` over [0, 1] by the trapezoid rule: `[B]`."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def deletion_auc(
    target: Target, x: Tensor, y: Tensor, maps: Tensor, steps: int = 16, fill: str | Tensor = "grey"
) -> Tensor:
    """`[B]`: mean probability of `y` while pixels are replaced by `fill`, most relevant first. Low is good."""
    return area(perturbation_curves(target, x, y, maps, steps=steps, fill=fill))


def insertion_auc(
    target: Target, x: Tensor, y: Tensor, maps: Tensor, steps: int = 16, fill: str | Tensor = "blur"
) -> Tensor:
    """`[B]`: mean probability of `y` while pixels come into an image of `fill`, most relevant first. High is good."""
    return area(perturbation_curves(target, x, y, maps, steps=steps, fill=fill, insert=True))


# -- where the object is -----------------------------------------------------------------------------------------------


def boxes(masks: Tensor) -> Tensor:
    """The upright bounding box of each mask: bool `[B,1,H,W]`, empty for an empty mask."""
    inside = masks.bool()
    rows, columns = inside.any(3, keepdim=True), inside.any(2, keepdim=True)

    def span(line: Tensor, dim: int) -> Tensor:
        return (line.cumsum(dim) > 0) & (line.flip(dim).cumsum(dim).flip(dim) > 0)

    return span(rows, 2) & span(columns, 3)


def pointing_hits(maps: Tensor, masks: Tensor, tolerance: float = 0.0) -> Tensor:
    """bool `[B]`: the most relevant pixel is on the object or at most `tolerance` pixels (Euclidean) from it.

    `masks [B,1,H,W]` are bool or 0/1. Use `boxes(masks)` where the object's box is meant.
    """
    inside = _object(maps, masks)
    best = ranking(maps)[:, 0]
    height, width = maps.shape[2:]
    rows = torch.arange(height, device=maps.device)[:, None]
    columns = torch.arange(width, device=maps.device)[None, :]
    apart = (rows - (best // width)[:, None, None]) ** 2 + (columns - (best % width)[:, None, None]) ** 2
    return ((apart <= tolerance**2) & inside[:, 0]).flatten(1).any(1)


def mask_mass(maps: Tensor, masks: Tensor) -> Tensor:
    """`[B]`: share of the positive relevance that lies on the object; 0 where nothing is positive."""
    inside = _object(maps, masks)[:, 0]
    positive = relevance(maps).clamp_min(0).double()
    total = positive.sum((1, 2))
    share = (positive * inside).sum((1, 2)) / total.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(total > 0, share, 0.0).to(maps.dtype)


def _object(maps: Tensor, masks: Tensor) -> Tensor:
    if masks.dim() != 4 or masks.shape[1] != 1 or not len(masks):
        raise ShapeError(f"masks must be [B, 1, H, W], got {list(masks.shape)}")
    check_maps(maps, len(masks), *masks.shape[2:])
    if masks.is_floating_point() and not bool(((masks == 0) | (masks == 1)).all()):
        raise ShapeError("masks must be bool or hold only 0 and 1; threshold them first")
    return masks.bool()


# -- controls ----------------------------------------------------------------------------------------------------------


def rank_agreement(a: Tensor, b: Tensor) -> Tensor:
    """Spearman correlation `[B]` between the relevances of two sets of maps; 0 where one is constant."""
    pairs = zip(relevance(a).flatten(1).cpu().numpy(), relevance(b).flatten(1).cpu().numpy(), strict=True)
    return torch.tensor([spearman(one, two) for one, two in pairs], dtype=a.dtype)


def randomised(target: Target, generator: torch.Generator) -> Target:
    """The target around the same network with fresh weights drawn from `generator`."""
    other = copy.copy(target)
    other.module = reinitialised(target.module, int(torch.randint(2**31, (1,), generator=generator)))
    return other


def randomised_check(
    explain_fn: Explain, target: Target, x: Tensor, y: Tensor, generator: torch.Generator, maps: Tensor | None = None
) -> Tensor:
    """Spearman correlation `[B]` of the signed map with that of the network with fresh weights; near 0 where the method
    explains the network and not only the picture. `maps` are those of `target` when they are known already.

    Raises `CapabilityError` when the network cannot be re-initialised.
    """
    known = explain_fn(target, x, y) if maps is None else maps
    return rank_agreement(known, explain_fn(randomised(target, generator), x, y))


def pass_size(target: Target, cap_mb: float | None = None) -> int:
    """How many inputs may go through the network at once, so that the outputs of its layers stay under `cap_mb`
    megabytes (default: 32 on a CPU, where a pass that fits the caches is also the fastest, 2,048 elsewhere).
    """
    example = target.example()
    cap = cap_mb if cap_mb is not None else 32.0 if example.device.type == "cpu" else 2048.0
    if not cap > 0:
        raise ConfigError(f"cap_mb must be above 0, not {cap_mb}")
    with uncounted():
        numbers = example[0].numel() + sum(math.prod(layer.shape_out) for layer in target.layers())
    return max(1, int(cap * 2**20 / (numbers * example.element_size())))


@contextmanager
def uncounted() -> Iterator[None]:
    """Passes inside the `with` serve no map (a layer table, a proof that two networks agree): `counted` leaves them out."""
    token = _ASIDE.set(True)
    try:
        yield
    finally:
        _ASIDE.reset(token)


@contextmanager
def counted(module: nn.Module) -> Iterator[dict[str, int]]:
    """Inside the `with`, counts the samples that went through the whole network: "forward" and "backward"."""
    seen = {"forward": 0, "backward": 0}

    def entering(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["forward"] += 0 if _ASIDE.get() else len(inputs[0])

    def leaving(_module: nn.Module, _inputs: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad:
            size = len(out)
            out.register_hook(lambda _grad: seen.update(backward=seen["backward"] + size))

    handles = [module.register_forward_pre_hook(entering), module.register_forward_hook(leaving)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# -- the common table --------------------------------------------------------------------------------------------------


def explain_row(
    target: Target,
    x: Tensor,
    y: Tensor,
    explain_fn: Explain,
    *,
    method: str,
    quantity: str = "logit",
    masks: Tensor | None = None,
    generator: torch.Generator | None = None,
    maps: Tensor | None = None,
    counts: Mapping[str, float] | None = None,
    steps: int = 16,
    fill: str | Tensor = "grey",
    **facts: Any,
) -> Row:
    """The common table's row of one method on `x [B,C,H,W]`, `y [B]`: cost, deletion and insertion, and, where they are
    given, `masks [B,1,H,W]` (pointing and mass in the object's mask) and `generator` (the randomised check).

    `explain_fn` is called once for the maps (its time and evaluations are in the row; with `maps` given it is not called)
    and once for the check. `counts` are evaluations per call ("forward", "backward" samples) of a method whose passes do
    not go through the whole network. `facts` are further columns (completeness gap, difference to a peer).
    """
    row: Row = {"method": method, "quantity": quantity, "images": len(x)}
    if maps is None:
        begin = time.perf_counter()
        with counted(target.module) as seen:
            maps = explain_fn(target, x, y)
        row["s/image"] = (time.perf_counter() - begin) / len(x)
        for name, count in (counts or seen).items():
            row[f"{name}/image"] = count / len(x)
    row["deletion AUC"] = float(deletion_auc(target, x, y, maps, steps, fill).mean())
    row["insertion AUC"] = float(insertion_auc(target, x, y, maps, steps, fill).mean())
    row["fill"] = fill if isinstance(fill, str) else "given"
    if masks is not None:
        row["pointing"] = float(pointing_hits(maps, masks).float().mean())
        row["mask mass"] = float(mask_mass(maps, masks).mean())
    if generator is not None:
        row["randomised Spearman"] = float(randomised_check(explain_fn, target, x, y, generator, maps).mean())
    return {**row, **facts}


def _check(target: Target, x: Tensor, y: Tensor, maps: Tensor) -> None:
    if target.space.kind != "image":
        raise CapabilityError(f"maps are measured on pictures; this target takes {target.space.kind}")
    target.check(x, y)
    check_maps(maps, len(x), *x.shape[2:])


def overlay_figure(target: Target, x: Tensor, maps: Mapping[str, Tensor], titles: list[str] | None = None):
    """One column for each picture of `x [B,C,H,W]`, one row for each named map over it: red for, blue against.

    Colours are scaled by the largest relevance of each map, for the eye only.
    """
    from matplotlib.figure import Figure

    space = target.space
    pictures = ((x.detach().cpu() - space.lo) / space.width).clamp(0, 1)
    grey = pictures.mean(1)
    figure = Figure(figsize=(1.2 * len(x) + 0.8, 1.25 * (len(maps) + 1)), layout="constrained")
    axes = figure.subplots(len(maps) + 1, len(x), squeeze=False)
    for i in range(len(x)):
        shown = pictures[i].permute(1, 2, 0).numpy() if len(pictures[i]) == 3 else grey[i].numpy()
        axes[0, i].imshow(shown, cmap="gray", vmin=0, vmax=1)
        axes[0, i].set_title(titles[i] if titles else "", fontsize=8)
        for row, values in enumerate(maps.values(), start=1):
            heat = relevance(values[i : i + 1].detach().cpu())[0]
            peak = float(heat.abs().max()) or 1.0
            axes[row, i].imshow(grey[i].numpy(), cmap="gray", vmin=0, vmax=2)
            axes[row, i].imshow(heat.numpy(), cmap="bwr", vmin=-peak, vmax=peak, alpha=0.7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, name in enumerate(["input", *maps]):
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure
