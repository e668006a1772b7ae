"""Pruning Convolutional Neural Networks for Resource Efficient Inference.

Pavlo Molchanov, Stephen Tyree, Tero Karras, Timo Aila, Jan Kautz. ICLR 2017. arXiv 1611.06440.

Removes whole feature maps, least important first, with training steps in between, until the network is as small as
wanted: what is left is an ordinary dense network, faster everywhere. New was the criterion: the first-order Taylor
term of the loss in a map, which one backward pass gives for all maps, and which ranks them nearly as removing each in
turn does.

Claim: the mean rank correlation over layers with the change of loss that removing a map makes is at least 0.2
higher for the Taylor criterion than for the size of the weights, and at least 0.5.

    z_l^(k) = g_l^(k) relu(z_(l-1) * w_l^(k) + b_l^(k))                   a gate for every map                     (eq. 2)
    |C(W') - C(W)|                                                  the oracle: one map removed              (eq. 3)
    Theta_TE(z) = mean_t | (1/M) sum_m (dC/dz_m) z_m |,  M = H W    per example t, then averaged             (eq. 8)
    Theta^ = Theta / sqrt(sum_j Theta_j^2)  within a layer                                                  (eq. 9)
    Theta^ - lambda Theta_flops,  Theta_flops = MFLOPs that go with one map of the layer                    (eq. 10)
    fine-tune some updates -> criterion -> remove the least important maps -> again, at last fine-tune       (section 2)

Differs from the paper:
- the criterion is taken in eval mode on its own sample of training pictures after the updates, not summed up during them;
- maps that a residual sum adds, which the paper has none of, go together, with the sum of their scores;
- OBD takes the diagonal of the Hessian in the maps by Hutchinson's probes, not by the R-operator;
- the momentum of SGD starts anew after each removal;
- a multiply and an add are 2 FLOPs; the paper's count adds the biases.

Shapes: B batch, C maps of a layer, H W pixels of a map, K classes.
"""

from __future__ import annotations

from cambrian.inspect.surgery import remove_maps
from cambrian.systems.compress.taylor_pruning import _criteria as criteria
from cambrian.systems.compress.taylor_pruning.model import Until, prune, rank, reestimate
from cambrian.systems.compress.taylor_pruning.recipe import Config, Options, TaylorPrune, TaylorPruningStudy

__all__ = [
    "Config",
    "Options",
    "TaylorPrune",
    "TaylorPruningStudy",
    "Until",
    "criteria",
    "prune",
    "rank",
    "reestimate",
    "remove_maps",
]
