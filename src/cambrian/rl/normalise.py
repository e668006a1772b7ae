"""Running normalisation of observations and rewards. The statistics are buffers, so checkpoints and saved models hold them.

Calling a normaliser never changes it; only `update` does. So evaluation cannot leak into the statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.rl.returns import discounted


class RunningMoments(nn.Module):
    """Mean and variance of everything seen, by the parallel update of Chan, Golub and LeVeque (1979); float64.

    Starts as if `1e-4` samples of mean 0 and variance 1 had been seen, as the released baselines do.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Take in samples [n, *shape]. Raises `ShapeError`."""
        if batch.shape[1:] != self.mean.shape or not len(batch):
            raise ShapeError(f"samples must be of shape [n, {tuple(self.mean.shape)}], not {tuple(batch.shape)}")
        batch = batch.double()
        n, mean, var = len(batch), batch.mean(0), batch.var(0, correction=0)
        total, delta = self.count + n, mean - self.mean
        spread = self.var * self.count + var * n + delta.square() * self.count * n / total
        self.mean.add_(delta * n / total)
        self.var.copy_(spread / total)
        self.count.copy_(total)


class ObservationNormaliser(RunningMoments):
    """(x - mean) / std, clipped to +-`clip`."""

    def __init__(self, shape: tuple[int, ...], *, clip: float = 10.0) -> None:
        super().__init__(shape)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """[..., *shape] -> the same, float32."""
        scaled = (x - self.mean.float()) * (self.var + 1e-8).rsqrt().float()
        return scaled.clamp(-self.clip, self.clip)


class RewardScaler(RunningMoments):
    """Divides rewards by the running standard deviation of the discounted return, without centring; clipped to +-`clip`."""

    running: Tensor

    def __init__(self, num_envs: int, *, gamma: float, clip: float = 10.0) -> None:
        super().__init__(())
        self.gamma, self.clip = gamma, clip
        self.register_buffer("running", torch.zeros(num_envs))

    @torch.no_grad()
    def update(self, rewards: Tensor, done: Tensor) -> None:  # type: ignore[override]
        """Take in a rollout's rewards and ends [T, B]."""
        sums, self.running = discounted(rewards, done, self.running, gamma=self.gamma)
        super().update(sums.flatten())

    def forward(self, rewards: Tensor) -> Tensor:
        """[...] -> the same, float32."""
        return (rewards * (self.var + 1e-8).rsqrt().float()).clamp(-self.clip, self.clip)
