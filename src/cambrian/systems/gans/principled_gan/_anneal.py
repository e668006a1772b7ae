"""The cure: fresh Gaussian noise on whatever a discriminator sees while it trains, less and less of it.

`NoiseAnneal` is usable without the engine: `attach` it to nets, call `advance` after every round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError

SCHEDULES = ("linear", "exponential", "target-acc")
FLOOR = 0.01  # exponential: the share of sigma at which noise ends
SMOOTH = 0.9  # target-acc: decay of the mean accuracy
CLOSING = 0.25  # target-acc: over this last share of its time sigma goes to 0 whatever the accuracy


class NoiseAnneal:
    """Noise of standard deviation `sigma_t` on the first argument of nets in training mode, new in every call.

    linear       sigma (1 - t / T)                  T = until * steps, 0 from there on
    exponential  sigma FLOOR^(t / T)
    target-acc   times 1 + rate after a round in which the discriminator's mean accuracy was above `target`,
                 divided by it otherwise, at most 10 sigma; closes linearly over the last quarter of T
    """

    def __init__(
        self,
        *,
        sigma: float,
        schedule: str,
        steps: int,
        until: float = 0.9,
        target: float = 0.85,
        rate: float = 0.02,
        seed: int = 0,
    ) -> None:
        if schedule not in SCHEDULES or sigma < 0 or not 0 < until <= 1 or not 0.5 < target < 1 or rate < 0:
            raise ConfigError(
                f"schedule is one of {', '.join(SCHEDULES)}, sigma and rate >= 0, until in (0, 1], target in (0.5, 1); "
                f"got {schedule!r}, {sigma}, {rate}, {until}, {target}"
            )
        self.top, self.schedule, self.end = sigma, schedule, max(1.0, until * steps)
        self.target, self.rate = target, rate
        self.t, self.level, self.accuracy = 0, sigma, target
        self.draw = torch.Generator().manual_seed(seed)

    @property
    def sigma(self) -> float:
        """The standard deviation now."""
        left = max(0.0, 1 - self.t / self.end)
        if self.schedule == "linear":
            return self.top * left
        if self.schedule == "exponential":
            return self.top * FLOOR ** (1 - left) if left > 0 else 0.0
        return self.level * min(1.0, left / CLOSING)

    def advance(self, accuracy: float | None = None) -> None:
        """One round is over; target-acc needs the discriminator's `accuracy` in it and stays where it is without."""
        self.t += 1
        if self.schedule == "target-acc" and accuracy is not None and math.isfinite(accuracy):
            self.accuracy = SMOOTH * self.accuracy + (1 - SMOOTH) * accuracy
            factor = 1 + self.rate
            self.level *= factor if self.accuracy > self.target else 1 / factor
            self.level = min(self.level, 10 * self.top)

    def noisy(self, x: Tensor) -> Tensor:
        """`x` with fresh noise. Raises `CapabilityError` for what is no float tensor, and inside `vmap`."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise CapabilityError(
                f"noise needs a float tensor as the discriminator's first argument, got {type(x).__name__}"
            )
        if not self.sigma:
            return x
        try:
            noise = torch.randn(x.shape, generator=self.draw)
        except RuntimeError as error:  # random numbers are refused there
            raise CapabilityError("noise cannot be added to discriminators that are evaluated under vmap") from error
        return x + self.sigma * noise.to(x)

    def attach(self, net: nn.Module) -> None:
        """Disturb `net(x, ...)`, and `net.features(x, ...)` where it is called from outside, while `net` trains."""

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not module.training or not arguments:
                return None
            noisy = self.noisy(arguments[0])
            module.already_noisy = True
            return (noisy, *arguments[1:])

        def after(module: nn.Module, arguments: Any, outcome: Any) -> None:
            module.already_noisy = False

        def features(module: Any, x: Tensor, *arguments: Any, **named: Any) -> Any:
            plain = type(module).features
            return plain(
                module, x if module.already_noisy or not module.training else self.noisy(x), *arguments, **named
            )

        net.already_noisy = False  # type: ignore[assignment]
        net.register_forward_pre_hook(before)
        net.register_forward_hook(after, always_call=True)
        if callable(getattr(type(net), "features", None)):
            net.features = MethodType(features, net)  # type: ignore[assignment]  # a method: copies of the net get their own

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next noise depends on."""
        return {"t": self.t, "level": self.level, "accuracy": self.accuracy, "draw": self.draw.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.t, self.level, self.accuracy = int(state["t"]), float(state["level"]), float(state["accuracy"])
        self.draw.set_state(state["draw"].cpu())
