"""Delving into transferable adversarial examples and black-box attacks.

Yanpei Liu, Xinyun Chen, Chang Liu, Dawn Song. ICLR 2017. arXiv 1611.02770.

Examples made for one network often fool another, but seldom with the label that was wanted. Made for several networks at
once they do: what fools all of them is likely to fool one more. New were targeted transfer, the attack on an ensemble, and
a look at the geometry behind it: gradients nearly orthogonal, decision boundaries well aligned.

Claim: the share of examples that a network not attacked takes for the wanted class is at least 8 points larger when they were
made for four other networks than when they were made for one of them, at equal distortion.

    argmin  lam d(x, x') - log(1 - 1_y . J(x'))                 untargeted, J probabilities (eq. 3)
    argmin  lam d(x, x') - 1_t . log J(x')                      targeted at t (section 2.2)
    argmin  lam d(x, x') - log( (sum_i alpha_i J_i(x')) . 1_t )                       ensemble (eq. 6)
    x' = clip(x + B sgn(g)),   clip(x + B g / ||g||_2)           fast gradient sign and fast gradient (section 2.2)
    RMSD = sqrt( mean_i (x'_i - x_i)^2 ),  pixels on 0..255
    leave one out: attack k - 1 networks, count on the one left: accuracy (untargeted), matching rate (targeted)

Differs from the paper:
- each step is clipped to the box, so that every result is a picture; the paper does not say when it clips
- one Adam on the ensemble's loss by default; `update=sum` adds one Adam update for each network, as the paper's runs did
- the learning rate is found by bisection so that arms have equal RMSD
- networks of the zoo on 36 coloured characters stand for the paper's five on ImageNet; no service is asked
- with the verb, which knows one network only, the attacker trains its own on the training data, or takes runs by name

Shapes: B batch, K classes, M networks, T points along one side of a plane.
"""

from cambrian.systems.attack.transferable_attacks._geometry import (
    boundary_distances,
    decision_plane,
    gradient_cosines,
    plane_directions,
)
from cambrian.systems.attack.transferable_attacks.model import (
    Ensemble,
    Moves,
    at_rmsd,
    ensemble_attack,
    fast_gradient,
    gaussian_noise,
    hit_rate,
    leave_one_out,
    rates,
    right_for_all,
    rmsd,
    smallest_step,
    transfer_matrix,
)

__all__ = [
    "Ensemble",
    "Moves",
    "at_rmsd",
    "boundary_distances",
    "decision_plane",
    "ensemble_attack",
    "fast_gradient",
    "gaussian_noise",
    "gradient_cosines",
    "hit_rate",
    "leave_one_out",
    "plane_directions",
    "rates",
    "right_for_all",
    "rmsd",
    "smallest_step",
    "transfer_matrix",
]
