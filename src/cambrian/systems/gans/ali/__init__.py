"""Adversarially Learned Inference.

Vincent Dumoulin, Ishmael Belghazi, Ben Poole, Olivier Mastropietro, Alex Lamb, Martin Arjovsky, Aaron Courville. ICLR 2017. arXiv 1606.00704.

A generator and a stochastic encoder are trained in one game: the discriminator sees pairs of a sample and a latent,
and cannot be fooled for good unless the encoder's pairs and the generator's are distributed alike. The encoder then
infers, so that real samples can be encoded, rebuilt, interpolated and classified from few labels, although no loss
compares a sample with its reconstruction.

Claim: reconstructions of held-out digits through a sampled code keep the digit's class at least 15 points more
often than in the same game with the pairs permuted within the batch.

    q(x, z) = q(x) q(z|x)     q(z|x) = N(mu(x), diag sigma(x)^2)       encoder pairs, x from the data
    p(x, z) = p(z) p(x|z)     p(z) = N(0, I)                           decoder pairs, x_tilde = Gx(z)
    L_D  = -E_q log D(x, z) - E_p log(1 - D(x, z))                     at best, logit D = log q(x, z) - log p(x, z)
    L_G  = -E_q log(1 - D(x, z)) - E_p log D(x, z)                     encoder and decoder together, z = mu + sigma eps
    K labels: D has K + 1 outputs; labelled encoder pairs are of their class, unlabelled ones of any, decoder pairs of K + 1

Differs from the paper:
- the claim runs on 8x8 digits with fully connected nets 256 wide; the table of CIFAR-10 is `arch=cifar`, other images
may use DCGAN blocks (`arch=dcgan`)
- images are in [-1, 1]; the decoder of the table ends in its sigmoid stretched to that range
- the class K + 1 of decoder pairs has its logit fixed at 0, which loses nothing
- labels that condition the nets (`conditional`) are unit vectors: constant planes beside the image, columns beside z
- a deterministic decoder, as the paper's conv nets; the toy's encoders and decoders have no batch norm on points
- the rates of Adam do not change; of the toy's comparisons, the encoder of the plain GAN learns beside it, not after it

Shapes: B batch, Z latent, C H W an image, K classes, A conditions.
"""

from cambrian.systems.gans.ali.model import ALI
from cambrian.systems.gans.ali.recipe import ALIRecipe, Config

__all__ = ["ALI", "ALIRecipe", "Config"]
