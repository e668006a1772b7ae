"""Differentiable inner optimisation: a player that looks ahead at what its opponent will do.

    phi_0 = phi,   phi_{k+1} = phi_k - step(grad_phi loss(phi_k)),   k = 0 ... K - 1

`unroll` gives `phi_K` as a function of everything that `loss` depends on, so that an outer gradient runs through
all K steps (Metz et al. 2016, 1611.02163, eq. 4-6). Parameters are plain dicts for `torch.func.functional_call`;
no module is copied or changed. A dict of one flat vector (`cambrian.nn.flat`) saves most of the small operations.
The steps *descend* `loss`: hand in the opponent's own loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn import flat

Parameters = dict[str, Tensor]


class Inner(Protocol):
    """An optimiser as a pure function: `update` gives new parameters and new state and mutates neither."""

    def start(self, parameters: Parameters) -> Any:
        """The state before the first step."""
        ...

    def update(self, parameters: Parameters, gradients: tuple[Tensor, ...], state: Any) -> tuple[Parameters, Any]:
        """One step of descent."""
        ...


@dataclass(frozen=True)
class InnerSGD:
    """`phi - lr * gradient`, the paper's equations."""

    lr: float

    def start(self, parameters: Parameters) -> None:
        """Plain gradient descent has no state."""

    def update(self, parameters: Parameters, gradients: tuple[Tensor, ...], state: None) -> tuple[Parameters, None]:
        """One step of descent."""
        return {n: p - self.lr * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}, None


@dataclass(frozen=True)
class InnerAdam:
    """Adam whose step is differentiable in the gradients; `follow` makes it start from a torch optimiser's moments.

    The second moment is rooted as `sqrt(v + eps^2)`: with eps outside, the derivative of the root at v = 0 is
    infinite and a parameter that never had a gradient (a dead unit) would turn the outer gradient into NaN.
    """

    lr: float
    betas: tuple[float, float] = (0.5, 0.999)
    eps: float = 1e-8
    follow: torch.optim.Adam | None = None

    def start(self, parameters: Parameters) -> tuple[int, list[Tensor], list[Tensor]]:
        """`(count, first moments, second moments)`: zeros, or those of the optimiser that is followed.

        Its parameters must come in the same order as `parameters`, or `parameters` be all of them as one vector.
        """
        known = []
        if self.follow is not None:
            known = [self.follow.state.get(p, {}) for group in self.follow.param_groups for p in group["params"]]
        if not any(known):
            zeros = [torch.zeros_like(p) for p in parameters.values()]
            return 0, zeros, zeros
        first, second = ([s[name].clone() for s in known] for name in ("exp_avg", "exp_avg_sq"))
        if len(parameters) == 1 < len(known):
            first, second = [flat.flatten(first)], [flat.flatten(second)]
        return int(known[0]["step"]), first, second

    def update(
        self, parameters: Parameters, gradients: tuple[Tensor, ...], state: tuple[int, list[Tensor], list[Tensor]]
    ) -> tuple[Parameters, tuple[int, list[Tensor], list[Tensor]]]:
        """One step of descent."""
        count, first, second = state
        count += 1
        beta1, beta2 = self.betas
        first = [torch.lerp(g, m, beta1) for m, g in zip(first, gradients, strict=True)]
        second = [torch.addcmul(beta2 * v, g, g, value=1 - beta2) for v, g in zip(second, gradients, strict=True)]
        rate, scale = self.lr / (1 - beta1**count), 1.0 / (1 - beta2**count)
        moved = {
            name: torch.addcdiv(p, m, (scale * v + self.eps**2).sqrt(), value=-rate)
            for (name, p), m, v in zip(parameters.items(), first, second, strict=True)
        }
        return moved, (count, first, second)


@dataclass(frozen=True)
class Unrolled:
    """What `unroll` gives: the parameters after K steps, the loss at each step and the first step's gradients
    (detached: the opponent's ordinary gradient at its present parameters, there for free)."""

    parameters: Parameters
    losses: tuple[Tensor, ...]
    first_gradients: tuple[Tensor, ...]


def unroll(
    loss: Callable[[Parameters], Tensor],
    parameters: Parameters,
    *,
    steps: int,
    inner: Inner,
    differentiable: bool = True,
) -> Unrolled:
    """Descend `loss` from `parameters` for `steps` inner steps.

    With `differentiable=False` the steps are taken but carry no graph: the outer player sees an opponent that is K
    steps ahead and no second gradient term. `steps=0` gives `parameters` themselves.
    """
    if steps < 0:
        raise ConfigError(f"the number of inner steps must be >= 0, got {steps}")
    state = inner.start(parameters)
    losses: list[Tensor] = []
    first: tuple[Tensor, ...] = ()
    for k in range(steps):
        value = loss(parameters)
        gradients = torch.autograd.grad(value, tuple(parameters.values()), create_graph=differentiable)
        losses.append(value)
        if k == 0:
            first = tuple(g.detach() for g in gradients)
        parameters, state = inner.update(parameters, gradients, state)
        if not differentiable:
            parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    return Unrolled(parameters, tuple(losses), first)


def forbid_running_statistics(module: nn.Module) -> None:
    """Raise `ConfigError` when `module` holds batch-norm layers that track statistics.

    Every inner forward pass would move them, so that looking ahead changes the very player that is looked at.
    """
    for name, layer in module.named_modules():
        if getattr(layer, "track_running_stats", False):
            raise ConfigError(f"layer {name!r} tracks running statistics and cannot be unrolled; use a net without it")
