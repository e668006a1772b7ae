"""How long workers dawdle: delays that are injected into real processes or fed to a simulator.

Every worker has a random stream of its own, so a run with fewer workers meets the same delays for those it has.

    lognormal     scale exp(spread Z)
    exponential   scale + Exp(rate = 1 / spread)                 shifted exponential
    pareto        scale U^(-1 / shape)                           heavy tail
    constant      scale
    trace         rows of a recorded arrival matrix, drawn with replacement

On top of any of them, a delay is multiplied by `slow_factor` with probability `slow_probability`, and always for the
workers in `slow_workers` (one slow machine).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ConfigError

KINDS = ("none", "constant", "lognormal", "exponential", "pareto", "trace")


@dataclass(frozen=True)
class Straggler:
    """A distribution of delays in seconds. `recorded` [steps, workers] is for `trace` only."""

    kind: str = "none"
    scale: float = 0.0
    spread: float = 0.0
    shape: float = 2.0
    slow_probability: float = 0.0
    slow_factor: float = 1.0
    slow_workers: tuple[int, ...] = ()
    recorded: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a straggler is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.scale < 0 or self.spread < 0 or self.shape <= 0 or self.slow_factor <= 0:
            raise ConfigError("a straggler's scale and spread must not be negative, its shape and factor positive")
        if not 0 <= self.slow_probability <= 1:
            raise ConfigError(f"slow_probability must lie in [0, 1], not {self.slow_probability}")
        if self.kind == "trace" and (self.recorded is None or self.recorded.dim() != 2):
            raise ConfigError("a trace straggler needs `recorded`, a matrix of seconds [steps, workers]")

    def delays(self, steps: int, workers: int, seed: int) -> Tensor:
        """Seconds [steps, workers], float64; row t of column w depends on (seed, t, w) only."""
        columns = [self._column(steps, worker, seed) for worker in range(workers)]
        return torch.stack(columns, 1) if columns else torch.zeros(steps, 0, dtype=torch.float64)

    def _column(self, steps: int, worker: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + worker)
        # row by row and through the inverse normal: a longer run begins with the delays of a shorter one
        uniform, second, third = torch.rand(steps, 3, generator=generator, dtype=torch.float64).unbind(1)
        normal = torch.special.ndtri(second.clamp_min(1e-12))
        slow = third < self.slow_probability
        if self.kind == "lognormal":
            base = self.scale * (self.spread * normal).exp()
        elif self.kind == "exponential":
            base = self.scale - self.spread * (1 - uniform).log()
        elif self.kind == "pareto":
            base = self.scale * (1 - uniform).pow(-1 / self.shape)
        elif self.kind == "trace":
            assert self.recorded is not None
            rows = (uniform * len(self.recorded)).long()
            base = self.recorded[rows, worker % self.recorded.shape[1]].double()
        else:
            base = torch.full_like(uniform, self.scale if self.kind == "constant" else 0.0)
        factor = 1 + (self.slow_factor - 1) * (slow | torch.tensor(worker in self.slow_workers))
        return base * factor
