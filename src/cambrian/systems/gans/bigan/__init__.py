"""Adversarial Feature Learning.

Jeff Donahue, Philipp Kraehenbuehl, Trevor Darrell. ICLR 2017. arXiv 1605.09782.

A GAN gets a deterministic encoder: the discriminator is shown images with their codes and latents with their
pictures, and to fool it encoder and generator must become each other's inverse. What the encoder has then learnt
without labels is used as features for other tasks.

Claim: the encoder inverts the generator although no loss asks for reconstruction: on held-out digits the error of
G(E(x)) over that of another digit's is at least 0.15 lower than in the same game with the pairs permuted.

    V(D, E, G) = E_x log D(x, E(x)) + E_z log(1 - D(G(z), z))
    D maximises V; E and G minimise -E log(1 - D(x, E(x))) - E log D(G(z), z)     the inverse labels
    at the optimum E = G^-1 almost everywhere; V is then an l0 autoencoder loss on the support
    latent regressor        min_E |z - E(G(z))|^2 beside a GAN; jointly: G feels it too, 0.25 times
    autoencoders            min_{E,G} |x - G(E(x))|^2 or |x - G(E(x))|
    E's output is normalised to the prior's mean and deviation; z ~ U(-1, 1)^Z

Differs from the paper:
- the claim runs on 8x8 digits with fully connected nets 256 wide, 5,000 updates and no weight decay; nets that are
fully connected see no order of pixels, so none are permuted
- images are in [-1, 1] and the generator ends in tanh, which is the paper's sigmoid on another scale
- latent regressors minimise the squared error; `method=discriminator` takes the features of the same GAN's D
- the ImageNet form is `encoder=alexnet` (batch norm for local response norm) with `zoom=2`, an encoder that sees twice
the generator's edge; its crops of 72 pixels are not drawn, and fine-tuning on VOC is not here
- linear probes are SVMs on standardised features and not multinomial regressions

Shapes: B batch, Z latent, C H W an image, F features.
"""

from cambrian.systems.gans.bigan.model import BiGAN
from cambrian.systems.gans.bigan.recipe import BiGANRecipe, Config

__all__ = ["BiGAN", "BiGANRecipe", "Config"]
