"""What a worker does with the parameters it is given: draw a batch, compute one flat gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cambrian.data.random import sample_keys, uniform
from cambrian.nn.flat import Layout, share

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Work:
    """One job for all W workers. `data` has equally long tensors; `delays` is [T, W] seconds, read by stamp modulo T.

    `late` says what a worker does when a newer version comes out while it works: `abandon` what it has, `finish` it and
    then take the newer one, or (asynchronous) finish it and `wait` until it is given a version of its own.
    """

    model_fn: Callable[[], nn.Module]
    loss_fn: Loss
    data: Mapping[str, Tensor]
    workers: int
    batch: int
    seed: int
    sampling: str
    late: str
    delays: Tensor = field(repr=False)

    def positions(self, rank: int, step: int) -> Tensor:
        """The worker's batch: positions [batch] drawn with replacement, a pure function of (seed, rank, step).

        From the whole set (`random`), or from the worker's own contiguous shard (`partition`): then what a straggler
        drops is always the same part of the data.
        """
        size = len(next(iter(self.data.values())))
        low, high = (0, size) if self.sampling == "random" else _shard(rank, self.workers, size)
        keys = sample_keys(self.seed, step, torch.arange(rank * self.batch, (rank + 1) * self.batch))
        return low + (uniform(keys, 1)[:, 0].double() * (high - low)).long().clamp_(max=high - low - 1)

    def delay(self, rank: int, step: int) -> float:
        """Seconds that the worker dawdles over this step."""
        return float(self.delays[step % len(self.delays), rank])


def _shard(rank: int, workers: int, size: int) -> tuple[int, int]:
    return rank * size // workers, (rank + 1) * size // workers


class Replica:
    """A worker's copy of the model. `vector` [P] holds its parameters: write there, then ask for the gradient."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.model = work.model_fn().train()
        self._parameters = list(self.model.parameters())
        self.vector = share(self._parameters)
        self._layout = Layout.of(self._parameters)

    def gradient(self, rank: int, step: int, out: Tensor) -> float:
        """Write the flat gradient of the worker's batch to `out` [P]; returns the loss."""
        index = self.work.positions(rank, step)
        batch = {name: tensor[index] for name, tensor in self.work.data.items()}
        loss = self.work.loss_fn(self.model, batch)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._layout.pack(gradients, out)
        return float(loss.detach())
