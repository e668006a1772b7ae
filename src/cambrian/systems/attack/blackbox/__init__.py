"""Practical black-box attacks against machine learning.

Nicolas Papernot, Patrick McDaniel, Ian Goodfellow, Somesh Jha, Z. Berkay Celik, Ananthram Swami. ASIA CCS 2017. arXiv 1602.02697.

Attacks a model of which nothing but labels can be asked. A substitute is trained on inputs that the attacker makes up
and the victim labels; examples that fool the substitute fool the victim too. New were the small initial set, which grows
in the directions in which the substitute's answer changes most, and the attack on models behind a network service.

Claim: with at most 6,400 label queries, FGSM on the substitute changes at least 30 points more of the victim's labels than
random signs of the same size.

    S_{r+1} = { x + lam_r sgn(grad_x F_{O(x)}(x)) : x in S_r }  union  S_r          Jacobian augmentation (section 4.2)
    lam_r = lam (-1)^floor(r / tau)                              periodic step (companion paper, arXiv 1605.07277)
    x' = clip(x + eps sgn(grad_x J(F, x, y)))                    FGSM on the substitute F, sent to the victim O
    S(x, t)[i] = dF_t/dx_i |sum_{j != t} dF_j/dx_i|  where the first is > 0 and the sum < 0, else 0      saliency (eq. 6)

Differs from the paper:
- the victim is a network or a scikit-learn model on this machine; no service is asked
- only new points are sent to the victim, so that n seeds and r rounds cost n 2^r queries; after the last round the substitute
  is trained once more
- F is the logit of the label by default (`scores=probability` takes the softmax); its gradient has another sign pattern
- substitutes are trained for equal steps each round (Adam), not for ten epochs
- the saliency-map attack recomputes the map after each pair of pixels, as in its own paper (arXiv 1511.07528)
- decision trees and nearest neighbours can be victims, not substitutes: they have no gradient

Shapes: B batch, N points of the substitute's set, K classes.
"""

from cambrian.systems.attack.blackbox._saliency_map import jsma, saliency_map
from cambrian.systems.attack.blackbox.model import (
    Oracle,
    Substitute,
    agreement,
    blackbox_attack,
    full_jacobian,
    jacobian_augment,
    label_gradient,
    planned_queries,
    random_sign,
    reservoir,
    train_substitute,
)

__all__ = [
    "Oracle",
    "Substitute",
    "agreement",
    "blackbox_attack",
    "full_jacobian",
    "jacobian_augment",
    "jsma",
    "label_gradient",
    "planned_queries",
    "random_sign",
    "reservoir",
    "saliency_map",
    "train_substitute",
]
