"""The profile of a network or of a whole training step: per layer FLOPs, bytes, parameters, predicted and measured time.

Measured times are those of the dispatched operations; the Python between them is in `step_ms` only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cambrian.errors import ConfigError
from cambrian.inspect.counters import PRODUCTS, Graph, Operation, count_step, run_pass
from cambrian.inspect.device import Clock, Device, calibrate, clock_for


@dataclass(frozen=True)
class LayerProfile:
    """One layer: `kind` is the class of its products (or of its memory work), milliseconds are per pass or step."""

    layer: str
    kind: str
    params: int
    forward_flops: int
    backward_flops: int
    bytes: int
    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True)
class Profile:
    """Rows in the order in which layers first ran; `step_ms` is the median time of the unrecorded pass or step."""

    rows: tuple[LayerProfile, ...]
    predicted_ms: float
    measured_ms: float
    step_ms: float
    graph: Graph

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles and cells as text, the totals last."""
        columns = ["layer", "kind", "params", "fwd MFLOP", "bwd MFLOP", "MB moved", "predicted ms", "measured ms"]
        cells = [
            [r.layer or "-", r.kind, f"{r.params:,}", f"{r.forward_flops / 1e6:.2f}", f"{r.backward_flops / 1e6:.2f}",
             f"{r.bytes / 1e6:.2f}", f"{r.predicted_ms:.3f}", f"{r.measured_ms:.3f}"]
            for r in self.rows
        ]  # fmt: skip
        forward = self.graph.flops("forward")
        cells.append(["total", "", f"{self.graph.parameters():,}", f"{forward / 1e6:.2f}",
                      f"{(self.graph.flops() - forward) / 1e6:.2f}", f"{self.graph.bytes() / 1e6:.2f}",
                      f"{self.predicted_ms:.3f}", f"{self.measured_ms:.3f}"])  # fmt: skip
        return columns, cells


def profile(
    module: nn.Module,
    inputs: Sequence[object],
    *,
    device: Device | None = None,
    backward: bool = True,
    repeats: int = 5,
    clock: Clock | None = None,
) -> Profile:
    """Run `module(*inputs)` (and backward) for real and set predicted beside measured time, layer by layer.

    `device` is calibrated first if not given. Gradients and buffers of the module are left as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def step() -> None:
        run_pass(module, inputs, backward, buffers)

    return profile_step(step, {"": module}, device=device, repeats=repeats, clock=clock)


def profile_step(
    step: Callable[[], object],
    modules: Mapping[str, nn.Module] | None = None,
    *,
    device: Device | None = None,
    repeats: int = 5,
    clock: Clock | None = None,
) -> Profile:
    """The profile of any training step (several players, loops, optimiser included); runs it 2 `repeats` + 1 times.

    `modules` names the networks in it: `{"generator": g, "critic": d}`. The step has its usual effects.
    Raises `ConfigError` for fewer than one repeat.
    """
    if repeats < 1:
        raise ConfigError(f"a profile needs at least 1 repeat, not {repeats}")
    clock = clock or clock_for(_home(modules))
    device = device or calibrate(_home(modules), rounds=3, clock=clock)
    step()
    plain: list[float] = []
    graphs: list[Graph] = []
    for _ in range(repeats):
        start = clock()
        step()
        plain.append(clock() - start)
        graphs.append(count_step(step, modules, clock=clock))
    rows = _rows(graphs, device)
    measured = statistics.median(sum(op.seconds for op in g.operations) for g in graphs)
    predicted = float(device.seconds(graphs[-1]).sum())
    return Profile(tuple(rows), 1e3 * predicted, 1e3 * measured, 1e3 * statistics.median(plain), graphs[-1])


def _home(modules: Mapping[str, nn.Module] | None) -> str:
    tensors = (p for module in (modules or {}).values() for p in module.parameters())
    first = next(tensors, None)
    return "cpu" if first is None else str(first.device)


def _rows(graphs: Sequence[Graph], device: Device) -> list[LayerProfile]:
    last = graphs[-1]
    layers: dict[str, list[tuple[Operation, float]]] = {}
    for op, seconds in zip(last.operations, device.seconds(last)):
        layers.setdefault(op.layer, []).append((op, float(seconds)))
    measured: dict[str, list[float]] = {layer: [0.0] * len(graphs) for layer in layers}
    for i, graph in enumerate(graphs):
        for op in graph.operations:
            if op.layer in measured:
                measured[op.layer][i] += op.seconds
    return [_row(layer, members, measured[layer], last.params.get(layer, 0)) for layer, members in layers.items()]


def _row(layer: str, members: list[tuple[Operation, float]], measured: list[float], params: int) -> LayerProfile:
    operations = [op for op, _ in members]
    kind = next((op.kind for op in operations if op.kind in PRODUCTS), operations[0].kind)
    forward = sum(op.flops for op in operations if op.direction == "forward")
    moved = sum(op.read + op.written for op in operations)
    return LayerProfile(
        layer=layer,
        kind=kind,
        params=params,
        forward_flops=forward,
        backward_flops=sum(op.flops for op in operations) - forward,
        bytes=moved,
        predicted_ms=1e3 * sum(seconds for _, seconds in members),
        measured_ms=1e3 * statistics.median(measured),
    )
