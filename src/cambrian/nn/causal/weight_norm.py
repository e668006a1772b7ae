"""Weight-normalised convolutions, initialised from data (Salimans & Kingma 2016, arXiv 1602.07868).

    W = g v / |v|,   one pass over real data sets g = scale / std and b = -mean g of every pre-activation

Shapes: B batch, I inputs, O outputs, k x l kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WNConv2d(nn.Module):
    """Convolution [B, I, H, W] -> [B, O, H', W'] without padding; `transposed` spreads instead. `scale` is the standard
    deviation that the outputs have after the initialisation from data."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        transposed: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.stride, self.transposed, self.scale, self.kernel = stride, transposed, scale, kernel
        self.v = nn.Parameter(0.05 * torch.randn(outputs, inputs, *kernel))
        self.g = nn.Parameter(torch.ones(outputs))
        self.b = nn.Parameter(torch.zeros(outputs))
        self.measuring = False

    def weight(self) -> Tensor:
        """W [O, I, k, l]."""
        return self.v * (self.g / self.v.flatten(1).norm(dim=1))[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.measuring:
            self._measure(x)
        return self._apply_weight(x, self.weight(), self.b)

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=self.stride)
        return F.conv2d(x, weight, bias, stride=self.stride)

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        """Set g and b so that this layer's output on x has mean 0 and standard deviation `scale`."""
        self.g.fill_(1.0)
        out = self._apply_weight(x, self.weight(), torch.zeros_like(self.b))
        mean, std = out.mean((0, 2, 3)), out.std((0, 2, 3), correction=0)
        self.g.copy_(self.scale / std.clamp(min=1e-6))
        self.b.copy_(-mean * self.g)


@contextmanager
def initialising(module: nn.Module) -> Iterator[None]:
    """Within, a forward pass of `module` sets g and b of all its weight-normalised layers, in the order in which they run.
    Dropout is off meanwhile."""
    layers = [m for m in module.modules() if isinstance(m, WNConv2d)]
    training = module.training
    module.eval()
    for layer in layers:
        layer.measuring = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.measuring = False
        module.train(training)
