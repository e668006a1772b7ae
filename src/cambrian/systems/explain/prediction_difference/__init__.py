"""Visualizing Deep Neural Network Decisions: Prediction Difference Analysis.

Luisa M. Zintgraf, Taco S. Cohen, Tameem Adel, Max Welling. ICLR 2017. arXiv 1702.04595.

Shows which parts of a picture speak for a class and which against it: every patch is replaced by what it might plausibly
have been, and the change of the class's log-odds is its evidence. New was to draw the replacement conditioned on the
patch's surroundings, so that pixels which their neighbours predict are not blamed, and to apply it to hidden units.

Claim: at least fifteen points more of the positive evidence lie on the object when patches are sampled given their
surroundings than when they are taken from other pictures.

    p(c | x without w) = mean over S samples x_w of p(c | x with x_w),   x_w ~ p(x_w | window without w)    (section 3.1)
    WE(w) = log2 odds p(c | x) - log2 odds p(c | x without w),   p <- (p N + 1) / (N + K)                  (section 2)
    window ~ N(mu, S):   mu_w + S_wr S_rr^-1 (x_r - mu_r),   S_ww - S_wr S_rr^-1 S_rw                   (section 3.1)
    unit: z(x) - mean over samples of z(x with x_w)                                                       (section 3.3)

Differs from the paper:
- samples are clipped to the input's range, not to each pixel's minimum and maximum over the data
- one set of random numbers serves all patches; patches that a sample leaves as they were are not computed again
- pictures only: no k^3 patches for volumes
- constant fills (zero, grey) are offered for comparison; the paper has none

Shapes: B batch, C channels, H W pixels, P patches of k x k, S samples, K classes, M classes asked for.
"""

from cambrian.systems.explain.prediction_difference._samplers import (
    Conditional,
    Constant,
    Marginal,
    PatchGaussian,
    patch_corners,
)
from cambrian.systems.explain.prediction_difference.model import PDA, log_odds

__all__ = ["PDA", "Conditional", "Constant", "Marginal", "PatchGaussian", "log_odds", "patch_corners"]
