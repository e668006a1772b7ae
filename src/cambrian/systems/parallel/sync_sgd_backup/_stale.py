"""SGD on gradients that are a chosen number of steps old, on one process (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cambrian.errors import ConfigError


class StaleSGD(torch.optim.Optimizer):
    """Wraps an optimiser and feeds it the gradients of `tau` steps ago.

    With `ramp` the age grows linearly to `tau` over that many steps, as the paper does in the first epochs. While the
    queue is younger than the age wanted no update is made. `tau = 0` is the wrapped optimiser, bit for bit.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tau: int, *, ramp: int = 0) -> None:
        if tau < 0 or ramp < 0:
            raise ConfigError(f"tau and ramp must not be negative, not {tau} and {ramp}")
        self.inner, self.tau, self.ramp = optimizer, tau, ramp
        self.queue: list[list[Tensor | None]] = []
        self.steps = 0
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups  # the same list: schedulers act on the wrapped optimiser

    @property
    def age(self) -> int:
        """The staleness wanted at the coming step."""
        return self.tau if self.steps >= self.ramp else self.tau * self.steps // self.ramp

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Queue the present gradients and apply those of `age` steps ago."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.queue.append([None if p.grad is None else p.grad.detach().clone() for p in parameters])
        age, self.steps = self.age, self.steps + 1
        if len(self.queue) <= age:
            return loss
        kept = [p.grad for p in parameters]
        for p, gradient in zip(parameters, self.queue[-1 - age]):
            p.grad = gradient
        self.inner.step()
        for p, gradient in zip(parameters, kept):
            p.grad = gradient
        del self.queue[: len(self.queue) - self.tau]
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimiser's state, the queue and the step."""
        queue = [[g if g is None else g.clone() for g in row] for row in self.queue]
        return {"inner": self.inner.state_dict(), "queue": queue, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        self.queue = [[g if g is None else g.clone() for g in row] for row in state_dict["queue"]]
        self.steps = state_dict["steps"]
