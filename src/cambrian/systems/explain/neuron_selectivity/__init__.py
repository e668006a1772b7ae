"""Understanding Trained CNNs by Indexing Neuron Selectivity.

Ivet Rafegas, Maria Vanrell, Luis A. Alexandre, Guillem Arias. Pattern Recognition Letters 2020. arXiv 1702.00382.

Describes every convolutional unit by a picture of what it likes, the weighted mean of the crops that drive it most, and by
two numbers: how much it depends on colour and how much on one class. New was to read selectivity off the images that
activate a unit instead of from its weights, in all layers alike.

Claim: when the class depends on the colour, the median colour index of the last convolution is at least 0.2 higher than
when the same pictures are sorted by shape only.

    w_j = a_j / a_max             the N images of highest activation a_j, one place in each
    NF = 1/N sum_j w_j I_j        I_j: the crop of the receptive field
    alpha = 1 - sum_j w'_j / sum_j w_j      w': the same place after the crop lost its colour
    gamma = (N - M) / (N - 1)     M: fewest classes with sum_c f_c >= threshold,  f_c = sum_{j in c} w_j / sum_j w_j
    O1 = (R - G)/sqrt 2,  O2 = (R + G - 2B)/sqrt 6,  O3 = (R + G + B)/sqrt 3

Differs from the paper:
- the whole picture loses its colour, not the crop alone: a unit sees its receptive field only, so both give the same
  response, and one pass over the winning pictures serves all units of all layers
- crops are padded with the middle of the input range at the borders
- negative activations count as zero weight
- the network is a small one on characters in colours instead of VGG-M on ImageNet

Shapes: U units of a layer, N images kept for each, C channels, r edge of the receptive field, K classes.
"""

from cambrian.systems.explain.neuron_selectivity._colour import achromatic, axis_tilt, hue_axis, opponent
from cambrian.systems.explain.neuron_selectivity.model import (
    Top,
    TopActivations,
    class_index,
    class_shares,
    color_index,
    crops,
    neuron_feature,
    orientation_index,
    symmetry_index,
)

__all__ = [
    "Top",
    "TopActivations",
    "achromatic",
    "axis_tilt",
    "class_index",
    "class_shares",
    "color_index",
    "crops",
    "hue_axis",
    "neuron_feature",
    "opponent",
    "orientation_index",
    "symmetry_index",
]
