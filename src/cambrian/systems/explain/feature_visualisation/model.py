"""Aims, parametrisations of the picture, and the ascent, for a batch of aims at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError, NonFiniteError, ShapeError
from cambrian.inspect.hooks import capture, find
from cambrian.inspect.target import Target
from cambrian.systems.explain.feature_visualisation._regularisers import TERMS, after_step, regularisers, term, viewed

PARAMS = ("pixel", "fourier")
STARTS = ("mean", "noise", "zero")
ACTIVATIONS = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.PReLU, nn.SiLU)


# -- aims --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Aim:
    """What a picture shall excite: a class (`layer` empty), a channel, one unit of it (`place` = y, x), or a
    direction `vector [D]` in the channels of a layer.
    """

    text: str
    layer: str = ""
    index: int = 0
    place: tuple[int, int] | None = None
    vector: Tensor | None = None

    def score(self, h: Tensor) -> Tensor:
        """How far `h` (one sample of the layer, `[D]` or `[D,h,w]`) goes; the mean over places of a channel."""
        if self.vector is not None:
            return self.vector.to(h) @ h if h.dim() == 1 else (self.vector.to(h)[:, None, None] * h).sum(0).mean()
        if h.dim() == 1:
            return h[self.index]
        return h[self.index].mean() if self.place is None else h[self.index][self.place]

    def check(self, shape: Sequence[int]) -> None:
        """Raise `ConfigError` unless a layer of this output shape (without batch) has what is wanted."""
        if len(shape) not in (1, 3):
            raise ConfigError(f"{self.text}: a layer must give [D] or [D, h, w] per picture, not {list(shape)}")
        if self.vector is not None:
            if self.vector.shape != (shape[0],):
                raise ConfigError(f"{self.text}: the direction must be [{shape[0]}], not {list(self.vector.shape)}")
            return
        if not 0 <= self.index < shape[0]:
            raise ConfigError(f"{self.text}: channel {self.index} is not among 0..{shape[0] - 1}")
        if self.place is not None and (len(shape) != 3 or any(not 0 <= p < s for p, s in zip(self.place, shape[1:]))):
            raise ConfigError(f"{self.text}: the layer's output {list(shape)} has no place {self.place}")


def parse(text: str, target: Target) -> Aim:
    """`class:NAME`, `class:#3` (by number), `layer:channel` or `layer:channel:y,x`. Raises `ConfigError`."""
    layer, _, rest = text.partition(":")
    if layer == "class":
        if rest in target.classes:
            return Aim(text, "", target.classes.index(rest))
        if rest.startswith("#") and rest[1:].isdigit() and int(rest[1:]) < len(target.classes):
            return Aim(text, "", int(rest[1:]))
        raise ConfigError(f"{text}: the target's classes are {target.classes[:20]}")
    find(target.module, layer)
    channel, _, place = rest.partition(":")
    try:
        where = tuple(int(v) for v in place.split(",")) if place else None
        if where is not None and len(where) != 2:
            raise ValueError
        return Aim(text, layer, int(channel), where)
    except ValueError as problem:
        raise ConfigError(f"{text!r} is not class:NAME, layer:channel or layer:channel:y,x") from problem


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass
class Picture:
    """What the ascent found, for each aim of a batch: pictures in the target's box, and how it went.

    `free [B,C,H,W]` are the pictures before they were clipped to the box, `score [B]` the aims' activations on the
    clipped ones, `free_score [B]` on the others, `dead [B]` whether the aim had no gradient and the layer's input was
    climbed instead, `trace` the mean activation at every step.
    """

    pictures: Tensor
    free: Tensor
    score: Tensor
    free_score: Tensor
    dead: Tensor
    trace: list[float] = field(default_factory=list[float])


class _Pixels:
    """Offsets themselves, coarse to fine: with `octaves` the first steps move an enlarged smaller picture."""

    def __init__(self, z: Tensor, lr: float, steps: int, octaves: int) -> None:
        self.z, self.lr, self.steps, self.octaves = z, lr, steps, octaves

    def offsets(self) -> Tensor:
        return self.z

    def climb(self, grad: Tensor, step: int) -> Tensor:
        left = self.octaves - 1 - (step - 1) * self.octaves // self.steps
        if left > 0:
            side = [max(1, s >> left) for s in grad.shape[2:]]
            grad = F.interpolate(F.adaptive_avg_pool2d(grad, side), size=grad.shape[2:], mode="bilinear")
        size = grad.square().mean((1, 2, 3), keepdim=True).sqrt()
        return self.z + self.lr * grad / size.clamp_min(1e-12)

    def keep(self, z: Tensor) -> None:
        self.z = z


class _Fourier:
    """Coefficients whose pictures have a spectrum falling as 1/f and the colours of the data; climbed by Adam."""

    def __init__(self, z: Tensor, lr: float, colours: Tensor) -> None:
        h, w = z.shape[2:]
        fy, fx = torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None]
        self.falloff = 1 / (fy.square() + fx.square()).sqrt().clamp_min(1 / max(h, w))
        self.colours, self.size, self.lr = colours, (h, w), lr
        self.value = self._coefficients(z)
        self.moments = [torch.zeros_like(self.value), torch.zeros_like(self.value)]

    def offsets(self) -> Tensor:
        return self._offsets(self.value)

    def _offsets(self, value: Tensor) -> Tensor:
        flat = torch.fft.irfft2(torch.view_as_complex(value) * self.falloff, s=self.size, norm="ortho")
        return torch.einsum("dc,bchw->bdhw", self.colours, flat)

    def climb(self, grad: Tensor, step: int) -> Tensor:
        with torch.enable_grad():
            value = self.value.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self._offsets(value), value, grad)
        slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1, 1)
        self.moments[0].lerp_(slope, 0.1)
        self.moments[1].lerp_(slope.square(), 0.01)
        first, second = self.moments[0] / (1 - 0.9**step), self.moments[1] / (1 - 0.99**step)
        self.value = self.value + self.lr * first / (second.sqrt() + 1e-8)
        return self.offsets()

    def keep(self, z: Tensor) -> None:
        self.value = self._coefficients(z)

    def _coefficients(self, z: Tensor) -> Tensor:
        b, c = z.shape[:2]
        flat = torch.linalg.solve(self.colours, z.transpose(0, 1).reshape(c, -1)).view(c, b, *self.size).transpose(0, 1)
        return torch.view_as_real(torch.fft.rfft2(flat, norm="ortho") / self.falloff).contiguous()


def visualise(
    target: Target,
    aims: str | Aim | Sequence[str | Aim],
    *,
    steps: int = 256,
    regs: Sequence[str] = (),
    param: str = "pixel",
    lr: float | None = None,
    start: str = "noise",
    copies: int = 1,
    octaves: int = 1,
    generator: torch.Generator | None = None,
) -> Picture:
    """Climb to pictures `[A copies, C, H, W]` for `A` aims of one layer, all in one batch that runs no further than the
    layer.

    `lr` is the root mean square move of a step in pixel units (default 0.02), for `param="fourier"` Adam's rate
    (default 0.05). `regs` are names of `regularisers.SETS` or single ones. Raises `ConfigError`, `CapabilityError` for
    targets that take no pictures, `NonFiniteError` when the ascent diverges.
    """
    wanted = [aims] if isinstance(aims, (str, Aim)) else list(aims)
    found = [parse(aim, target) if isinstance(aim, str) else aim for aim in wanted for _ in range(copies)]
    chosen, generator = regularisers(regs), generator or torch.Generator().manual_seed(0)
    _check(target, found, steps, param, start, copies, octaves)
    mean, colours = palette(target)
    z = _start(target, len(found), start, mean, generator)
    climber: _Pixels | _Fourier
    if param == "pixel":
        climber = _Pixels(z, lr or 0.02 * target.space.width, steps, octaves)
    else:
        climber = _Fourier(z, lr or 0.05, colours)
    groups = torch.arange(len(found)) // copies
    terms = [reg for reg in chosen if reg.name in TERMS]
    trace: list[float] = []
    with target.quiet() as module:
        runner = _Runner(module, found, mean + climber.offsets())
        for step in range(1, steps + 1):
            with torch.enable_grad():
                z = climber.offsets().detach().requires_grad_(True)
                scores, features = runner(viewed(chosen, mean + z, generator))
                loss = sum((term(reg, z, features, groups).sum() for reg in terms), torch.zeros(()))
                (grad,) = torch.autograd.grad(scores.sum() - loss, z)
            trace.append(float(scores.detach().mean()))
            if not math.isfinite(trace[-1]) or not bool(torch.isfinite(grad).all()):
                raise NonFiniteError(f"the ascent diverged at step {step}; lower lr or add a regulariser")
            climber.keep(after_step(chosen, climber.climb(grad, step), grad, step))
        free = (mean + climber.offsets()).detach()
        pictures = free.clamp(target.space.lo, target.space.hi)
        with torch.no_grad():
            free_score, score = runner(free)[0], runner(pictures)[0]
    return Picture(pictures, free, score, free_score, runner.dead, trace)


class _Runner:
    """Activations of each picture's aim; aims without a gradient are read at the input of an activation layer."""

    def __init__(self, module: nn.Module, aims: list[Aim], x: Tensor) -> None:
        self.module, self.aims, self.layer = module, aims, aims[0].layer
        self.dead = torch.zeros(len(aims), dtype=torch.bool)
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            scores, features = self(x)
            for aim in aims:
                aim.check(features.shape[1:])
            (grad,) = torch.autograd.grad(scores.sum(), x)
        idle = grad.flatten(1).abs().amax(1) == 0
        if bool(idle.any()) and self.layer and isinstance(find(module, self.layer), ACTIVATIONS):
            self.dead = idle

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[B]` and the layer's output."""
        x = x.contiguous(memory_format=torch.channels_last)  # convolutions on a CPU: nearly half the time
        if not self.layer:
            out = self.module(x)
            if out.dim() != 2:
                raise ShapeError(f"class pictures need logits [B, K], the network gives {list(out.shape)}")
            return self._scores(out, out), out
        names = [self.layer, *([f"{self.layer}:in"] if bool(self.dead.any()) else [])]
        seen = capture(self.module, x, names, grad=torch.is_grad_enabled())
        return self._scores(seen[names[0]], seen[names[-1]]), seen[names[0]]

    def _scores(self, h: Tensor, before: Tensor) -> Tensor:
        if len(h) != len(self.aims):
            raise ShapeError(f"layer {self.layer!r} gives {len(h)} outputs for {len(self.aims)} pictures")
        for aim in self.aims:
            aim.check(h.shape[1:])
        pairs = zip(self.aims, h, before, self.dead.tolist(), strict=True)
        return torch.stack([aim.score(under if dead else over) for aim, over, under, dead in pairs])


def _check(target: Target, aims: Sequence[Aim], steps: int, param: str, start: str, copies: int, octaves: int) -> None:
    if target.space.kind != "image":
        raise CapabilityError(f"pictures are made for targets that take images, not {target.space.kind}")
    if param not in PARAMS or start not in STARTS:
        raise ConfigError(f"param must be one of {PARAMS} and start one of {STARTS}, got {param!r} and {start!r}")
    if steps < 1 or copies < 1 or octaves < 1 or not aims:
        raise ConfigError("steps, copies and octaves must be at least 1, and there must be an aim")
    if len({aim.layer for aim in aims}) > 1:
        raise ConfigError("one call climbs aims of one layer; call again for another layer")


def _start(target: Target, n: int, start: str, mean: Tensor, generator: torch.Generator) -> Tensor:
    shape = (n, *target.space.shape)
    if start == "noise":
        return 0.05 * target.space.width * torch.randn(shape, generator=generator)
    return torch.zeros(shape) if start == "mean" else (target.space.lo - mean).expand(shape).clone()


@torch.no_grad()
def palette(target: Target, n: int = 500) -> tuple[Tensor, Tensor]:
    """Mean colour `[1,C,1,1]` of the training pictures and the square root of the colours' covariance `[C,C]`, largest
    variance 1; mid-grey and the identity when the target has no data.
    """
    space = target.space
    try:
        x = next(iter(target.batches("train", min(n, target.size("train")), size=n)))[0]
    except ValueError:  # no such split
        return torch.full((1, space.shape[0], 1, 1), (space.lo + space.hi) / 2), torch.eye(space.shape[0])
    pixels = x.transpose(0, 1).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(pixels).view(len(pixels), -1))
    root = vectors @ torch.diag(values.clamp_min(1e-4 * values.max()).sqrt()) @ vectors.T
    return pixels.mean(1).float().view(1, -1, 1, 1), (root / root.diagonal().max()).float()


# -- reading them ------------------------------------------------------------------------------------------------------


def high_frequency_share(pictures: Tensor) -> Tensor:
    """Share of the spectral energy (without the mean) of `[B,C,H,W]` above half the Nyquist frequency, `[B]`."""
    power = torch.fft.fft2(pictures - pictures.mean((2, 3), keepdim=True)).abs().square().sum(1)
    fy, fx = torch.fft.fftfreq(pictures.shape[2])[:, None], torch.fft.fftfreq(pictures.shape[3])[None]
    high = (fy.square() + fx.square()).sqrt() > 0.25
    return (power * high).sum((1, 2)) / power.sum((1, 2)).clamp_min(1e-20)


@torch.no_grad()
def top_crops(target: Target, aim: Aim, x: Tensor, count: int = 9) -> tuple[Tensor, Tensor]:
    """The `count` pictures of `x [N,C,H,W]` that excite an aim most, cut to its receptive field (filled with zeros
    outside of the picture), and all scores `[N]`. A channel's score is its largest place here.
    """
    maps = torch.cat(
        [target.features(part, [aim.layer])[aim.layer] if aim.layer else target.logits(part) for part in x.split(256)]
    )
    aim.check(maps.shape[1:])
    if maps.dim() == 2 or aim.place is not None or aim.vector is not None:
        scores = torch.stack([aim.score(h) for h in maps])
        return x[scores.topk(min(count, len(x))).indices], scores
    channel = maps[:, aim.index].flatten(1)
    scores, places = channel.max(1)
    best = scores.topk(min(count, len(x))).indices
    known = next((layer.field for layer in target.layers() if layer.name == aim.layer), None)
    if known is None or known.size >= max(x.shape[2:]):
        return x[best], scores
    side, wide = math.ceil(known.size), maps.shape[3]
    padded, crops = F.pad(x[best], (side,) * 4), []
    for picture, place in zip(padded, places[best].tolist(), strict=True):
        top, left = (
            round(known.offset + known.stride * at - (known.size - 1) / 2) + side for at in divmod(place, wide)
        )
        crops.append(picture[:, top : top + side, left : left + side])
    return torch.stack(crops), scores
