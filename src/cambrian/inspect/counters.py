"""Counting what a network computes: FLOPs, bytes and parameters of every operation, forward and backward.

`trace` runs a module on the `meta` device, so neither memory nor arithmetic is spent, at two batch sizes, so that the
counts of any batch size follow by a line. `count_step` watches a real callable instead (a training step with control
flow, several players, an optimiser). Both see operations where torch dispatches them, and name the module that each
belongs to, also in the backward pass: after a module's forward its autograd nodes are tagged with its name.

Conventions: a multiply-add is 2 FLOPs; only products count (convolution, matrix product, attention, recurrent layers),
as in `torch.utils.flop_counter`; elementwise work, pooling and normalisation are bytes. Bytes are those an operation
must move once: its inputs and outputs (an expanded tensor counts its distinct elements, a view nothing).

    convolution: 2 N Ho Wo (Ci/g) Kh Kw Co    data gradient and filter gradient: the same each, and no data gradient
    product:     2 m k n                      where the input needs none (the first layer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from cambrian.errors import CapabilityError, ShapeError

aten = torch.ops.aten
PRODUCTS = ("gemm", "conv1x1", "conv3x3", "conv", "conv-first", "depthwise", "rnn", "attention")
KINDS = (*PRODUCTS, "elementwise", "pool", "norm")


@dataclass(frozen=True)
class Operation:
    """One dispatched operation.

    `kind` is one of `KINDS`; `direction` is forward, data (gradient of a convolution's input), filter (of its weight),
    backward (all else in the backward pass) or update (inside an optimiser). `dims` is the problem's shape: (groups,
    N * pixels, outputs per group, inputs per group * taps) of a product or convolution, empty otherwise. `slopes` is
    the growth per sample of (flops, read, written, *dims). `parents` are the positions of the operations whose results
    it uses (traced graphs only). `seconds` is the measured time if the recorder had a clock.
    """

    layer: str
    name: str
    kind: str
    direction: str
    flops: int
    read: int
    written: int
    dims: tuple[int, ...] = ()
    slopes: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.flops, self.read, self.written, *self.dims)


@dataclass(frozen=True)
class Graph:
    """The operations of one pass or step in the order in which they ran, and the parameters of each layer (elements).

    `batch` is the batch size of the counts; 0 where the graph came from `count_step` and cannot be rescaled.
    """

    operations: tuple[Operation, ...]
    params: Mapping[str, int] = field(default_factory=dict)
    param_bytes: int = 0
    batch: int = 0

    def flops(self, direction: str | None = None) -> int:
        """FLOPs of `forward`, `backward` (all that is not forward) or everything."""
        return sum(op.flops for op in self.select(direction).operations)

    def bytes(self, direction: str | None = None) -> int:
        """Bytes read and written, same choice of direction."""
        return sum(op.read + op.written for op in self.select(direction).operations)

    def parameters(self) -> int:
        return sum(self.params.values())

    def select(self, direction: str | None) -> Graph:
        if direction is None:
            return self
        forward = direction == "forward"
        return replace(self, operations=tuple(o for o in self.operations if (o.direction == "forward") == forward))

    def at(self, batch: int) -> Graph:
        """The same graph at another batch size."""
        if not self.batch:
            raise CapabilityError("a counted step cannot be rescaled: count it again at the batch size wanted")
        more = batch - self.batch
        return replace(self, batch=batch, operations=tuple(_moved(op, more) for op in self.operations))


def _moved(op: Operation, more: int) -> Operation:
    flops, read, written, *dims = (size + more * slope for size, slope in zip(op.sizes, op.slopes))
    return replace(op, flops=flops, read=read, written=written, dims=tuple(dims))


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a value; a dimension of stride 0 (an expanded one) is stored once."""
    total = 0
    for x in tree_leaves(value):
        if isinstance(x, Tensor) and x.layout == torch.strided:
            total += x.element_size() * prod(n if s else 1 for n, s in zip(x.shape, x.stride()))
    return total


def _matmul_dims(args: Sequence[Any]) -> tuple[int, ...]:
    a, b = args[0], args[1]
    groups = a.shape[0] if a.dim() == 3 else 1
    return groups, a.shape[-2], b.shape[-1], a.shape[-1]


def _conv_dims(x: Tensor, weight: Tensor, out: Tensor, transposed: bool, groups: int) -> tuple[int, ...]:
    pixels = prod((x if transposed else out).shape[2:])
    outputs = weight.shape[0] // groups
    return groups, x.shape[0] * pixels, outputs, weight[0].numel()


def _conv_kind(weight: Tensor, groups: int, transposed: bool) -> str:
    inputs, taps = weight.shape[1], weight.shape[2:]
    if groups > 1 and inputs == 1:
        return "depthwise"
    if inputs <= 4 and groups == 1 and not transposed:
        return "conv-first"
    return {1: "conv1x1", 3: "conv3x3"}.get(taps[0] if len(set(taps)) == 1 else 0, "conv")


_MATMULS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
_ATTENTION = {
    name: side
    for names, side in (
        (("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
          "_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention"), 0),
        (("_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_efficient_attention_backward",
          "_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_cudnn_attention_backward"), 1),
    )
    for name in names
}  # fmt: skip
_WRITE_ONLY = ("copy_", "zero_", "fill_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_")


def _attention_flops(name: str, args: Sequence[Any]) -> int:
    """Two products forward; five backward (scores again, and the gradients of values, scores, queries and keys)."""
    query, key, value = args[_ATTENTION[name] : _ATTENTION[name] + 3]
    pairs = prod(query.shape[:-2]) * query.shape[-2] * key.shape[-2]
    d, e = query.shape[-1], value.shape[-1]
    return 2 * pairs * ((d + e) if _ATTENTION[name] == 0 else (3 * d + 2 * e))


def _rnn_flops(args: Sequence[Any]) -> int:
    """oneDNN's LSTM layer: the input and recurrent products of every time step."""
    x, w_input, w_hidden = args[0], args[1], args[2]
    return 2 * x.shape[0] * x.shape[1] * (w_input.numel() + w_hidden.numel())


class Recorder(TorchDispatchMode):
    """Records the operations dispatched inside `with`; give `clock` to time them too.

    `modules` maps display names to modules whose submodules are to be named; others appear by their class. `flow`
    also records which operation uses whose result; it keeps every tensor alive, so it is for the meta device.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module] | None = None,
        *,
        clock: Callable[[], float] | None = None,
        flow: bool = False,
    ) -> None:
        super().__init__()
        self._flow: dict[int, tuple[Tensor, tuple[int, ...]]] | None = {} if flow else None
        self.operations: list[Operation] = []
        self.clock = clock
        self._names = {
            m: _join(prefix, path) for prefix, root in (modules or {}).items() for path, m in root.named_modules()
        }
        self._stack: list[tuple[str, set[Any]]] = []
        self._updating = 0

    def __enter__(self) -> Recorder:
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._enter_update),
            register_optimizer_step_post_hook(self._leave_update),
        ]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append((self._names.get(module, type(module).__name__), _nodes(inputs)))

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name, border = self._stack.pop()
        pending = list(_nodes(output))
        while pending:
            node = pending.pop()
            if node in border or "layer" in node.metadata:
                continue
            node.metadata["layer"] = name
            pending.extend(parent for parent, _ in node.next_functions if parent is not None)

    def _enter_update(self, *_: Any) -> None:
        self._updating += 1

    def _leave_update(self, *_: Any) -> None:
        self._updating -= 1

    def _place(self) -> tuple[str, str]:
        node = torch._C._current_autograd_node()
        if node is not None:
            return node.metadata.get("layer", ""), "backward"
        if self._updating:
            return "", "update"
        return (self._stack[-1][0] if self._stack else ""), "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in _PRODUCTS and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):  # reached undecomposed under inference mode
            with self:
                return func.decompose(*args, **kwargs)
        if self.clock is None:
            out, seconds = func(*args, **kwargs), 0.0
        else:
            start = self.clock()
            out = func(*args, **kwargs)
            seconds = self.clock() - start
        first = len(self.operations)
        if not _is_free(func):
            self.operations.extend(_describe(func, args, kwargs, out, *self._place(), seconds))
        if self._flow is not None:
            self._connect((args, kwargs), out, first)
        return out

    def _connect(self, inputs: Any, out: Any, first: int) -> None:
        """Note whose results the new operations use, and that `out` is theirs (a view's: that of what it views)."""
        assert self._flow is not None
        known = [self._flow[id(x)][1] for x in tree_leaves(inputs) if id(x) in self._flow]
        parents = tuple(sorted({source for sources in known for source in sources}))
        made = tuple(range(first, len(self.operations)))
        for i in made:
            self.operations[i] = replace(self.operations[i], parents=parents)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._flow[id(x)] = (x, made or parents)


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _nodes(value: Any) -> set[Any]:
    return {x.grad_fn for x in tree_leaves(value) if isinstance(x, Tensor) and x.grad_fn is not None}


_PRODUCTS = {
    *_MATMULS,
    aten.convolution,
    aten.convolution_backward,
    aten.mkldnn_rnn_layer,
    aten.mkldnn_rnn_layer_backward,
}
_FREE: dict[Any, bool] = {}


def _is_free(func: Any) -> bool:
    """Views, empty allocations and queries move no bytes."""
    if func not in _FREE:
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        name = func.overloadpacket.__name__
        _FREE[func] = view or name.startswith(("empty", "new_empty")) or (not returns and not _written(func))
    return _FREE[func]


def _written(func: Any) -> list[tuple[int, str]]:
    """Position and name of the arguments that an operation writes to."""
    arguments = func._schema.arguments
    return [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


def _describe(
    func: Any, args: Any, kwargs: Any, out: Any, layer: str, direction: str, seconds: float
) -> Iterator[Operation]:
    packet, name = func.overloadpacket, func.overloadpacket.__name__
    if packet is aten.convolution_backward:
        yield from _conv_backward(args, out, layer, seconds)
        return
    kind, flops, dims = _product(packet, name, args, out)
    targets = [args[i] if i < len(args) else kwargs.get(key) for i, key in _written(func)]
    overwrites = name in _WRITE_ONLY or kwargs.get("out") is not None
    read = tensor_bytes((args, kwargs)) - (tensor_bytes(targets) if overwrites else 0)
    fresh = [o for o, r in zip(out if isinstance(out, tuple) else (out,), func._schema.returns) if r.alias_info is None]
    written = tensor_bytes(fresh) + tensor_bytes(targets)
    yield Operation(layer, name, kind, direction, flops, read, written, dims, seconds=seconds)


def _product(packet: Any, name: str, args: Any, out: Any) -> tuple[str, int, tuple[int, ...]]:
    if packet in _MATMULS:
        dims = _matmul_dims(args[_MATMULS[packet] :])
        return "gemm", 2 * prod(dims), dims
    if packet is aten.convolution:
        dims = _conv_dims(args[0], args[1], out, args[6], args[8])
        return _conv_kind(args[1], args[8], args[6]), 2 * prod(dims), dims
    if name in _ATTENTION:
        return "attention", _attention_flops(name, args), ()
    if packet is aten.mkldnn_rnn_layer:
        return "rnn", _rnn_flops(args), ()
    if packet is aten.mkldnn_rnn_layer_backward:
        return "rnn", 2 * _rnn_flops(args), ()
    return ("pool" if "pool" in name else "norm" if "norm" in name else "elementwise"), 0, ()


def _conv_backward(args: Any, out: Any, layer: str, seconds: float) -> Iterator[Operation]:
    """One dispatched operation, two computations; a measured time is shared between them."""
    grad, x, weight = args[:3]
    transposed, groups, mask = args[7], args[9], args[10]
    dims, kind = _conv_dims(x, weight, grad, transposed, groups), _conv_kind(weight, groups, transposed)
    flops, share = 2 * prod(dims), seconds / max(1, mask[0] + mask[1])
    if mask[0]:
        yield Operation(layer, "convolution_backward", kind, "data", flops, tensor_bytes((grad, weight)),
                        tensor_bytes(out[0]), dims, seconds=share)  # fmt: skip
    if mask[1]:
        yield Operation(layer, "convolution_backward", kind, "filter", flops, tensor_bytes((grad, x)),
                        tensor_bytes(out[1:]), dims, seconds=share)  # fmt: skip


def run_pass(
    module: nn.Module, inputs: Sequence[Any], backward: bool, state: Mapping[str, Tensor] | None = None
) -> None:
    """Forward, and backward from ones at every output; leaves the module's `.grad` and buffers as they were."""
    if state is None:
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.set_grad_enabled(backward):
        out = torch.func.functional_call(module, dict(state), tuple(inputs))
    if not backward:
        return
    ends = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.grad_fn is not None]
    wanted = [p for p in (state.get(name, p) for name, p in module.named_parameters()) if p.requires_grad]
    if ends and wanted:
        torch.autograd.grad(ends, wanted, [torch.ones_like(x) for x in ends], allow_unused=True)


def _meta_operations(module: nn.Module, inputs: Sequence[Any], backward: bool) -> list[Operation]:
    def to_meta(x: Tensor) -> Tensor:
        return torch.empty_like(x, device="meta", requires_grad=x.requires_grad)

    state = {k: to_meta(v) for k, v in (*module.named_parameters(), *module.named_buffers())}
    inputs = tree_map_only(Tensor, to_meta, list(inputs))
    recorder = Recorder({"": module}, flow=True)
    try:
        with recorder:
            run_pass(module, inputs, backward, state)
    except (NotImplementedError, RuntimeError) as error:
        raise CapabilityError(
            f"{type(module).__name__} cannot be traced without data; use count_step ({str(error).splitlines()[0]})"
        ) from error
    return recorder.operations


def own_parameters(module: nn.Module, prefix: str = "") -> dict[str, int]:
    """Parameters by the module that owns them (shared ones once)."""
    seen: set[int] = set()
    table: dict[str, int] = {}
    for path, part in module.named_modules():
        fresh = [p for p in part.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in fresh)
        if fresh:
            table[_join(prefix, path)] = sum(p.numel() for p in fresh)
    return table


def trace(
    module: nn.Module,
    inputs: Sequence[int] | Sequence[Any] | Tensor,
    *,
    backward: bool = True,
    batch: int = 2,
) -> Graph:
    """Count a module's forward (and backward) pass on the meta device.

    `inputs` is the shape of one sample (`(3, 32, 32)`), a tensor, or a sequence of positional inputs whose tensors all
    have the batch as dimension 0. The graph is at `batch`; `Graph.at` gives others (counts must be linear in the batch
    size, which holds unless samples are compared with one another). Raises `ShapeError` for an empty shape and
    `CapabilityError` for a module that looks at values.
    """
    if batch < 2:
        raise ShapeError(f"trace needs a batch of at least 2 (batch norm has no statistics of one), not {batch}")
    sizes = (batch, batch + 1)
    low, high = (_meta_operations(module, _example(inputs, size), backward) for size in sizes)
    if [op.name for op in low] != [op.name for op in high]:
        raise CapabilityError(f"{type(module).__name__} runs other operations at batch {sizes[1]} than at {sizes[0]}")
    joined = tuple(_with_slopes(a, b) for a, b in zip(low, high))
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return Graph(joined, own_parameters(module), weights, batch)


def _with_slopes(a: Operation, b: Operation) -> Operation:
    return replace(a, slopes=tuple(y - x for x, y in zip(a.sizes, b.sizes)))


def _example(inputs: Any, batch: int) -> list[Any]:
    if isinstance(inputs, Tensor):
        inputs = [inputs]
    inputs = list(inputs)
    if not inputs:
        raise ShapeError("trace needs the shape of one sample, such as (3, 32, 32), not an empty one")
    if all(isinstance(n, int) for n in inputs):
        return [torch.empty(batch, *inputs, device="meta")]
    return tree_map_only(Tensor, lambda x: x.new_empty(batch, *x.shape[1:], device="meta"), inputs)


def count_step(
    step: Callable[[], Any], modules: Mapping[str, nn.Module] | None = None, *, clock: Callable[[], float] | None = None
) -> Graph:
    """Run `step()` once, for real, and count what it does; `modules` names the networks inside it.

    The step has its effects (weights move, random numbers are drawn). With `clock` every operation is timed; the sum
    leaves out the Python between operations.
    """
    recorder = Recorder(modules, clock=clock)
    with recorder:
        step()
    params: dict[str, int] = {}
    for prefix, module in (modules or {}).items():
        params.update(own_parameters(module, prefix))
    weights = sum(p.numel() * p.element_size() for m in (modules or {}).values() for p in m.parameters())
    return Graph(tuple(recorder.operations), params, weights)
