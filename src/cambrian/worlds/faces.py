"""Cartoon faces with known attributes: identity, age, smile, glasses, hair, sex; landmarks and the glasses' box.

A face is a pure function of (seed, index). Its factors are drawn first (`Factors`), then rendered by signed
distances, all faces of a batch at once; so any factor can be set by hand and the face drawn again. `style="emoji"`
draws the same factors as a yellow disc, which gives two domains of one content.

Coordinates are in units of half the edge, x to the right, y downwards, the picture is [-1, 1]^2.
Shapes: N faces, S edge length in pixels, I identity coordinates.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cambrian.data import random as keyed
from cambrian.data.split import Data, WorldSplit
from cambrian.errors import ConfigError

ATTRIBUTES = ("woman", "smile", "glasses", "old")
FINE = ("freckles", "strands")  # attributes that only faces with texture have
IDENTITY = 8
FRECKLES = 14  # dots on the cheeks and the nose of a freckled face
WAVES = 3  # sine waves whose sum shades the strands of hair
CLASSES = ("neutral man", "smiling man", "neutral woman", "smiling woman")
STYLES = ("cartoon", "emoji")
_SPLITS = {"train": 0, "valid": 1, "test": 2}
_SKIN = torch.tensor(
    [[0.98, 0.86, 0.76], [0.94, 0.76, 0.62], [0.82, 0.61, 0.45], [0.60, 0.41, 0.29], [0.42, 0.28, 0.20]]
)
_HAIR = torch.tensor(
    [[0.10, 0.08, 0.07], [0.33, 0.20, 0.11], [0.62, 0.42, 0.18], [0.90, 0.76, 0.42], [0.66, 0.25, 0.12]]
)
_CLOTH = torch.tensor([colorsys.hsv_to_rgb(hue / 6, 0.65, 0.75) for hue in range(6)])


@dataclass(frozen=True)
class Factors:
    """What a face is made from; every field is a tensor with N rows.

    `identity [N, 8]` in [0, 1]: face width, face length, eye distance, eye size, brow, nose, skin, hair colour.
    `age` in [0, 1], `woman` and `glasses` 0 or 1, `smile` in [-0.3, 1], `turn` in [-1, 1] (to the left, to the
    right), `backdrop` in [0, 1].
    """

    identity: Tensor
    woman: Tensor
    age: Tensor
    smile: Tensor
    glasses: Tensor
    turn: Tensor
    backdrop: Tensor

    def changed(self, **values: float) -> Factors:
        """The same faces with some factors set to one value for all."""
        return replace(self, **{name: torch.full_like(getattr(self, name), value) for name, value in values.items()})

    def take(self, index: Tensor) -> Factors:
        """The faces at these rows."""
        return Factors(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def attributes(self) -> Tensor:
        """float32 `[N, 4]` of 0 and 1 in the order of `ATTRIBUTES`; smile above 0.5, old above 0.6."""
        return torch.stack((self.woman, (self.smile > 0.5).float(), self.glasses, (self.age > 0.6).float()), dim=1)

    def label(self) -> Tensor:
        """int64 `[N]` into `CLASSES`: sex and smile."""
        return (2 * self.woman + (self.smile > 0.5)).long()


def factors(key: Tensor) -> Factors:
    """Factors of the faces of these keys (int64 `[N]`); sex, smile and glasses are independent coins."""
    u = keyed.uniform(key, 8 + IDENTITY)
    smiling = u[:, 2] < 0.5
    smile = torch.where(smiling, 0.75 + 0.25 * u[:, 3], -0.3 + 0.4 * u[:, 3])
    return Factors(
        identity=u[:, 8:],
        woman=(u[:, 0] < 0.5).float(),
        age=u[:, 1],
        smile=smile,
        glasses=(u[:, 4] < 0.4).float(),
        turn=2 * u[:, 5] - 1,
        backdrop=u[:, 6],
    )


@dataclass(frozen=True)
class Texture:
    """Fine detail that no other factor tells, for N faces: who has it, and where its dots and strands lie.

    `freckles` and `strands` `[N]` are 0 or 1; `dots [N, FRECKLES, 2]` in [0, 1]^2 places freckles on the cheeks;
    `waves [N, WAVES, 2]` in [0, 1] are frequency and phase of the strands.
    """

    freckles: Tensor
    strands: Tensor
    dots: Tensor
    waves: Tensor

    @classmethod
    def drawn(cls, key: Tensor) -> Texture:
        """The texture of the faces of these keys (int64 `[N]`); both attributes are independent coins."""
        u = keyed.uniform(key, 2 + 2 * FRECKLES + 2 * WAVES, stream=1)
        dots, waves = u[:, 2:].split([2 * FRECKLES, 2 * WAVES], dim=1)
        coins = (u[:, :2] < 0.5).float()
        return cls(coins[:, 0], coins[:, 1], dots.unflatten(1, (-1, 2)), waves.unflatten(1, (-1, 2)))

    def take(self, index: Tensor) -> Texture:
        """The textures at these rows."""
        return Texture(self.freckles[index], self.strands[index], self.dots[index], self.waves[index])

    def attributes(self) -> Tensor:
        """float32 `[N, 2]` of 0 and 1 in the order of `FINE`."""
        return torch.stack((self.freckles, self.strands), dim=1)


@dataclass(frozen=True)
class _Face:
    """Positions and sizes that drawing, landmarks and boxes share, each `[N]`."""

    centre: Tensor
    width: Tensor
    length: Tensor
    eye_gap: Tensor
    eye_y: Tensor
    eye: Tensor
    mouth_y: Tensor
    mouth: Tensor
    shift: Tensor


def _measure(f: Factors) -> _Face:
    one = f.identity
    width, length = 0.50 + 0.10 * one[:, 0] - 0.03 * f.woman, 0.62 + 0.10 * one[:, 1]
    shift = 0.10 * f.turn
    return _Face(
        centre=torch.full_like(shift, 0.08),
        width=width,
        length=length,
        eye_gap=0.19 + 0.06 * one[:, 2],
        eye_y=torch.full_like(shift, -0.02),
        eye=0.065 + 0.025 * one[:, 3],
        mouth_y=0.08 + 0.58 * length,
        mouth=0.20 + 0.06 * f.smile.clamp_min(0),
        shift=shift,
    )


def landmarks(f: Factors) -> Tensor:
    """`[N, 5, 2]`: left eye, right eye, nose tip, left and right mouth corner, as (x, y)."""
    m = _measure(f)
    corner = m.mouth_y - 0.12 * f.smile
    x = torch.stack((m.shift - m.eye_gap, m.shift + m.eye_gap, 1.3 * m.shift, m.shift - m.mouth, m.shift + m.mouth), 1)
    y = torch.stack((m.eye_y, m.eye_y, m.eye_y + 0.26, corner, corner), 1)
    return torch.stack((x, y), dim=2)


def glasses_box(f: Factors) -> Tensor:
    """`[N, 4]`: left, top, right, bottom of where glasses are, or would be."""
    m = _measure(f)
    half_width, half_height = m.eye_gap + 0.23, torch.full_like(m.eye_gap, 0.22)
    return torch.stack(
        (m.shift - half_width, m.eye_y - half_height, m.shift + half_width, m.eye_y + half_height), dim=1
    )


class _Canvas:
    """N pictures `[N, 3, S, S]` painted back to front; each `paint` covers where a signed distance is negative."""

    def __init__(self, count: int, size: int) -> None:
        ticks = (torch.arange(size) + 0.5) * (2 / size) - 1
        self.y, self.x = torch.meshgrid(ticks, ticks, indexing="ij")
        self.soft = 1.6 / size  # width of the edge: about a pixel, so that lines are smooth at any size
        self.pixels = torch.zeros(count, 3, size, size)

    def paint(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0) -> None:
        """`distance [N, S, S]`, `colour [N, 3]`, `[3]` or `[N, 3, S, S]`, `opacity [N]` or a number."""
        cover = (0.5 - distance / self.soft).clamp(0, 1)
        share = cover * (opacity[:, None, None] if isinstance(opacity, Tensor) else opacity)  # type: ignore[reportIndexIssue]
        flat = colour if colour.ndim == 4 else colour.view(-1, 3, 1, 1)
        self.pixels = torch.lerp(self.pixels, flat.expand_as(self.pixels), share[:, None])

    def ellipse(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Approximate distance to ellipses of half-axes a, b `[N]`."""
        dx, dy = self._from(x, y)
        radius = torch.sqrt((dx / _wide(a)) ** 2 + (dy / _wide(b)) ** 2 + 1e-12)
        return (radius - 1) * torch.minimum(_wide(a), _wide(b))

    def box(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Distance to upright rectangles of half-edges a, b `[N]`."""
        dx, dy = self._from(x, y)
        return torch.maximum(dx.abs() - _wide(a), dy.abs() - _wide(b))

    def arc(self, x: Tensor, y: Tensor, half: Tensor, bend: Tensor, thick: Tensor) -> Tensor:
        """Distance to a stroke along `y + bend (1 - 2 (dx / half)^2) / 2`: a mouth; bend > 0 smiles."""
        dx, dy = self._from(x, y)
        along = (dx / _wide(half)).clamp(-1, 1)
        off = dy - 0.5 * _wide(bend) * (1 - 2 * along**2)
        beyond = (dx.abs() - _wide(half)).clamp_min(0)
        return torch.sqrt(off**2 + beyond**2 + 1e-12) - _wide(thick)

    def _from(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.x - _wide(x), self.y - _wide(y)


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]


def _between(palette: Tensor, at: Tensor) -> Tensor:
    """Colours `[N, 3]` at positions in [0, 1] along a palette `[P, 3]`."""
    place = at * (len(palette) - 1)
    low = place.floor().long().clamp_max(len(palette) - 2)
    return torch.lerp(palette[low], palette[low + 1], (place - low)[:, None])


def render(f: Factors, size: int = 32, style: str = "cartoon", texture: Texture | None = None) -> Tensor:
    """Draw faces: uint8 `[N, 3, S, S]`; cartoons with freckles and strands of hair where `texture` is given."""
    if size < 16:
        raise ConfigError(f"faces need at least 16 pixels, got {size}")
    if style not in STYLES:
        raise ConfigError(f"face style {style!r} is unknown; use one of {', '.join(STYLES)}")
    canvas, m = _Canvas(len(f.age), size), _measure(f)
    if style == "emoji":
        _draw_disc(canvas, m)
    else:
        _draw_head(canvas, f, m, texture)
    _draw_features(canvas, f, m, style)
    return (canvas.pixels * 255).round().to(torch.uint8)


def _draw_disc(canvas: _Canvas, m: _Face) -> None:
    canvas.pixels += 1.0
    zero = torch.zeros_like(m.shift)
    canvas.paint(canvas.ellipse(zero, zero + 0.1, zero + 0.86, zero + 0.86), torch.tensor([0.80, 0.55, 0.05]))
    canvas.paint(canvas.ellipse(zero, zero + 0.1, zero + 0.80, zero + 0.80), torch.tensor([1.0, 0.83, 0.20]))


def _draw_freckles(canvas: _Canvas, skin: Tensor, m: _Face, texture: Texture) -> None:
    """Dark dots on both cheeks, between the eyes and the mouth."""
    zero = torch.zeros_like(m.shift)
    for number, dot in enumerate(texture.dots.unbind(1)):
        x, y = dot.unbind(1)
        side = 1 - 2 * (number % 2)
        at = m.shift + side * (0.12 + 0.26 * x), m.eye_y + 0.14 + 0.24 * y
        canvas.paint(canvas.ellipse(*at, zero + 0.03, zero + 0.03), 0.5 * skin, texture.freckles)


def _strands(canvas: _Canvas, hair: Tensor, m: _Face, texture: Texture) -> Tensor:
    """Hair colour `[N, 3, S, S]` with light and dark strands that fan out from the crown."""
    across = (canvas.x - _wide(m.shift)) / (1.2 + 0.5 * canvas.y)  # strands part on their way down
    shade = torch.zeros_like(across)
    for pair in texture.waves.unbind(1):
        frequency, phase = 4.0 + 2.5 * pair[:, 0], pair[:, 1]
        shade = shade + torch.sin(2 * torch.pi * (_wide(frequency) * across + _wide(phase))) / WAVES
    light = 1.0 + 0.9 * shade * _wide(texture.strands)
    return (hair[:, :, None, None] * light[:, None]).clamp(0, 1)


def _draw_head(canvas: _Canvas, f: Factors, m: _Face, texture: Texture | None = None) -> None:
    zero = torch.zeros_like(m.shift)
    shade = torch.stack((0.55 + 0.35 * f.backdrop, 0.72 + 0.15 * f.backdrop, 0.90 - 0.25 * f.backdrop), dim=1)
    canvas.pixels += shade.view(-1, 3, 1, 1)
    skin = _between(_SKIN, f.identity[:, 6])
    grey = torch.tensor([0.82, 0.82, 0.84])
    hair = torch.lerp(_between(_HAIR, f.identity[:, 7]), grey, ((f.age - 0.5) * 2.2).clamp(0, 1)[:, None])
    hair = hair if texture is None else _strands(canvas, hair, m, texture)
    long = canvas.ellipse(zero, m.centre + 0.15, m.width + 0.20, m.length + 0.12)
    canvas.paint(long, hair, f.woman)
    canvas.paint(
        canvas.ellipse(zero, zero + 1.12, 0.62 + 0.1 * (1 - f.woman), zero + 0.42), _between(_CLOTH, f.backdrop)
    )
    canvas.paint(canvas.box(zero, zero + 0.78, zero + 0.17, zero + 0.2), 0.88 * skin)
    canvas.paint(canvas.ellipse(zero, m.centre, m.width + 0.05, m.length + 0.03), hair, 1 - f.woman)
    canvas.paint(canvas.ellipse(zero, m.centre + 0.05, m.width, m.length - 0.02), skin)
    if texture is not None:
        _draw_freckles(canvas, skin, m, texture)
    # the hairline is what of the head lies above a curve; it recedes with age in men
    line = (
        canvas.y + _wide(0.30 + 0.16 * f.age * (1 - f.woman) - 0.05 * f.woman) - 0.35 * (canvas.x - _wide(m.shift)) ** 2
    )
    head = canvas.ellipse(zero, m.centre, m.width + 0.04, m.length + 0.03)
    canvas.paint(torch.maximum(head, line), hair)
    crease = 0.55 * ((f.age - 0.55) * 2.2).clamp(0, 1)
    for y in (-0.20, -0.13):
        canvas.paint(canvas.arc(m.shift, zero + y, zero + 0.20, zero - 0.03, zero + 0.012), 0.7 * skin, crease)


def _draw_features(canvas: _Canvas, f: Factors, m: _Face, style: str) -> None:
    zero = torch.zeros_like(m.shift)
    dark = torch.tensor([0.12, 0.09, 0.08])
    skin = _between(_SKIN, f.identity[:, 6]) if style == "cartoon" else torch.tensor([[1.0, 0.83, 0.20]])
    for side in (-1, 1):
        x = m.shift + side * m.eye_gap
        canvas.paint(canvas.ellipse(x, m.eye_y, 1.35 * m.eye, m.eye), torch.ones(3))
        canvas.paint(canvas.ellipse(x + 0.25 * m.shift, m.eye_y, 0.65 * m.eye, 0.8 * m.eye), dark)
        canvas.paint(
            canvas.arc(x, m.eye_y - 2.0 * m.eye, 1.5 * m.eye, zero - 0.04, 0.018 + 0.02 * f.identity[:, 4]), dark
        )
        lash = canvas.arc(x, m.eye_y - 0.9 * m.eye, 1.5 * m.eye, zero - 0.05, zero + 0.018)
        canvas.paint(lash, dark, f.woman)
    nose = 0.045 + 0.04 * f.identity[:, 5]
    canvas.paint(canvas.ellipse(1.3 * m.shift, m.eye_y + 0.26, nose, 0.8 * nose), 0.78 * skin)
    lips = torch.lerp(torch.tensor([[0.55, 0.22, 0.20]]), torch.tensor([[0.82, 0.12, 0.22]]), f.woman[:, None])
    thick = 0.028 + 0.016 * f.woman
    canvas.paint(canvas.arc(m.shift, m.mouth_y, m.mouth, 0.24 * f.smile, thick), lips)
    teeth = torch.maximum(
        canvas.arc(m.shift, m.mouth_y - 0.02, 0.8 * m.mouth, 0.24 * f.smile, zero + 0.03),
        canvas.y - _wide(m.mouth_y + 0.02),
    )
    canvas.paint(teeth, torch.ones(3), ((f.smile - 0.5) * 3).clamp(0, 1))
    for side in (-1, 1):
        rim = canvas.ellipse(m.shift + side * m.eye_gap, m.eye_y, zero + 0.165, zero + 0.15).abs() - 0.028
        canvas.paint(rim, torch.tensor([0.08, 0.08, 0.12]), f.glasses)
    canvas.paint(
        canvas.box(m.shift, m.eye_y, m.eye_gap - 0.16, zero + 0.02), torch.tensor([0.08, 0.08, 0.12]), f.glasses
    )


class FaceSamples:
    """The pure function from indices to samples of one split; pictures that were drawn once are kept (3 KB each)."""

    def __init__(
        self, *, seed: int, epoch: int, count: int, size: int, style: str = "cartoon", texture: bool = False
    ) -> None:
        self.seed, self.epoch, self.size, self.style, self.texture = seed, epoch, size, style, texture
        self._drawn = torch.zeros(count, dtype=torch.bool)
        self._images = torch.empty(count, 3, size, size, dtype=torch.uint8)

    def __call__(self, index: Tensor) -> dict[str, Tensor]:
        """`image`, `label` (into `CLASSES`), `attributes [N, 4]` (6 with texture), `identity [N, 8]`, `age [N]`,
        `landmarks [N, 5, 2]`, `glasses_box [N, 4]`."""
        key = keyed.sample_keys(self.seed, self.epoch, index)
        f, fine = factors(key), Texture.drawn(key) if self.texture else None
        missing = (~self._drawn[index]).nonzero().flatten()
        if len(missing):
            detail = None if fine is None else fine.take(missing)
            self._images[index[missing]] = render(f.take(missing), self.size, self.style, detail)
            self._drawn[index[missing]] = True
        return {
            "image": self._images[index],
            "label": f.label(),
            "attributes": f.attributes() if fine is None else torch.cat((f.attributes(), fine.attributes()), dim=1),
            "identity": f.identity,
            "age": f.age,
            "landmarks": landmarks(f),
            "glasses_box": glasses_box(f),
        }


def load(
    *,
    size: int = 32,
    train: int = 8_000,
    test: int = 2_000,
    seed: int = 0,
    style: str = "cartoon",
    texture: bool = False,
) -> Data:
    """Faces as `Data` of kind `images`; splits differ in their keys, so no face is in two of them.

    With `texture`, half of the cartoons have freckles and half have strands of hair: attributes of their own, drawn
    beside the others, so that everything else about a face stays as it is without.
    """
    render(factors(torch.zeros(1, dtype=torch.int64)), size, style)  # a wrong size or style is named here
    if texture and style != "cartoon":
        raise ConfigError(f"texture is for cartoon faces, not for style {style!r}")
    attributes = [*ATTRIBUTES, *FINE] if texture else list(ATTRIBUTES)
    info = {"shape": (3, size, size), "classes": list(CLASSES), "scale": 255, "attributes": attributes}
    parts = {}
    for name, epoch in _SPLITS.items():
        count = train if name == "train" else test
        made = FaceSamples(seed=seed, epoch=epoch, count=count, size=size, style=style, texture=texture)
        parts[name] = WorldSplit(made, count)
    return Data("faces", "images", parts["train"], parts["valid"], parts["test"], info)
