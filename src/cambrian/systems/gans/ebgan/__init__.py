"""Energy-based Generative Adversarial Network.

Junbo Zhao, Michael Mathieu, Yann LeCun. ICLR 2017. arXiv 1609.03126.

The discriminator is an auto-encoder and its judgement an energy, the reconstruction error: low on data, pushed up to a
margin on samples, where the generator seeks low energy. The reconstruction gives a gradient per pixel where a logit
gives one number, which made training steadier over hyper-parameters; a pulling-away term keeps the codes of generated
samples from pointing all in one direction.

Claim: over a grid of fully connected nets on handwritten digits, the lower quartile of the classifier score of EBGAN with
the pulling-away term is at least 1.1 times that of the non-saturating GAN.

    D(x)  = mean over pixels of ( Dec(Enc(x)) - x )^2
    L_D   = E D(x) + E [ m - D(G(z)) ]_+
    L_G   = E D(G(z)) + w f_PT(S),    S = Enc(G(z)),  w = 0.1
    f_PT  = 1 / (N (N - 1)) sum_i sum_{j != i} ( S_i . S_j / (|S_i| |S_j|) )^2
    at equilibrium p_G = p_data and D = gamma in [0, m] everywhere: L_D = m

Differs from the paper:
- the energy is the mean over pixels, not their sum or its root, so margins are on the scale of one pixel; by default the
margin is found by rule: 1.5 times the mean energy of data over the first batches (`margin=10` fixes one)
- the laptop grid has 8 cells per seed on 8x8 digits (layers 2 or 3, width 128 or 256, dropout on or off, the same in both
players), where the paper has 512 of EBGAN and 6,144 of GAN on MNIST; the interval of the verdict is over seeds, and the
bootstrap over grid cells is what the action `grid` prints
- the encoder's units are leaky ReLU and weights start as torch's own; batch norm stands after all layers but D's first and
G's last, by source
- all cells of equal shape train at once, their parameters stacked; every cell sees batches of its own
- the score of the claim is the exponential one (1 to 10); the paper's I' (no exponential, reversed) stands beside it
- the ladder network of the semi-supervised experiment has the bottom-layer cost only, as in the paper, with a combinator of
one scale and one shift per unit and not the ten parameters of the original
- 128 and 256 pixel images of ImageNet are a setting (`arch=dcgan size=128`), never trained here

Shapes: N or B batch, S codes, M members of a grid, K classes.
"""

from __future__ import annotations

from cambrian.systems.gans.ebgan.model import EBGAN, AutoEncoder, ConvAutoEncoder

__all__ = ["EBGAN", "AutoEncoder", "ConvAutoEncoder"]
