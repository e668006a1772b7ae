"""Pruning by magnitude, weights shared inside clusters, and what Huffman coding makes of both.

Shapes: W any weight of a convolution or linear layer; biases and batch norm stay float and unpruned.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.codec import huffman
from cambrian.codec.delta_index import MAX_GAP_BITS, DeltaIndex
from cambrian.errors import ConfigError, DataError
from cambrian.inspect.hooks import find
from cambrian.inspect.kmeans1d import kmeans1d
from cambrian.inspect.results import Row
from cambrian.inspect.size import weight_names
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target

MAX_BITS = 16


# -- pruning -------------------------------------------------------------------------------------------------------------


def magnitude_mask(weight: Tensor, *, density: float | None = None, q: float | None = None) -> Tensor:
    """Which weights to keep, bool of the weight's shape: the share `density` of the largest, or those above `q` standard
    deviations of the non-zero ones (Han et al. 2015). Ties go to the earlier position. Raises `ConfigError` unless
    exactly one is given, the density is in (0, 1] and q is not negative.
    """
    if (density is None) == (q is None):
        raise ConfigError(f"give either a density or q, got density={density} and q={q}")
    size = weight.detach().abs()
    if not bool(torch.isfinite(size).all()):
        raise DataError("a weight is not finite; it cannot be pruned by magnitude")
    if q is not None:
        if not q >= 0:
            raise ConfigError(f"q must be at least 0, not {q}")
        alive = weight.detach()[size > 0]
        return (size > q * alive.std(correction=0)) if len(alive) else torch.zeros_like(size, dtype=torch.bool)
    if density is None or not 0 < density <= 1:
        raise ConfigError(f"density must be above 0 and at most 1, not {density}")
    kept = size.flatten().argsort(descending=True, stable=True)[: max(1, round(density * size.numel()))]
    mask = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
    mask[kept] = True
    return mask.view_as(size)


def prune_once(module: nn.Module, state: CompressionState, limits: Mapping[str, Mapping[str, float]]) -> None:
    """Apply `magnitude_mask(weight, **limits[name])` to each named weight; warns of a layer that loses all of them."""
    for name, limit in limits.items():
        state.prune(module, name, magnitude_mask(module.get_parameter(name), **limit))
        state.of(name).coding = "sparse"
        if not bool(module.get_parameter(name).any()):
            warnings.warn(f"layer {name!r} is pruned completely; give it a higher density", stacklevel=2)


def prune(
    target: Target,
    module: nn.Module,
    state: CompressionState,
    *,
    densities: Mapping[str, float] | None = None,
    q: Mapping[str, float] | None = None,
    rounds: int = 3,
    steps: int = 100,
    generator: torch.Generator,
    **settings: Any,
) -> list[Row]:
    """Prune and retrain the survivors, `rounds` times, in place; `steps` in all, which never start anew.

    The densities fall geometrically to those given; or the thresholds rise evenly to `q` standard deviations of the
    weights as they were. Dropout is lowered with the connections that are left. One row per round with the accuracy.
    """
    if (densities is None) == (q is None):
        raise ConfigError("give either densities or q for each layer")
    deviations = {name: float(module.get_parameter(name).detach().std(correction=0)) for name in q or {}}
    rows: list[Row] = []
    for number in range(1, rounds + 1):
        if densities is not None:
            limits = {name: {"density": d ** (number / rounds)} for name, d in densities.items()}
            prune_once(module, state, limits)
        for name, times in (q or {}).items():
            weight = module.get_parameter(name).detach()
            state.prune(module, name, weight.abs() > times * number / rounds * deviations[name])
            state.of(name).coding = "sparse"
        pruned = target.metric(module)["accuracy"]
        share = steps * number // rounds - steps * (number - 1) // rounds
        if share:
            with scaled_dropout(module, state):
                target.finetune(module, steps=share, constraint=state, generator=generator, **settings)
        after = target.metric(module)["accuracy"] if share else pruned
        rows.append({"round": number, "density": density(module), "accuracy pruned": pruned, "accuracy": after})
    state.stages.append("prune")
    return rows


def density(module: nn.Module) -> float:
    """Share of all convolution and linear weights that is not zero."""
    weights = [module.get_parameter(name) for name in weight_names(module)]
    return sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))


@contextmanager
def scaled_dropout(module: nn.Module, state: CompressionState) -> Iterator[None]:
    """Inside the `with`, every dropout has `D sqrt(C_r / C_o)`: C counts the connections of the layer that follows, after
    and before pruning.
    """
    dropouts: list[tuple[nn.Module, float]] = []
    waiting: list[nn.Module] = []
    names = set(weight_names(module))
    for path, part in module.named_modules():
        if isinstance(part, (nn.Dropout, nn.Dropout2d)):
            waiting.append(part)
            continue
        name = f"{path}.weight" if path else "weight"
        if name in names:
            mask = state.of(name).mask if name in state.tensors else None
            left = 1.0 if mask is None else float(mask.float().mean())
            for dropout in waiting:
                dropouts.append((dropout, dropout.p))
                dropout.p *= math.sqrt(left)
            waiting = []
    try:
        yield
    finally:
        for dropout, p in dropouts:
            dropout.p = p


def sensitivity(
    target: Target, levels: Sequence[float], *, split: str = "valid", names: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """Accuracy when one layer alone is pruned to each density of `levels`, without retraining."""
    found: dict[str, list[float]] = {}
    for name in names or weight_names(target.module):
        found[name] = []
        for level in levels:
            module = copy.deepcopy(target.module)
            prune_once(module, CompressionState(), {name: {"density": level}})
            found[name].append(target.metric(module, split)["accuracy"])
    return found


def choose_densities(
    scan: Mapping[str, Sequence[float]], levels: Sequence[float], accuracy: float, drop: float
) -> dict[str, float]:
    """For each layer the lowest density of a scan that costs at most `drop`; 1 where none does."""
    good = {name: [d for d, a in zip(levels, row, strict=True) if a >= accuracy - drop] for name, row in scan.items()}
    return {name: min(row, default=1.0) for name, row in good.items()}


# -- shared weights ------------------------------------------------------------------------------------------------------


def is_conv(module: nn.Module, name: str) -> bool:
    """Whether a weight belongs to a convolution (else to a linear layer)."""
    part = find(module, name.removesuffix(".weight")) if "." in name else module
    return not isinstance(part, nn.Linear)


def share_weights(
    module: nn.Module,
    state: CompressionState,
    bits: Mapping[str, int],
    *,
    init: str = "linear",
    generator: torch.Generator | None = None,
) -> None:
    """Cluster each named weight into at most `2^bits` shared values, over its non-zero entries where it was pruned.

    Entry 0 of a pruned layer's codebook is then a reserved zero, which pruned positions (and fillers) use. Raises
    `ConfigError` for bits outside 1..16.
    """
    for name, width in bits.items():
        if not 1 <= width <= MAX_BITS:
            raise ConfigError(f"{name}: shared weights take 1 to {MAX_BITS} bits, not {width}")
        weight, of = module.get_parameter(name).detach(), state.of(name)
        keep = torch.ones_like(weight, dtype=torch.bool) if of.mask is None else of.mask
        index = torch.zeros(weight.shape, dtype=torch.int64)
        reserved = [] if of.mask is None else [torch.zeros(1)]
        books = list(reserved)
        if bool(keep.any()):
            made = kmeans1d(weight[keep].cpu().numpy(), 2**width, init=init, generator=generator)
            books.append(torch.from_numpy(made.codebook).float())
            index[keep.cpu()] = torch.from_numpy(made.index) + len(reserved)
        state.share(module, name, torch.cat(books).to(weight), index.to(weight.device))
        of.coding = of.coding or "huffman"


def share(
    target: Target,
    module: nn.Module,
    state: CompressionState,
    bits: Mapping[str, int],
    *,
    init: str = "linear",
    steps: int = 100,
    lr: float = 1e-3,
    generator: torch.Generator,
    **settings: Any,
) -> None:
    """Cluster, then train the shared values for `steps` with Adam: the gradient of a value is the sum over its weights,
    their assignment stays, and nothing decays.
    """
    share_weights(module, state, bits, init=init, generator=generator)
    if steps:
        chosen = {"factory": torch.optim.Adam, "lr": lr, "lr_scale": 1.0, "weight_decay": 0.0, **settings}
        with scaled_dropout(module, state):
            target.finetune(module, steps=steps, constraint=state, generator=generator, **chosen)
    state.stages.append("share")


def sharing_rate(count: int, clusters: int, bits: int = 32) -> float:
    """How many times smaller sharing makes `count` weights of `bits` bits: `n b / (n log2 k + k b)` (eq. 1)."""
    return count * bits / (count * math.log2(clusters) + clusters * bits)


# -- what it takes -------------------------------------------------------------------------------------------------------


def layer_rows(module: nn.Module, state: CompressionState) -> list[Row]:
    """Each layer's weights, density, bits of a stored weight and of a position before and after Huffman coding, and how
    many times smaller it is than in fp32 (streams and codebook, without the file's header).
    """
    return [{"layer": name.removesuffix(".weight"), **_layer(module, state, name)} for name in weight_names(module)]


def _layer(module: nn.Module, state: CompressionState, name: str) -> Row:
    weight, of = module.get_parameter(name).detach(), state.tensors.get(name)
    row: Row = {"weights": weight.numel(), "density": float((weight != 0).float().mean())}
    if of is None or of.codebook is None or of.index is None:
        return row
    symbols, clusters = of.index.cpu().numpy().ravel(), len(of.codebook) - (of.mask is not None)
    total = 32 * clusters
    if of.mask is not None:
        gap, gaps, present = best_gaps(weight, of.gap_bits)
        entries = np.zeros(len(gaps), np.int64)
        entries[present] = symbols[weight.cpu().numpy().ravel() != 0]
        symbols = entries
        coded = _mean_length(gaps)
        row |= {"index bits": gap, "index bits coded": coded, "fillers": int((~present).sum())}
        total += coded * len(gaps)
    fixed = max(1, (clusters - 1).bit_length())
    row |= {"weight bits": fixed, "weight bits coded": _mean_length(symbols), "entropy": _entropy(symbols)}
    total += row["weight bits coded"] * len(symbols)
    return {**row, "ratio": 32 * weight.numel() / max(total, 1)}


def best_gaps(weight: Tensor, bits: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """Field width, gaps and presence of a sparse weight's entries: for `bits`, or for the width with fewest coded bits."""
    mask = weight.detach().cpu().numpy() != 0
    tried = {b: DeltaIndex(b).encode(mask) for b in ([bits] if bits else range(1, MAX_GAP_BITS + 1))}
    best = min(tried, key=lambda b: (_mean_length(tried[b][0]) + 2) * len(tried[b][0]))
    return best, *tried[best]


def _mean_length(symbols: np.ndarray) -> float:
    if not symbols.size:
        return 0.0
    counts = np.bincount(symbols)
    return float((huffman.code_lengths(counts) * counts).sum() / counts.sum())


def _entropy(symbols: np.ndarray) -> float:
    return huffman.entropy(np.bincount(symbols)) if symbols.size else 0.0
