"""Generative Adversarial Networks as Variational Training of Energy Based Models.

Shuangfei Zhai, Yu Cheng, Rogerio Feris, Zhongfei Zhang. 2016. arXiv 1611.01799.

An explicit energy model is trained by maximum likelihood, and a generator stands in for its samples: it is the
variational distribution of a lower bound of the negative log-likelihood, so it descends the energy while its entropy
is kept up. The energy is a bounded product of experts, which cannot run away; its features classify. With a
transition instead of a generator (VCD, after contrastive divergence) the same game makes variants of a picture that
keep its label.

Claim: with 20 labels per class, a classifier that also learns from one-step VCD variants of its pictures is at least
one point more accurate than without.

    NLL  = E_data E(x) + log sum_x exp(-E(x)) = max_q  E_data E(x) - E_q E(x) + H(q)
    E(x) = sum_{j=1..K} H_b(sigmoid(w_j . phi(x) + b_j))              in [0, K log 2], H_b the binary entropy
    H(q) ~ Hs = sum_j H_b(mean_i sigmoid(w_j . phi(G(z_i)) + b_j))
    G: -mean E(G(z)) + Hs, raised k times;  E: mean E(x) - mean E(G(z)) - Hs(data), lowered once      (algorithm 1)
    VCD: x~ = Dec(m z + (1 - m) h), h = tanh Enc(x), m ~ Bernoulli(1/2)^d, z ~ U(-1, 1)^d
         G: rho E(x~) + (1 - rho) |Dec(h) - x|^2, lowered

Differs from the paper:
- the paper prints the bound of the energy as K, which is K bits; here it is K log 2 nats
- the paper's equation 9 has no bias b_j; it is kept here
- algorithm 2 of the paper prints the entropy term, its text does without; here VCD has none in the generator
- the paper keeps the data's Hs as a regulariser of the energy; so does VCD here (`data_entropy=false` drops it)
- `arch="pool"` is the paper's kind of net (2 convolutions with pooling, 2 dense layers; 2 dense layers and 2 deconvolutions)
with widths of our own; the family's `connected` and `dcgan` nets are there too
- Adam may replace Adadelta (`optim`)
- the embedded glyphs instead of MNIST, SVHN and CIFAR-10; the probe of `probe_accuracy` is a ridge classifier

Shapes: B batch, Z = d latent, C H W an image, F features, K experts.
"""

from __future__ import annotations

from cambrian.systems.gans.vgan_ebm._augment import CLAIM, CONTENT, AugmentationStudy, StudyConfig
from cambrian.systems.gans.vgan_ebm.model import VCD, VGAN, binary_entropy, entropy_surrogate, nll_bound, product_energy
from cambrian.systems.gans.vgan_ebm.recipe import Config, VGANRecipe

__all__ = [
    "CLAIM",
    "CONTENT",
    "VCD",
    "VGAN",
    "AugmentationStudy",
    "Config",
    "StudyConfig",
    "VGANRecipe",
    "binary_entropy",
    "entropy_surrogate",
    "nll_bound",
    "product_energy",
]
