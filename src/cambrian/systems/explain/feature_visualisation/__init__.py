"""Activation maximisation: the input that a unit, a channel, a class or a direction prefers.

Dumitru Erhan, Yoshua Bengio, Aaron Courville, Pascal Vincent. Technical report 1341, Universite de Montreal, 2009;
Karen Simonyan, Andrea Vedaldi, Andrew Zisserman. ICLR 2014 workshop. arXiv 1312.6034;
Jason Yosinski, Jeff Clune, Anh Nguyen, Thomas Fuchs, Hod Lipson. ICML 2015 workshop. arXiv 1506.06579.

Climbs from noise or the mean picture to an input that excites one part of a trained network most. Without a
regulariser the result is an adversarial pattern that says little; new in turn were the idea, class pictures from the
score before the softmax, and regularisers that make the patterns legible.

Claim: pictures made for a class with regularisers are given that class by an independent network at least 20 points more often.

    x* = argmax_x  a(x) - R(x),   x_{t+1} = r( x_t + eta grad a(x_t) / |grad a(x_t)| )       (Yosinski et al., section 3)
    a: a unit, the mean of a channel, a class score before the softmax, or h . v
    R = lambda |x|^2 (Simonyan et al., section 2);   r: decay, blur, zeroing of small or idle pixels (Yosinski et al.)

Differs from the paper:
- pictures are offsets from the data's mean colour, so decay and zeroing lead to that colour; the box is imposed at the end only;
- jitter, turns, zooms, total variation, Fourier coefficients and diversity are later practice, here as options;
- Yosinski's four settings are meant for 227-pixel photographs; the defaults for small pictures are this system's own;
- a generator as prior (DGN-AM) is left to the generative systems; nothing is compiled: it costs more than it saves at this size.

Shapes: B pictures, C H W one picture, h a layer's output [B, D] or [B, D, h, w].
"""

from cambrian.systems.explain.feature_visualisation._regularisers import SETS, Regulariser, regularisers
from cambrian.systems.explain.feature_visualisation.model import (
    Aim,
    Picture,
    high_frequency_share,
    parse,
    top_crops,
    visualise,
)
from cambrian.systems.explain.feature_visualisation.recipe import (
    CLAIM,
    Config,
    FeatureVisualisation,
    FeatureVisualisationStudy,
    Options,
)

__all__ = [
    "CLAIM",
    "SETS",
    "Aim",
    "Config",
    "FeatureVisualisation",
    "FeatureVisualisationStudy",
    "Options",
    "Picture",
    "Regulariser",
    "high_frequency_share",
    "parse",
    "regularisers",
    "top_crops",
    "visualise",
]
