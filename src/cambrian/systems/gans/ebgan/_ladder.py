"""The ladder network of the semi-supervised experiment: a classifier whose bottom layer is a denoising energy.

    z~_l = N(W_l h~_{l-1}) + noise,   h~_l = relu(z~_l),   logits from the top      noisy pass (energy, training labels)
    u_l  = N(V_{l+1} z^_{l+1}),       z^_l = a_l(u_l) z~_l + b_l(u_l)               top-down, a and b affine in u
    D(x) = mean over pixels of ( z^_0 - x )^2                                       the bottom layer's cost only

Shapes: B batch, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.nn.adversarial import REAL, SplitBatchNorm


class Combinator(nn.Module):
    """`z^ = (a1 u + a0) z~ + (b1 u + b0)`, one of each number per unit: the skip connection of the ladder."""

    def __init__(self, *, units: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.zeros(2, units)), nn.Parameter(torch.zeros(2, units))
        with torch.no_grad():
            self.gain[0] = 0.5
            self.shift[1] = 0.5

    def forward(self, noisy: Tensor, above: Tensor) -> Tensor:
        return (self.gain[1] * above + self.gain[0]) * noisy + self.shift[1] * above + self.shift[0]


class Ladder(nn.Module):
    """`[B, *shape] ->` energies `[B]` and codes `[B, S]` (the top hidden layer); `classify(x)` gives logits `[B, K]`."""

    def __init__(self, *, shape: Sequence[int], hidden: Sequence[int], classes: int, noise: float = 0.3) -> None:
        super().__init__()
        widths = [torch.Size(shape).numel(), *hidden]
        self.noise = noise
        self.up = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.up_norms = nn.ModuleList(SplitBatchNorm(features=width) for width in hidden)
        self.head = nn.Linear(widths[-1], classes)
        self.top = nn.Linear(classes, widths[-1])
        self.down = nn.ModuleList(nn.Linear(b, a) for a, b in itertools.pairwise(widths))
        self.down_norms = nn.ModuleList(SplitBatchNorm(features=width) for width in hidden)
        self.combine = nn.ModuleList(Combinator(units=width) for width in widths)

    def _climb(self, x: Tensor, noise: float, sources: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
        """Pre-activations of every layer, the input first, and the top hidden layer."""
        h = x.flatten(1) + noise * torch.randn_like(x.flatten(1)) if noise else x.flatten(1)
        passed = [h]
        for layer, norm in zip(self.up, self.up_norms):
            z = norm(layer(h), sources)
            passed.append(z + noise * torch.randn_like(z) if noise else z)
            h = F.leaky_relu(passed[-1], 0.2)
        return passed, h

    def classify(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """Logits `[B, K]`; with noise while training."""
        return self.head(self._climb(x, self.noise if self.training else 0.0, sources)[1])

    def rebuild(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor, Tensor]:
        """The denoised input `[B, D]`, the codes and the logits of one noisy pass."""
        passed, code = self._climb(x, self.noise if self.training else 0.0, sources)
        logits = self.head(code)
        above = self.top(logits.softmax(1))
        for i in reversed(range(len(self.down))):
            clean = self.combine[i + 1](passed[i + 1], self.down_norms[i](above, sources))
            above = self.down[i](clean)
        return self.combine[0](passed[0], above), code, logits

    def reconstruct(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`[B, *shape]`."""
        return self.rebuild(x, sources)[0].view_as(x)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor]:
        rebuilt, code, _ = self.rebuild(x, sources)
        return (rebuilt - x.flatten(1)).square().mean(1), code
