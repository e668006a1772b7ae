"""A sum over pairs of objects of one small network: sum over i, j of g([o_i; o_j; q]), without ever building the pairs' inputs.

The first layer of g is linear in its three arguments, so for a batch of questions about the same objects

    W [o_i; o_j; q] + b = A o_i + B o_j + (C q + b)

takes three small products and a broadcast sum; A o_i + B o_j is shared by all questions of a scene. The layers after it, the
sum over pairs and their gradients run as one autograd function on reused buffers (`shared_mlp_sum`).
Source of the function: Santoro et al. 2017 (arXiv 1706.01427), equation 1. With `pairs="self"` only (o_i, o_i) is summed,
which is a network per object (Zaheer et al. 2017, arXiv 1703.06114).

Shapes: B scenes, N objects, P pairs, Q questions, D object features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cambrian.errors import ShapeError

_ROWS = 16384  # rows (scene, pair, question) that one inference chunk holds


class PairSum(nn.Module):
    """sum over pairs of g([o_i; o_j; q]), g an MLP with ReLU after every layer.

    All ordered pairs count, i = j included, and the pairs are summed, not averaged: a mean could not count. `fused=False`
    evaluates the same sum with plain differentiable operations (second derivatives, vmap, autocast).
    """

    def __init__(
        self,
        *,
        obj_dim: int,
        q_dim: int,
        widths: Sequence[int] = (256, 256, 256, 256),
        pairs: str = "all",
        fused: bool = True,
    ) -> None:
        super().__init__()
        if pairs not in ("all", "self"):
            raise ShapeError(f"pairs must be 'all' or 'self', not {pairs!r}")
        if not widths or obj_dim < 1 or q_dim < 0:
            raise ShapeError(f"g needs a layer, obj_dim >= 1 and q_dim >= 0, not {list(widths)}, {obj_dim}, {q_dim}")
        self.obj_dim, self.q_dim, self.pairs, self.fused = obj_dim, q_dim, pairs, fused
        self.first = nn.Linear(2 * obj_dim + q_dim, widths[0])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self._workspace = _Workspace()

    def forward(self, objects: Tensor, question: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, Q, H] from `objects` [B, N, D], `question` [B, Q, q_dim] and `mask` bool [B, N] (True: the object exists)."""
        pair, shift, kept = self._first_layer(objects, question, mask)
        weights = [p for layer in self.rest for p in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        if self.fused and torch.is_grad_enabled() and not torch.is_autocast_enabled(objects.device.type):
            return shared_mlp_sum(pair, shift, kept, weights, self._workspace)
        chunk = max(1, _ROWS // (pair.shape[1] * shift.shape[1])) if not torch.is_grad_enabled() else len(pair)
        parts = [
            _plain_sum(p, s, None if kept is None else kept[i * chunk : (i + 1) * chunk], weights)
            for i, (p, s) in enumerate(zip(pair.split(chunk), shift.split(chunk), strict=True))
        ]
        return torch.cat(parts)

    def pair_features(self, objects: Tensor, question: Tensor) -> Tensor:
        """g of every pair, [B, Q, N, N, H] (`pairs="all"`) or [B, Q, N, H]: what the sum is made of."""
        pair, shift, _ = self._first_layer(objects, question, None)
        weights = [p for layer in self.rest for p in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        features = _plain_layers(pair, shift, weights).transpose(1, 2)
        n = objects.shape[1]
        return features.unflatten(2, (n, n)) if self.pairs == "all" else features

    def _first_layer(
        self, objects: Tensor, question: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A o_i + B o_j [B, P, H], C q + b [B, Q, H] and which pairs exist [B, P]."""
        self._check(objects, question, mask)
        left, right, about = self.first.weight.split([self.obj_dim, self.obj_dim, self.q_dim], 1)
        shift = nn.functional.linear(question, about, self.first.bias)
        if self.pairs == "self":
            return objects @ (left + right).T, shift, mask
        both = (objects @ left.T)[:, :, None] + (objects @ right.T)[:, None]  # [B, N, N, H]
        kept = None if mask is None else (mask[:, :, None] & mask[:, None]).flatten(1)
        return both.flatten(1, 2), shift, kept

    def _check(self, objects: Tensor, question: Tensor, mask: Tensor | None) -> None:
        if objects.dim() != 3 or objects.shape[2] != self.obj_dim or not objects.is_floating_point():
            raise ShapeError(
                f"objects must be floats [B, N, {self.obj_dim}], not {objects.dtype} {list(objects.shape)}"
            )
        if question.dim() != 3 or len(question) != len(objects) or question.shape[2] != self.q_dim:
            raise ShapeError(f"question must be [{len(objects)}, Q, {self.q_dim}], not {list(question.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != objects.shape[:2]):
            raise ShapeError(f"mask must be bool {list(objects.shape[:2])}, not {mask.dtype} {list(mask.shape)}")


class _Workspace:
    """Keeps the buffers of the last graph that was freed, for the next forward pass of the same size."""

    def __init__(self) -> None:
        self.key: Any = None
        self.buffers: list[Tensor] | None = None

    def take(self, shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
        key = (tuple(shapes), like.dtype, like.device)
        if key == self.key and self.buffers is not None:
            buffers, self.buffers = self.buffers, None
            return buffers
        return [torch.empty(shape, dtype=like.dtype, device=like.device) for shape in shapes]

    def give(self, buffers: list[Tensor]) -> None:
        self.key = (tuple(tuple(b.shape) for b in buffers), buffers[0].dtype, buffers[0].device)
        self.buffers = buffers

    def __deepcopy__(self, memo: dict[int, Any]) -> _Workspace:
        return _Workspace()


class _Lease:
    """Buffers for as long as a graph lives: a second forward pass, or a second backward one, finds them untouched."""

    def __init__(self, buffers: list[Tensor], workspace: _Workspace) -> None:
        self.buffers, self.workspace = buffers, workspace

    def __del__(self) -> None:
        self.workspace.give(self.buffers)


def shared_mlp_sum(
    pair: Tensor, shift: Tensor, kept: Tensor | None, weights: Sequence[Tensor], workspace: _Workspace | None = None
) -> Tensor:
    """sum over p of g'(relu(pair_p + shift_q)): [B, Q, H'] from `pair` [B, P, H] and `shift` [B, Q, H].

    g' is the MLP with `weights` = (matrix [out, in], bias [out]) of each layer in turn, ReLU after each; `kept` bool [B, P] drops pairs.
    Differentiable once.
    """
    return _SharedMLPSum.apply(pair, shift, kept, workspace or _Workspace(), *weights)  # type: ignore[no-any-return]


class _SharedMLPSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pair: Tensor, shift: Tensor, kept: Tensor | None, workspace: _Workspace, *weights: Tensor
    ) -> Tensor:
        b, p, q = *pair.shape[:2], shift.shape[1]
        widths = [pair.shape[2], *(w.shape[0] for w in weights[0::2])]
        widest = max(widths)
        scratch = (b * p * q * widest,)  # two of them: gradients before and after a layer
        buffers = workspace.take([*((b, p, q, h) for h in widths), scratch, scratch], pair)
        torch.add(pair[:, :, None], shift[:, None], out=buffers[0]).relu_()
        for k, (matrix, bias) in enumerate(zip(weights[0::2], weights[1::2], strict=True)):
            rows = buffers[k + 1].flatten(0, 2)
            torch.mm(buffers[k].flatten(0, 2), matrix.t(), out=rows)
            rows.add_(bias).relu_()
        last = buffers[len(widths) - 1]
        if kept is not None:
            last.mul_(kept[:, :, None, None])  # exact zeros, which the ReLU's mask then also keeps out of the gradient
        ctx.save_for_backward(*weights[0::2])
        ctx.lease = _Lease(buffers, workspace)
        return last.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        matrices, buffers = ctx.saved_tensors, ctx.lease.buffers
        layers = len(matrices)
        here, there = (buffers[layers + 1], buffers[layers + 2])
        flow = _gated(grads[0][:, None].expand_as(buffers[layers]), buffers[layers], here)
        out: list[Tensor] = []
        for k in range(layers, 0, -1):
            rows, inputs = flow.flatten(0, 2), buffers[k - 1].flatten(0, 2)
            out += [rows.sum(0), rows.t() @ inputs]
            here, there = there, here
            back = here[: inputs.numel()].view_as(inputs)
            torch.mm(rows, matrices[k - 1], out=back)
            flow = _gated(back, inputs, here).view_as(buffers[k - 1])
        return (flow.sum(2), flow.sum(1), None, None, *reversed(out))


def _gated(gradient: Tensor, output: Tensor, store: Tensor) -> Tensor:
    """The gradient through a ReLU with this `output`, written into `store`."""
    into = store[: output.numel()].view_as(output)
    return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=into)  # type: ignore[no-any-return]


def _plain_layers(pair: Tensor, shift: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[B, P, Q, H']: g of every pair and question."""
    hidden = torch.relu(pair[:, :, None] + shift[:, None])
    for matrix, bias in zip(weights[0::2], weights[1::2], strict=True):
        hidden = torch.relu(nn.functional.linear(hidden, matrix, bias))
    return hidden


def _plain_sum(pair: Tensor, shift: Tensor, kept: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    hidden = _plain_layers(pair, shift, weights)
    return (hidden if kept is None else hidden * kept[:, :, None, None]).sum(1)


def concatenated_sum(layers: Sequence[nn.Linear], objects: Tensor, question: Tensor) -> Tensor:
    """The same sum by its definition, [B, Q, H]: every [o_i; o_j; q] is built and g runs over all. Reference for tests and timing."""
    b, n, d = objects.shape
    q = question.shape[1]
    first = objects[:, None, :, None].expand(b, q, n, n, d)
    second = objects[:, None, None].expand(b, q, n, n, d)
    hidden = torch.cat([first, second, question[:, :, None, None].expand(b, q, n, n, -1)], -1)
    for layer in layers:
        hidden = torch.relu(layer(hidden))
    return hidden.sum((2, 3))
