"""Tours that are good, not best: nearest neighbour, nearest and farthest insertion, and Christofides (1976).

Each takes points [n, 2] and gives 1-based numbers from point 1. Nearest neighbour and the insertions take O(n^2), Christofides
O(n^3); the last is at most 1.5 times as long as the best.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_neighbour(points: Tensor) -> list[int]:
    """Go on to the nearest point not yet visited."""
    distance = torch.cdist(points, points)
    distance.fill_diagonal_(torch.inf)
    order, left = [0], set(range(1, len(points)))
    while left:
        order.append(min(left, key=lambda j: float(distance[order[-1], j])))
        left.remove(order[-1])
    return [i + 1 for i in order]


def insertion(points: Tensor, *, farthest: bool = False) -> list[int]:
    """Insert the point nearest to the tour (or farthest from it) where it lengthens the tour least."""
    distance = torch.cdist(points, points)
    order, left = [0], set(range(1, len(points)))
    while left:
        gap = {j: float(distance[order, j].min()) for j in left}
        new = max(gap, key=lambda j: gap[j]) if farthest else min(gap, key=lambda j: gap[j])
        tour = torch.tensor(order)
        after = tour.roll(-1)
        growth = distance[tour, new] + distance[new, after] - distance[tour, after]
        order.insert(int(growth.argmin()) + 1, new)
        left.remove(new)
    return [i + 1 for i in order]


def christofides(points: Tensor) -> list[int]:
    """Minimum spanning tree, matching of its odd points, Euler tour with short cuts (by NetworkX)."""
    from networkx import Graph
    from networkx.algorithms.approximation import christofides as solve

    distance = torch.cdist(points.double(), points.double()).tolist()
    graph = Graph()
    graph.add_weighted_edges_from((i, j, distance[i][j]) for i in range(len(points)) for j in range(i))
    cycle = solve(graph)[:-1]
    start = cycle.index(0)
    return [i + 1 for i in cycle[start:] + cycle[:start]]
