"""What may stand in a patch: samples given the surroundings, samples from other pictures, or one constant.

A sampler gives, for every patch of every picture, S replacements. The random numbers are drawn once and shared by all
patches and pictures (common random numbers): neighbouring patches then differ by their content and not by their luck.

Shapes: B batch, C channels, H W pixels, P patches of k x k with corners `[P, 2]` (row, column), S samples, window l x l.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cambrian.errors import ConfigError, DataError, ShapeError
from cambrian.inspect.target import Space

PER_VALUE = 5  # patches for each dimension of the Gaussian, below which its covariance is poor


class Sampler(Protocol):
    """Gives replacements for patches."""

    def fill(self, x: Tensor, corners: Tensor, k: int) -> Tensor:
        """`x [B,C,H,W]` (the surroundings) and `corners [P,2]` -> `[B,P,S,C,k,k]`."""
        ...


def patch_corners(height: int, width: int, k: int, stride: int) -> Tensor:
    """Corners `[P,2]` of all k x k patches, the last row and column of patches flush with the border."""
    if not 1 <= k <= min(height, width) or not 1 <= stride <= k:
        raise ConfigError(
            f"patches need 1 <= stride <= k <= {min(height, width)} (every pixel is then covered), not k={k}, "
            f"stride={stride}"
        )
    lines = [sorted({*range(0, side - k + 1, stride), side - k}) for side in (height, width)]
    return torch.cartesian_prod(*(torch.tensor(line) for line in lines))


def cut(x: Tensor, corners: Tensor, size: int) -> Tensor:
    """Squares of `x [B,C,H,W]`: `[B,P,C,size,size]`."""
    return x.unfold(2, size, 1).unfold(3, size, 1)[:, :, corners[:, 0], corners[:, 1]].transpose(1, 2)


@dataclass(frozen=True)
class Geometry:
    """The conditional Gaussian for one place of the patch in its window: positions `inside` and `outside` of it in the
    flattened window, `gain = S_wr S_rr^-1` and a Cholesky factor of `S_ww - gain S_rw`.
    """

    inside: Tensor
    outside: Tensor
    gain: Tensor
    factor: Tensor


class PatchGaussian:
    """One multivariate normal over all values of a window (colours are not separate features), the same everywhere."""

    def __init__(self, mean: Tensor, covariance: Tensor, *, channels: int, window: int, ridge: float = 1e-4) -> None:
        """`mean [D]`, `covariance [D,D]` with `D = channels * window * window`; `ridge` times the mean variance is added
        to the diagonal.
        """
        values = channels * window * window
        if mean.shape != (values,) or covariance.shape != (values, values):
            raise ShapeError(
                f"a Gaussian over {channels} x {window} x {window} values needs a mean [{values}] and a covariance of "
                f"its square, got {list(mean.shape)} and {list(covariance.shape)}"
            )
        if not (bool(torch.isfinite(mean).all()) and bool(torch.isfinite(covariance).all())):
            raise ShapeError("the Gaussian's mean or covariance holds NaN or infinity")
        self.channels, self.window, self.mean = channels, window, mean.double()
        floor = ridge * float(covariance.diagonal().double().mean()) + 1e-10
        self.covariance = covariance.double() + floor * torch.eye(values, dtype=torch.float64, device=mean.device)
        self._known: dict[tuple[int, int, int], Geometry] = {}

    @classmethod
    def fit(
        cls, images: Tensor, window: int, *, patches: int, generator: torch.Generator, ridge: float = 1e-4
    ) -> PatchGaussian:
        """From `patches` windows at random places of `images [N,C,H,W]`. Warns when they are few."""
        count, channels, height, width = images.shape
        if window > min(height, width):
            raise ConfigError(f"the window must fit into {height} x {width} pixels, not {window}")
        picked = torch.randint(count, (patches,), generator=generator)
        rows, columns = (torch.randint(side - window + 1, (patches,), generator=generator) for side in (height, width))
        windows = images.unfold(2, window, 1).unfold(3, window, 1)[picked, :, rows, columns].flatten(1).double()
        if patches < PER_VALUE * windows.shape[1]:
            warnings.warn(
                f"{patches} patches are few for {windows.shape[1]} values; take {PER_VALUE * windows.shape[1]}",
                stacklevel=2,
            )
        mean = windows.mean(0)
        centred = windows - mean
        return cls(mean, centred.T @ centred / max(patches - 1, 1), channels=channels, window=window, ridge=ridge)

    def geometry(self, k: int, row: int, column: int) -> Geometry:
        """Gain and factor of a k x k patch at that place of the window; solved once and kept."""
        if not (0 <= row <= self.window - k and 0 <= column <= self.window - k):
            raise ConfigError(f"a patch of {k} at ({row}, {column}) does not lie in a window of {self.window}")
        if (k, row, column) not in self._known:
            inner = torch.zeros(self.channels, self.window, self.window, dtype=torch.bool)
            inner[:, row : row + k, column : column + k] = True
            inside = inner.flatten().nonzero()[:, 0].to(self.mean.device)
            outside = (~inner).flatten().nonzero()[:, 0].to(self.mean.device)
            cross = self.covariance[inside][:, outside]
            gain = torch.linalg.solve(self.covariance[outside][:, outside], cross.T).T
            left = self.covariance[inside][:, inside] - gain @ cross.T
            self._known[k, row, column] = Geometry(inside, outside, gain, _cholesky((left + left.T) / 2))
        return self._known[k, row, column]


def _cholesky(matrix: Tensor) -> Tensor:
    """The factor, with as much added to the diagonal as it takes."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    unit = matrix.diagonal().mean().clamp_min(1e-12)
    for extra in (0.0, 1e-8, 1e-6, 1e-4, 1e-2):
        factor, info = torch.linalg.cholesky_ex(matrix + extra * unit * eye)
        if int(info) == 0:
            return factor
    raise DataError("the covariance of the patches is not positive definite; raise ridge")


@dataclass
class Conditional:
    """Samples from `N(mu_w + gain (x_r - mu_r), S_ww - gain S_rw)`, clipped to the space."""

    model: PatchGaussian
    noise: Tensor  # [S, C k k], standard normal
    space: Space

    def fill(self, x: Tensor, corners: Tensor, k: int) -> Tensor:
        size = self.model.window
        limits = torch.tensor([x.shape[2] - size, x.shape[3] - size])
        if int(limits.min()) < 0:
            raise ConfigError(f"the window of {size} does not fit into {list(x.shape[2:])} pixels")
        starts = torch.minimum((corners - (size - k) // 2).clamp_min(0), limits)
        out = x.new_empty(len(x), len(corners), len(self.noise), x.shape[1], k, k)
        for row, column in (corners - starts).unique(dim=0).tolist():
            chosen = (corners - starts == torch.tensor([row, column])).all(1).nonzero()[:, 0]
            part = self.model.geometry(k, row, column)
            around = cut(x, starts[chosen], size).flatten(2)[:, :, part.outside].double()
            mean = self.model.mean[part.inside] + (around - self.model.mean[part.outside]) @ part.gain.T
            spread = self.noise.to(mean) @ part.factor.T
            drawn = (mean[:, :, None] + spread).clamp(self.space.lo, self.space.hi)
            out[:, chosen] = drawn.unflatten(3, (x.shape[1], k, k)).to(x.dtype)
        return out


@dataclass
class Marginal:
    """The same place in S other pictures: what the patch may be when nothing is known of its surroundings."""

    images: Tensor  # [S, C, H, W]

    def fill(self, x: Tensor, corners: Tensor, k: int) -> Tensor:
        if self.images.shape[1:] != x.shape[1:]:
            raise ShapeError(f"the other pictures are {list(self.images.shape[1:])}, the inputs {list(x.shape[1:])}")
        return cut(self.images, corners, k).transpose(0, 1)[None].expand(len(x), -1, -1, -1, -1, -1)


@dataclass
class Constant:
    """One value everywhere, as in occlusion: one sample."""

    value: float
    samples: int = field(default=1, init=False)

    def fill(self, x: Tensor, corners: Tensor, k: int) -> Tensor:
        return x.new_full((1, 1, 1, 1, 1, 1), self.value).expand(len(x), len(corners), 1, x.shape[1], k, k)
