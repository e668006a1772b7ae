"""Very Deep Convolutional Networks for Large-Scale Image Recognition.

Karen Simonyan, Andrew Zisserman. ICLR 2015. arXiv 1409.1556.

Networks of nothing but 3x3 convolutions, ReLU and 2x2 pooling, grown from 11 to 19 weight layers: depth alone, with the
smallest kernel that knows left from right, was new, and won the localisation task of ILSVRC 2014. Two 3x3 layers see what
one 5x5 layer sees, with fewer weights and a second non-linearity. Trained nets slide over whole images at several scales.

Claim: with batch normalisation, pairs of 3x3 convolutions classify crops of photographs at least 1 point better than one
5x5 convolution per pair (same receptive field, more weights).

    stage i:  [conv3x3 (+ batch norm) + ReLU] x L_i, max-pool 2x2           widths 64 128 256 512 512
    A 1 1 2 2 2    B 2 2 2 2 2    C, D 2 2 3 3 3 (C: third is 1x1)    E 2 2 4 4 4
    head fc:  FC 4096, FC 4096, FC K, dropout 0.5          head gap:  global average, FC K
    v <- 0.9 v - lr (5e-4 w + dL/dw),  w <- w + v          lr 0.01, divided by 10 when validation stalls

Differs from the paper:
- the claim trains 32x32 crops at 1/8 of the widths, with batch normalisation and the gap head; without batch normalisation
the order is the other way round in so short a training
- inputs are divided by the pixels' standard deviation too, and not only centred
- pictures live in memory, decoded once: a set of ImageNet's size needs that much memory at the rescaled size
- dense evaluation runs flips as one batch but each scale by itself (padding scales to one batch would change the borders)

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from cambrian.systems.perception.vgg.model import (
    box_loss,
    boxes_of,
    dense_predict,
    import_torchvision,
    init_from,
    multi_crop_predict,
    to_fully_conv,
    to_localiser,
    vgg,
)
from cambrian.systems.perception.vgg.recipe import CLAIM, SMALL_COLOUR_TARGET, SMALL_TARGET, Config, VGGRecipe

__all__ = [
    "CLAIM",
    "SMALL_COLOUR_TARGET",
    "SMALL_TARGET",
    "Config",
    "VGGRecipe",
    "box_loss",
    "boxes_of",
    "dense_predict",
    "import_torchvision",
    "init_from",
    "multi_crop_predict",
    "to_fully_conv",
    "to_localiser",
    "vgg",
]
