"""Visualizing and Understanding Convolutional Networks: occlusion maps and the deconvnet.

Matthew D. Zeiler, Rob Fergus. ECCV 2014. arXiv 1311.2901.

Covers a picture with a grey square at every place and watches the class probability, the answer and the strongest map
of the top layer; and projects a single activation back to the pixels, through the switches of the poolings. New was to
use both to see what a convolutional network has learned, and to correct its first layer accordingly.

Claim: the place where a square lowers the class probability most lies on the object, at least 50 points more often than
the best of a random map, the picture's centre and the map of the network with fresh weights.

    occlusion       M(i, j) = p(c | x) - p(c | x with an m x m square of grey at (i, j))                  (section 4.2)
    deconvnet       one activation kept; unpool by switches, relu, transposed filters, down to the pixels   (section 2.1)
    correspondence  Delta_l = sum_{i != j} H(sign(e_i), sign(e_j)),  e_i = l(x_i) - l(x_i with the part covered)  (4.3)
    first layer     filters with RMS above 0.1 are scaled back to it after each step                       (section 3.1)

Differs from the paper:
- projections go through batch norm as the fixed scale that it is at test time; contrast normalisation is skipped as in the paper;
- H is the share of differing signs, and Delta the mean over pairs: the paper divides its sums by a number it does not state;
- the map is interpolated between the centres of the squares; Captum's mean over the squares that cover a pixel is an option;
- the limit on first-layer filters is a function to call after each step (`renormalise`), ZFNet a module; neither is trained here;
- pictures are 32x32 scenes with one small object, and cartoon faces for correspondence; ImageNet is not trained on.

Shapes: B batch, C,H,W one picture, R x Q places of the square, K classes, h,w a layer's map.
"""

from cambrian.systems.explain.occlusion._projection import (
    Top,
    correspondence,
    deconvnet,
    evolution,
    invariance,
    receptive_box,
    top_activations,
)
from cambrian.systems.explain.occlusion._zfnet import ZFNet, renormalise
from cambrian.systems.explain.occlusion.model import occlude, occlusion_map, windows

__all__ = [
    "Top",
    "ZFNet",
    "correspondence",
    "deconvnet",
    "evolution",
    "invariance",
    "occlude",
    "occlusion_map",
    "receptive_box",
    "renormalise",
    "top_activations",
    "windows",
]
