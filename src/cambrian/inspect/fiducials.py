"""Finding a printed sheet in a photograph: ring marks in its corners, and the plane's homography from them.

    (u, v, w) = H (x, y, 1),   pixel = (u / w, v / w)                 four pairs of points give H (direct linear transform)

A mark is a black disc with a white ring and a black heart, in a white quiet zone; the heart of the first mark (top left)
is missing, so that a turned photograph is put upright. Marks are found by normalised correlation with both kinds, and
placed to a fraction of a pixel by the centroid of darkness.

Coordinates are (x, y) with (0, 0) the outer corner of the first pixel, so pixel centres lie at halves.

Shapes: B batch, P points, H W pixels of the photograph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import ShapeError

RINGS = (0.3, 0.68)  # radius of the heart and outer radius of the white ring, of the mark's radius
QUIET = 1.5  # white around the mark, of its radius
LEAST = 0.6  # correlation below which nothing counts as a mark
CANDIDATES = 8


def homography(src: Tensor, dst: Tensor) -> Tensor:
    """The plane maps `[B, 3, 3]` with `H src = dst` for four points each, `[B, 4, 2]`; solved in double precision.

    Three points on a line give no map: the result is then NaN.
    """
    if src.shape != dst.shape or src.dim() != 3 or src.shape[1:] != (4, 2):
        raise ShapeError(f"a homography takes two batches of four points [B, 4, 2], got {src.shape} and {dst.shape}")
    x, y = src.double().unbind(2)
    u, v = dst.double().unbind(2)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2)]
    rows += [torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)]
    system, wanted = torch.cat(rows, 1), torch.cat([u, v], 1)
    found, info = torch.linalg.solve_ex(system, wanted)
    found = torch.where((info == 0)[:, None], found, torch.nan)
    return F.pad(found, (0, 1), value=1.0).view(-1, 3, 3).to(src.dtype)


def transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Points `[B, P, 2]` under plane maps `[B, 3, 3]`."""
    moved = F.pad(points, (0, 1), value=1.0) @ matrix.transpose(1, 2)
    return moved[..., :2] / moved[..., 2:]


def warp(picture: Tensor, matrix: Tensor, size: tuple[int, int], fill: float | None = None) -> Tensor:
    """`[B, C, *size]`: pixel p of the result shows `picture` at `matrix p`, bilinearly; outside of it `fill`, or the
    border.
    """
    h, w = size
    xs = torch.arange(w, device=picture.device, dtype=picture.dtype) + 0.5
    ys = torch.arange(h, device=picture.device, dtype=picture.dtype) + 0.5
    rows = matrix.to(picture.dtype)[:, :, :, None, None].unbind(1)
    u, v, depth = (row[:, 0] * xs + (row[:, 1] * ys[:, None] + row[:, 2]) for row in rows)
    at = torch.stack([u / depth * (2 / picture.shape[3]) - 1, v / depth * (2 / picture.shape[2]) - 1], 3)
    if fill is None:
        return F.grid_sample(picture, at, padding_mode="border", align_corners=False)
    return F.grid_sample(picture - fill, at, align_corners=False) + fill


def mark(radius: float, heart: bool, side: int, centre: tuple[float, float]) -> Tensor:
    """One mark on white, `[side, side]`, 1 = white, edges one pixel soft."""
    ys, xs = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    away = ((xs - centre[0]).square() + (ys - centre[1]).square()).sqrt()
    inside = lambda r: (0.5 + r - away).clamp(0, 1)  # noqa: E731
    ink = inside(radius) - inside(radius * RINGS[1])
    return 1 - (ink + inside(radius * RINGS[0]) if heart else ink)


def correlate(grey: Tensor, radius: float) -> Tensor:
    """Normalised correlation `[B, 2, H, W]` of photographs `[B, H, W]` with a mark without and with a heart."""
    half = max(2, round(radius * 1.25))
    side = 2 * half + 1
    shapes = torch.stack([mark(radius, heart, side, (half + 0.5, half + 0.5)) for heart in (False, True)])
    shapes = shapes - shapes.mean((1, 2), keepdim=True)
    shapes = shapes / shapes.flatten(1).norm(dim=1).view(-1, 1, 1)
    centred = grey[:, None] - grey.mean((1, 2)).view(-1, 1, 1, 1)
    wide = F.pad(centred, (half,) * 4, mode="replicate")
    hit = F.conv2d(wide, shapes[:, None].to(grey))
    mean, square = _box_mean(wide, side), _box_mean(wide.square(), side)
    spread = (square - mean.square()).clamp_min(1e-4) * side * side
    return hit / spread.sqrt()


def _box_mean(x: Tensor, side: int) -> Tensor:
    """Means over all `side` x `side` windows by running sums: their cost does not grow with the window."""
    for dim in (2, 3):
        total = F.pad(x.cumsum(dim), (1, 0, 0, 0) if dim == 3 else (0, 0, 1, 0))
        x = total.narrow(dim, side, total.shape[dim] - side) - total.narrow(dim, 0, total.shape[dim] - side)
    return x / side**2


@torch.no_grad()
def locate(grey: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Centres `[B, 4, 2]` of the sheets' marks (top left, top right, bottom right, bottom left of the upright sheet) in
    photographs `[B, H, W]`, and `[B]` the least correlation of the four with a mark, 0 where no sheet was found.

    `radius` is the expected radius of a mark in pixels, to within a fifth. Of all places that look like a mark the
    outermost four count. A sheet counts as found when they are four different ones in convex order.
    """
    if grey.dim() != 3:
        raise ShapeError(f"locate takes grey photographs [B, H, W], got {list(grey.shape)}")
    shrink = max(1, int(radius // 3))
    small = F.avg_pool2d(grey[:, None], shrink)[:, 0] if shrink > 1 else grey
    maps = correlate(small, radius / shrink)
    places, scores, plain = _peaks(maps, max(1, round(2 * radius / shrink)))
    along = torch.stack([-places.sum(2), places[..., 0] - places[..., 1]], 2)
    keys = torch.stack([along[..., 0], along[..., 1], -along[..., 0], -along[..., 1]], 1)  # how far out, by corner
    corner = keys.masked_fill((scores < LEAST)[:, None], -1e9).argmax(2)
    rows = torch.arange(len(grey), device=grey.device)[:, None]
    found = (scores >= LEAST).sum(1) >= 4
    found &= torch.stack([corner[:, i] != corner[:, j] for i in range(4) for j in range(i)]).all(0)
    first = plain[rows, corner].argmax(1, keepdim=True)
    order = (first + torch.arange(4, device=grey.device)) % 4
    centres = (places[rows, corner][rows, order] + 0.5) * shrink
    centres = _refine(grey, centres, radius)
    return centres, scores.gather(1, corner).amin(1) * (found & _convex(centres))


def _peaks(maps: Tensor, apart: int) -> tuple[Tensor, Tensor, Tensor]:
    """The highest places `[B, N, 2]`, their height, and by how much the mark without a heart fits them better."""
    best, width = maps.amax(1).clone(), maps.shape[3]
    lead = maps[:, 0] - maps[:, 1]
    ys, xs = torch.arange(maps.shape[2], device=maps.device), torch.arange(width, device=maps.device)
    places, scores, plain = [], [], []
    for _ in range(CANDIDATES):
        height, at = best.flatten(1).max(1)
        y, x = at // width, at % width
        places.append(torch.stack([x, y], 1).to(maps.dtype))
        scores.append(height)
        plain.append(lead.flatten(1).gather(1, at[:, None])[:, 0])
        near = ((ys - y[:, None]).abs() <= apart)[:, :, None] & ((xs - x[:, None]).abs() <= apart)[:, None]
        best = best.masked_fill(near, -1.0)
    return torch.stack(places, 1), torch.stack(scores, 1), torch.stack(plain, 1)


def _refine(grey: Tensor, centres: Tensor, radius: float, rounds: int = 3) -> Tensor:
    """Centroid of darkness in a round window about each centre, repeated with the window moved along."""
    reach = radius * (1 + QUIET) / 2
    line = torch.linspace(-reach, reach, 2 * max(8, round(reach)) + 1, device=grey.device, dtype=grey.dtype)
    offsets = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(1, 1, -1, 2)
    window = (offsets.norm(dim=3) <= reach).to(grey.dtype)
    scale = grey.new_tensor([2 / grey.shape[2], 2 / grey.shape[1]])
    for _ in range(rounds):
        at = (centres[:, :, None] + offsets) * scale - 1
        patch = F.grid_sample(grey[:, None], at, padding_mode="border", align_corners=False)[:, 0]
        ranks = patch.quantile(torch.tensor([0.05, 0.9], device=grey.device, dtype=grey.dtype), dim=2)
        dark = ((ranks[1, ..., None] - patch) / (ranks[1] - ranks[0]).clamp_min(1e-3)[..., None]).clamp(0, 1)
        weight = window * (dark - 0.25).clamp_min(0)
        centres = centres + (weight[..., None] * offsets).sum(2) / weight.sum(2, keepdim=True).clamp_min(1e-6)
    return centres


def _convex(corners: Tensor) -> Tensor:
    """Whether four points run round a convex outline, clockwise as seen (y points down), `[B]`."""
    edge = corners.roll(-1, 1) - corners
    after = edge.roll(-1, 1)
    turn = edge[..., 0] * after[..., 1] - edge[..., 1] * after[..., 0]
    return (turn > 0).all(1)
