"""Further training of a (compressed) module under a constraint, on the target's own data.

Deterministic: the batch order is drawn from the `generator`, layers that draw (dropout) use torch's own generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from cambrian.inspect.target import Target

Loss = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]


class Constraint(Protocol):
    """What a compression state contributes to training: masks, codebooks, frozen weights."""

    def constrain_gradients(self, module: nn.Module) -> None:
        """After backward: zero or share gradients in `.grad`."""

    def constrain_step(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """After the optimiser's step: restore values and scrub the moments of constrained weights."""


def plain_loss(module: nn.Module, x: Tensor, y: Tensor, meta: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy, without augmentation."""
    return F.cross_entropy(module(x), y)


def finetune(
    module: nn.Module,
    target: Target,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    constraint: Constraint | None = None,
    generator: torch.Generator,
    lr: float = 0.05,
    lr_scale: float = 0.1,
    batch: int = 64,
    loss: Loss | None = None,
    schedule: str = "cosine",
    factory: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **settings: Any,
) -> nn.Module:
    """Train `module` in place for `steps` (or `epochs`) with rate `lr * lr_scale`, then return it in the mode it
    had.

    The default optimiser is SGD with momentum 0.9 and weight decay 5e-4; `settings` go to the optimiser's
    `factory`. `schedule` is "cosine" (to zero) or "constant". Parameters with `requires_grad=False` stay as they
    are. Raises `ConfigError` unless exactly one of `steps` and `epochs` is given, `NonFiniteError` at the first
    non-finite loss.
    """
    if (steps is None) == (epochs is None):
        raise ConfigError(f"give either steps or epochs, got steps={steps} and epochs={epochs}")
    if schedule not in ("cosine", "constant"):
        raise ConfigError(f"schedule must be cosine or constant, got {schedule!r}")
    total = target.size("train")
    batch = min(batch, total)
    steps = steps if steps is not None else max(1, round(epochs * total / batch))
    if factory is torch.optim.SGD:
        settings = {"momentum": 0.9, "weight_decay": 5e-4, **settings}
    weights = [p for p in module.parameters() if p.requires_grad]
    optimiser = factory(weights, lr=lr * lr_scale, **settings)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1)) if schedule == "cosine" else None
    objective, modes = loss or plain_loss, {part: part.training for part in module.modules()}
    module.train()
    try:
        for step, index in enumerate(_orders(total, batch, steps, generator)):
            _update(module, target.draw("train", index), objective, optimiser, constraint, step)
            if decay is not None:
                decay.step()
    finally:
        for part, mode in modes.items():
            part.training = mode
    return module


def _update(
    module: nn.Module,
    samples: tuple[Tensor, Tensor, dict[str, Tensor]],
    objective: Loss,
    optimiser: torch.optim.Optimizer,
    constraint: Constraint | None,
    step: int,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    with torch.enable_grad():
        value = objective(module, *samples)
        if not torch.isfinite(value.detach()):
            raise NonFiniteError(
                f"the loss became {float(value.detach())} at fine-tuning step {step}; lower lr or lr_scale"
            )
        value.backward()
    if constraint is not None:
        constraint.constrain_gradients(module)
    optimiser.step()
    if constraint is not None:
        constraint.constrain_step(module, optimiser)


def _orders(total: int, batch: int, steps: int, generator: torch.Generator) -> Any:
    """`steps` index tensors of size `batch`: each epoch is a fresh permutation, the ragged end is dropped."""
    done = 0
    while done < steps:
        for index in torch.randperm(total, generator=generator)[: total // batch * batch].split(batch):
            if done == steps:
                return
            done += 1
            yield index
