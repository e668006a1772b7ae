"""Characters in the fonts that matplotlib ships, every visible factor known: a world of pictures that needs no file.

Sample `i` of a split is a pure function of (seed, split, i). A character's outline is kept as a signed distance field d
(in em, negative inside), so that any affine warp and any stroke width is drawn with clean edges in one lookup:

    alpha(p) = clamp(1/2 - (d(A p) - stroke) / h, 0, 1)        h: one output pixel in em

Modes: `single` is one character, grey (white on black) or in colours with known contrast, optionally over smaller
characters of other classes or a photographed texture; `stacked` has three grey characters in the channels of one RGB
picture, label = 100 a + 10 b + c: with digits, 1,000 modes of equal weight.

Shapes: N samples, C channels, H = W = size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cambrian.data.random import integers, mix, normal, sample_keys, uniform
from cambrian.data.split import Batch, Data, Split, TensorSplit, WorldSplit
from cambrian.errors import ConfigError
from cambrian.worlds.glyph_outlines import FONTS, HALF_TILE, outlines
from cambrian.worlds.textures import texture

DIGITS = "0123456789"
ALNUM = DIGITS + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALL = ALNUM + "abcdefghijklmnopqrstuvwxyz"
RANGES: dict[str, tuple[float, float]] = {
    "slant": (-0.2, 0.2),  # horizontal shift per height, positive leans right
    "width": (0.8, 1.2),  # horizontal stretch
    "stroke": (-0.008, 0.02),  # em added to the outline on each side
    "scale": (0.85, 1.1),  # 1: a capital letter fills 0.68 of the picture's height
    "rotation": (-10.0, 10.0),  # degrees, counter-clockwise
    "shift_x": (-0.07, 0.07),  # of the picture's side, to the right
    "shift_y": (-0.07, 0.07),  # downwards
}
EM_PER_HALF = 0.54  # em between the centre and the border of the picture at scale 1
LUMA = (0.299, 0.587, 0.114)
CHUNK = 1024
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Style:
    """What is drawn. `ranges` replaces entries of `RANGES`; `jitter` shrinks (0: no variation) or widens them all."""

    characters: str = DIGITS
    fonts: tuple[str, ...] = FONTS
    size: int = 28
    mode: str = "single"
    colour: bool = False
    contrast: float = 0.35  # least difference in luma between ink and ground
    ground: str = "flat"  # or "texture"
    distractors: int = 0
    noise: float = 0.0  # standard deviation of pixel noise, in units of white
    mask: bool = False
    jitter: float = 1.0
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.characters)) != len(self.characters) or len(self.characters) < 2:
            raise ConfigError(f"characters must be two or more different ones, not {self.characters!r}")
        if self.mode not in ("single", "stacked") or self.ground not in ("flat", "texture"):
            raise ConfigError(
                f"mode is single or stacked and ground flat or texture, not {self.mode!r}, {self.ground!r}"
            )
        if self.mode == "stacked" and (self.colour or self.ground != "flat" or self.mask or self.distractors):
            raise ConfigError("stacked glyphs are grey and plain: no colour, texture, mask or distractors")
        if not 8 <= self.size <= 512 or not 0 <= self.contrast <= 0.5 or self.distractors < 0:
            raise ConfigError(
                f"size must lie in 8..512, contrast in 0..0.5 and distractors be 0 or more, not {self.size}, "
                f"{self.contrast}, {self.distractors}"
            )
        unknown = set(self.ranges) - set(RANGES)
        if unknown:
            raise ConfigError(f"no factor {sorted(unknown)[0]!r}; choose among {', '.join(RANGES)}")

    @property
    def channels(self) -> int:
        """3 for coloured or stacked pictures, else 1."""
        return 3 if self.colour or self.mode == "stacked" else 1

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        if self.mode == "single":
            return list(self.characters)
        return [a + b + c for a in self.characters for b in self.characters for c in self.characters]

    def bounds(self, name: str) -> tuple[float, float]:
        """The range from which a factor is drawn, after `jitter`."""
        low, high = self.ranges.get(name, RANGES[name])
        middle, half = (low + high) / 2, (high - low) / 2 * self.jitter
        return middle - half, middle + half


def load(
    *, train: int = 8000, valid: int = 1000, test: int = 2000, seed: int = 0, stream: bool = False, **style: object
) -> Data:
    """Glyphs as `Data` of kind `images`; `style` are fields of `Style` (characters, size, colour, mode ...).

    Fields: `image` uint8 `[N, C, H, W]`, `label` int64 `[N]`, and in mode single the factors: `font` int64 `[N]`, those
    of `RANGES` float32 `[N]`, `ink` and `ground` float32 `[N, 3]`, with `mask=True` also `mask` uint8 `[N, 1, H, W]`.
    Drawn once into memory, or with `stream` whenever asked for (then `train` may be millions).
    """
    look = Style(**style)  # type: ignore[arg-type]
    sizes = {"train": train, "valid": valid, "test": test}
    splits = {name: _split(look, seed, name, size, stream) for name, size in sizes.items()}
    shape = (look.channels, look.size, look.size)
    factors = {name: look.bounds(name) for name in RANGES}
    info = {"shape": shape, "classes": look.classes, "scale": 255, "fonts": list(look.fonts), "factors": factors}
    if look.mode == "stacked":
        info["stacked"] = look.characters
    return Data("glyphs", "images", splits["train"], splits["valid"], splits["test"], info)


def _split(style: Style, seed: int, name: str, size: int, stream: bool) -> Split:
    number = SPLITS.index(name)

    def make(index: Tensor) -> Batch:
        return draw(style, sample_keys(seed, number, index))

    if stream:
        return WorldSplit(make, size)
    parts = [make(index) for index in torch.arange(size).split(CHUNK)]
    return TensorSplit(**{field: torch.cat([part[field] for part in parts]) for field in parts[0]})


def draw(style: Style, key: Tensor) -> Batch:
    """The samples of keys `[N]` (int64): see `load` for the fields."""
    if style.mode == "single":
        return _single(style, key)
    count = len(style.characters)
    layers = [_single(style, mix(key + channel), grey=True) for channel in (1, 2, 3)]
    label = (layers[0]["label"] * count + layers[1]["label"]) * count + layers[2]["label"]
    return {"image": torch.cat([layer["image"] for layer in layers], dim=1), "label": label}


def factors_of(style: Style, key: Tensor) -> Batch:
    """The factors of keys `[N]`: `label`, `font`, and each of `RANGES`."""
    draws = uniform(key, len(RANGES), stream=1)
    found: Batch = {
        "label": integers(key, 1, len(style.characters), stream=2)[:, 0],
        "font": integers(key, 1, len(style.fonts), stream=3)[:, 0],
    }
    for number, name in enumerate(RANGES):
        low, high = style.bounds(name)
        found[name] = low + (high - low) * draws[:, number]
    return found


def alpha(style: Style, factors: Batch) -> Tensor:
    """Coverage `[N, 1, H, W]` in [0, 1] of characters with these factors: pure, so any factor can be swept."""
    angle = factors["rotation"] * (math.pi / 180.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    unit = EM_PER_HALF / factors["scale"]
    # picture -> shifted -> rotated back -> unslanted -> unstretched; rows point down, hence the signs
    x_row = torch.stack([cos, -sin], 1)
    y_row = torch.stack([sin, cos], 1)
    x_row = (x_row + factors["slant"][:, None] * y_row) / factors["width"][:, None]
    matrix = torch.stack([x_row, y_row], 1) * (unit / HALF_TILE)[:, None, None]
    shift = 2.0 * torch.stack([factors["shift_x"], factors["shift_y"]], 1)
    offset = -(matrix @ shift[:, :, None])
    grid = torch.nn.functional.affine_grid(
        torch.cat([matrix, offset], 2), [len(angle), 1, style.size, style.size], align_corners=False
    )
    tiles = outlines(style.characters, style.fonts)[factors["label"], factors["font"]][:, None]
    distance = torch.nn.functional.grid_sample(tiles, grid, padding_mode="border", align_corners=False)
    pixel = (2.0 * unit / style.size)[:, None, None, None]
    return (0.5 - (distance - factors["stroke"][:, None, None, None]) / pixel).clamp(0.0, 1.0)


def _single(style: Style, key: Tensor, grey: bool = False) -> Batch:
    factors = factors_of(style, key)
    coverage = alpha(style, factors)
    ink, ground = _colours(style, key, grey)
    canvas = _ground(style, key, ground)
    for number in range(style.distractors):
        canvas = _distract(style, key, factors["label"], number, canvas)
    picture = canvas + (ink[:, :, None, None] - canvas) * coverage
    if style.noise:
        picture = picture + style.noise * normal(key, picture[0].numel(), stream=9).view_as(picture)
    batch = {"image": picture.mul(255.0).round().clamp(0, 255).to(torch.uint8), **factors}
    if not grey:
        batch |= {"ink": ink.expand(-1, 3).contiguous(), "ground": ground.expand(-1, 3).contiguous()}
    if style.mask:
        batch["mask"] = (coverage > 0.5).to(torch.uint8)
    return batch


def _colours(style: Style, key: Tensor, grey: bool) -> tuple[Tensor, Tensor]:
    """Ink and ground `[N, C]` in [0, 1]: white on black, or random RGB with `contrast` in luma between them."""
    if grey or not style.colour:
        return torch.ones(len(key), 1), torch.zeros(len(key), 1)
    weights = torch.tensor(LUMA)
    tints = uniform(key, 6, stream=4).view(-1, 2, 3)
    where = uniform(key, 2, stream=5)
    # two lumas whose difference is at least the contrast, in either order
    low = where[:, 0] * (1.0 - style.contrast)
    high = low + style.contrast + where[:, 1] * (1.0 - style.contrast - low)
    pair = torch.stack([low, high], 1)
    swap = integers(key, 1, 2, stream=6).bool()
    pair = torch.where(swap, pair.flip(1), pair)
    chroma = tints - (tints @ weights)[:, :, None]
    # the largest share of the tint that keeps all three channels inside [0, 1]: luma is then exact
    room = torch.where(chroma > 0, (1.0 - pair[:, :, None]) / chroma, -pair[:, :, None] / chroma)
    colour = pair[:, :, None] + chroma * room.amin(2, keepdim=True).clamp(0.0, 1.0)
    return colour[:, 0], colour[:, 1]


def _ground(style: Style, key: Tensor, ground: Tensor) -> Tensor:
    canvas = ground[:, :, None, None].expand(-1, -1, style.size, style.size)
    if style.ground == "flat":
        return canvas
    return (canvas + texture(key, style.size)).clamp(0.0, 1.0)


def _distract(style: Style, key: Tensor, label: Tensor, number: int, canvas: Tensor) -> Tensor:
    """Lay a smaller character of another class at a random place over the canvas."""
    own = mix(key + (number + 1) * 7919)
    factors = factors_of(style, own)
    other = integers(own, 1, len(style.characters) - 1, stream=7)[:, 0]
    factors["label"] = (label + 1 + other) % len(style.characters)
    place = uniform(own, 3, stream=8)
    factors["scale"] = factors["scale"] * (0.35 + 0.25 * place[:, 0])
    factors["shift_x"], factors["shift_y"] = (place[:, 1] - 0.5) * 0.9, (place[:, 2] - 0.5) * 0.9
    ink, _ = _colours(style, own, grey=False)
    return canvas + (ink[:, :, None, None] * (1.0 if style.colour else 0.6) - canvas) * alpha(style, factors)
