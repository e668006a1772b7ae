"""The order of samples: a pure function of (seed, epoch, position), so it does not depend on workers, processes or restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.data.random import sample_keys
from cambrian.errors import ConfigError


class SampleOrder:
    """Batches of dataset positions. An epoch is one permutation; its last incomplete batch is dropped."""

    def __init__(self, size: int, batch: int, seed: int) -> None:
        if batch > size:
            raise ConfigError(
                f"batch {batch} is larger than the training split ({size} samples); choose a smaller batch"
            )
        self.size, self.batch, self.seed = size, batch, seed
        self.per_epoch = size // batch
        self._cached: tuple[int, Tensor] | None = None

    def permutation(self, epoch: int) -> Tensor:
        """The positions of all samples in the order of `epoch`: int64 [size]."""
        if self._cached is None or self._cached[0] != epoch:
            mixed = int(sample_keys(self.seed, epoch, torch.tensor([-1]))[0]) & ((1 << 62) - 1)
            generator = torch.Generator().manual_seed(mixed)
            self._cached = (epoch, torch.randperm(self.size, generator=generator))
        return self._cached[1]

    def take(self, step: int) -> tuple[Tensor, Tensor]:
        """Positions and keys (int64 [batch] each) of the batch that training step `step` (from 0) uses."""
        epoch, position = divmod(step, self.per_epoch)
        index = self.permutation(epoch)[position * self.batch : (position + 1) * self.batch]
        return index, sample_keys(self.seed, epoch, index)
