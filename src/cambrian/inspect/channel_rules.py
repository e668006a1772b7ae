"""How channel labels pass through each function of a recorded forward pass; see `cambrian.inspect.surgery`.

Labels run along axis 1 of a value `[B, C, ...]`. A union-find joins labels that must live or go together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.inspect.tape import Call, Ref, Tape

ACTIVATIONS = {
    "relu", "relu_", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "leaky_relu", "tanh", "sigmoid", "softplus", "hardtanh",
    "hardswish", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "prelu", "batch_norm", "instance_norm",
}  # fmt: skip
POOLS = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "boolean_dispatch", "fn", "_max_pool1d", "_max_pool2d", "interpolate", "pad",
    "neg", "abs", "clone", "contiguous", "float", "to", "detach", "clamp", "pow", "sqrt", "exp", "square", "__neg__",
}  # fmt: skip
SUMS = {"add", "sub", "mul", "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__",
        "__iadd__", "__isub__", "__imul__", "__itruediv__", "maximum", "minimum"}  # fmt: skip
SHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "ravel", "unflatten"}
NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")


class Labels:
    """Labels of every value, the parameter slices under them (`slots`), and where each layer's maps stand finished."""

    def __init__(self, tape: Tape, module: nn.Module) -> None:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self.names = {id(tensor): name for name, tensor in reversed(named)}
        self.tape, self.parent = tape, np.zeros(0, dtype=np.int64)
        self.of: dict[int, np.ndarray] = {}
        self.slots: dict[tuple[str, int], np.ndarray] = {}
        self.macs: dict[str, float] = {}
        self.layers: dict[str, np.ndarray] = {}
        self.sites: dict[str, int] = {}
        self.pinned: list[int] = []
        self.of[0] = self.new(tape.values[0], pinned=True)
        for call in tape.calls:
            self.visit(call)
        self.pin(self.of[tape.output])

    # -- the union-find ------------------------------------------------------------------------------------------------

    def new(self, value: Tensor, *, pinned: bool = False) -> np.ndarray:
        """A fresh label for each entry of axis 1."""
        count = value.shape[1] if value.ndim > 1 else 0
        labels = np.arange(len(self.parent), len(self.parent) + count)
        self.parent = np.concatenate([self.parent, labels])
        if pinned:
            self.pin(labels)
        return labels

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return int(label)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        return np.array([self.root(label) for label in labels], dtype=np.int64)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(self.roots(first), self.roots(second), strict=True):
            a, b = self.root(a), self.root(b)
            self.parent[max(a, b)] = min(a, b)

    def pin(self, labels: np.ndarray) -> None:
        self.pinned.extend(int(label) for label in labels)

    def slot(self, tensor: Any, axis: int, labels: np.ndarray) -> bool:
        """Put a parameter's slices along `axis` under these labels; False when it is no parameter of the module."""
        name = self.names.get(id(tensor))
        if name is None or tensor.shape[axis] != len(labels):
            return False
        if (name, axis) in self.slots:
            self.join(self.slots[name, axis], labels)
        self.slots.setdefault((name, axis), labels)
        return True

    # -- the rules -----------------------------------------------------------------------------------------------------

    def visit(self, call: Call) -> None:
        """Label the call's outputs."""
        out = [self.tape.values[number] for number in call.outputs]
        if call.name in ("conv1d", "conv2d", "conv3d", "linear"):
            made = self._product(call, out[0])
        elif call.name in ("batch_norm", "instance_norm", "prelu"):
            made = self._norm(call)
        elif call.name in ACTIVATIONS | POOLS and len(out) == 1 and self._keeps_channels(call, out[0]):
            made = self.of[call.inputs[0]]
        elif call.name in SUMS:
            made = self._sum(call, out[0])
        elif call.name in ("cat", "concat", "concatenate"):
            made = self._cat(call, out[0])
        elif call.name in SHAPES or (call.name == "__getitem__" and _whole_channels(call.args[1])):
            made = self._reshape(call, out[0])
        elif call.name in ("mean", "sum", "amax", "amin") and _leaves_axis_1(call, self.tape.values[call.inputs[0]]):
            made = self.of[call.inputs[0]]
        else:
            made = None
        if made is None:
            self._give_up(call, out)
        else:
            self.of[call.outputs[0]] = made

    def _give_up(self, call: Call, out: list[Tensor]) -> None:
        """Nothing is known of this function: whatever goes in or comes out stays."""
        for number in call.inputs:
            self.pin(self.of[number])
        for number, value in zip(call.outputs, out, strict=True):
            self.of[number] = self.new(value, pinned=True)

    def _keeps_channels(self, call: Call, out: Tensor) -> bool:
        before = self.tape.values[call.inputs[0]]
        padding = _argument(call, 1, "pad") if call.name == "pad" else ()
        return before.ndim == out.ndim and before.shape[:2] == out.shape[:2] and len(padding) <= 2 * (out.ndim - 2)

    def _product(self, call: Call, out: Tensor) -> np.ndarray | None:
        weight, bias = _argument(call, 1, "weight"), _argument(call, 2, "bias")
        groups = (_argument(call, 6, "groups") or 1) if call.name != "linear" else 1
        name = self.names.get(id(weight))
        source = self.of.get(call.inputs[0]) if len(call.inputs) == 1 else None
        if name is None or source is None or (call.name == "linear" and out.ndim != 2):
            return None
        labels = self.new(out)
        self.slot(weight, 0, labels)
        if isinstance(bias, Tensor) and not self.slot(bias, 0, labels):
            self.pin(labels)
        if groups == 1:
            self.slot(weight, 1, source)
        elif groups == len(source) == len(labels):  # depthwise: a filter goes with its input
            self.join(labels, source)
        else:
            self.pin(source)
            self.pin(labels)
        self.macs[name] = self.macs.get(name, 0.0) + out.numel() * float(np.prod(weight.shape[1:]))
        layer = name.rpartition(".")[0]
        if groups == 1:
            self.layers[layer] = labels
            self.sites[layer] = self._finished(call.outputs[0])
        return labels

    def _finished(self, number: int) -> int:
        """Follow a map through batch norm, activation and dropout while nothing else reads it."""
        readers = self.tape.consumers(number)
        while len(readers) == 1 and readers[0].name in ACTIVATIONS and number != self.tape.output:
            number = readers[0].outputs[0]
            readers = self.tape.consumers(number)
        return number

    def _norm(self, call: Call) -> np.ndarray | None:
        labels = self.of[call.inputs[0]]
        order = ("input", *NORM_TENSORS) if call.name != "prelu" else ("input", "weight")
        for position, name in enumerate(order[1:], start=1):
            tensor = _argument(call, position, name)
            single = call.name == "prelu" and isinstance(tensor, Tensor) and tensor.numel() == 1
            if isinstance(tensor, Tensor) and not single and not self.slot(tensor, 0, labels):
                return None
        return labels

    def _sum(self, call: Call, out: Tensor) -> np.ndarray | None:
        """Elementwise functions of two operands, either of which may be a number or a constant."""
        width = out.shape[1] if out.ndim > 1 else 0
        operands = list(call.args[:2])
        for value in operands:
            constant = isinstance(value, Tensor) and value.ndim >= out.ndim - 1 and value.ndim > 0
            if constant and value.shape[1 - out.ndim] not in (1,):
                return None
            if isinstance(value, Tensor) and not constant and value.ndim and out.ndim == 2 and value.shape[-1] != 1:
                return None
        tracked = [v.number for v in operands if isinstance(v, Ref)]
        same_rank = [n for n in tracked if self.tape.values[n].ndim == out.ndim]
        if len(same_rank) != len(tracked):
            return None
        wide = [self.of[n] for n in same_rank if len(self.of[n]) == width]
        for number in same_rank:
            if len(self.of[number]) != width:
                self.pin(self.of[number])  # one map, spread over all channels
        for other in wide[1:]:
            self.join(wide[0], other)
        return wide[0] if wide else None

    def _cat(self, call: Call, out: Tensor) -> np.ndarray | None:
        axis = _argument(call, 1, "dim") or 0
        parts = call.args[0] if call.args else call.kwargs["tensors"]
        if axis % out.ndim != 1 or not all(isinstance(part, Ref) for part in parts):
            return None
        return np.concatenate([self.of[part.number] for part in parts])

    def _reshape(self, call: Call, out: Tensor) -> np.ndarray | None:
        before = self.tape.values[call.inputs[0]]
        labels = self.of[call.inputs[0]]
        if before.ndim < 2 or out.ndim < 2 or out.shape[0] != before.shape[0]:
            return None
        if out.shape[1] == before.shape[1] and call.name != "unsqueeze":
            return labels
        if call.name == "unsqueeze" and _argument(call, 1, "dim") % out.ndim > 1:
            return labels
        if out.ndim == 2:
            return np.repeat(labels, out.shape[1] // len(labels))
        return None


def _argument(call: Call, position: int, name: str) -> Any:
    return call.args[position] if len(call.args) > position else call.kwargs.get(name)


def _whole_channels(index: Any) -> bool:
    """Whether an index keeps all samples and channels: `[:, :, ...]`."""
    return isinstance(index, tuple) and len(index) > 1 and all(part == slice(None) for part in index[:2])


def _leaves_axis_1(call: Call, before: Tensor) -> bool:
    axes = _argument(call, 1, "dim")
    if axes is None:
        return False
    axes = axes if isinstance(axes, (tuple, list, torch.Size)) else (axes,)
    return all(axis % before.ndim > 1 for axis in axes)
