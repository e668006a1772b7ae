"""Autoencoding beyond pixels using a learned similarity metric.

Anders Boesen Lindbo Larsen, Soeren Kaae Soenderby, Hugo Larochelle, Ole Winther. ICML 2016. arXiv 1512.09300.

A variational autoencoder whose decoder is also the generator of a GAN. What counts as a good reconstruction is not
said pixel by pixel but in the features of the discriminator, which learns what matters while it learns to tell
pictures from samples. Reconstructions keep texture that squared pixel errors average away, and directions of the
latent space are visible attributes that can be added to a face.

Claim: on faces with fine texture, reconstructions of the VAE/GAN lie at most 0.8 times as far from the real held-out
faces as those of a VAE with pixel errors, wide or sharp, in Frechet distance of a judge's features after equal updates.

    L_prior = KL(q(z|x) || N(0, I))
    L_llike = -E_q log N(D_l(x) | D_l(x~), I) = 1/2 |D_l(x) - D_l(x~)|^2 + const       x~ = Dec(z), z ~ q(z|x)
    L_GAN   = log D(x) + log(1 - D(x~)) + log(1 - D(x_p))                               x_p = Dec(z_p), z_p ~ N(0, I)
    Enc <- dL_prior + dL_llike      Dec <- gamma dL_llike - dL_GAN      Dis <- dL_GAN, raised

Four variants of one recipe: `vae` (pixel errors, no discriminator), `gan` (no encoder), `vae-dis` (features of a GAN
that was trained before and stays as it is), `vae-gan`.

Differs from the paper:
- nets are the family's DCGAN blocks (strides, 5x5, leaky ReLU, no hidden dense layer of 2048 or 512), at 32 x 32
- errors are summed over features and averaged over the batch; gamma is relative to that (the released code: 1e-5)
- the GAN's loss weighs real and generated halves by `real_weight` as the released code does (0.66), default 0.5; the
decoder's loss is the non-saturating one (`loss="minimax"` is the paper's)
- batch norm of the discriminator keeps data and what is made apart; `joint_norm=true` is one set of statistics for all
three sources, as the authors have it, with which pictures stayed noise at this budget
- RMSProp at 1e-3 for encoder and decoder, 3e-4 for the discriminator (paper: 3e-4); the released throttle of whoever is
ahead is on (`margin`)
- the world's faces are drawn and have six attributes, not photographs with forty; attributes are scored by a judge
that was trained on the same world

Shapes: B batch, Z latent, C H W an image, T attributes, F features.
"""

from __future__ import annotations

from cambrian.systems.gans.vae_gan.model import VAEGAN, Terms, gaussian_error, solved, throttle
from cambrian.systems.gans.vae_gan.recipe import CLAIM, Config, VAEGANRecipe

__all__ = ["CLAIM", "VAEGAN", "Config", "Terms", "VAEGANRecipe", "gaussian_error", "solved", "throttle"]
