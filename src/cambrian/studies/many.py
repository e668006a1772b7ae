"""Many small nets of one architecture trained at once: stacked parameters, one vectorised pass, optimisers on the stacks.

A grid of hyper-parameters or a population of players are M nets that never meet. Layer by layer their parameters are
stacked, and one pass under `torch.func.vmap` replaces M passes whose cost, for nets of this size, is mostly Python's.

    nets = Stacked([make(cell) for cell in cells])             # any modules of equal shapes
    optimiser = StackedAdam(nets.parameters(), lr=[c.lr for c in cells])
    losses = nets(x, shared=(0,)).square().mean((1, 2))        # x [B, D] for all; losses [M]
    minimise(losses, optimiser)                                # each member's own gradient, one step for all

Since no member reads another's parameters, the gradient of the sum of losses is every member's own: training M nets
so equals training them one after the other (up to the rounding of batched products), and a member that diverges
does not touch its neighbours. Stacks are plain modules and optimisers, so a recipe keeps them as attributes.

Shapes: M members, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from cambrian.errors import ConfigError, ShapeError


def alike(nets: Sequence[nn.Module]) -> list[list[int]]:
    """Positions of nets that can be stacked, group by group: equal names, shapes and types of all their tensors."""
    groups: dict[Any, list[int]] = {}
    for i, net in enumerate(nets):
        groups.setdefault((type(net), _signature(net)), []).append(i)
    return list(groups.values())


def _signature(net: nn.Module) -> tuple[Any, ...]:
    tensors = (*net.named_parameters(), *net.named_buffers())
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)


class _Method(nn.Module):
    """Lets `functional_call`, which only knows `forward`, call another method."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.net, self.name)(*args, **kwargs)


class Stacked(nn.Module):
    """M nets of one architecture as one module whose parameters and buffers have a leading dimension M.

    Random layers draw differently for every member. What differs between members must be a tensor (see
    `StackedDropout`), since the Python of the first net runs for all. Batch norm keeps running statistics per member.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(alike(nets)) != 1:
            raise ShapeError(f"a stack needs one or more nets of equal shapes, got {len(alike(nets))} kinds of nets")
        self.members = len(nets)
        parameters, buffers = stack_module_state(list(nets))
        self._names = {name: name.replace(".", "-") for name in (*parameters, *buffers)}
        for name, value in parameters.items():
            self.register_parameter(self._names[name], nn.Parameter(value.detach().clone()))
        for name, value in buffers.items():
            self.register_buffer(self._names[name], value.clone())
        # inside a tuple, so that the template's weightless tensors are no part of this module's state
        self._template = (copy.deepcopy(nets[0]).to("meta"),)

    def forward(self, *args: Any, shared: Sequence[int] = (), **kwargs: Any) -> Any:
        """The nets' `forward` on `args`, each `[M, ...]` but those whose positions `shared` names, which all members
        read; what they return is stacked. Keyword arguments go to every member as they are."""
        return self.call("forward", *args, shared=shared, **kwargs)

    def call(self, method: str, *args: Any, shared: Sequence[int] = (), **kwargs: Any) -> Any:
        """Like `forward`, for any method of the nets."""
        self._check(args, shared)
        net = _Method(self._template[0].train(self.training), method)
        state = {f"net.{name}": getattr(self, mine) for name, mine in self._names.items()}

        def one(member: dict[str, Tensor], *inputs: Any) -> Any:
            return functional_call(net, member, inputs, kwargs)

        in_dims = (0, *(None if i in shared else 0 for i in range(len(args))))
        return vmap(one, in_dims=in_dims, randomness="different")(state, *args)

    def _check(self, args: Sequence[Any], shared: Sequence[int]) -> None:
        for i, arg in enumerate(args):
            if i not in shared and not (isinstance(arg, Tensor) and arg.ndim and len(arg) == self.members):
                found = tuple(arg.shape) if isinstance(arg, Tensor) else type(arg).__name__
                raise ShapeError(
                    f"argument {i} must be a tensor [{self.members}, ...], one entry a member, got {found}; "
                    "name it in shared= where all members read the same"
                )

    def member(self, index: int) -> nn.Module:
        """A net of its own with the values of member `index`."""
        net = copy.deepcopy(self._template[0]).to_empty(device=next(self.parameters()).device).train(self.training)
        with torch.no_grad():
            for name, tensor in (*net.named_parameters(), *net.named_buffers()):
                tensor.copy_(getattr(self, self._names[name])[index])
        return net


class StackedDropout(nn.Module):
    """Dropout whose rate is a buffer, so that the members of a stack may have different ones (0 included)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"a dropout rate must lie in [0, 1), got {rate}")
        self.register_buffer("rate", torch.tensor(float(rate)))

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.rate) / (1.0 - self.rate) if self.training else x


class _StackedOptimiser(torch.optim.Optimizer):
    """Base: parameters `[M, ...]` and a step size for all members, or one each."""

    def __init__(self, params: Iterable[Tensor], lr: float | Sequence[float] | Tensor, **settings: Any) -> None:
        rates = torch.as_tensor(lr, dtype=torch.float32)
        if bool((rates < 0).any()) or rates.ndim > 1:
            raise ConfigError(f"step sizes must be one number >= 0 or one a member, got {lr}")
        super().__init__(params, {"lr": lr if isinstance(lr, (int, float)) else rates, **settings})

    def _active(self) -> Iterable[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
        """Each group with those of its parameters that have a gradient, and the gradients."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                yield group, params, [p.grad for p in params]


def _scaled(tensors: list[Tensor], lr: float | Tensor) -> list[Tensor]:
    """`tensors` `[M, ...]` times the step size, which may be one a member."""
    if not isinstance(lr, Tensor) or not lr.ndim:
        return torch._foreach_mul(tensors, float(lr))
    if any(len(t) != len(lr) for t in tensors):
        raise ShapeError(f"{len(lr)} step sizes were given for parameters of {len(tensors[0])} members")
    return torch._foreach_mul(tensors, [lr.to(t).view(-1, *[1] * (t.ndim - 1)) for t in tensors])


class StackedAdam(_StackedOptimiser):
    """Adam on stacked parameters: each member's update is that of `torch.optim.Adam` on the member alone."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Sequence[float] | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every member."""
        for group, params, gradients in self._active():
            beta1, beta2 = group["betas"]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                self.state[p]["step"] += 1
            done = self.state[params[0]]["step"]
            mean, square = ([self.state[p][name] for p in params] for name in ("mean", "square"))
            torch._foreach_lerp_(mean, gradients, 1.0 - beta1)
            torch._foreach_mul_(square, beta2)
            torch._foreach_addcmul_(square, gradients, gradients, value=1.0 - beta2)
            size = torch._foreach_sqrt(square)
            torch._foreach_div_(size, (1.0 - beta2**done) ** 0.5)
            torch._foreach_add_(size, group["eps"])
            torch._foreach_addcdiv_(params, _scaled(mean, group["lr"]), size, value=-1.0 / (1.0 - beta1**done))


class StackedSGD(_StackedOptimiser):
    """Gradient descent with momentum on stacked parameters, as `torch.optim.SGD` on each member alone."""

    def __init__(self, params: Iterable[Tensor], lr: float | Sequence[float] | Tensor, momentum: float = 0.0) -> None:
        super().__init__(params, lr, momentum=momentum)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every member."""
        for group, params, gradients in self._active():
            if group["momentum"]:
                for p, gradient in zip(params, gradients, strict=True):
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.mul_(group["momentum"]).add_(gradient)
                gradients = [self.state[p]["velocity"] for p in params]
            torch._foreach_sub_(params, _scaled(gradients, group["lr"]))


def minimise(losses: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One step on `losses [M]`: gradients go to this optimiser's parameters only, each member's from its own loss."""
    if losses.ndim != 1:
        raise ShapeError(
            f"losses must be [members], got {tuple(losses.shape)}; average over the batch, not over members"
        )
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.zero_grad(set_to_none=True)
    losses.sum().backward(inputs=parameters)
    optimiser.step()
