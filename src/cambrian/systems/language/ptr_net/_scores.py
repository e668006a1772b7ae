"""How good an answer is. Shapes: n points of a set; answers are lists of 1-based numbers without the stop."""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.worlds.point_sets import tour_length


def polygon_area(points: Tensor, answer: list[int]) -> float:
    """Signed area of the polygon by the shoelace formula, in double precision."""
    p = points.double()[torch.tensor(answer) - 1]
    x, y = p.unbind(1)
    return float((x * y.roll(-1) - y * x.roll(-1)).sum() / 2)


def is_simple(points: Tensor, answer: list[int]) -> bool:
    """Whether the polygon has three corners or more, none twice, and no two edges that cross."""
    if len(answer) < 3 or len(set(answer)) != len(answer):
        return False
    p = points.double()[torch.tensor(answer) - 1]
    q = p.roll(-1, 0)
    n = len(answer)

    def side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    a, b, c, d = p[:, None], q[:, None], p[None], q[None]
    crossing = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    i = torch.arange(n)
    apart = ((i[:, None] - i).abs() > 1) & ((i[:, None] - i).abs() < n - 1)
    return not bool((crossing & apart).any())


def hull_scores(points: Tensor, answer: list[int], truth: list[int]) -> dict[str, float]:
    """`accuracy` (the very sequence), `invalid` (not a simple polygon), `area` (share of the hull's area; 0 when invalid)."""
    simple = is_simple(points, answer)
    area = abs(polygon_area(points, answer)) / polygon_area(points, truth) if simple else 0.0
    return {"accuracy": float(answer == truth), "invalid": float(not simple), "area": area}


def delaunay_scores(points: Tensor, answer: list[int], truth: list[int]) -> dict[str, float]:
    """`accuracy` (the same triangles in any order), `coverage` (share of the true triangles that were found), `invalid` (not
    triples of different points)."""
    found = {tuple(sorted(answer[i : i + 3])) for i in range(0, len(answer) - len(answer) % 3, 3)}
    right = {tuple(truth[i : i + 3]) for i in range(0, len(truth), 3)}
    broken = len(answer) % 3 != 0 or any(len(set(triangle)) < 3 for triangle in found)
    return {
        "accuracy": float(found == right and not broken), "coverage": len(found & right) / len(right), "invalid": float(broken)
    }  # fmt: skip


def tour_scores(points: Tensor, answer: list[int], truth: list[int]) -> dict[str, float]:
    """`accuracy` (a shortest tour), `invalid` (not a permutation), `ratio` to the shortest length (nearest-neighbour tours and
    the like are compared by it; an invalid tour has none)."""
    if sorted(answer) != list(range(1, len(points) + 1)):
        return {"accuracy": 0.0, "invalid": 1.0}
    ratio = tour_length(points.double(), answer) / tour_length(points.double(), truth)
    return {"accuracy": float(ratio < 1 + 1e-9), "invalid": 0.0, "ratio": ratio}


SCORES = {"hull": hull_scores, "delaunay": delaunay_scores, "tour": tour_scores}


def cut(row: Tensor) -> list[int]:
    """The numbers before the stop (0) or the padding (-1)."""
    numbers = row.tolist()
    return numbers[: next((i for i, number in enumerate(numbers) if number <= 0), len(numbers))]
