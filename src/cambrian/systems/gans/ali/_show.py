"""Pictures of codes: where the classes lie, and whether all codes together are distributed as the prior.

Shapes: N codes, Z latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quantiles(z: Tensor, count: int = 200) -> tuple[Tensor, Tensor]:
    """`count` quantiles of N(0, 1) and of all numbers of `z [N, Z]` taken together, float64 each."""
    level = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(level), torch.quantile(z.double().flatten()[:1_000_000], level)


def flattened(z: Tensor) -> Tensor:
    """Codes on the plane of their two greatest variances `[N, 2]`; of two dimensions, the codes themselves."""
    if z.shape[1] <= 2:
        return torch.cat((z, torch.zeros(len(z), 2 - z.shape[1])), dim=1)
    moved = z - z.mean(0)
    return moved @ torch.linalg.svd(moved, full_matrices=False).Vh[:2].T


def latent_figure(z: Tensor, label: Tensor) -> Figure:
    """Codes `z [N, Z]` coloured by `label [N]`, beside their quantiles against the prior's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(*flattened(z).T.numpy(), c=label.numpy(), cmap="tab20", s=5, alpha=0.7, linewidths=0)
    left.set(title="codes of held-out samples, by class", xticks=[], yticks=[])
    prior, found = quantiles(z)
    right.plot([-3, 3], [-3, 3], color="0.7", linewidth=1)
    right.plot(prior.numpy(), found.numpy(), color="tab:blue", linewidth=1.5)
    right.set(title="all codes against the prior", xlabel="quantiles of N(0, 1)", ylabel="of the codes")
    right.grid(alpha=0.3)
    return figure
