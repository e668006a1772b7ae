"""One forward pass written down, so that parts of it can run again: from the middle, with a tensor changed, or with
several variants of it stacked in one batch.

The pass is recorded while it runs on real tensors (every call of a torch function, in order), so modules and plain
functions are seen alike, and control flow on shapes needs no special care. Parameters stay live references.

Shapes: B batch, V variants; a replay of V variants has V * B samples, variant-major.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cambrian.errors import CapabilityError
from cambrian.inspect.hooks import quiet

_OUT_OF_PLACE: dict[str, Callable[..., Any]] = {
    "__iadd__": torch.add, "__isub__": torch.sub, "__imul__": torch.mul, "__itruediv__": torch.div, "relu_": torch.relu,
}  # fmt: skip
_RESHAPES = ("view", "reshape", "unflatten")


@dataclass(frozen=True)
class Ref:
    """A value of the tape, by number."""

    number: int


@dataclass(frozen=True)
class Call:
    """One torch function: `args` and `kwargs` hold `Ref` where a recorded value goes in."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Tape(TorchFunctionMode):
    """The calls and values of `module(x)` in eval mode; value 0 is `x`, `output` the number of the result.

    `gates` act during the pass: what is computed after value `n` sees `gates[n](value)`. With `grad` the pass is
    recorded by autograd (the parameters' gradients stay off).
    """

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        gates: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        *,
        grad: bool = False,
    ) -> None:
        super().__init__()
        self._gates = dict(gates or {})
        self._held: list[Tensor] = []
        self.calls: list[Call] = []
        self.values: list[Tensor] = [x]
        self._numbers: dict[int, int] = {id(x): 0}
        with quiet(module), torch.set_grad_enabled(grad), self:
            out = module(x)
        if not isinstance(out, Tensor) or id(out) not in self._numbers:
            raise CapabilityError(
                f"the network must give one tensor that depends on its input, not {type(out).__name__}"
            )
        self.output = self._numbers[id(out)]

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        kwargs = dict(kwargs or {})
        if kwargs.get("inplace"):
            kwargs["inplace"] = False  # a recorded value must keep what it was
        func = _OUT_OF_PLACE.get(name, func)
        inputs: list[int] = []
        kept = _map(args, self._refer, inputs), _map(kwargs, self._refer, inputs)
        out = func(*args, **kwargs)
        made = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        if not inputs or not made:
            return out
        if name.endswith("_") and not name.endswith("__") and name not in _OUT_OF_PLACE:
            raise CapabilityError(
                f"the network changes a tensor in place with {name}; use the form that returns a new one"
            )
        numbers = tuple(self._number(t) for t in made)
        self.calls.append(Call(name, func, *kept, tuple(inputs), numbers))
        if numbers[0] in self._gates and isinstance(out, Tensor):
            self._held.append(out)  # an id must not be used twice
            out = self._gates[numbers[0]](out)
            self.values[numbers[0]] = out
            self._numbers[id(out)] = numbers[0]
        return out

    def _refer(self, value: Any, inputs: list[int]) -> Any:
        number = self._numbers.get(id(value)) if isinstance(value, Tensor) else None
        if number is None:
            return value
        inputs.append(number)
        return Ref(number)

    def _number(self, value: Tensor) -> int:
        self.values.append(value)
        self._numbers[id(value)] = len(self.values) - 1
        return len(self.values) - 1

    def consumers(self, number: int) -> list[Call]:
        """The calls that take this value."""
        return [call for call in self.calls if number in call.inputs]

    def replay(self, gates: Mapping[int, Callable[[Tensor], Tensor]], variants: int = 1) -> Tensor:
        """The output `[V * B, ...]` when each value named in `gates` is passed through its function `[V * B, ...] ->
        [V * B, ...]`; what no gate reaches is not computed again.
        """
        batch, fresh = len(self.values[0]), dict[int, Tensor]()

        def value(number: int) -> Tensor:
            if number in fresh:
                return fresh[number]
            kept = self.values[number]
            grown = variants > 1 and kept.ndim > 0 and len(kept) == batch
            return kept.repeat(variants, *[1] * (kept.ndim - 1)) if grown else kept

        if 0 in gates:
            fresh[0] = gates[0](value(0))
        for call in self.calls:
            if any(number in fresh for number in call.inputs):
                args = _map(call.args, lambda v, _: value(v.number) if isinstance(v, Ref) else v, [])
                kwargs = _map(call.kwargs, lambda v, _: value(v.number) if isinstance(v, Ref) else v, [])
                if variants > 1 and call.name in _RESHAPES:
                    args = tuple(_scaled(args, batch, variants))
                out = call.func(*args, **kwargs)
                made = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
                fresh.update(zip(call.outputs, made, strict=True))
            for number in call.outputs:
                if number in gates:
                    fresh[number] = gates[number](value(number))
        result = value(self.output)
        if len(result) != batch * variants:
            raise CapabilityError(f"the network mixes samples: {batch * variants} went in, {len(result)} came out")
        return result


def _scaled(args: tuple[Any, ...], batch: int, variants: int) -> Iterator[Any]:
    """The arguments of a reshape with the batch size enlarged where it stands as the first size."""
    yield args[0]
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    yield from (size * variants if i == 0 and size == batch else size for i, size in enumerate(sizes))


def _map(value: Any, change: Callable[[Any, list[int]], Any], found: list[int]) -> Any:
    """`change(leaf, found)` of every leaf in nested tuples, lists and dicts."""
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_map(v, change, found) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change, found) for k, v in value.items()}
    return change(value, found)
