"""Looking into a network without touching it: feature capture, and a guard that leaves every flag and statistic as
it was.

Shapes: whatever the named module gives, batch first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError


@contextmanager
def quiet(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and no parameter gradients inside the `with`; every submodule's mode and every flag comes back
    after it.

    In eval mode batch norm reads its running statistics and never writes them, so they stay bit-identical;
    gradients in the inputs are still recorded, those in the parameters are not computed at all.
    """
    modes = [(part, part.training) for part in module.modules()]
    flags = [(weight, weight.requires_grad) for weight in module.parameters()]
    for part, _ in modes:
        part.training = False
    for weight, _ in flags:
        weight.requires_grad_(False)
    try:
        yield module
    finally:
        for part, mode in modes:
            part.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


def find(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that path; a wrong name raises `ConfigError` with the three nearest names."""
    parts = dict(module.named_modules())
    if name in parts and name:
        return parts[name]
    near = difflib.get_close_matches(name, [path for path in parts if path], n=3, cutoff=0.0)
    raise ConfigError(f"the network has no layer {name!r}; nearest: {', '.join(near) or 'it has none'}")


class _Enough(Exception):
    """Raised inside a hook when everything asked for has been seen: the rest of the network need not run."""


def capture(
    module: nn.Module, x: Tensor, names: Sequence[str], *, grad: bool = False, early: bool = True
) -> dict[str, Tensor]:
    """Outputs of the named submodules for the batch `x` (`"name:in"`: the first positional input) in one forward
    pass.

    A submodule that runs several times gives its first call. With `grad` the tensors are part of the graph,
    upstream of all that follows; else they are detached copies. In both cases a later in-place operation
    (ReLU(inplace=True)) cannot change them. With `early` the pass stops after the last feature. Raises
    `ConfigError` for a wrong name or one that never ran.
    """
    seen: dict[str, Tensor] = {}
    wanted = list(dict.fromkeys(names))

    def keep(name: str, value: object) -> Tensor | None:
        if name in seen:
            return None
        if not isinstance(value, Tensor):
            raise ShapeError(f"layer {name!r} gives {type(value).__name__}, not one tensor; name a part of it")
        seen[name] = value if grad else value.detach().clone()
        if early and len(seen) == len(wanted):
            raise _Enough
        return value.clone() if grad else None

    handles = []
    try:
        for name in wanted:
            part = find(module, name.removesuffix(":in"))
            if name.endswith(":in"):
                handles.append(part.register_forward_pre_hook(_before(keep, name)))
            else:
                handles.append(part.register_forward_hook(lambda _m, _i, out, name=name: keep(name, out)))
        with torch.set_grad_enabled(grad):
            module(x)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in wanted if name not in seen]
    if missing:
        raise ConfigError(f"layer {missing[0]!r} exists but did not run in the forward pass; choose another")
    return {name: seen[name] for name in wanted}


def _before(keep, name: str):
    def hook(_module: nn.Module, inputs: tuple) -> tuple | None:
        fresh = keep(name, inputs[0] if inputs else None)
        return None if fresh is None else (fresh, *inputs[1:])

    return hook


@contextmanager
def watch(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, the dict fills with detached copies of the named submodules' outputs, from their first
    call on.

    The forward passes are somebody else's (a training step); nothing in them changes. Hooks are removed at the end.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, out: object) -> None:
        if name not in seen and isinstance(out, Tensor):
            seen[name] = out.detach().clone()

    handles = [find(module, n).register_forward_hook(lambda _m, _i, out, n=n: keep(n, out)) for n in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
