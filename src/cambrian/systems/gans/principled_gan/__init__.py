"""Towards Principled Methods for Training Generative Adversarial Networks.

Martin Arjovsky, Leon Bottou. ICLR 2017. arXiv 1701.04862.

Says why adversarial training is unstable: samples and data lie on thin sets that hardly meet, so a perfect
discriminator exists, and with it the saturating generator gradient vanishes while the non-saturating one grows and
becomes as wild as a Cauchy variable. Here are the theorems as functions, a bench that measures all three on any
generator with a discriminator trained from scratch, and the cure, noise on both sides that is taken away in the
course of training, as a method for every adversarial recipe (`--with principled-gan`).

Claim: while a fresh discriminator trains against a frozen generator of digits, the saturating gradient falls at least
30-fold between its iterations 50 and 1,500, and at least 10 times as far as with noise on both sides whose sigma is 0.3 of
the range of a pixel.

    2.1  disjoint supports        a smooth D with D = 1 on the data, D = 0 on the samples, grad D = 0 on both
    2.3  then                     JSD = log 2, both KL = infinity
    2.4  || grad_theta E log(1 - D(g(z))) ||  <  M eps / (1 - eps)
         eps = sup |D - D*| + sup || grad(D - D*) ||,   M^2 = E || J_theta g(z) ||^2
    2.5  E[-grad_theta log D*(g(z))]  =  grad_theta [ KL(P_g || P_r) - 2 JSD(P_g || P_r) ]    (D* held at theta)
    2.6  D - D*, grad(D - D*) white noise   =>   E[-grad_theta log D(g(z))] is a centred Cauchy variable
    3.x  W(P_r, P_g)  <=  2 V^(1/2) + 2 C JSD(P_r+e, P_g+e)^(1/2)     V = E ||e||^2, C the diameter of the noisy supports

Differs from the paper:
- digits of 8x8 pixels and fully connected nets of 256 x 2 without norm, the generator taken after 200 and 2,000 updates;
the paper has DCGANs of 1, 10 and 25 epochs. The nets are the study's own, since `gan` has connected nets only with weight
normalisation or dropout, which slow the fresh discriminator down; `target=gan`, or any adversarial system, is an option
- the perfect discriminator of two point clouds is a sum of bumps; the paper shows that one exists
- M of the measured bound is estimated on a few latents, and eps on the same samples as the gradient
- how sigma is annealed is not prescribed by the paper: linear, exponential, or led by the discriminator's accuracy
- theorem 3.2, the gradient of the noisy game as a pull between samples weighted by their distance, is not computed

Shapes: N, M points, D dimensions, B batch, Z latent, R batches of a probe, P parameters.
"""

from __future__ import annotations

from cambrian.systems.gans.principled_gan._anneal import NoiseAnneal
from cambrian.systems.gans.principled_gan._diagnosis import Trace, diagnose, generator_gradients, jacobian_norm
from cambrian.systems.gans.principled_gan._theory import (
    Divergences,
    PerfectDiscriminator,
    divergences,
    jsd_bound,
    noisy_ns_gradients,
    perfect_discriminator,
    smoothed_jsd,
    vanishing_bound,
)
from cambrian.systems.gans.principled_gan.recipe import NoiseAnnealMethod, PrincipledGANStudy, examine

__all__ = [
    "Divergences",
    "NoiseAnneal",
    "NoiseAnnealMethod",
    "PerfectDiscriminator",
    "PrincipledGANStudy",
    "Trace",
    "diagnose",
    "divergences",
    "examine",
    "generator_gradients",
    "jacobian_norm",
    "jsd_bound",
    "noisy_ns_gradients",
    "perfect_discriminator",
    "smoothed_jsd",
    "vanishing_bound",
]
