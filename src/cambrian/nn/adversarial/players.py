"""The adversarial trainer: named players, each with an optimiser, a loss and an update ratio, and one function that
lets them play a round.

A recipe keeps its modules and optimisers as plain attributes (so that they are in the checkpoint) and calls

    scalars = play(
        [
            Player("d", self.d_optim, lambda turn: self.d_loss(part(batch, turn, k)), turns=k),
            Player("g", self.g_optim, lambda turn: self.g_loss(batch)),
        ],
        minimise=self.minimise,
        iteration=self.iteration,
    )

Nothing here knows how many players there are or what they are called: encoders, second discriminators, denoisers and
code predictors are players too. A loss returns a scalar tensor, or `(scalar, {"name": scalar})` to report more.
What one player computes and another reuses (the fake batch, D's features) is an ordinary local variable of the
recipe's step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError

Loss = Tensor | tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class Player:
    """One player: `turns` updates in each round it takes part in, which is every `every`-th.

    `loss(turn)` is called anew before each update with `turn = 0 ... turns - 1`.
    """

    name: str
    optimiser: torch.optim.Optimizer
    loss: Callable[[int], Loss]
    turns: int = 1
    every: int = 1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.turns < 1 or self.every < 1:
            raise ConfigError(f"player {self.name!r}: turns and every must be >= 1, got {self.turns} and {self.every}")


def play(players: Sequence[Player], *, minimise: Callable[..., Any], iteration: int) -> dict[str, Any]:
    """One round, in the order given: `{"<name>_loss", "<name>_grad", ...}` of each player's last update.

    `minimise(loss, optimiser, clip_norm=...)` is the recipe's; it must leave the gradients in `.grad`.
    """
    scalars: dict[str, Any] = {}
    for player in players:
        if iteration % player.every:
            continue
        for turn in range(player.turns):
            outcome = player.loss(turn)
            loss, extra = outcome if isinstance(outcome, tuple) else (outcome, {})
            minimise(loss, player.optimiser, clip_norm=player.clip_norm)
        scalars[f"{player.name}_loss"] = loss.detach()
        scalars[f"{player.name}_grad"] = gradient_norm(parameters_of(player.optimiser))
        scalars.update(extra)
    return scalars


def parameters_of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters an optimiser steps, in its order."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients that are there; 0 when there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def discriminator_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of real logits above and fake logits below 0, both sources weighing the same; 0.5 is a coin."""
    return 0.5 * ((real.detach() > 0).float().mean() + (fake.detach() < 0).float().mean())


def part(batch: dict[str, Tensor], turn: int, turns: int) -> dict[str, Tensor]:
    """The `turn`-th of `turns` equal slices of a batch, so that every turn of a player sees data of its own."""
    if turns == 1:
        return batch
    size = min(tensor.shape[0] for tensor in batch.values()) // turns
    if size == 0:
        raise ShapeError(f"a batch cannot be cut into {turns} turns; raise the batch size")
    return {name: tensor[turn * size : (turn + 1) * size] for name, tensor in batch.items()}


class MovingAverage(nn.Module):
    """Exponential moving average of a module's parameters, `m <- decay m + (1 - decay) theta`; buffers are copied.

    It is a module itself, so that it is in the checkpoint, and is called like the one it follows. With `warm`, the
    decay of update t is at most `(1 + t) / (10 + t)`, so that short runs do not drag their initialisation along.
    """

    def __init__(self, module: nn.Module, decay: float, warm: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"decay must lie in [0, 1), got {decay}")
        super().__init__()
        self.averaged = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay, self.warm = decay, warm
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the present parameters of `module` in."""
        self.updates += 1
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count)) if self.warm else self.decay
        torch._foreach_lerp_(list(self.averaged.parameters()), list(module.parameters()), 1.0 - decay)
        for mine, theirs in zip(self.averaged.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def train(self, mode: bool = True) -> MovingAverage:
        """An average is always used in evaluation mode."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged module's output."""
        return self.averaged(*args, **kwargs)
