"""Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding.

Song Han, Huizi Mao, William J. Dally. ICLR 2016. arXiv 1510.00149.

Makes any trained network's file ten to fifty times smaller at the same accuracy. Connections of small weight are removed
and the rest is retrained; the survivors of a layer share a few values, which are trained too; the indices of the values
and the gaps between the survivors are Huffman coded. New was the chain of all three, and that it costs no accuracy.

Claim: at most half a point less accurate, the file of the whole chain is at most 1/1.8 of the smallest that pruning alone
or sharing alone reaches with as much retraining.

    mask:   keep the largest |W|, or |W| > q std(W)                         (Han et al. 2015), several rounds with retraining
    share:  W_i = C[I_i],  k = 2^b values per layer by k-means over the non-zero weights
            dL/dC_k = sum_i dL/dW_i [I_i = k]                                                                  (eq. 3)
            rate r = n b / (n log2 k + k b)                                                                    (eq. 1)
    code:   Huffman(indices, 0 = reserved zero), Huffman(gaps), a gap of 2^b or more is bridged by fillers with index 0

Differs from the paper:
- shared values are trained with Adam instead of SGD: a summed gradient grows with the size of its cluster
- positions may take the field width that makes the shortest file (index bits 0), beside the paper's 5 and 8
- speed and energy on the paper's accelerator are not modelled; `cambrian.inspect.size` measures the latency of the dense network

Shapes: W any weight of a convolution or linear layer; biases and batch norm stay float.
"""

from __future__ import annotations

from cambrian.systems.compress.deep_compression.model import (
    choose_densities,
    density,
    layer_rows,
    magnitude_mask,
    prune,
    prune_once,
    scaled_dropout,
    sensitivity,
    share,
    share_weights,
    sharing_rate,
)
from cambrian.systems.compress.deep_compression.recipe import (
    CLAIM,
    Config,
    DeepCompression,
    DeepCompressionStudy,
    Options,
)

__all__ = [
    "CLAIM",
    "Config",
    "DeepCompression",
    "DeepCompressionStudy",
    "Options",
    "choose_densities",
    "density",
    "layer_rows",
    "magnitude_mask",
    "prune",
    "prune_once",
    "scaled_dropout",
    "sensitivity",
    "share",
    "share_weights",
    "sharing_rate",
]
