"""Fully connected players for samples of any shape: generators, critics, encoders and energies of small data.

Shapes: B batch, F hidden features; a sample is `[*inputs]`, an answer `[*outputs]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial.layers import REAL, SplitBatchNorm

ACTIVATIONS = ("relu", "lrelu", "tanh", "softplus")
OUTPUTS = ("none", "sigmoid", "tanh")


class ConnectedNet(nn.Module):
    """`[B, *inputs] -> [B, *outputs]` through hidden layers of one activation.

    `norm="split"` normalises every hidden layer but, with `norm_first=False`, the first, source by source (see
    `SplitBatchNorm`); `dropout_in` acts on the input and `dropout` on hidden layers; the input is multiplied by
    `scale`. `features(x)` is the last hidden layer.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[int],
        outputs: Sequence[int],
        hidden: Sequence[int],
        act: str = "relu",
        norm: str = "none",
        norm_first: bool = True,
        dropout_in: float = 0.0,
        dropout: float = 0.0,
        out: str = "none",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS or out not in OUTPUTS or norm not in ("none", "split"):
            raise ConfigError(
                f"act is one of {ACTIVATIONS}, out of {OUTPUTS}, norm none or split: {act}, {out}, {norm}"
            )
        if not hidden:
            raise ConfigError("a connected net needs at least one hidden layer")
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        widths = [torch.Size(inputs).numel(), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        normed = [norm == "split" and (norm_first or i > 0) for i in range(len(hidden))]
        self.norms = nn.ModuleList(
            SplitBatchNorm(features=b) if n else nn.Identity() for b, n in zip(hidden, normed, strict=True)
        )
        self.head = nn.Linear(widths[-1], torch.Size(outputs).numel())
        self.act, self.out, self.scale = act, out, scale
        self.dropout_in, self.dropout = dropout_in, dropout

    def maps(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> list[Tensor]:
        """Every hidden layer's output `[B, F]`, first to last; `sources` names the equal runs that the batch consists
        of.
        """
        if tuple(x.shape[1:]) != self.inputs:
            raise ShapeError(f"inputs must be [batch, {', '.join(map(str, self.inputs))}], got {tuple(x.shape)}")
        x = F.dropout(x.flatten(1) * self.scale, self.dropout_in, self.training)
        out = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            x = norm(x, sources) if isinstance(norm, SplitBatchNorm) else norm(x)
            x = F.dropout(_activate(x, self.act), self.dropout, self.training)
            out.append(x)
        return out

    def features(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """The last hidden layer `[B, F]`."""
        return self.maps(x, sources)[-1]

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`[B, *outputs]`."""
        x = self.head(self.features(x, sources))
        x = torch.tanh(x) if self.out == "tanh" else torch.sigmoid(x) if self.out == "sigmoid" else x
        return x.unflatten(1, self.outputs)


def _activate(x: Tensor, act: str) -> Tensor:
    if act == "relu":
        return F.relu(x)
    if act == "lrelu":
        return F.leaky_relu(x, 0.2)
    return torch.tanh(x) if act == "tanh" else F.softplus(x)
