"""Evidence for and against a class: the change of its log-odds when a patch is averaged over what it might have been.

Shapes: B batch, C channels, H W pixels, P patches, S samples, K classes, M classes asked for, Q quantities read (K
classes, or one unit).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect.hooks import capture, find
from cambrian.inspect.target import Target
from cambrian.systems.explain.prediction_difference._samplers import (
    Conditional,
    Constant,
    Marginal,
    PatchGaussian,
    Sampler,
    cut,
    patch_corners,
)

SAMPLERS = ("conditional", "marginal", "zero", "grey")
PICTURES, PATCHES = 8, 256  # worked on at once: bounds the memory of the replacements
Read = Callable[[Tensor], Tensor]


def log_odds(p: Tensor, count: int, classes: int) -> Tensor:
    """log2 odds of probabilities after the Laplace correction `(p N + 1) / (N + K)`: finite at 0 and 1."""
    p = (p.double() * count + 1) / (count + classes)
    return torch.log2(p) - torch.log2(1 - p)


def reader(target: Target, quantity: str) -> Read:
    """What is watched: "prob" `[B,K]`, "logit" `[B,K]` (before the softmax), or "unit:LAYER/CHANNEL" `[B,1]`, the mean
    of that feature map. Raises `ConfigError` for an unknown quantity, layer or channel.
    """
    if quantity in ("prob", "logit"):
        return lambda x: target.module(x).softmax(1) if quantity == "prob" else target.module(x)
    kind, _, place = quantity.partition(":")
    name, _, channel = place.rpartition("/")
    if kind != "unit" or not name or not channel.isdigit():
        raise ConfigError(f"quantity must be prob, logit or unit:LAYER/CHANNEL, not {quantity!r}")
    find(target.module, name)

    def unit(x: Tensor) -> Tensor:
        found = capture(target.module, x, [name])[name]
        if int(channel) >= found.shape[1]:
            raise ConfigError(f"layer {name!r} has {found.shape[1]} channels, there is no {channel}")
        return found[:, int(channel)].reshape(len(x), -1).mean(1, keepdim=True)

    return unit


def spread(evidence: Tensor, corners: Tensor, k: int, height: int, width: int) -> Tensor:
    """Every pixel's mean over the patches that cover it: `[...,P]` -> `[...,H,W]`."""
    total = evidence.new_zeros(*evidence.shape[:-1], height, width)
    count = evidence.new_zeros(height, width)
    for number, (row, column) in enumerate(corners.tolist()):
        total[..., row : row + k, column : column + k] += evidence[..., number, None, None]
        count[row : row + k, column : column + k] += 1
    return total / count


@torch.no_grad()
def patch_means(read: Read, x: Tensor, clean: Tensor, fills: Tensor, corners: Tensor, batch: int) -> Tensor:
    """Mean of `read` over the S replacements of each patch, float64 `[B,P,Q]`.

    `clean [B,Q]` is `read(x)`, `fills [B,P,S,C,k,k]`. Variants equal to the picture itself are not computed again; the
    others go through in full batches, whatever picture and patch they belong to.
    """
    channels, k = fills.shape[3], fills.shape[4]
    values = clean[:, None, None].repeat(1, fills.shape[1], fills.shape[2], 1)
    todo = (~(fills == cut(x, corners, k)[:, :, None]).flatten(3).all(3)).nonzero()
    line = torch.arange(k, device=x.device)
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    corners = corners.to(x.device)
    for part in todo.split(batch):
        picture, patch, sample = part.T
        variants = x[picture].contiguous(memory_format=torch.channels_last)  # half as fast again on a CPU
        rows, columns = (corners[patch, i, None] + line for i in (0, 1))
        place = torch.arange(len(part), device=x.device)[:, None, None, None]
        variants[place, channel, rows[:, None, :, None], columns[:, None, None, :]] = fills[picture, patch, sample]
        values[picture, patch, sample] = read(variants)
    return values.double().mean(2)


@dataclass(frozen=True)
class PDA:
    """Prediction difference analysis of any image classifier.

    `k` pixels of patch and `stride` between patches, `window` pixels of surroundings that a patch is conditioned on,
    `samples` replacements, `sampler` one of `SAMPLERS`, `quantity` as in `reader`, `batch` variants per forward pass.
    """

    k: int = 4
    window: int = 8
    stride: int = 1
    samples: int = 10
    sampler: str = "conditional"
    quantity: str = "prob"
    batch: int = 512
    patches: int = 10_000
    pictures: int = 2000

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if not 1 <= self.stride <= self.k or self.window < self.k or min(self.samples, self.batch) < 1:
            raise ConfigError(
                f"need 1 <= stride <= k <= window, and samples and batch of at least 1, not stride={self.stride}, "
                f"k={self.k}, window={self.window}, samples={self.samples}, batch={self.batch}"
            )

    def prepare(self, target: Target, generator: torch.Generator, images: Tensor | None = None) -> Sampler:
        """The sampler for a target, from `pictures` training images (or `images [N,C,H,W]` in its space).

        Raises `CapabilityError` for a target that takes no pictures, `DataError` when it has no training images and none
        are given.
        """
        space = target.space
        if space.kind != "image":
            raise CapabilityError(f"patches are cut from pictures; this target takes {space.kind}")
        if self.sampler in ("zero", "grey"):
            return Constant(min(max(0.0, space.lo), space.hi) if self.sampler == "zero" else (space.lo + space.hi) / 2)
        if images is None:
            index = torch.randperm(target.size("train"), generator=generator)[: self.pictures]
            images = target.draw("train", index)[0]
        space.check(images)
        if self.sampler == "marginal":
            return Marginal(images[torch.randint(len(images), (self.samples,), generator=generator)])
        model = PatchGaussian.fit(images, self.window, patches=self.patches, generator=generator)
        noise = torch.randn(self.samples, space.shape[0] * self.k**2, generator=generator, dtype=torch.float64)
        return Conditional(model, noise, space)

    def differences(
        self, target: Target, x: Tensor, sampler: Sampler, surroundings: Tensor | None = None, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evidence of every patch for every quantity `[B,P,Q]` and the patches' corners `[P,2]`.

        For "prob" the samples' probabilities are averaged first and the log-odds are taken of the mean; `count` is the N
        of the Laplace correction (default: the size of the training split). `surroundings` replace `x` where the patches
        are conditioned.
        """
        target.check(x)
        around = x if surroundings is None else surroundings
        if around.shape != x.shape:
            raise ShapeError(f"surroundings must be {list(x.shape)} as the inputs, got {list(around.shape)}")
        corners = patch_corners(*x.shape[2:], self.k, self.stride)
        read, parts = reader(target, self.quantity), []
        with target.quiet(), torch.no_grad():
            for one, other in zip(x.split(PICTURES), around.split(PICTURES), strict=True):
                clean, rows = read(one), []
                for some in corners.split(PATCHES):
                    rows.append(patch_means(read, one, clean, sampler.fill(other, some, self.k), some, self.batch))
                parts.append(self._difference(target, clean.double(), torch.cat(rows, 1), count))
        return torch.cat(parts), corners

    def _difference(self, target: Target, clean: Tensor, means: Tensor, count: int | None) -> Tensor:
        if self.quantity != "prob":
            return clean[:, None] - means
        known, classes = target.size("train") if count is None else count, len(target.classes)
        return log_odds(clean, known, classes)[:, None] - log_odds(means, known, classes)

    def __call__(
        self,
        target: Target,
        x: Tensor,
        classes: Tensor | None = None,
        *,
        generator: torch.Generator,
        sampler: Sampler | None = None,
        surroundings: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Maps `[B,M,H,W]` float32 for the classes `[B]` or `[B,M]` (a unit: none, M = 1): positive speaks for it.

        Costs at most `samples` forward evaluations for each patch, and one for each picture. `sampler` is one that `prepare` gave.
        """
        found, corners = self.differences(
            target, x, sampler or self.prepare(target, generator), surroundings=surroundings, count=count
        )
        if self.quantity in ("prob", "logit"):
            found = found.gather(
                2, _class_table(classes, len(x), len(target.classes))[:, None].expand(-1, len(corners), -1)
            )
        return spread(found.transpose(1, 2), corners, self.k, *x.shape[2:]).float()


def _class_table(classes: Tensor | None, batch: int, known: int) -> Tensor:
    """`[B]` or `[B,M]` -> checked `[B,M]`."""
    if classes is None or classes.dtype != torch.int64 or classes.dim() not in (1, 2) or len(classes) != batch:
        seen = "none" if classes is None else f"{classes.dtype} {list(classes.shape)}"
        raise ShapeError(f"classes must be int64 [{batch}] or [{batch}, M], got {seen}")
    if not 0 <= int(classes.min()) <= int(classes.max()) < known:
        raise ShapeError(f"classes must lie in 0..{known - 1}, got {int(classes.min())}..{int(classes.max())}")
    return classes.view(batch, -1)
