"""Gradient attributions: saliency, guided backpropagation, integrated gradients, SmoothGrad and Grad-CAM.

Karen Simonyan, Andrea Vedaldi, Andrew Zisserman; Jost Tobias Springenberg et al.; Mukund Sundararajan, Ankur Taly, Qiqi Yan. ICLR workshops 2014 and 2015, ICML 2017. arXiv 1312.6034, 1412.6806, 1703.01365.

Which pixels does a class score depend on? The gradient says how the score would change at the picture itself, and is
zero where a unit is saturated. Guided backpropagation also drops negative signals at every ReLU, which makes maps clean
but ties them less to the function. Integrated gradients add the gradient up along the line from a baseline, so that
the map sums to the change of the score: new were the axioms that single this path method out.

Claim: with 64 gradients a picture, integrated gradients leave a completeness gap of at most 2 % (median), where gradient
x input leaves at least 30 % on the same network.

    gradient          g = dF_c / dx,  F_c the score before the softmax                                (Simonyan, section 3)
    at each ReLU      backward: g (h > 0); deconvnet: g (g > 0); guided: g (g > 0) (h > 0)   (Springenberg, section 3.4)
    integrated        (x - x0) int_0^1 dF(x0 + a (x - x0)) / dx da                               (Sundararajan, eq. 1)
    completeness      sum of the map = F(x) - F(x0);   gap = |sum - (F(x) - F(x0))| / |F(x) - F(x0)|
    SmoothGrad        mean of g over x + noise, noise ~ N(0, (sigma width)^2)                     (Smilkov et al. 2017)
    Grad-CAM          relu( sum_k mean(dF / dA_k) A_k ), scaled up to the picture                (Selvaraju et al. 2017)

Differs from the paper:
- maps keep sign and channels; Simonyan shows the largest absolute value over channels, which is a way of showing and not measured here;
- the integral is by Gauss-Legendre quadrature by default where the paper sums 20 to 300 equal steps (options left, right, middle, trapezoid);
- the rules for ReLU act on every call of relu, functional, in place or shared; a network whose ReLUs cannot be seen is refused;
- networks and pictures are small (32x32), not ImageNet; Grad-CAM and SmoothGrad are later members of the same set.

Shapes: B batch, C,H,W or D one input, n gradients a picture, K classes.
"""

from cambrian.systems.explain.saliency.model import (
    METHODS,
    completeness_gap,
    grad_cam,
    gradient,
    integrated_gradients,
    quadrature,
    relu_rule,
    saliency,
    smooth,
)

__all__ = [
    "METHODS",
    "completeness_gap",
    "grad_cam",
    "gradient",
    "integrated_gradients",
    "quadrature",
    "relu_rule",
    "saliency",
    "smooth",
]
