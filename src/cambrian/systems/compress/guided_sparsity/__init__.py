"""Faster CNNs with Direct Sparse Convolutions and Guided Pruning.

Jongsoo Park, Sheng Li, Wei Wen, Ping Tak Peter Tang, Hai Li, Yiran Chen, Pradeep Dubey. ICLR 2017. arXiv 1608.01409.

Zeros that are scattered over a layer save memory, and usually no time. Here they do: a convolution kernel that walks
over the non-zero weights alone, a model of the machine that says for which layers and at which sparsity it wins, and
training that prunes those layers only, and no further than it pays.

Claim: at 9 % non-zero weights, AlexNet's third convolution runs at least twice as fast on the sparse kernel as dense
convolution and as a matrix product of equal size, one thread each.

    out[n, y, x] = sum_j values[j] in[offset[j] + f(0, y, x)],   offset = f(c, r, s) = (c H + r) W + s     (section 2.1)
    t_dense = C / F,   t_sparse = max(alpha x C / F, (S_A + beta x S_W) / B),   x = share of non-zeros   (section 2.2)
    a layer can gain below x = 1 / alpha, and not further below the x where both terms of t_sparse meet
    S = layers that can gain;  l1 on S;  leave S: finer than useful -> stop pruning; stuck above 1 / alpha -> dense again

Differs from the paper:
- the inner loop is LLVM code through numba, no C++ compiler is needed;
- the model's compute term has a fixed time for each output besides, since small shares of non-zeros show it;
- l1 acts as soft thresholding after each step, which gives exact zeros;
- a budget of non-zero weights may be given, which one threshold on all magnitudes then meets exactly;
- forward only: training runs on dense convolutions under masks.

Shapes: N images, C channels, O output channels, H W pixels, R S kernel.
"""

from __future__ import annotations

from cambrian.inspect.sparse_conv import SparseConv2d, sparse_conv2d
from cambrian.systems.compress.guided_sparsity._machine import Machine, Prediction, calibrate, predict
from cambrian.systems.compress.guided_sparsity.model import Guide, sparsify, train_sparse
from cambrian.systems.compress.guided_sparsity.recipe import Config, GuidedSparsity, GuidedSparsityStudy, Options

__all__ = [
    "Config",
    "Guide",
    "GuidedSparsity",
    "GuidedSparsityStudy",
    "Machine",
    "Options",
    "Prediction",
    "SparseConv2d",
    "calibrate",
    "predict",
    "sparse_conv2d",
    "sparsify",
    "train_sparse",
]
