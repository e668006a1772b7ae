"""Sets of points in the unit square, and what is asked about them: convex hull, Delaunay triangulation, shortest tour.

After Vinyals et al. (2015, arXiv 1506.03134, section 3). Answers are sequences of point numbers 1..n in one canonical order,
then 0 (stop):

- hull: counter-clockwise, from the hull point with the lowest number
- delaunay: triangles of ascending numbers, ordered by their incentres (x, then y)
- tour: a shortest closed tour from point 1, towards the lower-numbered of its two neighbours

Hulls are found for all sets at once by Andrew's monotone chain, tours by the dynamic programme of Held and Karp (exact, up to
12 points), triangulations by SciPy. Sets are drawn anew until no three points are nearly on a line, which would make answers
ambiguous. A set is a pure function of (seed, split, index).

Shapes: N sets, n points (padded with zeros beyond each set's count), M positions of an answer (padded with -1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.data.random import integers, sample_keys, uniform
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import ConfigError, DataError, ShapeError

SPLITS = ("train", "valid", "test")
TASKS = ("hull", "delaunay", "tour")
FLATTEST = 1e-3  # twice the area of the smallest triangle that is allowed among the points
MOST_HELD_KARP = 12
TRIES = 8


def check(points: Tensor) -> None:
    """Raises `ShapeError` unless points are finite [N, n, 2] with n >= 3."""
    if points.dim() != 3 or points.shape[2] != 2 or points.shape[1] < 3:
        raise ShapeError(f"point sets are [N, n, 2] with n >= 3, not {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise ShapeError("a point set holds NaN or infinity")


def turns(points: Tensor) -> Tensor:
    """Cross products [N, n, n, n] of (j - i) and (k - i): positive where i, j, k turn left; twice the triangle's area."""
    step = points[:, None] - points[:, :, None]  # [N, i, j, 2] = p_j - p_i
    return step[:, :, :, None, 0] * step[:, :, None, :, 1] - step[:, :, :, None, 1] * step[:, :, None, :, 0]


def hull(points: Tensor) -> list[list[int]]:
    """Hull of every set of points [N, n, 2] as 1-based numbers, counter-clockwise from the lowest. Raises `ShapeError`."""
    check(points)
    p = points.double().numpy()
    order = np.lexsort((p[:, :, 1], p[:, :, 0]), axis=1)
    lower, upper = _chain(p, order), _chain(p, order[:, ::-1])
    answers = []
    for n in range(len(p)):
        ring = [*lower[n][:-1], *upper[n][:-1]]
        if len(ring) < 3:
            raise ShapeError(f"set {n}: all points lie on a line, so there is no hull")
        first = ring.index(min(ring))
        answers.append([i + 1 for i in ring[first:] + ring[:first]])
    return answers


def _chain(p: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """The lower chain of every set, all sets a point at a time; points in `order` [N, n]."""
    sets, count = order.shape
    stack, height, rows = np.zeros((sets, count), np.int64), np.zeros(sets, np.int64), np.arange(sets)
    for t in range(count):
        new = p[rows, order[:, t]]
        while True:
            a, b = p[rows, stack[rows, height - 2]], p[rows, stack[rows, height - 1]]
            cross = (b[:, 0] - a[:, 0]) * (new[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (new[:, 0] - a[:, 0])
            pop = (height >= 2) & (cross <= 0)
            if not pop.any():
                break
            height = height - pop
        stack[rows, height] = order[:, t]
        height = height + 1
    return [stack[i, : height[i]].tolist() for i in range(sets)]


def delaunay(points: Tensor) -> list[list[int]]:
    """Triangles of every set of points [N, n, 2], flattened. Raises `ShapeError`."""
    from scipy.spatial import Delaunay, QhullError

    check(points)
    answers = []
    for number, p in enumerate(points.double().numpy()):
        try:
            triangles = np.sort(Delaunay(p).simplices, axis=1)
        except QhullError as error:
            raise ShapeError(f"set {number}: no triangulation (are all points on a line?)") from error
        sides = np.linalg.norm(p[triangles[:, [1, 2, 0]]] - p[triangles[:, [2, 0, 1]]], axis=2)
        incentres = (sides[:, :, None] * p[triangles]).sum(1) / sides.sum(1, keepdims=True)
        order = np.lexsort((incentres[:, 1], incentres[:, 0]))
        answers.append((triangles[order] + 1).flatten().tolist())
    return answers


def tour(points: Tensor) -> list[list[int]]:
    """A shortest tour of every set of points [N, n, 2], n <= 12, by Held and Karp. Raises `ShapeError`."""
    check(points)
    n = points.shape[1]
    if n > MOST_HELD_KARP:
        raise ShapeError(f"exact tours take at most {MOST_HELD_KARP} points, not {n}")
    distance = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    others = n - 1  # subsets are bit sets of the points 2..n
    cost = distance.new_full((len(points), 1 << others, others), torch.inf)
    came = torch.zeros(cost.shape, dtype=torch.int64)
    for j in range(others):
        cost[:, 1 << j, j] = distance[:, 0, j + 1]
    between = distance[:, 1:, 1:]
    for subset in range(1, 1 << others):
        members = [j for j in range(others) if subset >> j & 1]
        if len(members) < 2:
            continue
        for j in members:
            best, which = (cost[:, subset ^ (1 << j)] + between[:, :, j]).min(1)
            cost[:, subset, j], came[:, subset, j] = best, which
    last = (cost[:, -1] + distance[:, 1:, 0]).argmin(1)
    path = [last]
    subset = torch.full_like(last, (1 << others) - 1)
    rows = torch.arange(len(points))
    for _ in range(others - 1):
        before = came[rows, subset, path[-1]]
        subset = subset ^ (1 << path[-1])
        path.append(before)
    middle = torch.stack(path, 1) + 2
    forwards = middle[:, :1] < middle[:, -1:]
    middle = torch.where(forwards, middle, middle.flip(1))
    return [[1, *row] for row in middle.tolist()]


SOLVERS: dict[str, Callable[[Tensor], list[list[int]]]] = {"hull": hull, "delaunay": delaunay, "tour": tour}


def solve(task: str, points: Tensor, count: Tensor) -> list[list[int]]:
    """Answers for padded sets: points [N, n, 2], of which the first `count` [N] are real."""
    answers: list[list[int]] = [[] for _ in range(len(points))]
    for size in count.unique().tolist():
        rows = (count == size).nonzero()[:, 0]
        for row, answer in zip(rows.tolist(), SOLVERS[task](points[rows, :size]), strict=True):
            answers[row] = answer
    return answers


def longest(task: str, n: int) -> int:
    """The most positions an answer over n points takes, with the stop."""
    return {"hull": n, "tour": n, "delaunay": 3 * (2 * n - 5)}[task] + 1


def draw(key: Tensor, n: int) -> Tensor:
    """Point sets float32 [N, n, 2] for keys [N]; a set with three points nearly on a line is drawn again, up to 8 times.

    With many points no set passes; then only the last draw's ties are left to chance.
    """
    points = uniform(key, 2 * n).view(-1, n, 2)
    if n > 16:
        return points
    for attempt in range(1, TRIES):
        flat = turns(points).abs()
        i = torch.arange(n)
        distinct = (i[:, None, None] < i[:, None]) & (i[:, None] < i)
        bad = (flat < FLATTEST)[:, distinct].any(1)
        if not bool(bad.any()):
            break
        points[bad] = uniform(key[bad], 2 * n, stream=attempt).view(-1, n, 2)
    return points


def packed(task: str, points: Tensor, count: Tensor, width: int) -> TensorSplit:
    """A split with answers: `points` float32 [N, n, 2], `count` int64 [N], `target` int64 [N, width] (answer, 0, then -1)."""
    target = torch.full((len(points), width), -1)
    for row, answer in enumerate(solve(task, points, count)):
        target[row, : len(answer) + 1] = torch.tensor([*answer, 0])
    return TensorSplit(points=points, count=count, target=target)


def load(
    task: str = "hull",
    *,
    low: int = 5,
    high: int = 10,
    train: int = 46_000,
    valid: int = 1200,
    test: int = 3000,
    seed: int = 0,
) -> Data:
    """Sets of `low` to `high` points with their answers, as `Data` of kind `points-sets`. Raises `ConfigError`."""
    if task not in TASKS:
        raise ConfigError(f"the task is one of {', '.join(TASKS)}, not {task!r}")
    if not 3 <= low <= high or (task == "tour" and high > MOST_HELD_KARP):
        raise ConfigError(f"a set has 3 points or more (a tour at most {MOST_HELD_KARP}), not {low} to {high}")
    splits = {}
    for number, size in enumerate((train, valid, test)):
        key = sample_keys(seed, number, torch.arange(size))
        count = low + integers(key, 1, high - low + 1, stream=99)[:, 0]
        points = torch.zeros(size, high, 2)
        for n in range(low, high + 1):
            rows = (count == n).nonzero()[:, 0]
            for part in rows.split(2048):
                points[part, :n] = draw(key[part], n)
        splits[SPLITS[number]] = packed(task, points, count, longest(task, high))
    info = {"task": task, "low": low, "high": high}
    return Data("point-sets", "point-sets", splits["train"], splits["valid"], splits["test"], info)


def read(path: Path, task: str) -> Data:
    """A user's sets from a CSV file: a set a line, `x1,y1,x2,y2,...`; answers are computed. Coordinates are scaled to the unit
    square by the file's own range. Raises `DataError` naming the line."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        try:
            values = [float(cell) for cell in line.split(",") if cell.strip()]
        except ValueError as error:
            raise DataError(f"{path.name} line {number}: not numbers separated by commas: {line[:40]!r}") from error
        if len(values) % 2 or len(values) < 6 or not np.isfinite(values).all():
            raise DataError(f"{path.name} line {number}: a set is x1,y1,x2,y2,... with three finite points or more")
        rows.append(torch.tensor(values).view(-1, 2))
    if len(rows) < 3:
        raise DataError(f"{path.name}: {len(rows)} sets where three splits need at least three")
    everything = torch.cat(rows)
    low, span = everything.amin(0), (everything.amax(0) - everything.amin(0)).max().clamp(min=1e-9)
    most = max(len(row) for row in rows)
    if task == "tour" and most > MOST_HELD_KARP:
        raise DataError(f"{path.name}: exact tours take at most {MOST_HELD_KARP} points, not {most}")
    points = torch.stack([torch.cat(((row - low) / span, torch.zeros(most - len(row), 2))) for row in rows])
    count = torch.tensor([len(row) for row in rows])
    held = max(1, len(rows) // 10)
    cuts = {"valid": slice(0, held), "test": slice(held, 2 * held), "train": slice(2 * held, None)}
    try:
        splits = {name: packed(task, points[cut], count[cut], longest(task, most)) for name, cut in cuts.items()}
    except ShapeError as error:
        raise DataError(f"{path.name}: {error}") from error
    info = {"task": task, "low": int(count.min()), "high": most, "offset": low.tolist(), "span": float(span)}
    return Data(path.stem, "point-sets", splits["train"], splits["valid"], splits["test"], info, str(path))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def tour_length(points: Tensor, order: list[int]) -> float:
    """Length of the closed tour of 1-based numbers over points [n, 2]."""
    path = points[torch.tensor(order) - 1]
    return float((path - path.roll(-1, 0)).norm(dim=1).sum())


def brute_force_tour(points: Tensor) -> float:
    """The shortest tour's length by trying every order; for few points."""
    n = len(points)
    return min(tour_length(points, [1, *middle]) for middle in itertools.permutations(range(2, n + 1)))
