"""Towards the Limit of Network Quantization.

Yoojin Choi, Mostafa El-Khamy, Jungwon Lee. ICLR 2017. arXiv 1612.01543.

Chooses quantisation levels by what they do to the loss, for all layers at once, and codes their indices by their
frequency. New were to weigh each weight's rounding error by the loss's curvature there, which makes one codebook fit
layers of unlike importance, and to see that with entropy coding the best levels are those of a uniform grid, or of a
search that pays for code length.

Claim: with 8 to 24 levels of fixed-length code and no retraining, Hessian-weighted k-means raises the loss at most half
as much as k-means, both solved to their global optimum.

    dL ~ 1/2 sum_i h_ii (w_i - wq_i)^2                                                                      (eq. 5)
    k-means         min sum_j sum_{C_j} (w_i - c_j)^2
    Hessian-weighted min sum_j sum_{C_j} h_ii (w_i - c_j)^2,     c_j = sum h w / sum h                        (eq. 6, 7)
    uniform         equal bins, then their (weighted) means
    ECSQ            min sum h_ii (w_i - c_j)^2 - lambda log2 p_j, alternately in assignment, c and p          (eq. 14)
    ratio           b / (mean length + (sum_j b_j + k b) / N)                                                (eq. 3)

Differs from the paper:
- the diagonal is the Gauss-Newton one, exact over classes or with drawn labels (or Hutchinson's, or Adam's moments), instead
of the back-propagated approximation of Becker and LeCun
- k-means is solved exactly by dynamic programming, since Lloyd's local optima decide the comparison; ECSQ stays iterative
- a file repeats in each layer the levels that it uses, and codes each layer by itself

Shapes: N weights of all layers, k levels; biases and batch norm stay float.
"""

from __future__ import annotations

from cambrian.systems.compress.quantization_limit.model import (
    METHODS,
    Quantised,
    SharedCodebook,
    Weights,
    bits_at,
    cluster,
    code_lengths,
    compression_ratio,
    position_bits,
    predicted_increase,
    quantise,
    tune,
)
from cambrian.systems.compress.quantization_limit.recipe import (
    FIXED,
    Config,
    Options,
    QuantizationLimit,
    QuantizationLimitStudy,
    sweep,
)

__all__ = [
    "FIXED",
    "METHODS",
    "Config",
    "Options",
    "Quantised",
    "QuantizationLimit",
    "QuantizationLimitStudy",
    "SharedCodebook",
    "Weights",
    "bits_at",
    "cluster",
    "code_lengths",
    "compression_ratio",
    "position_bits",
    "predicted_increase",
    "quantise",
    "sweep",
    "tune",
]
