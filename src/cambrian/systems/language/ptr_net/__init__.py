"""Pointer Networks.

Oriol Vinyals, Meire Fortunato, Navdeep Jaitly. NIPS 2015. arXiv 1506.03134.

Learns convex hulls, triangulations and short tours from examples. The output vocabulary is the set of input positions: attention
does not mix the encoder's states into a context, it is the distribution over the next element. So one network answers for sets of
any size, also of sizes that it never saw.

Claim: for hulls of 10 points the pointer network finds the exact sequence at least 25 points more often than a network with
attention that chooses from a fixed dictionary of positions.

    e_1..n = LSTM(P_1..n),  e_0 a learned vector (stop),  d_i = LSTM(P_{C_{i-1}})
    u_ij = v' tanh(W_1 e_j + W_2 d_i),  p(C_i | C_1..i-1, P) = softmax(u_i)
    attention baseline: softmax(W [d_i; sum_j softmax(u_i)_j e_j]) over the numbers 0..n_max

Differs from the paper:
- 128 units, Adam 2e-3, sets of 5 to 10 points and 46,000 fixed sets at the laptop preset, where the paper has 256 or 512 units, SGD
at 1.0, up to 50 points and a million sets
- both baselines read the coordinates of the point chosen last, as the pointer network does
- searches can be restricted to valid answers for all three tasks, where the paper restricts tours alone
- tours are taught by exact solutions (at most 12 points); training on the heuristics' tours is left out, they are compared with
- data is drawn once per run, not in the background

Shapes: B sets, n points, M positions of an answer, H hidden.
"""

from __future__ import annotations

from cambrian.systems.language.ptr_net.model import PointerNet
from cambrian.worlds.point_sets import delaunay, hull, tour

__all__ = ["PointerNet", "delaunay", "hull", "tour"]
