"""How much each feature map speaks for the class that a network is asked about.

    R_c = mean over samples of | sum over pixels a_c dS_y / da_c |        a_c: map c after batch norm and activation

The first-order change of the true class's logit `S_y` when the map is taken away (gradient times activation, summed over
the map). Explainers hand it on as their `relevance`, so that a compressor can remove the maps that say least.

Shapes: B batch, C channels of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cambrian.errors import DataError
from cambrian.inspect.surgery import ChannelGraph
from cambrian.inspect.tape import Tape
from cambrian.inspect.target import Batch, Target


def channel_relevance(target: Target, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """`R [C]`, float32, of every layer whose maps can be removed, by the layer's name; one backward pass a batch.

    Raises `CapabilityError` when the network has no feature maps, `DataError` without samples.
    """
    graph = ChannelGraph(target.module, target.example())
    sites = {site: channel for group in graph.prunable().values() for site, channel in group.sites.items()}
    names = {graph.site_of(layer): layer for group in graph.prunable().values() for layer in group.layers}
    totals = {site: torch.zeros(len(channel)) for site, channel in sites.items()}
    count = 0
    for x, y, *_ in batches:
        target.check(x, y)
        seen: dict[int, Tensor] = {}

        def keep(site: int, z: Tensor, seen: dict[int, Tensor] = seen) -> Tensor:
            seen[site] = z if z.requires_grad else z.detach().requires_grad_()
            return seen[site]

        tape = Tape(target.module, x, {site: (lambda z, n=site: keep(n, z)) for site in sites}, grad=True)
        spoken = tape.values[tape.output].gather(1, y[:, None]).sum()
        maps = list(seen.values())
        for site, z, slope in zip(seen, maps, torch.autograd.grad(spoken, maps), strict=True):
            totals[site] += (z * slope).detach().flatten(2).sum(2).abs().sum(0).cpu()
        count += len(x)
    if not count:
        raise DataError("the relevance of channels needs at least one batch of samples")
    return {names[site]: total / count for site, total in totals.items()}
