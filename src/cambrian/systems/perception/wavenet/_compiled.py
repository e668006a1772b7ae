"""The queues' loop in machine code (numba). Weights are laid out so that every product adds up contiguous rows.

y += x W is done four rows of W at a time: the inner loop runs over outputs, so it is vectorised without reordering sums,
and results stay those of plain arithmetic. For one clip a sample's weights all pass through the processor once; with
several clips each layer's weights are used for all of them while they are in the nearest cache.

Shapes: B clips, m samples, K classes, k taps, L layers, R residual, G gate, S skip channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from cambrian.systems.perception.wavenet._generate import Stream


class Compiled:
    """Generation by `_kernel`; the state are rings of past inputs, one array for all layers."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        model = stream.model
        self.weights = _packed(model)
        pasts = stream.pasts()
        spans = [past.shape[1] for past in pasts]
        self.rings = np.ascontiguousarray(torch.cat(pasts, 1).numpy())  # [B, all spans, R], each oldest first
        self.spans = np.array(spans, np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(spans)[:-1])).astype(np.int64)
        self.at = np.zeros(len(spans), np.int64)
        self.dilations = np.array([layer.conv.dilation for layer in model.layers], np.int64)

    def draw(self, count: int, noise: Tensor | None, temperature: float, top_p: float) -> Tensor:
        """The next samples [B, count]."""
        return self._run(count, noise, temperature, top_p)[0]

    def _run(
        self, count: int, noise: Tensor | None, temperature: float, top_p: float, keep: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Samples [B, count] and, with `keep`, their logits [count, B, K]."""
        stream, model = self.stream, self.stream.model
        dtype = self.rings.dtype
        extras = [e for e in stream.extras(count) if e is not None]
        extra = torch.stack(extras, 2).numpy() if extras else np.zeros((stream.batch, 1, 0, 0), dtype)
        given = np.empty((count, stream.batch, 0), dtype) if noise is None else noise.contiguous().numpy()
        recent = np.ascontiguousarray(stream.history[:, -model.stem.kernel :].numpy())
        out = np.empty((stream.batch, count), np.int64)
        logits = np.empty((count if keep else 0, stream.batch, model.classes), dtype)
        heat = dtype.type(temperature if noise is not None else 1.0)
        _kernel()(
            recent, out, logits, given, heat, dtype.type(top_p), np.ascontiguousarray(extra), self.rings, self.spans,
            self.offsets, self.at, self.dilations, *self.weights,
        )  # fmt: skip
        return torch.from_numpy(out), torch.from_numpy(logits)


def _packed(model: Any) -> tuple[np.ndarray, ...]:
    """The weights as the kernel reads them: the stem's table [k, K, R] (its bias in the last tap), conv [L, k R, 2G] and
    bias [L, 2G], residual [L - 1, G, R] and bias [L - 1, R], skip [L, G, S], and the head's [S, S], [S], [S, K], [K],
    to which the skip outputs' biases come as their sum [S].
    """
    table = model.stem.table().clone()
    table[-1] += model.stem.bias
    layers = list(model.layers)
    r = layers[0].conv.weight.shape[2]
    outs = [(layer.out.weight[layer.residual :], layer.out.bias[layer.residual :]) for layer in layers]
    inner = [(layer.out.weight[:r], layer.out.bias[:r]) for layer in layers[:-1]]
    gate = outs[0][0].shape[1]
    first, second = model.head[1], model.head[3]
    tensors = (
        table,
        torch.stack([layer.conv.weight.flatten(1).t() for layer in layers]),
        torch.stack([layer.conv.bias for layer in layers]),
        torch.stack([w.t() for w, _ in inner]) if inner else table.new_zeros(0, gate, r),
        torch.stack([b for _, b in inner]) if inner else table.new_zeros(0, r),
        torch.stack([w.t() for w, _ in outs]),
        torch.stack([b for _, b in outs]).sum(0),
        first.weight.t(), first.bias, second.weight.t(), second.bias,
    )  # fmt: skip
    return tuple(np.ascontiguousarray(t.detach().numpy()) for t in tensors)


@functools.cache
def _kernel() -> Callable[..., None]:
    """Compile the loop (once a process and type of number; the machine code is kept in numba's cache)."""
    import numba
    from numba.extending import register_jitable

    for part in (_add_product, _rectify, _stem_step, _gate_step, _head_step, _drop, _pick):
        register_jitable(part)
    return numba.njit(cache=True, nogil=True, error_model="numpy")(_run)


# What follows is compiled: plain loops over numpy arrays, which also run, slowly, in the interpreter.


def _add_product(x, weight, y):
    """y [O] += x [I] weight [I, O]."""
    rows, columns = weight.shape
    whole = rows - rows % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for o in range(columns):
            y[o] += x0 * weight[i, o] + x1 * weight[i + 1, o] + x2 * weight[i + 2, o] + x3 * weight[i + 3, o]
    for i in range(whole, rows):
        for o in range(columns):
            y[o] += x[i] * weight[i, o]


def _rectify(x):
    for i in range(x.shape[0]):
        x[i] = max(x[i], x.dtype.type(0))


def _stem_step(table, recent, h):
    """h [R] = sum over taps of the table's rows for the latest samples `recent` [k]."""
    h[:] = table[0, recent[0]]
    for tap in range(1, table.shape[0]):
        row = table[tap, recent[tap]]
        for i in range(h.shape[0]):
            h[i] += row[i]


def _gate_step(h, ring, span, at, dilation, weight, a, z):
    """Add the taps' products to a [2G], gate it into z [G], and put h [R] into the layer's ring [span, R]."""
    size = h.shape[0]
    taps = weight.shape[0] // size
    for tap in range(taps - 1):
        back = (taps - 1 - tap) * dilation
        _add_product(ring[(at - back + span) % span], weight[tap * size : (tap + 1) * size], a)
    _add_product(h, weight[(taps - 1) * size :], a)
    ring[at] = h
    one = a.dtype.type(1)
    for i in range(z.shape[0]):
        z[i] = np.tanh(a[i]) * (one / (one + np.exp(-a[z.shape[0] + i])))


def _head_step(skips, first, first_bias, second, second_bias, hidden, scores):
    """ReLU, linear, ReLU, linear: scores [K] from the skip outputs' sum [S]."""
    _rectify(skips)
    hidden[:] = first_bias
    _add_product(skips, first, hidden)
    _rectify(hidden)
    scores[:] = second_bias
    _add_product(hidden, second, scores)


def _drop(scores, top_p):
    """Set all but the fewest classes that hold a share of `top_p` to -inf."""
    order = np.argsort(-scores, kind="mergesort")
    weights = np.exp(scores - scores[order[0]])
    total = weights.sum()
    before = scores.dtype.type(0)
    for j in range(order.shape[0]):
        if before / total >= top_p:
            scores[order[j]] = -np.inf
        before += weights[order[j]]


def _pick(scores, noise, heat, top_p):
    """The class that is drawn: noise [K], or of size 0 for the likeliest."""
    if noise.shape[0]:
        for k in range(scores.shape[0]):
            scores[k] = scores[k] / heat
        if top_p < 1:
            _drop(scores, top_p)
        for k in range(scores.shape[0]):
            scores[k] += noise[k]
    return np.argmax(scores)


def _run(
    recent, out, logits, noise, heat, top_p, extra, rings, spans, offsets, at, dilations,
    table, conv, conv_bias, inner, inner_bias, skip, skip_bias, first, first_bias, second, second_bias,
):  # fmt: skip
    """Fill `out` [B, m] (and `logits` [m, B, K], unless of size 0), going on from `rings` and `at`, which it updates."""
    clips, count = out.shape
    deep = conv.shape[0]
    h = np.empty((clips, table.shape[2]), table.dtype)
    skips = np.empty((clips, skip.shape[2]), table.dtype)
    a = np.empty(conv.shape[2], table.dtype)
    z = np.empty(skip.shape[1], table.dtype)
    hidden = np.empty(first.shape[1], table.dtype)
    scores = np.empty(second.shape[1], table.dtype)
    for t in range(count):
        for b in range(clips):
            _stem_step(table, recent[b], h[b])
            skips[b] = skip_bias
        for i in range(deep):
            for b in range(clips):
                a[:] = conv_bias[i]
                if extra.shape[2]:
                    a += extra[b, min(t, extra.shape[1] - 1), i]
                ring = rings[b, offsets[i] : offsets[i] + spans[i]]
                _gate_step(h[b], ring, spans[i], at[i], dilations[i], conv[i], a, z)
                _add_product(z, skip[i], skips[b])
                if i + 1 < deep:
                    h[b] += inner_bias[i]
                    _add_product(z, inner[i], h[b])
            at[i] = (at[i] + 1) % spans[i]
        for b in range(clips):
            _head_step(skips[b], first, first_bias, second, second_bias, hidden, scores)
            if logits.shape[0]:
                logits[t, b] = scores
            made = _pick(scores, noise[t, b], heat, top_p)
            recent[b, :-1] = recent[b, 1:].copy()
            recent[b, -1] = made
            out[b, t] = made
