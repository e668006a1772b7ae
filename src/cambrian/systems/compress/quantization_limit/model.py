"""One codebook for all layers of a network, chosen by what a rounded weight does to the loss; its code and its training.

Shapes: N weights of all layers, k levels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.codec import bits, huffman
from cambrian.codec.delta_index import DeltaIndex
from cambrian.errors import ConfigError
from cambrian.inspect.kmeans1d import Clusters, ecsq, kmeans1d, kmeans1d_global, uniform1d
from cambrian.inspect.size import weight_names
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target

METHODS = ("kmeans", "hkmeans", "uniform", "huniform", "ecsq")
EXACT = 1 << 18  # so many different weights are still clustered exactly


@dataclass
class Weights:
    """The weights that are quantised, of all layers one after the other: `values` float64 `[N]`, in each layer those at
    `where` (bool, the layer's shape; survivors of pruning).
    """

    names: list[str]
    where: dict[str, Tensor]
    values: np.ndarray

    @classmethod
    def of(cls, module: nn.Module, state: CompressionState | None = None) -> Weights:
        """Convolution and linear weights of a module, without those that `state` has pruned."""
        where: dict[str, Tensor] = {}
        for name in weight_names(module):
            mask = None if state is None or name not in state.tensors else state.tensors[name].mask
            weight = module.get_parameter(name)
            where[name] = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        return cls(list(where), where, cls._joined({name: module.get_parameter(name) for name in where}, where))

    @staticmethod
    def _joined(tensors: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> np.ndarray:
        return torch.cat([tensors[name].detach()[mask].double().cpu() for name, mask in where.items()]).numpy()

    def join(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """Figures of every weight (a Hessian's diagonal), in the order of `values`."""
        return self._joined(tensors, self.where)

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of a flat array that belong to each layer."""
        sizes = [int(self.where[name].sum()) for name in self.names]
        return dict(zip(self.names, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))


def cluster(
    values: np.ndarray,
    method: str,
    *,
    h: np.ndarray | None = None,
    k: int = 16,
    step: float = 0.0,
    lam: float = 0.0,
    search: str = "global",
) -> Clusters:
    """Levels for `values [N]`. `kmeans` ignores `h`; `hkmeans` weighs squared errors by it; `uniform` bins have plain
    means, `huniform` weighted ones; `ecsq` trades weighted errors against code length, from `k` uniform levels on.

    `search` "global" or "lloyd" (from linear centres) for both k-means. Uniform bins lie around the multiples of `step`,
    or, where it is 0, are k over the range. Raises `ConfigError` for an unknown method, or one that needs curvature
    without it.
    """
    if method not in METHODS:
        raise ConfigError(f"quantisation is one of {', '.join(METHODS)}, not {method!r}")
    if method not in ("kmeans", "uniform") and h is None:
        raise ConfigError(f"{method} weighs errors by curvature; give h")
    weights = h if method in ("hkmeans", "huniform", "ecsq") else None
    if "kmeans" in method:
        if search == "lloyd":
            return kmeans1d(values, k, weights=weights)
        return kmeans1d_global(values, k, weights=weights, exact=EXACT)
    bins = {"step": step} if step else {"k": k}
    if "uniform" in method:
        return uniform1d(values, weights=weights, **bins)
    start = uniform1d(values, weights=weights, **bins).codebook
    return ecsq(values, lam, start, weights=weights, iterations=60, gain=1e-5).clusters


def code_lengths(index: np.ndarray, k: int) -> tuple[int, float]:
    """Bits of a level's index: fixed `ceil(log2 k)`, and the mean of an optimal Huffman code for all weights together."""
    counts = np.bincount(index, minlength=k)
    return bits.width(k), float((huffman.code_lengths(counts) * counts).sum() / counts.sum())


def compression_ratio(index: np.ndarray, k: int, *, coded: bool = True, b: int = 32) -> float:
    """`b / (mean length + (sum_j b_j + k b) / N)`: the lengths of all code words stand for the table (eq. 3 and 8);
    with a fixed-length code there is no table.
    """
    counts = np.bincount(index, minlength=k)
    fixed, mean = code_lengths(index, k)
    table = int(huffman.code_lengths(counts).sum()) if coded else 0
    return b / ((mean if coded else fixed) + (table + k * b) / len(index))


def position_bits(state: CompressionState) -> float:
    """Bits that the gaps between surviving weights take, Huffman coded for each layer with its best field."""
    total = 0.0
    for of in state.tensors.values():
        if of.mask is None:
            continue
        sizes = []
        for width in range(1, 9):
            gaps, _ = DeltaIndex(width).encode(of.mask.cpu().numpy())
            counts = np.bincount(gaps) if len(gaps) else np.zeros(1, np.int64)
            sizes.append(float((huffman.code_lengths(counts) * counts).sum()))
        total += min(sizes)
    return total


def predicted_increase(values: np.ndarray, clusters: Clusters, h: np.ndarray) -> float:
    """`1/2 sum_i h_ii (w_i - wq_i)^2`: what the loss rises by, to second order at a minimum (eq. 5)."""
    return float(0.5 * (h * (values - clusters.codebook[clusters.index]) ** 2).sum())


# -- the shared codebook in a module -------------------------------------------------------------------------------------


@dataclass
class SharedCodebook:
    """Weights of all layers at the entries of one codebook: a `Constraint` for fine-tuning.

    Entry 0 is a reserved zero where weights were pruned (they stay zero and are not trained).
    """

    codebook: Tensor
    index: dict[str, Tensor]
    reserved: bool = False
    mask: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def put(cls, module: nn.Module, weights: Weights, clusters: Clusters) -> SharedCodebook:
        """Round a module's weights in place to the levels of `clusters`."""
        reserved = not all(bool(mask.all()) for mask in weights.where.values())
        first = module.get_parameter(weights.names[0])
        levels = torch.from_numpy(clusters.codebook).to(first.device, first.dtype)
        book = torch.cat([levels.new_zeros(1), levels]) if reserved else levels
        index: dict[str, Tensor] = {}
        for name, part in weights.split(clusters.index).items():
            mask = weights.where[name]
            index[name] = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device)
            index[name][mask] = torch.from_numpy(part).to(mask.device) + int(reserved)
        made = cls(book, index, reserved, dict(weights.where) if reserved else {})
        made.write(module)
        return made

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Set every weight to its entry."""
        for name, index in self.index.items():
            module.get_parameter(name).copy_(self.codebook[index])

    def constrain_gradients(self, module: nn.Module) -> None:
        """The gradient of an entry is the sum over its weights in all layers."""
        sums = torch.zeros_like(self.codebook)
        for name, index in self.index.items():
            grad = module.get_parameter(name).grad
            if grad is not None:
                sums.index_add_(0, index.flatten(), grad.flatten())
        if self.reserved:
            sums[0] = 0.0
        for name, index in self.index.items():
            grad = module.get_parameter(name).grad
            if grad is not None:
                grad.copy_(sums[index])

    @torch.no_grad()
    def constrain_step(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Entries follow their weights, which moved alike; the reserved zero stays."""
        for name, index in self.index.items():
            self.codebook.scatter_(0, index.flatten(), module.get_parameter(name).flatten())
        if self.reserved:
            self.codebook[0] = 0.0
        self.write(module)

    def finish(self, module: nn.Module, state: CompressionState, coded: bool = True) -> None:
        """Enter the codebook into a compression state, so that the file stores it and later stages respect it."""
        for name, index in self.index.items():
            used, local = index.unique(return_inverse=True)
            book = self.codebook[used]
            if self.reserved and int(used[0]) != 0:  # a layer that lost nothing has no zero
                book, local = torch.cat([book.new_zeros(1), book]), local + 1
            state.share(module, name, book, local)
            sparse = name in self.mask and not bool(self.mask[name].all())
            state.of(name).coding = ("sparse" if coded else "sparse-fixed") if sparse else "huffman" if coded else ""
        state.stages.append("quantise")


@dataclass
class Quantised:
    """A quantised copy of a target's module with its levels."""

    module: nn.Module
    book: SharedCodebook
    clusters: Clusters
    weights: Weights

    @property
    def fixed(self) -> int:
        """Bits of a fixed-length index."""
        return code_lengths(self.clusters.index, len(self.clusters.codebook))[0]

    @property
    def coded(self) -> float:
        """Mean bits of a Huffman-coded index."""
        return code_lengths(self.clusters.index, len(self.clusters.codebook))[1]


def quantise(
    target: Target, method: str, *, diagonal: Mapping[str, Tensor] | None = None, state: CompressionState | None = None,
    **settings: Any,
) -> Quantised:  # fmt: skip
    """Round a copy of the target's module with one codebook for all layers; `settings` as in `cluster`.

    `diagonal` holds each weight's curvature by name, above 0. Biases and batch norm stay as they are.
    """
    module = copy.deepcopy(target.module)
    weights = Weights.of(module, state)
    if not len(weights.values):
        raise ConfigError("there is no weight to quantise")
    h = None if diagonal is None else weights.join(diagonal)
    clusters = cluster(weights.values, method, h=h, **settings)
    return Quantised(module, SharedCodebook.put(module, weights, clusters), clusters, weights)


def tune(
    target: Target, made: Quantised, *, steps: int, lr: float = 3e-4, generator: torch.Generator, **settings: Any
) -> None:
    """Train the levels (and biases and batch norm) with Adam; assignments stay, nothing decays."""
    chosen = {"factory": torch.optim.Adam, "lr": lr, "lr_scale": 1.0, "weight_decay": 0.0, **settings}
    target.finetune(made.module, steps=steps, constraint=made.book, generator=generator, **chosen)


def bits_at(points: Sequence[tuple[float, float]], increase: float) -> float:
    """Bits at which a curve of (bits, loss increase) falls to `increase`, between the last point above it and the next,
    straight in bits against log increase. Of points with equal bits the best counts; a curve of one such length that is
    low enough gives that length. nan where the curve does not cross.
    """
    best: dict[float, float] = {}
    for length, rise in points:
        best[length] = min(rise, best.get(length, rise))
    ordered = sorted(best.items())
    above = [i for i, (_, rise) in enumerate(ordered) if rise > increase]
    if len(ordered) == 1 and not above:
        return ordered[0][0] if len(points) > 1 else float("nan")
    if not above or above[-1] + 1 >= len(ordered):
        return float("nan")
    (b0, r0), (b1, r1) = ordered[above[-1]], ordered[above[-1] + 1]
    share = math.log(r0 / increase) / math.log(r0 / max(r1, 1e-6))
    return b0 + share * (b1 - b0)
