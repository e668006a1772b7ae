"""Running a plan: any cell, exact gradients, and a meter of the bytes that autograd keeps.

Shapes: T steps, B batch; `x` [T, ...] is indexed along its first dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _NormBase

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.systems.perception.efficient_bptt._plan import Action, Plan, framed, plan, segment

State = Any  # a tensor, or nested tuples or lists of tensors
Step = Callable[[Tensor, State], "tuple[Any, State]"]
LossAt = Callable[[Any, int], "Tensor | None"]
Stretch = Callable[[Tensor, State], State]


class Meter:
    """Bytes of distinct storages held for the backward pass: `live` now and `peak` so far.

    Parameters and inputs given as `ignore` are not counted: they are there anyway.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self.ignored = {t.untyped_storage().data_ptr() for t in ignore}
        self.counts: dict[int, int] = {}
        self.live = self.peak = 0

    def hold(self, tensor: Tensor) -> Held:
        """Count `tensor` until the returned object dies."""
        return Held(self, tensor)

    def watch(self) -> saved_tensors_hooks:
        """A context in which every tensor that autograd saves is counted until its graph is freed."""
        return saved_tensors_hooks(self.hold, lambda held: held.tensor)


class Held:
    """A tensor that a `Meter` counts for as long as this object lives."""

    def __init__(self, meter: Meter, tensor: Tensor) -> None:
        self.tensor, self.meter = tensor.detach(), meter
        storage = tensor.untyped_storage()
        self.key, self.bytes = storage.data_ptr(), storage.nbytes()
        if self.key in meter.ignored:
            self.bytes = 0
        count = meter.counts.get(self.key, 0)
        meter.counts[self.key] = count + 1
        if not count:
            meter.live += self.bytes
            meter.peak = max(meter.peak, meter.live)

    def __del__(self) -> None:
        self.meter.counts[self.key] -= 1
        if not self.meter.counts[self.key]:
            del self.meter.counts[self.key]
            self.meter.live -= self.bytes


def as_step(cell: Any) -> Step:
    """`cell(x_t, state) -> (output, state)`; torch's GRUCell, RNNCell and LSTMCell are adapted, output = hidden state."""
    if isinstance(cell, nn.LSTMCell):
        return lambda x, state: (lambda pair: (pair[0], pair))(cell(x, state))
    if isinstance(cell, (nn.GRUCell, nn.RNNCell)):
        return lambda x, state: (lambda h: (h, h))(cell(x, state))
    return cell


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order. Raises `ShapeError` for anything but tensors, tuples and lists."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (tuple, list)):
        return [leaf for part in state for leaf in leaves(part)]
    raise ShapeError(f"a recurrent state is a tensor or nested tuples of tensors, not {type(state).__name__}")


def rebuild(like: State, tensors: Iterator[Tensor]) -> State:
    """A state of the form of `like` with other tensors."""
    if isinstance(like, Tensor):
        return next(tensors)
    parts = [rebuild(part, tensors) for part in like]
    if isinstance(like, list):
        return parts
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


@dataclass(frozen=True)
class Memory:
    """What one step of a cell costs, in bytes: its state, what it adds to full backpropagation, what it takes when kept
    alone (with the states before and after it, which a row of kept steps shares), and its input."""

    state: int
    internal: int
    alone: int
    inputs: int

    @property
    def alpha(self) -> int:
        """Units of an internal state: internal / state, rounded up."""
        return max(1, math.ceil(self.internal / self.state))


def memory_of(cell: Any, x: Tensor, state: State) -> Memory:
    """Measure two steps of `cell` from `state` on the first input; leaves gradients, buffers and generators untouched."""
    modules = [cell] if isinstance(cell, nn.Module) else []
    meter = Meter([p for m in modules for p in (*m.parameters(), *m.buffers())] + [x])
    step, live = as_step(cell), list[int]()
    with torch.random.fork_rng(devices=_cuda(state)), _buffers_kept(modules), torch.enable_grad():
        current = rebuild(state, iter([s.detach().requires_grad_(s.is_floating_point()) for s in leaves(state)]))
        ends: list[Held] = []
        for _ in range(2):
            with meter.watch():
                _, current = step(x[0].detach(), current)
            live.append(meter.live)
            if not ends:
                ends = [meter.hold(s) for s in leaves(current)]
                alone = meter.live
    size = sum(s.numel() * s.element_size() for s in leaves(state))
    return Memory(size, live[1] - live[0], alone, x[0].numel() * x.element_size())


_BUDGET: ContextVar[float | None] = ContextVar("megabytes", default=None)


@contextmanager
def memory_budget(*, megabytes: float) -> Iterator[None]:
    """Inside, `bptt` without a plan makes its own for this many MB (10^6 bytes) of saved states."""
    token = _BUDGET.set(megabytes)
    try:
        yield
    finally:
        _BUDGET.reset(token)


def plan_for(cell: Any, x: Tensor, state: State, megabytes: float) -> Plan:
    """The exact mixed plan for a budget in MB. Raises `ConfigError` naming the least that works."""
    memory = memory_of(cell, x, state)
    alpha = math.ceil(memory.alone / memory.state)
    units = int(megabytes * 1e6 / memory.state) - alpha  # room for the step that is being backpropagated
    if units < 1:
        least = (alpha + 1) * memory.state / 1e6
        raise ConfigError(
            f"{megabytes:g} MB cannot hold one hidden and one internal state; the least is {least:.3g} MB"
        )
    return plan(len(x), units, alpha)


def bptt(
    cell: Any,
    x: Tensor,
    state: State,
    loss_fn: LossAt,
    plan: Plan | None = None,
    *,
    run: Stretch | None = None,
    preserve_rng: bool = True,
    meter: Meter | None = None,
) -> Tensor:
    """Backpropagate sum_t loss_fn(output_t, t) through all steps by `plan`; returns the loss, gradients are in `.grad`.

    `cell(x_t, state) -> (output, state)` is any callable; `loss_fn` gives None at steps without loss and must not draw
    random numbers. Gradients also reach `x` and `state` where these require them. `run(x[a:b], state) -> state` may execute
    stretches without graph faster (see `fused_stretch`). With `preserve_rng` the generator's state is stored with every
    kept state, so that dropout is recomputed alike, and is left as full backpropagation would leave it. Running statistics
    of normalisation layers count each step once. Without a plan everything is kept, or the enclosing `memory_budget` is used.
    Raises `CapabilityError` for a cell that changes other buffers of its own, `ConfigError` for a plan of another length.
    """
    if plan is None:
        megabytes = _BUDGET.get()
        plan = _everything(len(x)) if megabytes is None else plan_for(cell, x, state, megabytes)
    if plan.length != len(x):
        raise ConfigError(f"this plan is for {plan.length} steps, not {len(x)}; make one for this length")
    execution = _Execution(cell, x, state, loss_fn, run=run, preserve_rng=preserve_rng, meter=meter, length=plan.length)
    return execution.follow(plan.actions)


def _everything(length: int) -> Plan:
    return plan(length, kind="full")


@dataclass
class _Kept:
    """A state and the generator's at one position."""

    tensors: list[Tensor]
    rng: list[Tensor]
    held: list[Held]


@dataclass
class _Tape:
    """One step with its graph."""

    inputs: list[Tensor]
    x: Tensor
    output: Any
    outputs: list[Tensor]
    after: _Kept


class _Execution:
    def __init__(
        self,
        cell: Any,
        x: Any,
        state: State,
        loss_fn: LossAt,
        *,
        run: Stretch | None = None,
        preserve_rng: bool = True,
        meter: Meter | None = None,
        length: int | None = None,
    ) -> None:
        self.step, self.x, self.like, self.loss_fn, self.run_stretch = as_step(cell), x, state, loss_fn, run
        self.modules = [cell] if isinstance(cell, nn.Module) else []
        self.devices, self.rng_on, self.meter, self.length = _cuda(state), preserve_rng, meter, length
        self.initial = leaves(state)
        self.now, self.furthest = [s.detach() for s in self.initial], 0
        self.rng = self.rng_start = self._rng()
        self.stored: dict[int, _Kept] = {}
        self.tapes: dict[int, _Tape] = {}
        self.grads: list[Tensor | None] = [None] * len(self.initial)
        self.x_grad = torch.zeros_like(x) if isinstance(x, Tensor) and x.requires_grad else None
        self.total: Tensor | None = None
        self.final: list[Tensor] | None = None

    def follow(self, actions: Iterable[Action]) -> Tensor:
        """Execute the actions; the loss."""
        with _buffers_kept(self.modules) as settle:
            for op, at, n in actions:
                getattr(self, f"_{op}")(at, n)
                if self.furthest == self.length and self.final is None:
                    self.final = self._rng()
                    settle()
        if self.rng_on and self.final is not None:
            self._set_rng(self.final)
        for leaf, grad in zip(self.initial, self.grads, strict=True):
            if leaf.requires_grad and grad is not None:
                leaf.backward(grad)
        if self.x_grad is not None:
            self.x.backward(self.x_grad)
        return self.total if self.total is not None else torch.zeros((), device=self.initial[0].device)

    def _run(self, at: int, n: int) -> None:
        with torch.no_grad():
            state = rebuild(self.like, iter(self.now))
            if self.run_stretch is not None:
                state = self.run_stretch(self.x[at : at + n], state)
            else:
                for t in range(at, at + n):
                    _, state = self.step(self.x[t], state)
        self.now = leaves(state)
        self.furthest = max(self.furthest, at + n)

    def _store(self, at: int, n: int) -> None:
        self.stored[at] = self._keep(self.now)

    def _free(self, at: int, n: int) -> None:
        del self.stored[at]

    def _load(self, at: int, n: int) -> None:
        kept = self.stored[at] if at in self.stored else self.tapes[at - 1].after
        self.now = kept.tensors
        if self.rng_on:
            self._set_rng(kept.rng)

    def _tape(self, at: int, n: int) -> None:
        inputs = [s.detach().requires_grad_(s.is_floating_point()) for s in self.now]
        x = self.x[at].detach().requires_grad_(self.x_grad is not None)
        with torch.enable_grad(), self._watched():
            output, state = self.step(x, rebuild(self.like, iter(inputs)))
        outputs = leaves(state)
        self.now = [s.detach() for s in outputs]
        self.tapes[at] = _Tape(inputs, x, output, outputs, self._keep(self.now))
        self.furthest = max(self.furthest, at + 1)

    def _back(self, at: int, n: int) -> None:
        tape = self.tapes.pop(at)
        # the loss comes late, so that its graph lives for one step only, whatever the plan
        with torch.enable_grad(), self._watched():
            loss = self.loss_fn(tape.output, at)
        roots = [(s, g) for s, g in zip(tape.outputs, self.grads, strict=True) if g is not None]
        if loss is not None:
            roots.append((loss, torch.ones_like(loss)))
            self.total = loss.detach() if self.total is None else self.total + loss.detach()
        roots = [(root, grad) for root, grad in roots if root.requires_grad]
        if roots:
            torch.autograd.backward([r for r, _ in roots], [g for _, g in roots])
        self.grads = [s.grad for s in tape.inputs]
        if self.x_grad is not None and tape.x.grad is not None:
            self.x_grad[at] = tape.x.grad

    def _settle(self, at: int, n: int) -> None:
        self.length = at

    def _watched(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.meter is None else self.meter.watch()

    def _last(self, at: int, n: int) -> None:
        self._tape(at, n)
        self._back(at, n)

    def _keep(self, tensors: list[Tensor]) -> _Kept:
        rng = self._rng()
        if all(torch.equal(a, b) for a, b in zip(rng, self.rng, strict=True)):
            rng = self.rng  # a cell that draws nothing keeps one copy for all
        self.rng = rng
        counted = tensors if rng is self.rng_start else [*tensors, *rng]
        held = [self.meter.hold(t) for t in counted] if self.meter is not None else []
        return _Kept(tensors, rng, held)

    def _rng(self) -> list[Tensor]:
        if not self.rng_on:
            return []
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self.devices)]

    def _set_rng(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


def _cuda(state: State) -> list[int]:
    return sorted({s.device.index for s in leaves(state) if s.device.type == "cuda"})


@contextmanager
def _buffers_kept(modules: Sequence[nn.Module]) -> Iterator[Callable[[], None]]:
    """Running statistics end as they were when the yielded function was called (or at the start, if it was not)."""
    named = [(f"{n}.{b}", m, buffer) for top in modules for n, m in top.named_modules() for b, buffer in m.named_buffers(recurse=False)]  # fmt: skip
    norms = [buffer for _, module, buffer in named if isinstance(module, _NormBase)]
    others = [(name, buffer, buffer._version) for name, module, buffer in named if not isinstance(module, _NormBase)]
    kept = [buffer.clone() for buffer in norms]

    def settle() -> None:
        kept[:] = [buffer.clone() for buffer in norms]
        for name, buffer, version in others:
            if buffer._version != version:
                raise CapabilityError(
                    f"the cell changes its buffer {name} in forward, so a step cannot be executed again"
                )

    yield settle
    with torch.no_grad():
        for buffer, value in zip(norms, kept, strict=True):
            buffer.copy_(value)


def fused_stretch(cell: nn.Module, chunk: int = 16) -> Stretch:
    """A `run` for torch's GRUCell, LSTMCell and RNNCell: torch's sequence kernels on the cell's own weights, `chunk` at a time.

    The kernels keep `chunk` outputs while they run. Results may differ from the cell's in the last bits.
    """
    if not isinstance(cell, (nn.GRUCell, nn.LSTMCell, nn.RNNCell)):
        raise CapabilityError(f"{type(cell).__name__} has no fused kernel; pass a function of your own as run=")
    kernel: Any = {"GRUCell": torch.gru, "LSTMCell": torch.lstm, "RNNCell": torch.rnn_tanh}[type(cell).__name__]
    if isinstance(cell, nn.RNNCell) and cell.nonlinearity == "relu":
        kernel = torch.rnn_relu
    weights = [w for w in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh) if w is not None]

    def run(x: Tensor, state: State) -> State:
        for part in x.split(chunk):
            hidden = tuple(s[None] for s in state) if isinstance(state, tuple) else state[None]
            out = kernel(part, hidden, weights, cell.bias, 1, 0.0, False, False, False)
            state = tuple(s[0] for s in out[1:]) if isinstance(state, tuple) else out[1][0]
        return state

    return run


def bptt_stream(
    cell: Any,
    steps: Iterable[Tensor],
    state: State,
    loss_fn: LossAt,
    *,
    budget: int,
    alpha: int,
    meter: Meter | None = None,
) -> Tensor:
    """`bptt` over a stream whose length is not known: hidden states at a stride that doubles whenever the budget is full.

    Half of `budget` units holds these; each segment between two of them is then solved exactly with what is free. The
    inputs themselves are kept (they are needed for backward) and do not count.
    """
    if budget < 2:
        raise ConfigError(f"a stream needs a budget of at least 2 hidden states, not {budget}")
    inputs: list[Tensor] = []
    programme = framed(_stream_programme(steps, inputs, budget, alpha))
    return _Execution(cell, inputs, state, loss_fn, meter=meter).follow(programme)


def _stream_programme(steps: Iterable[Tensor], inputs: list[Tensor], budget: int, alpha: int) -> Iterator[Action]:
    stride, starts, slots = 1, [0], max(1, budget // 2)
    for x in steps:
        t = len(inputs)
        inputs.append(x)
        if t and t % stride == 0 and len(starts) == slots:
            stride *= 2
            yield from (Action("free", s) for s in starts if s % stride)
            starts = [s for s in starts if s % stride == 0]
        if t and t % stride == 0:
            starts.append(t)
            yield Action("store", t)
        yield Action("run", t)
    yield Action("settle", len(inputs))
    ends = [*starts[1:], len(inputs)]
    for i in range(len(starts) - 1, -1, -1):
        yield from segment(starts[i], ends[i] - starts[i], budget - i, alpha)
        yield Action("free", starts[i])
