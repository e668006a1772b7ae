"""InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets.

Xi Chen, Yan Duan, Rein Houthooft, John Schulman, Ilya Sutskever, Pieter Abbeel. NIPS 2016. arXiv 1606.03657.

A GAN whose generator also gets a few codes c beside its noise z, and is rewarded when they can be read off its
samples again. The reader Q shares the discriminator's layers, so it costs almost nothing, and it bounds the mutual
information of codes and samples from below. Without any label a categorical code then finds classes, and continuous
ones find slant or width, which a user can turn one by one.

Claim: on handwritten digits, the categorical code read off held-out images names their class (matched one to one) at
least 30 points more often than a reader trained after the same game without the information term.

    min_{G,Q} max_D  V(D, G) - lambda L_I(G, Q)
    L_I(G, Q) = E_{c ~ P(c), x ~ G(z, c)} [ log Q(c | x) ] + H(c)  <=  I(c; G(z, c))
    categorical c: Q is a softmax, H = log K;   continuous c ~ U(-1, 1): Q = N(mu(x), sigma), H = log 2
    D <- D - eta d( -V - lambda L_I ),   then   G <- G - eta d( E sp(-D(G)) - lambda L_I ),   each on fresh codes

Differs from the paper:
- the claim runs on scikit-learn's 8x8 digits with fully connected nets; the paper's MNIST net is `arch=infogan` (without
its 28x28 restriction), and `arch=dcgan` takes the family's blocks
- batch norm keeps statistics of real and generated images apart; Q's layer sees both, so that codes of real images are
read with the statistics of real images
- Q's standard deviation of a continuous code is fixed to 1 as in the released MNIST run (`fix_std=false` learns it), and
lambda for continuous codes is a setting of its own
- recipes of SVHN, CelebA, faces and chairs are settings (`codes`, `latent`), not presets

Shapes: B batch, Z noise, W width of all codes (one-hot and continuous), P outputs of Q, K categories.
"""

from __future__ import annotations

from cambrian.systems.gans.infogan.model import Codes, InfoGAN, cat, uniform

__all__ = ["Codes", "InfoGAN", "cat", "uniform"]
