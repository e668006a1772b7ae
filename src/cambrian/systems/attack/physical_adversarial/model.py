"""The iterative attacks, the destruction rate, and the transformations that it is taken over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data.random import normal, sample_keys
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.attack import Goal, ascend, finish
from cambrian.inspect.camera import Photo, softened
from cambrian.inspect.jpeg import jpeg
from cambrian.inspect.results import AttackResult
from cambrian.inspect.target import Target

Transform = Callable[[Tensor], Tensor]
ATTACKS = ("fast", "basic", "least-likely")
CONFIDENT = 0.8  # of the clean and of the wrong answer, for the prefiltered regime (section 3.1)


# -- attacks -----------------------------------------------------------------------------------------------------------


def iterations(eps: float) -> int:
    """`min(eps + 4, 1.25 eps)` steps of one grey level, `eps` in grey levels (section 2.2); here a fraction of the
    range.
    """
    levels = 255 * eps
    return max(1, round(min(levels + 4, 1.25 * levels)))


@dataclass(frozen=True)
class LeastLikely(Goal):
    """Towards the class that the network finds least likely for the first inputs that it sees; reached by any wrong
    answer.

    The class is read off the attack's own first step, so it costs no pass of its own. Made anew for every batch.
    """

    aims: list[Tensor] = field(default_factory=list[Tensor])

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """`[B]`, to be raised."""
        if not self.aims:
            self.aims.append(logits.detach().argmin(1))
        return -F.cross_entropy(logits, self.aims[0], reduction="none")


def bim(
    target: Target, x: Tensor, y: Tensor, eps: float, alpha: float = 1 / 255, steps: int | None = None
) -> AttackResult:
    """Basic iterative method: `steps` (default `iterations(eps)`) moves of `alpha` away from `y`; sizes are fractions
    of the range.
    """
    return ascend(target, _laid_out(x), y, eps=eps, step=alpha, steps=steps or iterations(eps))


def illc(
    target: Target, x: Tensor, y: Tensor, eps: float, alpha: float = 1 / 255, steps: int | None = None
) -> AttackResult:
    """Iterative least-likely class method; success is any wrong answer, as the destruction rate counts it."""
    return ascend(target, _laid_out(x), y, eps=eps, step=alpha, steps=steps or iterations(eps), goal=LeastLikely())


def _laid_out(x: Tensor) -> Tensor:
    """The same pictures, channels last in memory: convolutions on a CPU then take nearly half the time."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class Through(nn.Module):
    """A network behind a camera: logits of photographs, each call under new conditions; differentiable.

    Sees the picture `views` times per call and gives the mean of the logits' log-probabilities, so that one gradient
    is an expectation over transformations.
    """

    def __init__(self, module: nn.Module, camera: Photo, views: int = 1) -> None:
        super().__init__()
        self.module, self.camera, self.views, self.calls = module, Photo(softened(camera.config), 0), views, 0
        self.seed = camera.seed

    def forward(self, x: Tensor) -> Tensor:
        """`x [B,C,H,W]` -> log-probabilities `[B,K]`."""
        seen = []
        for _ in range(self.views):
            self.calls += 1
            seen.append(self.module(self.camera.again(self.seed + self.calls)(x)).log_softmax(1))
        return torch.stack(seen).mean(0)


@dataclass
class Moves:
    """An attack by name and size, with or without knowledge of the camera."""

    name: str
    eps: float
    camera: Photo | None = None
    views: int = 1

    def __call__(self, target: Target, x: Tensor, y: Tensor) -> AttackResult:
        """Attack `x [B,C,H,W]` with labels `y [B]`; success is judged on the target itself, without a camera."""
        if self.name not in ATTACKS:
            raise ConfigError(f"attack must be one of {', '.join(ATTACKS)}, not {self.name!r}")
        if self.camera is None:
            return self._plain(target, x, y)
        behind = copy.copy(target)
        behind.module = Through(target.module, self.camera, self.views)
        moved = self._plain(behind, x, y)
        queries = {name: count * self.views for name, count in moved.queries.items()}
        return finish(target, x, y, moved.x_adv, eps=self.eps, queries=queries, trace=moved.trace)

    def _plain(self, target: Target, x: Tensor, y: Tensor) -> AttackResult:
        if self.name == "fast":
            return ascend(target, x, y, eps=self.eps)
        return (bim if self.name == "basic" else illc)(target, x, y, self.eps)


# -- what a transformation destroys ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """A destruction rate (None without a single success), over `count` successes, and the accuracies that go with it."""

    rate: float | None
    count: int
    accuracy: float  # of transformed adversarial pictures, all that were found again
    clean: float  # of transformed clean pictures
    lost: float  # share of pictures that were not found again


class Survey:
    """Clean pictures `x [B,...]` with labels `y [B]`, and what a transformation makes of them: the ground on which
    attacks are compared.

    A camera takes photograph i under the conditions of `index[i]`, clean or attacked. Pictures that it did not find
    again are left out. Raises `ShapeError` for inputs that are not a target's, `CapabilityError` where a camera cannot
    see them.
    """

    @torch.no_grad()
    def __init__(self, target: Target, x: Tensor, y: Tensor, transform: Transform, index: Tensor | None = None) -> None:
        target.check(x, y)
        self.target, self.x, self.y, self.transform, self.index = target, x, y, transform, index
        self.right = _right(target, x, y)
        after, self.found = self._seen(x)
        self.calm = _right(target, after, y)

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed pictures, and which of them were found again."""
        space = self.target.space
        if not isinstance(self.transform, Photo):
            return self.transform(x), torch.ones(len(x), dtype=torch.bool, device=x.device)
        if space.kind != "image" or (space.lo, space.hi) != (0.0, 1.0) or space.shape[0] not in (1, 3):
            raise CapabilityError(f"a camera sees grey or RGB pictures in [0, 1]; the target takes {space}")
        shot = self.transform.shoot(x, self.index)
        return shot.crops, shot.found

    @torch.no_grad()
    def rate(self, x_adv: Tensor, keep: Tensor | None = None) -> Rate:
        """The destruction rate of attacks `x_adv [B,...]`, and accuracies; `keep [B]` restricts all to some pictures."""
        return self.rates(x_adv, [keep])[0]

    @torch.no_grad()
    def rates(self, x_adv: Tensor, keeps: Sequence[Tensor | None]) -> list[Rate]:
        """`rate` for several restrictions, from the same photographs."""
        self.target.check(x_adv)
        if x_adv.shape != self.x.shape:
            raise ShapeError(f"attacked pictures must be {list(self.x.shape)} as the clean, got {list(x_adv.shape)}")
        after, found = self._seen(x_adv)
        fooled, back = ~_right(self.target, x_adv, self.y), _right(self.target, after, self.y)
        return [self._rate(fooled, back, found & self.found, keep) for keep in keeps]

    def _rate(self, fooled: Tensor, back: Tensor, known: Tensor, keep: Tensor | None) -> Rate:
        kept = torch.ones_like(known) if keep is None else keep
        known = known & kept
        judged = known & self.right & fooled
        total, count = max(int(known.sum()), 1), int(judged.sum())
        return Rate(
            rate=float((judged & back).sum()) / count if count else None,
            count=count,
            accuracy=float((known & back).sum()) / total,
            clean=float((known & self.calm).sum()) / total,
            lost=1 - int(known.sum()) / max(int(kept.sum()), 1),
        )


def destruction_rate(target: Target, x: Tensor, x_adv: Tensor, y: Tensor, transform: Transform) -> float | None:
    """`d` of section 3.2, between 0 and 1: the share of adversarial pictures that `transform` makes harmless. None
    when no attack had succeeded. See `Survey`.
    """
    return Survey(target, x, y, transform).rate(x_adv).rate


@torch.no_grad()
def destruction_of_photos(
    target: Target, x: Tensor, x_adv: Tensor, y: Tensor, clean: Tensor, moved: Tensor, found: Tensor
) -> Rate:
    """The same from pictures that somebody photographed: `clean`, `moved [B,...]` are what was cut out, `found [B]`
    whether it could be.
    """
    given = iter((clean, moved))
    return Survey(target, x, y, lambda _: next(given)).rate(x_adv, keep=None if bool(found.all()) else found)


def _right(target: Target, x: Tensor, y: Tensor) -> Tensor:
    space = target.space
    parts = [target.logits(part.clamp(space.lo, space.hi)) for part in x.split(256)]
    return torch.cat(parts).argmax(1) == y


@torch.no_grad()
def prefiltered(target: Target, x: Tensor, x_adv: Tensor, y: Tensor, least: float = CONFIDENT) -> Tensor:
    """The attacker's choice `[B]`: clean pictures classified rightly, attacked ones wrongly, both with confidence of at
    least `least`.
    """
    sure, guess = target.logits(x).softmax(1).max(1)
    sure_adv, guess_adv = target.logits(x_adv).softmax(1).max(1)
    return (guess == y) & (guess_adv != y) & (sure >= least) & (sure_adv >= least)


# -- artificial transformations (section 4) ----------------------------------------------------------------------------


def brightness(levels: float) -> Transform:
    """Adds so many grey levels."""
    return lambda x: (x + levels / 255).clamp(0, 1)


def contrast(factor: float) -> Transform:
    """Multiplies by a factor."""
    return lambda x: (x * factor).clamp(0, 1)


def blur(sigma: float) -> Transform:
    """Gaussian blur, `sigma` in pixels."""
    half = max(1, round(3 * sigma))
    line = torch.arange(-half, half + 1, dtype=torch.float32)
    weights = torch.exp(-line.square() / (2 * max(sigma, 1e-6) ** 2))
    weights = weights / weights.sum()

    def run(x: Tensor) -> Tensor:
        kernel = weights.to(x).expand(x.shape[1], 1, -1)
        wide = F.pad(x, (half,) * 4, mode="replicate")
        wide = F.conv2d(wide, kernel[:, :, None], groups=x.shape[1])
        return F.conv2d(wide, kernel[..., None], groups=x.shape[1]).clamp(0, 1)

    return run


def noise(levels: float, seed: int = 0) -> Transform:
    """Adds Gaussian noise of that standard deviation in grey levels; picture i has noise of (seed, i)."""

    def run(x: Tensor) -> Tensor:
        key = sample_keys(seed, 1, torch.arange(len(x), device=x.device))
        return (x + levels / 255 * normal(key, x[0].numel()).view_as(x).to(x.dtype)).clamp(0, 1)

    return run


def compression(quality: float) -> Transform:
    """Stores as JPEG and reads again."""
    return lambda x: jpeg(x, quality)


SWEEPS: Mapping[str, tuple[Callable[[float], Transform], Sequence[float]]] = {
    "brightness": (brightness, (-40, -20, 20, 40)),
    "contrast": (contrast, (0.7, 0.85, 1.2, 1.4)),
    "blur": (blur, (0.4, 0.6, 0.8, 1.2)),
    "noise": (noise, (4, 8, 16, 32)),
    "JPEG": (compression, (90, 70, 50, 30)),
}


def sweeps(target: Target, x: Tensor, attacked: Mapping[str, Tensor], y: Tensor) -> dict[str, dict[str, list[Rate]]]:
    """For each transformation and attack the destruction at each of its strengths: `{transformation: {attack: rates}}`.

    `attacked` maps an attack's name to its pictures, made from `x`.
    """
    found: dict[str, dict[str, list[Rate]]] = {}
    for name, (make, values) in SWEEPS.items():
        grounds = [Survey(target, x, y, make(value)) for value in values]
        found[name] = {attack: [ground.rate(moved) for ground in grounds] for attack, moved in attacked.items()}
    return found
