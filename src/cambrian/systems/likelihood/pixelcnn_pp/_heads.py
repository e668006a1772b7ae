"""The 256-way softmax over sub-pixels: the head that the mixture of logistics replaces. Shapes: `...` any, C channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError
from cambrian.nn.likelihood.dmol import DMOL

LEVELS = 256


@dataclass(frozen=True)
class SubPixelSoftmax:
    """A free logit for every level; those of green and blue move linearly with the values before: 1,536 outputs a pixel."""

    channels: int = 3

    @property
    def n_params(self) -> int:
        return LEVELS * (6 if self.channels == 3 else 1)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        """[..., C, 256] given the values x [..., C] of the channels before each."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(f"the last axis must hold {self.n_params} outputs, not {tuple(params.shape)}")
        parts = params.unflatten(-1, (-1, LEVELS))
        if self.channels == 1:
            return parts
        red, green = x[..., 0, None], x[..., 1, None]
        first, second, third = parts[..., :3, :].unbind(-2)
        c0, c1, c2 = parts[..., 3:, :].unbind(-2)
        return torch.stack((first, second + c0 * red, third + c1 * red + c2 * green), -2)

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-probability [...] in nats of target [..., C] in [-1, 1], on the 8-bit grid."""
        level = DMOL(1, self.channels).level(target)
        return F.log_softmax(self.logits(params, target), -1).gather(-1, level[..., None])[..., 0].sum(-1)

    def draw(self, params: Tensor, choice: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """The draw [..., C] that uniform numbers [..., C] give by inverting each channel's distribution; `choice` is not used."""
        grid, x = DMOL(1, self.channels), torch.zeros_like(uniform)
        for c in range(self.channels):
            weights = torch.softmax(self.logits(params, x)[..., c, :] / max(temperature, 1e-6), -1)
            level = (weights.cumsum(-1) < uniform[..., c, None]).sum(-1).clamp(max=LEVELS - 1)
            x = torch.cat((x[..., :c], grid.grid(level, x.dtype)[..., None], x[..., c + 1 :]), -1)
        return x

    def cdf(self, params: Tensor, before: Tensor) -> Tensor:
        """The cumulative distribution [..., 257] of channel c given the values `before` [..., c]."""
        c = before.shape[-1]
        weights = torch.softmax(self.logits(params, F.pad(before, (0, self.channels - c)))[..., c, :], -1)
        inner = weights.cumsum(-1)[..., :-1].clamp(0, 1)
        return F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0)
