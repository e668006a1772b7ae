"""Pen drawings in four forms, and the way between them.

    polylines   list of [k, 2] arrays: absolute points of each stroke, y downwards
    stroke-3    [n, 3]: (dx, dy, pen lifted after this point); the pen starts down at the origin, the first point
    stroke-5    [T, 5]: (dx, dy, p1, p2, p3), one-hot: pen down, pen up after this point, drawing ended
    svg         one <svg> element with a path per stroke

stroke-3 -> stroke-5 -> stroke-3 is exact; stroke-3 -> polylines -> stroke-3 too, the other way up to a shift of the
whole drawing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import DataError

Polylines = list[np.ndarray]
_TOKEN = re.compile(r"[a-zA-Z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def stroke3_to_stroke5(strokes: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Padded stroke-3 [B, L, 3] with lengths [B] as stroke-5 [B, size, 5] of strokes' float type; rows past the end are
    (0, 0, 0, 0, 1).
    """
    if int(lengths.max()) > size:
        raise DataError(f"a drawing of {int(lengths.max())} points does not fit into {size}; raise max_length")
    batch, held = strokes.shape[:2]
    rows = min(held, size)
    within = torch.arange(size, device=strokes.device)[None, :] < lengths[:, None]
    out = strokes.new_zeros(batch, size, 5)
    out[:, :rows, :2] = strokes[:, :rows, :2]
    out[:, :rows, 3] = strokes[:, :rows, 2]
    out[:, :rows, 2] = 1 - strokes[:, :rows, 2]
    out = torch.where(within[..., None], out, out.new_zeros(()))
    out[..., 4] = (~within).to(out.dtype)
    return out


def stroke5_to_stroke3(strokes: Tensor) -> np.ndarray:
    """One drawing [T, 5], up to its end, as stroke-3 [n, 3] float32."""
    rows = strokes.detach().cpu().float().numpy()
    ended = np.flatnonzero(rows[:, 4] > 0.5)
    rows = rows[: ended[0]] if len(ended) else rows
    return np.column_stack((rows[:, :2], rows[:, 3])).astype(np.float32)


def stroke3_to_polylines(strokes: np.ndarray) -> Polylines:
    """Absolute points of each stroke; the first one begins at the origin."""
    strokes = np.asarray(strokes)
    points = np.concatenate((np.zeros((1, 2)), np.cumsum(strokes[:, :2], 0, dtype=np.float64)))
    cuts = np.flatnonzero(strokes[:, 2] > 0.5) + 2
    return [part for part in np.split(points, cuts) if len(part)]


def polylines_to_stroke3(polylines: Sequence[np.ndarray], *, whole: bool = False) -> np.ndarray:
    """stroke-3 [n, 3] float32, relative to the first point; with `whole` points are rounded to integers first, so that
    errors do not add up.

    A first stroke of a single point is kept as a line of no length.
    """
    if not polylines or any(np.ndim(p) != 2 or np.shape(p)[1] != 2 or not len(p) for p in polylines):
        raise DataError("a drawing needs at least one stroke, each [k, 2] with k >= 1")
    parts = [np.asarray(p, np.float64) for p in polylines]
    parts[0] = parts[0] if len(parts[0]) > 1 else np.repeat(parts[0], 2, 0)
    points = np.concatenate(parts)
    points = np.round(points) if whole else points
    lifts = np.zeros(len(points))
    lifts[np.cumsum([len(p) for p in parts]) - 1] = 1
    return np.column_stack((np.diff(points, axis=0), lifts[1:])).astype(np.float32)


def polylines_to_svg(
    polylines: Sequence[np.ndarray],
    *,
    size: int = 128,
    marked: int = 0,
    frame: tuple[float, float, float] | None = None,
) -> str:
    """An <svg> of `size` pixels; the first `marked` strokes are drawn in another colour. `frame` (left, top, extent)
    fixes the view box.
    """
    points = np.concatenate([np.zeros((1, 2))] if not polylines else [np.asarray(p) for p in polylines])
    if frame is None:
        low, high = points.min(0), points.max(0)
        extent = max(float((high - low).max()), 1e-6)
        left, top = (low + high - extent) / 2
        frame = (left - 0.05 * extent, top - 0.05 * extent, 1.1 * extent)
    left, top, extent = frame
    paths = []
    for i, line in enumerate(polylines):
        line = (
            np.asarray(line) if len(line) > 1 else np.repeat(line, 2, 0)
        )  # a dot is a line of no length with round ends
        moves = " ".join(f"{x:.2f},{y:.2f}" for x, y in line)
        colour = "#4a7ab5" if i < marked else "#222"
        paths.append(f'<path d="M {moves}" stroke="{colour}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
        f'viewBox="{left:.2f} {top:.2f} {extent:.2f} {extent:.2f}" fill="none" stroke-width="{extent / 70:.3f}" '
        f'stroke-linecap="round" stroke-linejoin="round">{"".join(paths)}</svg>'
    )


def svg_to_polylines(text: str) -> Polylines:
    """Strokes of the <path>, <polyline>, <polygon> and <line> elements of an SVG.

    Only straight segments (M, L, H, V, Z and their relative forms) are read and transforms are not applied;
    `DataError` for curves, transforms, or a file without strokes.
    """
    if re.search(r"\stransform\s*=", text):
        raise DataError("the svg uses transforms, which are not applied; flatten them first")
    lines: Polylines = []
    for tag, body in re.findall(r"<(path|polyline|polygon|line)\b([^>]*)>", text):
        attributes = dict(re.findall(r"([\w-]+)\s*=\s*[\"']([^\"']*)[\"']", body))
        if tag == "path":
            lines += _path(attributes.get("d", ""))
        elif tag == "line":
            lines.append(np.array([[float(attributes.get(k + n, 0)) for k in "xy"] for n in "12"]))
        else:
            numbers = np.array([float(t) for t in _TOKEN.findall(attributes.get("points", ""))])
            points = numbers[: len(numbers) // 2 * 2].reshape(-1, 2)
            lines.append(np.concatenate((points, points[:1])) if tag == "polygon" else points)
    lines = [line for line in lines if len(line)]
    if not lines:
        raise DataError("the svg holds no path, polyline, polygon or line")
    return lines


def _path(text: str) -> Polylines:
    tokens = _TOKEN.findall(text)
    lines: list[list[tuple[float, float]]] = []
    x = y = 0.0
    command, at = "", 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command, at = tokens[at], at + 1
            if command in "Zz":
                if lines:
                    x, y = lines[-1][0]
                    lines[-1].append((x, y))
                continue
        need = {"M": 2, "L": 2, "H": 1, "V": 1}.get(command.upper())
        values = tokens[at : at + (need or 0)]
        if need is None or len(values) < need or any(v.isalpha() for v in values):
            raise DataError(
                f"the svg path holds {command or tokens[at]!r}; only straight segments (M L H V Z) are read"
            )
        numbers = [float(v) for v in values]
        origin = (x, y) if command.islower() else (0.0, 0.0)
        if command in "Hh":
            x = origin[0] + numbers[0]
        elif command in "Vv":
            y = origin[1] + numbers[0]
        else:
            x, y = origin[0] + numbers[0], origin[1] + numbers[1]
        if command in "Mm":
            lines.append([])
            command = "L" if command == "M" else "l"  # further pairs after a move are lines
        if not lines:
            raise DataError("the svg path does not begin with a move")
        lines[-1].append((x, y))
        at += need
    return [np.array(line) for line in lines]


def rdp(points: np.ndarray, epsilon: float) -> np.ndarray:
    """Ramer-Douglas-Peucker: the fewest points found by splitting at the farthest one until all lie within `epsilon` of
    the chords.

    `points` [k, 2]; ends are kept. Iterative, so long strokes do not exhaust the stack.
    """
    points = np.asarray(points, np.float64)
    keep = np.zeros(len(points), bool)
    keep[[0, -1]] = True
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _to_segment(points[first + 1 : last], points[first], points[last])
        far = int(distances.argmax())
        if distances[far] > epsilon:
            middle = first + 1 + far
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return points[keep]


def _to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances [k] of points to the segment, so that a closed stroke (start = end) is measured from that point."""
    chord = end - start
    length = float(chord @ chord)
    along = np.clip((points - start) @ chord / length, 0.0, 1.0) if length > 0 else np.zeros(len(points))
    return np.linalg.norm(points - start - along[:, None] * chord, axis=1)
