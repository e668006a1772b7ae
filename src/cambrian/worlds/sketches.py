"""Procedural pen drawings: twelve classes drawn stroke by stroke with a shaky hand, on a canvas of about 200 pixels.

Faces of cat, pig and rabbit come with and without a body, so that "has a body" is a direction that can be added and
taken away. Sizes, proportions, slant, stroke order where people differ (rays, whiskers) and jitter vary. Drawing
`index` of a `seed` is a pure function of both; lengths run from 18 to 64 points in stroke-3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from cambrian.data.split import Data
from cambrian.data.stroke_formats import Polylines, polylines_to_stroke3
from cambrian.data.strokes import assemble

MAX_LENGTH = 64
Rng = np.random.Generator


def load(*, train: int = 4000, valid: int = 400, test: int = 400, seed: int = 0, max_length: int = MAX_LENGTH) -> Data:
    """The world as `Data` of kind `strokes`, as `cambrian.data.strokes` gives it; splits use disjoint indices."""
    sizes = {"train": train, "valid": valid, "test": test}
    start, parts = 0, {}
    for split, size in sizes.items():
        parts[split] = [sketch(seed, index) for index in range(start, start + size)]
        start += size
    return assemble("sketches", parts, max_length=max_length)


def sketch(seed: int, index: int) -> tuple[str, np.ndarray]:
    """Class name and stroke-3 drawing int16 [n, 3]."""
    rng = np.random.default_rng([seed, index])
    name = CLASSES[rng.integers(len(CLASSES))]
    return name, draw(name, rng)


def draw(name: str, rng: Rng) -> np.ndarray:
    """One drawing of class `name` by this generator: stroke-3 int16 [n, 3]."""
    lines = _DRAW[name](rng)
    angle, slant = rng.normal(0, 0.06), rng.normal(0, 0.06)
    stretch = rng.uniform(0.75, 1.15) * np.array([rng.uniform(0.88, 1.12), rng.uniform(0.88, 1.12)])
    turn = np.array([[np.cos(angle), -np.sin(angle) + slant], [np.sin(angle), np.cos(angle)]])
    lengths = [len(line) for line in lines]
    points = np.concatenate(lines) @ turn.T * stretch
    points += np.repeat(rng.normal(0, 1.5, (len(lines), 2)), lengths, 0) + rng.normal(0, 1.1, points.shape)
    return polylines_to_stroke3(np.split(points, np.cumsum(lengths)[:-1]), whole=True).astype(np.int16)


def _arc(
    x: float, y: float, rx: float, ry: float, points: int, start: float = 0.0, end: float = 2 * np.pi
) -> np.ndarray:
    """Part of an ellipse, angles clockwise on the page from the right (y is downwards)."""
    return _unit_arc(points, start, end) * (rx, ry) + (x, y)


@lru_cache(maxsize=256)
def _unit_arc(points: int, start: float, end: float) -> np.ndarray:
    angles = np.linspace(start, end, points)
    return np.stack((np.cos(angles), np.sin(angles)), 1)


def _line(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _eyes(rng: Rng, y: float, apart: float, size: float, points: int = 5) -> Polylines:
    return [_arc(side * apart, y, size, size * rng.uniform(0.9, 1.3), points) for side in (-1, 1)]


def _body(rng: Rng, tail: np.ndarray) -> Polylines:
    """Below the head, which ends near y = 50."""
    width, height = rng.uniform(38, 55), rng.uniform(42, 58)
    middle = 48 + height
    return [_arc(0, middle, width, height, 11, -np.pi / 2, 1.5 * np.pi), np.add(tail, (width * 0.95, middle))]


def _cat(rng: Rng) -> Polylines:
    ear, width = rng.uniform(22, 38), rng.uniform(46, 56)
    jaw = _arc(0, 5, width, 46, 9, -0.2 * np.pi, 1.2 * np.pi)
    top = _line((-width * 0.75, -40 - ear), (-width * 0.3, -38), (width * 0.3, -38), (width * 0.75, -40 - ear))
    head = np.concatenate((jaw, top, jaw[:1]))
    nose = _line((-6, 8), (6, 8), (0, 15), (-6, 8))
    mouth = [_line((0, 15), (0, 22), (-10, 28)), _line((0, 22), (10, 28))]
    long = rng.uniform(30, 44)
    order = rng.permutation(2)
    whiskers = [_line((s * 15, 14 + 6 * k), (s * (15 + long), 10 + 12 * k)) for s in (-1, 1) for k in order]
    return [head, *_eyes(rng, -12, rng.uniform(17, 24), rng.uniform(5, 8)), nose, *mouth, *whiskers]


def _pig(rng: Rng) -> Polylines:
    head = _arc(0, 0, rng.uniform(46, 58), rng.uniform(42, 50), 12, -np.pi / 2, 1.5 * np.pi)
    flop = rng.uniform(6, 18)
    ears = [_line((s * 40, -28), (s * (46 + flop), -52), (s * 18, -44)) for s in (-1, 1)]
    snout_y, snout = rng.uniform(8, 16), rng.uniform(15, 21)
    nose = [_arc(0, snout_y, snout, snout * 0.7, 8)]
    nose += [_line((s * snout * 0.35, snout_y - 4), (s * snout * 0.35, snout_y + 4)) for s in (-1, 1)]
    smile = _arc(0, 24, rng.uniform(12, 20), 12, 4, 0.85 * np.pi, 0.15 * np.pi)
    return [head, *ears, *_eyes(rng, -12, rng.uniform(18, 26), rng.uniform(4, 7), 4), *nose, smile]


def _rabbit(rng: Rng) -> Polylines:
    head = _arc(0, 5, rng.uniform(40, 48), rng.uniform(40, 47), 11, -np.pi / 2, 1.5 * np.pi)
    long, lean = rng.uniform(34, 46), rng.uniform(-0.25, 0.4)
    ears = [_arc(s * 18, 0, 10, long, 6, 0.75 * np.pi, 2.25 * np.pi) for s in (-1, 1)]
    ears = [e + np.stack((-s * lean * e[:, 1], e[:, 1] * 0 - 34 - long * 0.7), 1) for s, e in zip((-1, 1), ears)]
    nose = _line((-5, 10), (5, 10), (0, 16), (-5, 10))
    teeth = _line((-6, 26), (-6, 37), (6, 37), (6, 26), (-6, 26))
    mouth = _line((-13, 24), (0, 22), (13, 24))
    return [head, *ears, *_eyes(rng, -6, rng.uniform(14, 20), rng.uniform(4, 7), 4), nose, mouth, teeth]


def _with_body(head: Callable[[Rng], Polylines], tail: np.ndarray) -> Callable[[Rng], Polylines]:
    return lambda rng: [line - [0, 40] for line in [*head(rng), *_body(rng, tail)]]


_CAT_TAIL = _line((0, 0), (22, -8), (30, -34), (42, -44))
_PIG_TAIL = _arc(10, 0, 9, 9, 6, np.pi, 2.7 * np.pi)
_RABBIT_TAIL = _arc(8, 14, 10, 10, 6)


def _house(rng: Rng) -> Polylines:
    wide, tall, roof = rng.uniform(45, 65), rng.uniform(60, 85), rng.uniform(30, 55)
    walls = _line((-wide, 0), (-wide, tall), (wide, tall), (wide, 0), (-wide, 0))
    top = _line((-wide - 8, 0), (0, -roof), (wide + 8, 0))
    door_x = rng.uniform(-30, 5)
    door = _line((door_x, tall), (door_x, tall * 0.5), (door_x + 20, tall * 0.5), (door_x + 20, tall))
    x, y, s = rng.uniform(10, 20), rng.uniform(14, 22), rng.uniform(18, 26)
    window = [_line((x, y), (x + s, y), (x + s, y + s), (x, y + s), (x, y))]
    window += [_line((x + s / 2, y), (x + s / 2, y + s)), _line((x, y + s / 2), (x + s, y + s / 2))]
    chimney = _line((30, -roof * 0.5), (30, -roof - 8), (44, -roof - 8), (44, -roof * 0.25))
    return [walls, top, door, *window] + ([chimney] if rng.random() < 0.6 else [])


def _sun(rng: Rng) -> Polylines:
    radius, rays = rng.uniform(30, 42), int(rng.integers(8, 14))
    turn, long = rng.uniform(0, 2 * np.pi / rays), rng.uniform(1.5, 2.1)
    angles = turn + 2 * np.pi * np.arange(rays) / rays - np.pi / 2
    ways = np.stack((np.cos(angles), np.sin(angles)), 1) * radius
    return [_arc(0, 0, radius, radius, 14, -np.pi / 2, 1.5 * np.pi), *(np.stack((w * 1.2, w * long)) for w in ways)]


def _star(rng: Rng) -> Polylines:
    inner, radius = rng.uniform(0.36, 0.5), rng.uniform(65, 85)
    angles = np.arange(11) * np.pi / 5 - np.pi / 2
    corners = radius * np.where(np.arange(11) % 2, inner, 1.0)[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    middles = (corners[:-1] + corners[1:]) / 2
    line = np.empty((21, 2))
    line[::2], line[1::2] = corners, middles
    return [line]


def _spiral(rng: Rng) -> Polylines:
    turns, points = rng.uniform(2.0, 3.6), int(rng.integers(26, 52))
    angles = rng.choice([-1, 1]) * np.linspace(0, turns * 2 * np.pi, points) + rng.uniform(0, 2 * np.pi)
    radius = np.linspace(2, rng.uniform(60, 85), points)[:, None]
    return [radius * np.stack((np.cos(angles), np.sin(angles)), 1)]


def _bike(rng: Rng) -> Polylines:
    r, apart = rng.uniform(26, 34), rng.uniform(48, 58)
    wheels = [_arc(s * apart, 20, r, r, 11, -np.pi / 2, 1.5 * np.pi) for s in (-1, 1)]
    bar, seat = rng.uniform(-40, -28), rng.uniform(-36, -26)
    frame = _line((-apart, 20), (-22, seat + 12), (apart - 14, seat + 12), (-4, 22), (-apart, 20))
    front = _line((apart, 20), (apart - 18, bar), (apart - 4, bar - 8))
    return [*wheels, frame, _line((-4, 22), (-24, seat)), _line((-36, seat), (-12, seat)), front]


def _tree(rng: Rng) -> Polylines:
    wide, tall = rng.uniform(8, 14), rng.uniform(40, 65)
    trunk = _line((-wide, 0), (-wide * 1.2, tall), (wide * 1.2, tall), (wide, 0))
    bumps, radius = int(rng.integers(4, 7)), rng.uniform(40, 55)
    angles = 2 * np.pi * np.arange(bumps) / bumps + np.pi / 2
    centres = np.stack((radius * 0.6 * np.cos(angles), radius * 0.6 * np.sin(angles) - radius), 1)
    crown = [_arc(x, y, radius * 0.55, radius * 0.55, 5, a - 1.1, a + 1.1) for (x, y), a in zip(centres, angles)]
    ground = _line((-60, tall + 2), (60, tall + 2))
    return [trunk, np.concatenate([*crown, crown[0][:1]])] + ([ground] if rng.random() < 0.5 else [])


_DRAW: dict[str, Callable[[Rng], Polylines]] = {
    "bike": _bike,
    "cat": _cat,
    "cat with body": _with_body(_cat, _CAT_TAIL),
    "house": _house,
    "pig": _pig,
    "pig with body": _with_body(_pig, _PIG_TAIL),
    "rabbit": _rabbit,
    "rabbit with body": _with_body(_rabbit, _RABBIT_TAIL),
    "spiral": _spiral,
    "star": _star,
    "sun": _sun,
    "tree": _tree,
}
CLASSES = tuple(_DRAW)
