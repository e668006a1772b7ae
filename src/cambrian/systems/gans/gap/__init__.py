"""Generative Adversarial Parallelization.

Daniel Jiwoong Im, He Ma, Chris Dongjoo Kim, Graham W. Taylor. 2016. arXiv 1612.04021.

Several GANs train side by side and from time to time exchange their discriminators, so that no generator gets used to
one opponent and no discriminator sees one generator alone. Members may differ in architecture, prior and order of data.
Here all members are one stack of tensors that a vectorised step trains at once, and an exchange is a permutation of its
leading index. GAM-II, the score that came with the paper, asks discriminators of other models how real samples look.

Claim: four GANs on 8x8 digits that exchange discriminators fool the discriminators of four further, independent GANs
at least 5 points more often than four GANs that do not, after equally many updates.

    M        = {(G_1, D_1) ... (G_N, D_N)}           every pair plays its own game in every update
    exchange : every K updates, N/2 disjoint random pairs (i, j) swap:   D_i <-> D_j with moments and statistics
    GAM-II   : of G_i, the mean and the worst over a pool of foreign D of P[D takes G_i(z) for data]
    GRAN       C = sigmoid(sum_t dC_t),   dC_t = f([tanh(W z), g(dC_{t-1})]),   dC_0 = 0,   t = 1 ... T

Differs from the paper:
- the pool of GAM-II is the discriminators of further independent GANs, or of other members; the paper's own pool holds
each model's own discriminators too
- the claim is on scikit-learn's digits with connected nets; CIFAR-10 and LSUN train by --data, their tables are not redone
- exchanges are counted in updates; the claim's, 4 an epoch, are 4 to 40 times as frequent as the paper's
- discriminators have no batch norm unless norm_d=split: in evaluation their running statistics made them poor judges
- nets of points have no batch norm; members of kind gran have none at all, since the statistics of T canvases would mix
- a member's uniform prior is the normal one through its distribution function, so that all draws are of one kind
- training in one process per member exchanges ids of discriminators, and samples and gradients in every update
- annealed importance sampling is left out

Shapes: M members (N that exchange, then the pool), B batch, Z latent, C H W an image.
"""

from __future__ import annotations

from cambrian.metrics.gam import gam, gam2
from cambrian.systems.gans.gap._processes import distribute
from cambrian.systems.gans.gap.model import GAP

__all__ = ["GAP", "distribute", "gam", "gam2"]
