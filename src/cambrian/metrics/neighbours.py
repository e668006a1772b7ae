"""Nearest neighbours by blocked matrix products, and the accuracy of classifying by the nearest one.

    |q - r|^2 = |q|^2 - 2 q.r + |r|^2, so the nearest r of q maximises q.r - |r|^2 / 2: one product a block

The product rounds where distances are small against norms, so that the best few of every row are measured again, as
differences in double precision: the answers are those of an exhaustive search.

Shapes: N queries, M references, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.errors import ShapeError

CANDIDATES = 4  # of each row, measured exactly


def nearest(queries: Tensor, references: Tensor, *, block: int = 1024) -> Tensor:
    """For each of `queries [N, D]` the row of `references [M, D]` at least Euclidean distance: int64 `[N]`.

    Memory is `block * M` numbers. Of equally near rows the first is given.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1] or not len(references):
        shapes = f"{tuple(queries.shape)} and {tuple(references.shape)}"
        raise ShapeError(f"queries and references must be [N, D] and [M >= 1, D], got {shapes}")
    centre = references.mean(0)  # distances do not change, but the products lose fewer digits
    moved, turned = references - centre, (references - centre).T.contiguous()
    half = 0.5 * moved.square().sum(1)
    found = []
    for rows in queries.split(block):
        score = torch.addmm(-half, rows - centre, turned)
        best = score.topk(min(CANDIDATES, len(references)), dim=1).indices.sort(dim=1).values  # [block, CANDIDATES]
        exact = (rows[:, None].double() - references[best].double()).square().sum(2)
        found.append(best.gather(1, exact.argmin(1, keepdim=True))[:, 0])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=queries.device)


def neighbour_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, block: int = 1024) -> float:
    """Share of `test` rows whose nearest `train` row has their label; both are `(features [N, D], labels [N])`."""
    return float((train[1][nearest(test[0], train[0], block=block)] == test[1]).double().mean())
