"""A printer and a camera as one batched, differentiable function: what is left of a picture that was printed,
photographed and cut out again.

    picture -> ink (gamut, dot gain, halftone, uneven dots) -> sheet with four ring marks
            -> perspective, focus, motion, exposure, white balance, vignette, shot and read noise, Bayer filter, demosaic
            -> JPEG -> marks found -> homography -> picture cut out at its own size

Every picture has a sheet and a photograph of its own. All that is random about photograph i is a pure function of
(seed, i): two versions of a picture are photographed under the same conditions when they stand at the same index.
Gradients run through everything except where the marks were found; rounding passes them straight through.

Light is linear inside of the printer and the camera, with the square as the tone curve (a display gamma of 2).

Shapes: B batch, C = 1 or 3 channels, H W pixels of the picture, S pixels of the square photograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.data.random import integers, sample_keys, uniform
from cambrian.errors import ConfigError, ShapeError
from cambrian.inspect.fiducials import homography, locate, mark, transform, warp
from cambrian.inspect.jpeg import jpeg, straight_round

MARGIN = 0.4  # white border of the sheet, of the picture's shorter side
RADIUS = 0.07  # radius of a mark, likewise
CHUNK = 8  # photographs at a time on a CPU: they stay in its cache
LUMA = (0.299, 0.587, 0.114)
SPAN = 128  # noise of a photograph is a window of a larger field, moved by up to so many pixels


@dataclass(frozen=True)
class PhotoConfig:
    """What printing and photographing do; a range is drawn from anew for every photograph."""

    dots: int = 4  # printed dots per picture pixel and direction
    inks: int = 4  # sizes of a dot, with none
    halftone: str = "bayer"  # how a tone becomes dots: bayer, or none (continuous tone)
    saturation: float = 0.85  # of the picture's colours that the inks reach
    black: float = 0.04  # reflectance of full ink
    dot_gain: float = 0.15  # ink that spreads, at most a quarter of this of the area
    ink_noise: float = 0.03  # standard deviation of a dot's reflectance
    sampling: float = 3.0  # photograph pixels per picture pixel at the middle distance
    tilt: float = 8.0  # degrees, about both axes of the sheet
    roll: float = 4.0  # degrees, of the camera
    distance: float = 0.08  # nearer or farther, of the middle distance
    shift: float = 0.03  # of the photograph's side
    defocus: tuple[float, float] = (0.4, 1.1)  # standard deviation in photograph pixels
    motion: float = 1.5  # longest smear, in photograph pixels
    exposure: tuple[float, float] = (0.75, 1.0)  # of the light that saturates the sensor, from the paper
    white_balance: float = 0.06  # gain of red against blue
    vignette: float = 0.25  # light lost in the corners, at most
    electrons: float = 4000.0  # that saturate one photosite
    read_noise: float = 0.003  # of saturation
    bayer: bool = True  # one colour per photosite
    quality: tuple[int, int] = (75, 95)  # of the camera's JPEG; 0 and 0: none
    known: bool = False  # cut out by the true geometry instead of the marks

    def __post_init__(self) -> None:
        if self.dots < 1 or self.inks < 2 or self.halftone not in ("bayer", "none"):
            raise ConfigError(
                f"dots must be >= 1, inks >= 2 and halftone bayer or none, got {self.dots}, {self.inks}, {self.halftone!r}"
            )
        for name in ("saturation", "black", "dot_gain", "ink_noise", "distance", "shift", "white_balance", "vignette"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if not 1.0 <= self.sampling <= 16 or not 0 <= self.tilt <= 60 or self.electrons <= 0 or self.motion < 0:
            raise ConfigError("sampling must lie in 1..16, tilt in 0..60, electrons above 0 and motion be 0 or more")
        for name in ("defocus", "exposure", "quality"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "exposure" and low == 0):
                raise ConfigError(f"{name} must be a range low <= high of positive numbers, got {low} and {high}")


MILD = PhotoConfig(tilt=3.0, ink_noise=0.01, defocus=(0.2, 0.5), motion=0.5, electrons=20_000.0, quality=(95, 95))
HARSH = PhotoConfig(tilt=12.0, sampling=2.0, defocus=(0.8, 1.6), motion=3.0, electrons=800.0, quality=(40, 70))


@dataclass
class Shot:
    """`crops [B, C, H, W]`; `found [B]`: whether the marks were; the photographs `[B, 3, S, S]`; where the picture's
    corners were found and where they are, `[B, 4, 2]` in photograph pixels.
    """

    crops: Tensor
    found: Tensor
    photos: Tensor
    corners: Tensor
    truth: Tensor


class Photo:
    """Prints, photographs and cuts out; see `photo`."""

    def __init__(self, config: PhotoConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """What is cut out of the photographs, `[B, C, H, W]` in [0, 1]; see `shoot`."""
        return self.shoot(x, index).crops

    def shoot(self, x: Tensor, index: Tensor | None = None) -> Shot:
        """`x [B, 1|3, H, W]` in [0, 1]; photograph i has the conditions of `index[i]` (default: its place in the
        batch). Where the marks are not found the picture is cut out by the true geometry.
        """
        if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point() or not len(x):
            raise ShapeError(f"a photograph is taken of pictures [B, 1|3, H, W], got {x.dtype} {list(x.shape)}")
        if not bool(torch.isfinite(x).all()) or float(x.detach().min()) < -1e-6 or float(x.detach().max()) > 1 + 1e-6:
            raise ShapeError("pictures to be photographed must be finite and lie in [0, 1]")
        index = torch.arange(len(x), device=x.device) if index is None else index
        keys = sample_keys(self.seed, 0, index)
        size = CHUNK if x.device.type == "cpu" else 32 * CHUNK
        parts = [self._shoot(*pair) for pair in zip(x.split(size), keys.split(size), strict=True)]
        names = ("crops", "found", "photos", "corners", "truth")
        return Shot(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def again(self, seed: int) -> Photo:
        """The same camera under other conditions."""
        return Photo(self.config, seed)

    def _shoot(self, x: Tensor, key: Tensor) -> Shot:
        c, (h, w) = self.config, x.shape[2:]
        layout = Layout.of(h, w)
        page = layout.page(printed(x.expand(-1, 3, -1, -1), c, key), c.dots)
        side = 16 * math.ceil(c.sampling * max(layout.size) * 1.2 / 16)
        view = viewpoint(c, layout, side, key)
        scale = torch.diag(view.new_tensor([c.dots, c.dots, 1.0]))
        scene = warp(page, scale @ torch.linalg.inv(view), (side, side), fill=0.1)
        photos = developed(scene, c, key)
        truth = transform(view, layout.corners().to(x).expand(len(x), -1, -1))
        cut, found = view, torch.ones(len(x), dtype=torch.bool, device=x.device)
        if not c.known:
            grey = torch.einsum("c,bchw->bhw", photos.new_tensor(LUMA), photos.detach())
            centres, score = locate(grey, layout.radius * c.sampling)
            seen = homography(layout.marks().to(x).expand(len(x), -1, -1), centres)
            found = (score > 0) & torch.isfinite(seen).flatten(1).all(1)
            cut = torch.where(found[:, None, None], seen, view)
        corners = transform(cut, layout.corners().to(x).expand(len(x), -1, -1))
        crops = crop(photos, cut, layout, round(max(1, c.sampling)))
        crops = crops if x.shape[1] == 3 else torch.einsum("c,bchw->bhw", crops.new_tensor(LUMA), crops)[:, None]
        return Shot(crops, found, photos, corners, truth)


def photo(config: PhotoConfig | None = None, seed: int = 0) -> Photo:
    """`photo(PhotoConfig(), seed)(x)`: pictures `[B, 1|3, H, W]` in [0, 1] as they come back from print and camera."""
    return Photo(config or PhotoConfig(), seed)


@dataclass(frozen=True)
class Layout:
    """Where things stand on a sheet of one picture, in picture pixels: the picture lies `margin` from each side."""

    height: int
    width: int
    margin: float
    radius: float

    @classmethod
    def of(cls, height: int, width: int) -> Layout:
        short = min(height, width)
        return cls(height, width, float(math.ceil(MARGIN * short)), RADIUS * short)

    @property
    def size(self) -> tuple[float, float]:
        """Height and width of the sheet."""
        return self.height + 2 * self.margin, self.width + 2 * self.margin

    def marks(self) -> Tensor:
        """Centres of the marks `[1, 4, 2]`, clockwise from the top left."""
        edge, (h, w) = self.margin / 2, self.size
        return torch.tensor([[[edge, edge], [w - edge, edge], [w - edge, h - edge], [edge, h - edge]]])

    def corners(self) -> Tensor:
        """Corners of the picture `[1, 4, 2]`, likewise."""
        m, h, w = self.margin, self.height, self.width
        return torch.tensor([[[m, m], [m + w, m], [m + w, m + h], [m, m + h]]])

    def page(self, picture: Tensor, dots: int) -> Tensor:
        """The sheet `[B, 3, .., ..]` in dots around a printed picture `[B, 3, H dots, W dots]`."""
        around = round(self.margin * dots)
        blank = self._blank(dots, str(picture.device)).to(picture.dtype)
        return F.pad(picture, (around,) * 4) + blank

    @lru_cache(maxsize=8)  # noqa: B019
    def _blank(self, dots: int, device: str) -> Tensor:
        """The sheet without its picture, which is left black."""
        h, w = (round(side * dots) for side in self.size)
        sheet = torch.ones(h, w)
        half = math.ceil(self.radius * dots) + 2
        for number, (x, y) in enumerate((self.marks()[0] * dots).tolist()):
            left, top = round(x) - half, round(y) - half
            stamp = mark(self.radius * dots, number > 0, 2 * half, (x - left, y - top))
            sheet[top : top + 2 * half, left : left + 2 * half] = stamp
        around = round(self.margin * dots)
        sheet[around : h - around, around : w - around] = 0
        return sheet.to(device)


def printed(x: Tensor, config: PhotoConfig, key: Tensor) -> Tensor:
    """Reflectance `[B, 3, H dots, W dots]` of the printed pictures `[B, 3, H, W]`, keys `[B]`."""
    c = config
    light = x.square()
    luma = torch.einsum("c,bchw->bhw", x.new_tensor(LUMA), light)[:, None]
    light = c.black + (1 - c.black) * (luma + c.saturation * (light - luma))
    cover = 1 - light
    cover = (cover + c.dot_gain * cover * light).clamp(0, 1)
    cover = cover.repeat_interleave(c.dots, 2).repeat_interleave(c.dots, 3)
    h, w = cover.shape[2:]
    if c.halftone == "bayer":
        steps = cover * (c.inks - 1)
        thresholds = _thresholds(h, w, str(x.device)).to(x.dtype)
        dots = torch.floor(steps.detach() + thresholds).clamp_max(c.inks - 1) / (c.inks - 1)
        cover = cover + (dots - cover.detach())
    if c.ink_noise:
        cover = cover + c.ink_noise * _noise(key, h, w, 3, stream=1).to(x) * cover.detach().clamp(0, 1)
    return (1 - cover).clamp(0, 1)


@lru_cache(maxsize=8)
def _thresholds(h: int, w: int, device: str) -> Tensor:
    """The 8x8 Bayer matrix, tiled; the screens of the three inks are shifted against each other: `[3, h, w]`."""
    matrix = torch.zeros(1, 1)
    for _ in range(3):
        matrix = torch.cat([torch.cat([4 * matrix, 4 * matrix + 2], 1), torch.cat([4 * matrix + 3, 4 * matrix + 1], 1)])
    tiled = ((matrix + 0.5) / 64).repeat(math.ceil(h / 8), math.ceil(w / 8))[:h, :w]
    return torch.stack([tiled, tiled.roll((3, 1), (0, 1)), tiled.roll((1, 4), (0, 1))]).to(device)


@lru_cache(maxsize=8)
def _field(h: int, w: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(977)
    return torch.randn(channels, h + SPAN, w + SPAN, generator=generator)


def _noise(key: Tensor, h: int, w: int, channels: int, stream: int) -> Tensor:
    """Normal noise `[B, channels, h, w]`: a window of one fixed field, its place drawn by the key.

    Far cheaper than fresh numbers, and as good: no two windows overlap in the same place.
    """
    field = _field(h, w, channels)
    places = integers(key, 2, SPAN, stream=stream).tolist()
    return torch.stack([field[:, y : y + h, x : x + w] for y, x in places]).to(key.device)


def viewpoint(config: PhotoConfig, layout: Layout, side: int, key: Tensor) -> Tensor:
    """Maps `[B, 3, 3]` from sheet (in picture pixels) to photograph: a pinhole camera before a tilted sheet."""
    c = config
    draw = uniform(key, 6, low=-1.0, high=1.0, stream=2)
    a, b = (draw[:, i] * math.radians(c.tilt) for i in range(2))
    r = draw[:, 2] * math.radians(c.roll)
    far = 2.0 * max(layout.size)
    # the first two columns of Rz(r) Ry(b) Rx(a) span the sheet, the third row is what a point gains in distance
    x_axis = torch.stack([r.cos() * b.cos(), r.sin() * b.cos(), -b.sin()], 1)
    y_axis = torch.stack(
        [
            r.cos() * b.sin() * a.sin() - r.sin() * a.cos(),
            r.sin() * b.sin() * a.sin() + r.cos() * a.cos(),
            b.cos() * a.sin(),
        ],
        1,
    )
    depth = far * (1 + c.distance * draw[:, 3])
    move = torch.stack([c.shift * side * draw[:, i] / c.sampling for i in (4, 5)] + [depth], 1)
    plane = torch.stack([x_axis, y_axis, move], 2)
    height, width = layout.size
    centre = plane.new_tensor([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    lens = plane.new_tensor([[c.sampling * far, 0, side / 2], [0, c.sampling * far, side / 2], [0, 0, 1]])
    view = lens @ plane @ centre
    return view / view[:, 2:, 2:]


def developed(scene: Tensor, config: PhotoConfig, key: Tensor) -> Tensor:
    """The camera's picture file, read again: reflected light `[B, 3, S, S]` -> photographs in [0, 1]."""
    c, side = config, scene.shape[2]
    draw = uniform(key, 7, stream=4)
    scene = _blur(scene, c, draw)
    low, high = c.exposure
    light = (low + (high - low) * draw[:, 2]).view(-1, 1, 1, 1)
    warm = (2 * draw[:, 3] - 1) * c.white_balance
    gain = torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], 1)[:, :, None, None] * light
    line = torch.linspace(-1, 1, side, device=scene.device)
    away = (line.square()[:, None] + line.square()) / 2
    shade = 1 - c.vignette * draw[:, 4].view(-1, 1, 1, 1) * away
    raw = scene * gain.to(scene.dtype)
    raw = (_mosaic(raw) if c.bayer else raw) * shade.to(scene.dtype)
    grain = _noise(key, side, side, raw.shape[1], stream=5).to(scene)
    spread = (raw.detach().clamp(0, 1) / c.electrons + c.read_noise**2).sqrt()
    raw = (raw + spread * grain).clamp(0, 1)
    if c.bayer:
        raw = _demosaic(raw)
    stored = raw.clamp_min(1e-5).sqrt()
    if c.quality[1] == 0:
        return straight_round(stored * 255) / 255
    first, last = c.quality
    return jpeg(stored, first + (last - first) * draw[:, 5])


def _blur(scene: Tensor, config: PhotoConfig, draw: Tensor) -> Tensor:
    """Defocus and motion in one kernel: a Gaussian drawn along a short line."""
    c, (b, _, h, w) = config, scene.shape
    sigma = c.defocus[0] + (c.defocus[1] - c.defocus[0]) * draw[:, 0]
    if c.defocus[1] == 0 and c.motion == 0:
        return scene
    half = max(1, math.ceil(2.5 * c.defocus[1] + c.motion / 2))
    angle = 2 * math.pi * draw[:, 1]
    length = c.motion * draw[:, 6]
    steps = torch.linspace(-0.5, 0.5, 7, device=scene.device)[None] * length[:, None]
    line = torch.arange(-half, half + 1, device=scene.device).float()
    width = 2 * sigma.clamp_min(0.15).square().view(-1, 1, 1)
    across = torch.exp(-(line[None, None] - (steps * angle.cos()[:, None])[..., None]).square() / width)
    down = torch.exp(-(line[None, None] - (steps * angle.sin()[:, None])[..., None]).square() / width)
    kernel = torch.einsum("bty,btx->byx", down, across)
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).to(scene.dtype)
    padded = F.pad(scene, (half,) * 4, mode="replicate").transpose(0, 1).contiguous()
    return F.conv2d(padded, kernel[:, None], groups=b).transpose(0, 1).reshape(b, 3, h, w)


def _mosaic(scene: Tensor) -> Tensor:
    """What the photosites see, `[B, 1, S, S]`: red, green / green, blue."""
    raw = scene[:, 1:2].clone()
    raw[:, :, ::2, ::2] = scene[:, :1, ::2, ::2]
    raw[:, :, 1::2, 1::2] = scene[:, 2:, 1::2, 1::2]
    return raw


def _demosaic(raw: Tensor) -> Tensor:
    """Bilinear: a missing colour is the mean of its nearest photosites."""
    planes = F.pad(raw, (1, 1, 1, 1), mode="reflect").expand(-1, 3, -1, -1).clone()  # padded, red stands at odd places
    planes[:, 0, ::2] = 0
    planes[:, 0, :, ::2] = 0
    planes[:, 2, 1::2] = 0
    planes[:, 2, :, 1::2] = 0
    planes[:, 1, ::2, ::2] = 0
    planes[:, 1, 1::2, 1::2] = 0
    columns = planes[..., 1:-1] + (planes[..., :-2] + planes[..., 2:]) / 2
    red_blue = columns[:, ::2, 1:-1] + (columns[:, ::2, :-2] + columns[:, ::2, 2:]) / 2
    green = planes[:, 1]
    ring = green[:, :-2, 1:-1] + green[:, 2:, 1:-1] + green[:, 1:-1, :-2] + green[:, 1:-1, 2:]
    green = green[:, 1:-1, 1:-1] + ring / 4
    return torch.stack([red_blue[:, 0], green, red_blue[:, 1]], 1)


def crop(photos: Tensor, view: Tensor, layout: Layout, fine: int = 3) -> Tensor:
    """The pictures `[B, 3, H, W]` in photographs taken by `view`; each pixel is the mean of `fine` x `fine` samples."""
    base = view.new_tensor([[1 / fine, 0, layout.margin], [0, 1 / fine, layout.margin], [0, 0, 1]])
    large = warp(photos, view @ base, (layout.height * fine, layout.width * fine))
    return F.avg_pool2d(large, fine)


def softened(config: PhotoConfig) -> PhotoConfig:
    """The same camera for gradients: continuous tone and known geometry."""
    return replace(config, halftone="none", known=True)
