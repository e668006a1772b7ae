"""Which distribution the decoder's planes are read as, for pictures in [0, 1].

Shapes: `...` K samples and B batch, or N rows; C H W a picture, P planes = what the decoder gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cambrian.errors import ConfigError
from cambrian.nn.likelihood import Bernoulli, Categorical, Gaussian
from cambrian.nn.likelihood.discretized import DiscretizedLogistic
from cambrian.nn.likelihood.dmol import DMOL

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-scalar", "gaussian-pixel", "logistic", "categorical", "dmol")


class Pixels:
    """The output distribution called `kind` over pictures [C, H, W]; pixels are independent given the planes.

    `gaussian` has the fixed deviation `sigma`; `gaussian-scalar` takes one log variance for all pixels, which the model
    learns; `gaussian-pixel` predicts one a pixel. `logistic` gives a mass to each of 256 levels, `categorical`
    one to each of `levels`, and `dmol` is a mixture of `components` logistics over the colours of a pixel together (Salimans et
    al. 2017): only these compare in bits per dimension.
    """

    def __init__(self, kind: str, *, channels: int, sigma: float = 0.1, levels: int = 16, components: int = 5) -> None:
        if kind not in LIKELIHOODS:
            raise ConfigError(f"no likelihood {kind!r}; use one of {', '.join(LIKELIHOODS)}")
        self.kind, self.channels, self.levels = kind, channels, levels
        self.head = DMOL(components, channels) if kind == "dmol" else _head(kind, sigma, levels)
        outputs = 1 if kind == "gaussian-scalar" else self.head.n_params
        self.planes = outputs if kind == "dmol" else channels * outputs

    @property
    def bins(self) -> int:
        """How many values a pixel can have; 0 for densities."""
        known = {"bernoulli": 2, "categorical": self.levels, "logistic": 256, "dmol": 256}
        return known.get(self.kind, 0)

    def log_prob(self, raw: Tensor, x: Tensor, logvar: Tensor | None = None) -> Tensor:
        """log p(x) [...] in nats, summed over pixels, of planes [..., P, H, W] and pictures [B, C, H, W] (broadcast)."""
        found = self.head.log_prob(self._params(raw, logvar), self._target(x))
        return found.flatten(raw.dim() - 3).sum(-1)

    def sample(
        self, raw: Tensor, generator: torch.Generator, logvar: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Pictures [..., C, H, W] in [0, 1], a draw for every pixel."""
        return self._picture(self.head.sample(self._params(raw, logvar), generator, temperature))

    def mean(self, raw: Tensor, logvar: Tensor | None = None) -> Tensor:
        """Expected pictures [..., C, H, W] in [0, 1]."""
        return self._picture(self.head.mean(self._params(raw, logvar)))

    def bias(self, mean: Tensor) -> Tensor | None:
        """Planes [P, H, W] under which the expected picture is `mean` [C, H, W]; None where it is not one output a pixel."""
        if self.kind == "bernoulli":
            return torch.logit(mean.clamp(0.01, 0.99))
        return mean.clone() if self.kind in ("gaussian", "gaussian-scalar") else None

    def _params(self, raw: Tensor, logvar: Tensor | None) -> Tensor:
        if self.kind == "gaussian-scalar":
            assert logvar is not None
            return torch.stack((raw, logvar.expand_as(raw)), -1)
        if self.kind == "dmol":
            return raw.movedim(-3, -1)
        if self.planes == self.channels:
            return raw[..., None]
        return raw.unflatten(-3, (self.channels, -1)).movedim(-3, -1)

    def _target(self, x: Tensor) -> Tensor:
        if self.kind == "categorical":
            return (x * (self.levels - 1)).round().long()
        if self.kind == "dmol":
            return ((x * 255.0).round() * (2.0 / 255.0) - 1.0).movedim(-3, -1)
        return self.head.centre((x * 255.0).round()) if self.kind == "logistic" else x

    def _picture(self, values: Tensor) -> Tensor:
        if self.kind == "categorical":
            return values.float() / (self.levels - 1)
        if self.kind == "logistic":
            values = 0.5 + values / (255.0 * self.head.step)
        if self.kind == "dmol":
            values = ((values + 1.0) / 2.0).movedim(-1, -3)
        return values.clamp(0.0, 1.0)


def _head(kind: str, sigma: float, levels: int) -> Any:
    if kind == "bernoulli":
        return Bernoulli()
    if kind == "categorical":
        return Categorical(levels)
    if kind == "logistic":
        return DiscretizedLogistic()
    return Gaussian(sigma if kind == "gaussian" else None)
