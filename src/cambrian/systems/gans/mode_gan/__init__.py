"""Mode Regularized Generative Adversarial Networks.

Tong Che, Yanran Li, Athul Paul Jacob, Yoshua Bengio, Wenjie Li. ICLR 2017. arXiv 1612.02136.

A generator drops modes because nothing draws its samples towards data that it does not yet make. An encoder brings
every training sample to a latent, and the generator has to give it back: near the sample (metric regulariser) and so
that the discriminator takes it for real (mode regulariser). MDGAN splits the same idea over two discriminators, one
that brings reconstructions to the data and one that brings samples to the reconstructions. The paper's MODE score and
its count of missing modes by a noisy third discriminator measure what was dropped.

Claim: on stacks of three digits (1,000 modes) the regularised GAN misses at most 0.7 times as many modes as the same
GAN without regulariser, after equally many updates.

    D        max  E log D(x) + E log(1 - D(G(z)))
    R(G, E)    =  E_x[ l1 d(x, G(E(x))) - l2 log D(G(E(x))) ]        d: mean squared error, or that of D's features
    G        min  -E log D(G(z)) + R,      E  min  R                 the l2 term is a reward, as the generator's own
    MDGAN    D1: x against G(E(x));        G, E  max  lambda log D1(G(E(x))) - d(x, G(E(x)))           manifold step
             D2: G(E(x)) against G(z);     G     max  log D2(G(z))                                     diffusion step
    MODE       =  exp( E_x KL(p(y|x) || p_g(y)) - KL(p_g(y) || p_data(y)) )

Differs from the paper:
- stacks are of three drawn digits in the channels of one 28x28 image, not of MNIST digits; nets are 16 channels wide
- d is a mean over pixels (points: of coordinates divided by 4), and l1 is 10 so that it weighs about as much as log D;
in MDGAN it has that weight too (printed there: a squared norm with weight 1)
- one Adam holds G and E: E appears in R alone, so the gradients are the paper's
- both steps of an MDGAN are taken at once, on one batch
- the noisy third discriminator is fully connected, and its verdict is a mean over draws of its noise
- sizes of the grid of hyper-parameters are divided by 8, and a few of its cells are tried, not all
- CelebA and its user study are not part of it; any image folder trains by --data

Shapes: B batch, Z latent, C H W an image, K classes.
"""

from __future__ import annotations

from cambrian.metrics.classifier_score import mode_score
from cambrian.systems.gans.mode_gan._missing import missing_modes, stacked_modes
from cambrian.systems.gans.mode_gan.model import ModeGAN

__all__ = ["ModeGAN", "missing_modes", "mode_score", "stacked_modes"]
