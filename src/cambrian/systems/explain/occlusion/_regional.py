"""Compute again only what a square can have changed.

A square of m pixels changes m + k - 1 rows of a convolution with kernel k, and no others. So the layers at the start of a
network are computed once for the whole picture and then, for each place of the square, on a patch that grows from layer
to layer; when the patch covers most of a map it is laid into a copy of the whole one and the rest of the network runs as
usual. For a patch of P rows from row o on, kernel k (dilated), stride s, padding p:

    rows out   from j0 = ceil((o + p - k + 1) / s),  n = (P + k - 2) // s + 1 of them
    rows in    from j0 s - p,  (n - 1) s + k of them

The chain of layers is found by following one picture through the network, and proved on two squares before it is used.

Shapes: N squares in a pass, U pictures in a pass, P Q patch, H W map; maps are stored as [.., H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.inspect.target import Target
from cambrian.nn.zoo import Normalise

POINTWISE = (
    nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout,
    nn.Dropout2d, Normalise,
)  # fmt: skip
LARGEST = 0.6  # share of a map from which on a patch is not worth its trouble
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Slide:
    """Kernel (dilated), stride and padding of a convolution or pooling, each vertical and horizontal, and its fill."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    fill: float

    @classmethod
    def of(cls, part: nn.Module) -> Slide | None:
        """Of a layer; None for one that this module cannot follow."""
        if isinstance(part, nn.Conv2d) and part.padding_mode == "zeros" and not isinstance(part.padding, str):
            kernel = tuple(d * (k - 1) + 1 for d, k in zip(part.dilation, part.kernel_size, strict=True))
            return cls(kernel, part.stride, part.padding, 0.0)
        simple = not getattr(part, "ceil_mode", False) and _pair(getattr(part, "dilation", 1)) == (1, 1)
        if isinstance(part, nn.MaxPool2d) and simple and not part.return_indices:
            return cls(_pair(part.kernel_size), _pair(part.stride), _pair(part.padding), float("-inf"))
        plain = simple and getattr(part, "count_include_pad", False) and getattr(part, "divisor_override", 0) is None
        if isinstance(part, nn.AvgPool2d) and plain:
            return cls(_pair(part.kernel_size), _pair(part.stride), _pair(part.padding), 0.0)
        return None

    def rows(self, start: Tensor, count: int, axis: int) -> tuple[Tensor, int, Tensor, int]:
        """`(first out [N], number out, first in [N], number in)` for patches of `count` rows from `start [N]` on."""
        k, s, p = self.kernel[axis], self.stride[axis], self.padding[axis]
        out = (count + k - 2) // s + 1
        first = -((-(start + p - k + 1)) // s)
        return first, out, first * s - p, (out - 1) * s + k


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass
class Patch:
    """A changed part of a map for each square: `values [N,P,Q,C]`, its first row and column `[N]`.

    It may stick out of the map; what it holds there means nothing.
    """

    values: Tensor
    top: Tensor
    left: Tensor

    def lines(self) -> tuple[Tensor, Tensor]:
        """Row numbers `[N,P]` and column numbers `[N,Q]` in the map."""
        rows = self.top[:, None] + torch.arange(self.values.shape[1], device=self.top.device)
        return rows, self.left[:, None] + torch.arange(self.values.shape[2], device=self.left.device)

    def laid(self, whole: Tensor) -> Tensor:
        """Into copies `[N,H,W,C]` of the whole map, in place."""
        rows, columns = self.lines()
        inside = (_within(rows, whole.shape[1])[:, :, None] & _within(columns, whole.shape[2])[:, None, :]).nonzero()
        n, i, j = inside.unbind(1)
        whole[n, rows[n, i], columns[n, j]] = self.values[n, i, j]
        return whole


def _within(lines: Tensor, edge: int) -> Tensor:
    return (lines >= 0) & (lines < edge)


def gathered(maps: Tensor, who: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The parts `rows [N,P]` x `columns [N,Q]` of `maps[who]` (`[U,H,W,C]`): `[N,P,Q,C]`, the border's outside of the map."""
    _, height, width, channels = maps.shape
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    place = (who[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    flat = maps.reshape(-1, channels).index_select(0, place.flatten())  # whole pixels are copied: faster than indexing
    return flat.view(*place.shape, channels)


def advance(part: nn.Module, slide: Slide, clean: Tensor, who: Tensor, patch: Patch) -> Patch:
    """The patch after a sliding layer, from the whole maps `clean [U,H,W,C]` before it; square n is on picture `who[n]`."""
    height, width = clean.shape[1:3]
    top, _, row, rows_in = slide.rows(patch.top, patch.values.shape[1], 0)
    left, _, column, columns_in = slide.rows(patch.left, patch.values.shape[2], 1)
    rows = row[:, None] + torch.arange(rows_in, device=row.device)
    columns = column[:, None] + torch.arange(columns_in, device=row.device)
    region = gathered(clean, who, rows, columns)
    region = _overlaid(region, patch, rows, columns)
    for lines, edge, shape in ((rows, height, (-1, rows_in, 1, 1)), (columns, width, (-1, 1, columns_in, 1))):
        if int(lines.min()) < 0 or int(lines.max()) >= edge:
            region.masked_fill_(~_within(lines, edge).view(shape), slide.fill)
    return Patch(_apply(part, region), top, left)


def _overlaid(region: Tensor, patch: Patch, rows: Tensor, columns: Tensor) -> Tensor:
    """The region with the patch laid into it: a slice where all patches lie at one offset, else place by place."""
    down, across = patch.top - rows[:, 0], patch.left - columns[:, 0]
    high, wide = patch.values.shape[1:3]
    first = int(down[0]), int(across[0])
    if int(down.min()) == int(down.max()) and int(across.min()) == int(across.max()):
        region[:, first[0] : first[0] + high, first[1] : first[1] + wide] = patch.values
        return region
    i, j = rows - patch.top[:, None], columns - patch.left[:, None]
    inside = _within(i, high)[:, :, None] & _within(j, wide)[:, None, :]
    new = gathered(patch.values, torch.arange(len(region), device=region.device), i, j)
    return torch.where(inside[..., None], new, region)


def _apply(part: nn.Module, region: Tensor) -> Tensor:
    """The layer without its padding: `[N,..,..,C]` -> `[N,P,Q,C']`."""
    x = region.permute(0, 3, 1, 2)
    if isinstance(part, nn.Conv2d):
        out = F.conv2d(x, part.weight, part.bias, part.stride, 0, part.dilation, part.groups)
    elif isinstance(part, nn.MaxPool2d):
        out = F.max_pool2d(x, part.kernel_size, part.stride)
    else:
        out = F.avg_pool2d(x, part.kernel_size, part.stride)
    return out.permute(0, 2, 3, 1)


class Regional:
    """The first layers of a network, in order, each a pointwise layer or one with a `Slide`."""

    def __init__(self, chain: list[tuple[nn.Module, Slide | None]], size: int) -> None:
        self.chain, self.size = chain, size

    @classmethod
    def find(cls, target: Target, module: nn.Module, x: Tensor, size: int, watched: str | None) -> Regional | None:
        """The longest chain that gives what the network gives for two squares on the picture `x [1,C,H,W]`; None if
        there is none.
        """
        stop = None if watched is None else dict(module.named_modules()).get(watched.removesuffix(":in"))
        chain = _follow(module, x, size, stop)
        grey = torch.full_like(x, target.space.lo + 0.7 * target.space.width)
        tops = torch.tensor([0, (x.shape[2] - size) // 2], device=x.device)
        lefts = torch.tensor([0, (x.shape[3] - size) // 2], device=x.device)
        who = torch.zeros(2, dtype=torch.int64)
        covered = x.repeat(2, 1, 1, 1)
        for i in range(2):
            rows, columns = slice(int(tops[i]), int(tops[i]) + size), slice(int(lefts[i]), int(lefts[i]) + size)
            covered[i, :, rows, columns] = grey[0, :, :size, :size]
        expected = module(covered)
        while any(slide for _, slide in chain):
            region = cls(chain, size)
            try:
                with region.patched(module, x, covered, who, tops, lefts):
                    found = module(covered)
                if torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.abs().max())):
                    return region
            except RuntimeError:
                pass  # a branch that starts inside the chain got a tensor of another shape
            chain = chain[:-1]
        return None

    @contextmanager
    def patched(
        self, module: nn.Module, x: Tensor, covered: Tensor, who: Tensor, tops: Tensor, lefts: Tensor
    ) -> Iterator[None]:
        """Inside the `with`, `module(covered)` takes the chain's result for these squares from patches."""
        result = self._result(x, covered, who.to(x.device), tops, lefts)
        parts = [part for part, _ in self.chain]
        own = [part.__dict__.get("forward") for part in parts]
        try:
            for part in parts[:-1]:
                part.forward = lambda h: h
            parts[-1].forward = lambda _h: result
            yield
        finally:
            for part, forward in zip(parts, own, strict=True):
                part.__dict__.pop("forward", None)
                if forward is not None:
                    part.forward = forward

    def _result(self, x: Tensor, covered: Tensor, who: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        """Output of the chain `[N,C,H,W]` for the pictures `covered [N,C,H,W]`, which differ from `x[who]` in a square."""
        pictures, who = who.unique(return_inverse=True)
        clean = x[pictures].contiguous(memory_format=torch.channels_last)
        patch = self._start(covered, tops, lefts)
        for part, slide in self.chain:
            if slide is None:
                patch.values = part(patch.values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            else:
                patch = advance(part, slide, clean.permute(0, 2, 3, 1), who, patch)
            clean = part(clean)
        return patch.laid(clean.permute(0, 2, 3, 1).contiguous()[who]).permute(0, 3, 1, 2)

    def _start(self, covered: Tensor, tops: Tensor, lefts: Tensor) -> Patch:
        steps = torch.arange(self.size, device=covered.device)
        numbers = torch.arange(len(covered), device=covered.device)
        values = gathered(covered.permute(0, 2, 3, 1), numbers, tops[:, None] + steps, lefts[:, None] + steps)
        return Patch(values, tops, lefts)


def _follow(module: nn.Module, x: Tensor, size: int, stop: nn.Module | None) -> list[tuple[nn.Module, Slide | None]]:
    """The layers that the picture passes first, each taking what the one before gave, while the patch is small."""
    chain: list[tuple[nn.Module, Slide | None]] = []
    calls: dict[nn.Module, int] = {}
    state = {"now": x, "open": True, "edge": (size, size)}

    def before(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[part] = calls.get(part, 0) + 1
        state["open"] = state["open"] and part is not stop and bool(inputs) and inputs[0] is state["now"]

    def after(part: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        slide = None if isinstance(part, POINTWISE) else Slide.of(part)
        if not state["open"] or (slide is None and not isinstance(part, POINTWISE)) or out.dim() != 4:
            state["open"] = False
            return
        if slide is not None:
            edge = tuple(slide.rows(torch.zeros(1), state["edge"][a], a)[1] for a in (0, 1))
            if edge[0] * edge[1] > LARGEST * out.shape[2] * out.shape[3]:
                state["open"] = False
                return
            state["edge"] = edge
        chain.append((part, slide))
        state["now"] = out

    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    handles = [
        hook for part in leaves for hook in (part.register_forward_pre_hook(before), part.register_forward_hook(after))
    ]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    once = [calls[part] == 1 for part, _ in chain]
    return chain[: once.index(False)] if False in once else chain
