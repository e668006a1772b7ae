"""How important each feature map is: scores by group of layers, `dict[first layer's name] -> [C]` float64, high is kept.

All take `(target, batches)` with batches of `(x [B,...], y [B], ...)`; `units=True` scores hidden linear layers too.
Maps are looked at after batch norm and activation, before pooling and sums. A group of layers that can only be pruned
together (a residual stream) has the sum of its layers' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect.surgery import ChannelGraph, Group
from cambrian.inspect.tape import Tape
from cambrian.inspect.target import Target
from cambrian.systems.compress.taylor_pruning._ablation import ablated_losses

Scores = dict[str, Tensor]
Batches = Sequence[tuple[Any, ...]]
BINS = 8


def taylor(
    target: Target,
    batches: Batches,
    *,
    units: bool = False,
    absolute: str = "example",
    gradient: str = "own",
    generator: torch.Generator | None = None,
) -> Scores:
    """First-order change of the loss (eq. 8), from one backward pass.

    `absolute="batch"` takes the absolute value after the mean over examples, where gradients of either sign cancel;
    `gradient` "permuted" (over the maps of a layer) or "ones" are controls.
    """
    if absolute not in ("example", "batch") or gradient not in ("own", "permuted", "ones"):
        raise ConfigError(
            f"absolute is example or batch, gradient own, permuted or ones, not {absolute!r}, {gradient!r}"
        )

    def score(z: Tensor, dz: Tensor, y: Tensor) -> Tensor:
        if gradient == "permuted":
            dz = dz[:, torch.randperm(dz.shape[1], generator=generator)]
        product = z if gradient == "ones" else z * dz
        return product.flatten(2).mean(2) if product.ndim > 2 else product  # [B, C]

    found = _watch(target, batches, units, score, grad=True)
    return _per_group(found, lambda rows: rows.abs().mean(0) if absolute == "example" else rows.mean(0).abs())


def obd(
    target: Target, batches: Batches, *, units: bool = False, probes: int = 4, generator: torch.Generator
) -> Scores:
    """Optimal brain damage on maps: mean over the map and examples of `z^2 d2C/dz2 / 2`, diagonal by Hutchinson."""

    def score(z: Tensor, curvature: Tensor, y: Tensor) -> Tensor:
        product = z.square() * curvature / 2
        return product.flatten(2).mean(2) if product.ndim > 2 else product

    found = _watch(target, batches, units, score, grad=True, probes=probes, generator=generator)
    return _per_group(found, lambda rows: rows.mean(0))


def weight(target: Target, batches: Batches = (), *, units: bool = False) -> Scores:
    """Mean square of a map's filter; needs no data."""
    scores: Scores = {}
    for name, group in _groups(target, units)[1].items():
        total = torch.zeros(len(group), dtype=torch.float64)
        for layer, channel in group.layers.items():
            kernel = target.module.get_submodule(layer).weight.detach().double()
            total.index_add_(0, torch.from_numpy(channel), kernel.flatten(1).square().mean(1).cpu())
        scores[name] = total
    return scores


def activation(target: Target, batches: Batches, *, units: bool = False, statistic: str = "mean") -> Scores:
    """`mean` absolute value of a map, or its standard deviation (`std`) over pixels and examples."""
    if statistic not in ("mean", "std"):
        raise ConfigError(f"statistic must be mean or std, not {statistic!r}")
    if statistic == "mean":
        return _per_group(_watch(target, batches, units, lambda z, _d, _y: _spread(z.abs())), lambda r: r.mean(0))
    first = _watch(target, batches, units, lambda z, _d, _y: _spread(z))
    second = _watch(target, batches, units, lambda z, _d, _y: _spread(z.square()))
    moments = {
        name: [(a, r1, r2) for (a, r1), (_, r2) in zip(first[name], second[name], strict=True)] for name in first
    }
    scores: Scores = {}
    for name, sites in moments.items():
        total = torch.zeros(int(max(int(channel.max()) for channel, _, _ in sites)) + 1, dtype=torch.float64)
        for channel, one, two in sites:
            deviation = (two.mean(0) - one.mean(0).square()).clamp_min(0).sqrt()
            total.index_add_(0, channel, deviation)
        scores[name] = total
    return scores


def apoz(target: Target, batches: Batches, *, units: bool = False) -> Scores:
    """One minus the average percentage of zeros of a map (Hu et al. 2016)."""
    return _per_group(_watch(target, batches, units, lambda z, _d, _y: _spread((z != 0).double())), lambda r: r.mean(0))


def mi(target: Target, batches: Batches, *, units: bool = False, bins: int = BINS) -> Scores:
    """Mutual information, in nats, between a map's mean, cut at `bins` quantiles, and the label."""
    labels = torch.cat([batch[1] for batch in batches]).cpu() if batches else torch.zeros(0, dtype=torch.int64)
    found = _watch(target, batches, units, lambda z, _d, _y: _spread(z))
    return _per_group(found, lambda rows: information(rows, labels, bins))


def information(rows: Tensor, labels: Tensor, bins: int) -> Tensor:
    """`[C]` nats that quantised columns of `rows [N, C]` tell of `labels [N]`; equal values share a bin."""
    cuts = torch.quantile(rows, torch.linspace(0, 1, bins + 1, dtype=rows.dtype)[1:-1], dim=0)  # [bins - 1, C]
    place = (rows.unsqueeze(0) > cuts.unsqueeze(1)).sum(0)  # [N, C]
    joint = torch.zeros(rows.shape[1], bins, int(labels.max()) + 1, dtype=torch.float64)
    columns = torch.arange(rows.shape[1]).expand_as(place)
    joint.index_put_((columns, place, labels.view(-1, 1).expand_as(place)), torch.ones((), dtype=torch.float64), True)
    joint /= len(rows)
    return _entropy(joint.sum(2)) + _entropy(joint.sum(1)) - _entropy(joint.flatten(1))


def oracle(target: Target, batches: Batches, *, units: bool = False, absolute: bool = True) -> Scores:
    """Change of the mean loss when a map is removed, `|C(W') - C(W)|` (oracle-abs) or with its sign (oracle-loss).

    The part of the network before a layer runs once; all variants without one of its maps go through the rest stacked,
    from behind the next convolution where that alone reads the maps (it is linear).
    """
    graph, groups = _groups(target, units)
    change = {name: torch.zeros(len(group), dtype=torch.float64) for name, group in groups.items()}
    total = 0
    for x, y, *_ in _checked(target, batches):
        tape = Tape(graph.module, x)
        before = F.cross_entropy(tape.values[tape.output], y, reduction="sum").double()
        with torch.no_grad():
            for name, group in groups.items():
                change[name] += ablated_losses(tape, group, y).sum(1) - before.cpu()
        total += len(x)
    return {name: (value / total).abs() if absolute else value / total for name, value in change.items()}


def random(target: Target, batches: Batches = (), *, units: bool = False, generator: torch.Generator) -> Scores:
    """The control: uniform numbers."""
    groups = _groups(target, units)[1]
    return {n: torch.rand(len(group), generator=generator, dtype=torch.float64) for n, group in groups.items()}


def relevance(target: Target, batches: Batches = (), *, units: bool = False) -> Scores:
    """What an explainer found for each channel (`cambrian explain`, then `cambrian compress` on its result)."""
    known = target.relevance
    if not known:
        raise CapabilityError("the target carries no relevance; compress the result of an explainer that finds it")
    scores: Scores = {}
    for name, group in _groups(target, units)[1].items():
        total = torch.zeros(len(group), dtype=torch.float64)
        for layer, channel in group.layers.items():
            found = known.get(layer)
            if found is not None and len(found) == len(channel):
                total.index_add_(0, torch.from_numpy(channel), found.detach().double().cpu())
        if any(layer in known for layer in group.layers):
            scores[name] = total
    if not scores:
        raise CapabilityError(f"the relevance is of layers {sorted(known)[:5]}, none of which can be pruned")
    return scores


# -- what they share -------------------------------------------------------------------------------------------------

Watched = dict[str, list[tuple[Tensor, Tensor]]]  # by group: the channel of each map of a site, and rows [N, C_site]


def _watch(
    target: Target,
    batches: Batches,
    units: bool,
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    grad: bool = False,
    probes: int = 0,
    generator: torch.Generator | None = None,
) -> Watched:
    """`score(z, dz, y) -> [B, C_site]` at every site; `dz` is the gradient of the summed loss (with `probes` the diagonal
    of its Hessian), or `z` itself without `grad`.
    """
    graph, groups = _groups(target, units)
    sites = [(name, site, channel) for name, group in groups.items() for site, channel in group.sites.items()]
    rows: list[list[Tensor]] = [[] for _ in sites]
    for x, y, *_ in _checked(target, batches):
        seen: dict[int, Tensor] = {}

        def keep(number: int, z: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[number] = z.detach().requires_grad_() if grad and not z.requires_grad else z
            return seen[number]

        gates = {site: (lambda z, n=site: keep(n, z)) for _, site, _ in sites}
        tape = Tape(graph.module, x, gates, grad=grad)
        maps = [seen[site] for _, site, _ in sites]
        slopes = _slopes(tape.values[tape.output], y, maps, probes, generator) if grad else maps
        for row, z, dz in zip(rows, maps, slopes, strict=True):
            row.append(score(z.detach(), dz.detach(), y).double().cpu())
    watched: Watched = {}
    for (name, _, channel), row in zip(sites, rows, strict=True):
        watched.setdefault(name, []).append((torch.from_numpy(channel), torch.cat(row)))
    return watched


def _slopes(
    logits: Tensor, y: Tensor, maps: list[Tensor], probes: int, generator: torch.Generator | None
) -> list[Tensor]:
    """Gradients of the summed loss in the maps, so that each example's is its own; or the Hessian's diagonal."""
    loss = F.cross_entropy(logits, y, reduction="sum")
    first = torch.autograd.grad(loss, maps, create_graph=bool(probes))
    if not probes:
        return list(first)
    diagonal = [torch.zeros_like(z) for z in maps]
    for probe in range(probes):
        signs = [torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1 for z in maps]
        along = sum((g * s).sum() for g, s in zip(first, signs, strict=True))
        second = torch.autograd.grad(along, maps, retain_graph=probe + 1 < probes, allow_unused=True)
        for total, s, h in zip(diagonal, signs, second, strict=True):
            if h is not None:
                total += s * h / probes
    return diagonal


def _per_group(watched: Watched, reduce: Callable[[Tensor], Tensor]) -> Scores:
    """`reduce(rows [N, C_site]) -> [C_site]`, summed over the sites of a group."""
    scores: Scores = {}
    for name, sites in watched.items():
        total = torch.zeros(int(max(int(channel.max()) for channel, _ in sites)) + 1, dtype=torch.float64)
        for channel, rows in sites:
            total.index_add_(0, channel, reduce(rows))
        scores[name] = total
    return scores


def _groups(target: Target, units: bool) -> tuple[ChannelGraph, dict[str, Group]]:
    graph = ChannelGraph(target.module, target.example())
    return graph, graph.prunable(units=units)


def _checked(target: Target, batches: Batches) -> Batches:
    if not len(batches):
        raise DataError("this criterion needs at least one batch of samples")
    for x, y, *_ in batches:
        target.check(x, y)
    return batches


def _spread(z: Tensor) -> Tensor:
    return (z.flatten(2).mean(2) if z.ndim > 2 else z).detach()


def _entropy(p: Tensor) -> Tensor:
    """Nats of the distributions in the last axis."""
    return -(p * p.clamp_min(1e-300).log()).sum(-1)
