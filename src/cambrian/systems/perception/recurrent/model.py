"""A recurrent network that reads symbols or vectors, its losses and its generators. Shapes: T time, B batch, O outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.cells import RNN
from cambrian.nn.cells.stack import Layered
from cambrian.nn.hub import Pretrained


class SequenceModel(nn.Module, Pretrained):
    """Symbols int64 [T, B] (`symbols` > 0) or vectors float [T, B, `inputs`] -> outputs [T, B, O].

    Symbols are read as one-hot vectors, or through an `embed`-dimensional table. `cell` and `options` are those of
    `cambrian.nn.cells.RNN`, as are the remaining arguments.
    """

    def __init__(
        self,
        *,
        outputs: int,
        symbols: int = 0,
        inputs: int = 0,
        embed: int = 0,
        cell: str = "lstm",
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        variational: float = 0.0,
        zoneout: float = 0.0,
        chunk: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (symbols > 0) == (inputs > 0):
            raise ConfigError(f"give the number of symbols or of input features, one of the two, not {symbols, inputs}")
        self.symbols, self.dropout = symbols, dropout
        self.table = nn.Embedding(symbols, embed) if symbols and embed else None
        self.rnn = RNN(
            inputs=embed if self.table else symbols or inputs,
            hidden=hidden,
            cell=cell,
            layers=layers,
            bidirectional=bidirectional,
            residual=residual,
            dropout=dropout,
            variational=variational,
            zoneout=zoneout,
            chunk=chunk,
            options=options,
        )
        self.head = nn.Linear(hidden * self.rnn.directions, outputs)

    def read(self, x: Tensor) -> Tensor:
        """What the first layer sees: float [T, B, I]."""
        if not self.symbols:
            return x
        if x.dtype != torch.int64 or x.dim() != 2:
            raise ShapeError(f"symbols must be int64 [T, B], not {x.dtype} {tuple(x.shape)}")
        if x.numel() and not (int(x.min()) >= 0 and int(x.max()) < self.symbols):
            raise ShapeError(f"symbols run from 0 to {self.symbols - 1}, not {int(x.min())} to {int(x.max())}")
        return self.table(x) if self.table is not None else F.one_hot(x, self.symbols).to(self.head.weight.dtype)

    def forward(
        self,
        x: Tensor,
        state: Layered | None = None,
        *,
        lengths: Tensor | None = None,
        detach_every: int | None = None,
    ) -> tuple[Tensor, Layered]:
        """Outputs [T, B, O] at every step, and the final states; see `RNN` for the arguments."""
        y, state = self.rnn(self.read(x), state, lengths=lengths, detach_every=detach_every)
        return self.head(F.dropout(y, self.dropout, self.training)), state

    def step(self, x: Tensor, state: Layered) -> tuple[Tensor, Layered]:
        """One step from symbols [B] or vectors [B, I]."""
        y, state = self.rnn.step(self.read(x[None])[0], state)
        return self.head(y), state

    @torch.no_grad()
    def generate(
        self, prompt: Tensor, steps: int, draw: Callable[[Tensor], Tensor], state: Layered | None = None
    ) -> Tensor:
        """Run freely after `prompt` [T, B] or [T, B, I]: what `draw(outputs [B, O])` chose at each of `steps` steps."""
        out, state = self(prompt, state)
        made = [draw(out[-1])]
        while len(made) < steps:
            out, state = self.step(made[-1], state)
            made.append(draw(out))
        return torch.stack(made)


def draw_symbols(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Symbols [B] from logits [B, O]; temperature 0 takes the likeliest."""

    def draw(logits: Tensor) -> Tensor:
        if temperature <= 0:
            return logits.argmax(-1)
        shares = torch.softmax(logits.float() / temperature, -1).cpu()
        return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)

    return draw


def draw_keys(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Keys 0 or 1 [B, O] from logits [B, O]; temperature 0 takes those that are likelier than not."""

    def draw(logits: Tensor) -> Tensor:
        if temperature <= 0:
            return (logits > 0).to(logits.dtype)
        shares = torch.sigmoid(logits / temperature)
        return (torch.rand(shares.shape, generator=generator).to(shares.device) < shares).to(logits.dtype)

    return draw


def class_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p over the symbols that are asked (target [T, B] >= 0), and their number."""
    flat = target.flatten()
    return F.cross_entropy(logits.flatten(0, 1), flat, ignore_index=-1, reduction="sum"), (flat >= 0).sum()


def key_loss(logits: Tensor, roll: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p over steps within `lengths` [B] of the keys of each, given independently; and the number of steps.

    The unit of Boulanger-Lewandowski et al. (2012) and Chung et al. (2014): nats a time step, its 88 keys together.
    """
    losses = F.binary_cross_entropy_with_logits(logits, roll, reduction="none").sum(-1)
    within = torch.arange(len(roll), device=roll.device)[:, None] < lengths[None]
    return torch.where(within, losses, losses.new_zeros(())).sum(), within.sum()


def value_loss(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared errors of the last step's output [B, 1], and the number of sequences."""
    return (outputs[-1] - target).square().sum(), torch.tensor(len(target))


def matched_width(parameters: int, count: Callable[[int], int]) -> int:
    """The number of cells whose model, by `count(hidden)`, comes closest to `parameters`; counts must rise."""
    low, high = 1, 2
    while count(high) < parameters and high < 1 << 16:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - parameters))
