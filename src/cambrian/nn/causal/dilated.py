"""Dilated causal convolution over time with a streaming twin: `forward` on a clip, `step` on one sample, same weights.

No padding happens in here: `forward` gives as many outputs fewer as the filter spans. Who wants outputs from the first
sample on pads the network's *input*; zeros put before every layer would be other activations than those that the
padded input gives, as soon as layers have biases.

Shapes: B batch, T time, C input channels, O output channels, k taps, d dilation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError


def receptive_field(dilations: Sequence[int], kernel: int = 2) -> int:
    """Inputs that one output of a stack of such convolutions sees: 1 + (k - 1) * sum(d)."""
    return 1 + (kernel - 1) * sum(dilations)


def doubling(layers: int, blocks: int = 1) -> list[int]:
    """The dilations 1, 2, 4, ... of `layers` layers, `blocks` times."""
    return [2**i for _ in range(blocks) for i in range(layers)]


class Queue:
    """The last `span` inputs [B, C] of a layer in a ring: constant work a step, however long the past is."""

    def __init__(self, past: Tensor) -> None:
        """`past` [B, span, C], the oldest first."""
        self.ring = past.transpose(0, 1).contiguous()  # [span, B, C]
        self.at = 0

    def push(self, x: Tensor) -> None:
        """Put in x [B, C] for the oldest one."""
        if len(self.ring):
            self.ring[self.at] = x
            self.at = (self.at + 1) % len(self.ring)

    def back(self, steps: int) -> Tensor:
        """The input [B, C] of `steps` pushes ago (1 is the latest)."""
        return self.ring[(self.at - steps) % len(self.ring)]

    def past(self) -> Tensor:
        """What it holds, the oldest first: [B, span, C]."""
        return torch.cat((self.ring[self.at :], self.ring[: self.at])).transpose(0, 1)


class DilatedConv(nn.Module):
    """Convolution with `kernel` taps, `dilation` samples apart, that ends at the present sample.

    `weight` [O, k, C], the oldest tap first, so that a step is one product with the taps laid side by side.
    """

    def __init__(self, *, inputs: int, outputs: int, kernel: int = 2, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        if min(inputs, outputs, kernel, dilation) < 1:
            raise ConfigError(
                f"sizes must be at least 1, not {inputs}, {outputs}, kernel {kernel}, dilation {dilation}"
            )
        self.kernel, self.dilation = kernel, dilation
        self.span = (kernel - 1) * dilation
        bound = 1 / math.sqrt(inputs * kernel)  # torch's own range for convolutions
        self.weight = nn.Parameter(torch.empty(outputs, kernel, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T - span, O]; output j belongs to input j + span. Raises `ShapeError` if T <= span."""
        if x.dim() != 3 or x.shape[2] != self.weight.shape[2] or x.shape[1] <= self.span:
            want = f"[B, more than {self.span}, {self.weight.shape[2]}]"
            raise ShapeError(f"this convolution takes {want}, not {tuple(x.shape)}")
        length = x.shape[1] - self.span
        taps = [x[:, j * self.dilation : j * self.dilation + length] for j in range(self.kernel)]
        return F.linear(torch.cat(taps, 2), self.weight.flatten(1), self.bias)

    def start(self, batch: int) -> Queue:
        """The queue of a past that is all zeros. To go on from a known past use `resume`."""
        return Queue(self.weight.new_zeros(batch, self.span, self.weight.shape[2]))

    def resume(self, past: Tensor) -> Queue:
        """The queue after the inputs `past` [B, at least span, C]."""
        if past.dim() != 3 or past.shape[1] < self.span or past.shape[2] != self.weight.shape[2]:
            want = f"[B, at least {self.span}, {self.weight.shape[2]}]"
            raise ShapeError(f"the past must be {want}, not {tuple(past.shape)}")
        return Queue(past[:, past.shape[1] - self.span :].detach())

    def step(self, x: Tensor, queue: Queue, extra: Tensor | None = None) -> Tensor:
        """The output [B, O] at the new input x [B, C], plus `extra` [B, O]; the queue takes x in."""
        taps = [queue.back((self.kernel - 1 - j) * self.dilation) for j in range(self.kernel - 1)]
        out = F.linear(torch.cat((*taps, x), 1), self.weight.flatten(1), self.bias)
        queue.push(x)
        return out if extra is None else out + extra
