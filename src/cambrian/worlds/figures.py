"""One coloured figure on a shaded ground, every visible factor known: a world in which "what is it" and "how does it
look" can be told apart.

Sample `i` of a split is a pure function of (seed, split, i). A figure is a signed distance field drawn with clean edges
over a linear gradient between two muted colours; a sensor adds normal noise of `noise` grey levels, so that no picture
is trivial for a lossless coder.

With `variety="few"` everything but the centre is one of a few values (a ground of six colours shaded in four
directions, two radii), so that a picture holds some 20 bits: a world that a small model can learn in minutes.

    alpha(p) = clamp(1/2 - d(p) S, 0, 1)        d: distance to the outline in picture widths

Shapes: N samples, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.data.random import integers, normal, sample_keys, uniform
from cambrian.data.split import Batch, Data, Split, TensorSplit, WorldSplit
from cambrian.errors import ConfigError

FORMS = ("disc", "square", "triangle", "ring")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
RGB = ((210, 50, 45), (50, 170, 70), (50, 80, 210), (235, 210, 60), (200, 70, 190), (60, 190, 200))
GROUNDS = ((95, 105, 120), (150, 120, 95), (110, 145, 105), (165, 150, 160), (80, 90, 85), (125, 130, 160))
VARIETIES = ("full", "few")
FACTORS = ("x", "y", "size", "angle", "shade")
SPLITS = ("train", "valid", "test")
CHUNK = 2048
_FACTORS, _CLASSES, _NOISE = 1, 2, 3  # streams of a key


@dataclass(frozen=True)
class Scene:
    """What is drawn: `form` and `colour` int64 [N]; `factors` float32 [N, 5] in the order of FACTORS: the centre and
    the radius in picture widths, the ground's direction in turns, its contrast in 0..1; `ground` float32 [N, 3] its
    colour.
    """

    form: Tensor
    colour: Tensor
    factors: Tensor
    ground: Tensor


def load(
    *, size: int = 16, train: int = 20_000, valid: int = 500, test: int = 1000, seed: int = 0, noise: float = 2.0,
    stream: bool = False, variety: str = "full",
) -> Data:  # fmt: skip
    """Figures as `Data` of kind `images`: `image` uint8 [N, 3, S, S], `label` int64 (form x colour), `form`, `colour`,
    `factors`. Held in memory, or with `stream` drawn whenever asked for.
    """
    if not 8 <= size <= 256 or noise < 0:
        raise ConfigError(f"figures have 8 to 256 pixels a side and noise of at least 0, not {size} and {noise}")
    if variety not in VARIETIES:
        raise ConfigError(f"variety is one of {', '.join(VARIETIES)}, not {variety!r}")
    counts = {"train": train, "valid": valid, "test": test}
    splits = {name: _split(size, noise, seed, name, count, stream, variety) for name, count in counts.items()}
    names = [f"{colour} {form}" for form in FORMS for colour in COLOURS]
    info = {"shape": (3, size, size), "classes": names, "scale": 255, "forms": FORMS, "colours": COLOURS}
    return Data("figures", "images", splits["train"], splits["valid"], splits["test"], info)


def _split(size: int, noise: float, seed: int, name: str, count: int, stream: bool, variety: str) -> Split:
    number = SPLITS.index(name)

    def make(index: Tensor) -> Batch:
        key = sample_keys(seed, number, index)
        shown = scene(key, variety)
        image = render(shown, size, normal(key, 3 * size * size, stream=_NOISE).view(-1, 3, size, size) * noise)
        label = shown.form * len(COLOURS) + shown.colour
        return {
            "image": image, "label": label, "form": shown.form, "colour": shown.colour, "factors": shown.factors
        }  # fmt: skip

    if stream:
        return WorldSplit(make, count)
    parts = [make(index) for index in torch.arange(count).split(CHUNK)]
    return TensorSplit(**{field: torch.cat([part[field] for part in parts]) for field in parts[0]})


def scene(key: Tensor, variety: str = "full") -> Scene:
    """The scene of each key [N]: classes and factors independent and uniform, the figure within the picture."""
    draw = uniform(key, 8, stream=_FACTORS)
    pick = integers(key, 3, len(FORMS) * len(COLOURS) * len(GROUNDS), stream=_CLASSES)
    ground = 70 + 110 * draw[:, 5:8]
    if variety == "few":
        draw[:, 2] = (2 * draw[:, 2]).floor() * 0.5 + 0.25
        draw[:, 3] = (4 * draw[:, 3]).floor() / 4 + 0.125
        draw[:, 4] = 0.5
        ground = torch.tensor(GROUNDS, dtype=torch.float32)[pick[:, 2] % len(GROUNDS)]
    radius = 0.16 + 0.14 * draw[:, 2]
    centre = radius[:, None] + (1 - 2 * radius[:, None]) * draw[:, :2]
    factors = torch.cat((centre, radius[:, None], draw[:, 3:5]), 1)
    return Scene(pick[:, 0] % len(FORMS), pick[:, 1] % len(COLOURS), factors, ground)


def distance(form: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline, negative inside, in the unit of the arguments: form [N], the others [N, S, S]."""
    length = torch.hypot(dx, dy)
    square = torch.maximum(dx.abs(), dy.abs()) - 0.85 * radius
    sides = torch.maximum(0.866 * dx.abs() - 0.5 * dy, dy)  # three half-planes, the tip above
    shapes = (length - radius, square, sides - 0.5 * radius, (length - 0.75 * radius).abs() - 0.25 * radius)
    return torch.stack(shapes, 1).gather(1, form[:, None, None, None].expand(-1, 1, *dx.shape[1:]))[:, 0]


def render(shown: Scene, size: int, noise: Tensor | None = None) -> Tensor:
    """Pictures uint8 [N, 3, S, S]; `noise` [N, 3, S, S] in grey levels is added before rounding."""
    at = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x, y, radius, angle, shade = (f[:, None, None] for f in shown.factors.unbind(1))
    dx, dy = (at[None, None, :] - x).expand(-1, size, size), (at[None, :, None] - y).expand(-1, size, size)
    alpha = (0.5 - distance(shown.form, dx, dy, radius.expand(-1, size, size)) * size).clamp(0, 1)[:, None]
    turn = 2 * torch.pi * angle
    along = (at[None, None, :] - 0.5) * turn.cos() + (at[None, :, None] - 0.5) * turn.sin()
    ground = shown.ground[:, :, None, None] + 90 * (shade * along)[:, None]
    ink = torch.tensor(RGB, dtype=torch.float32)[shown.colour][:, :, None, None]
    picture = ground + alpha * (ink - ground)
    return (picture if noise is None else picture + noise).round().clamp(0, 255).to(torch.uint8)
