"""An optimiser around an optimiser: shares its parameter groups and state, adds state of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class WrappedOptimiser(Optimizer):
    """Base of optimisers that change what another one does in a step.

    Learning-rate schedulers and code that edits `param_groups` act on the wrapped optimiser's own groups. A subclass
    gives `before()` (changes gradients or learning rates), `after()` (undoes what must not last) and, where it remembers
    something, `own_state` and `load_own_state`.
    """

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        super().__init__([dict(group) for group in base.param_groups], dict(base.defaults))
        self._alias()

    def _alias(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @property
    def takes_loss(self) -> bool:
        """Whether `step` needs `loss=`: when this optimiser or the wrapped one does."""
        return bool(getattr(self.base, "takes_loss", False))

    def before(self, loss: float | Tensor | None) -> None:
        """Called with gradients in `.grad`, before the wrapped step."""

    def after(self) -> None:
        """Called after the wrapped step, also when it raised."""

    def own_state(self) -> dict[str, Any]:
        """What this wrapper remembers: plain values and tensors."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore `own_state`."""

    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, *, loss: float | Tensor | None = None
    ) -> Any:
        """One update. `closure` recomputes the loss and its gradients; `loss` is the loss that the gradients are of."""
        if closure is not None:
            loss = evaluate(closure)
        self.before(loss)
        try:
            self.base.step(loss=loss) if getattr(self.base, "takes_loss", False) else self.base.step()
        finally:
            self.after()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimiser's."""
        self.base.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add to the wrapped optimiser."""
        if "state" in vars(self) and getattr(self, "param_groups", None) is self.base.param_groups:
            self.base.add_param_group(param_group)
        else:  # during Optimizer.__init__, before the groups are shared
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimiser's state under `base`, and this one's under `own`."""
        return {"base": self.base.state_dict(), "own": self.own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.base.load_state_dict(dict(state_dict["base"]))
        self._alias()
        self.load_own_state(state_dict["own"])


def evaluate(closure: Callable[[], Tensor]) -> Tensor:
    """The loss from an optimiser's closure, with gradients on as torch's own optimisers do."""
    with torch.enable_grad():
        return closure()
