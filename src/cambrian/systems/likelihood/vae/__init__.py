"""Auto-Encoding Variational Bayes and its working kit.

Diederik P. Kingma, Max Welling. ICLR 2014. arXiv 1312.6114. With Burda, Grosse, Salakhutdinov, ICLR 2016, arXiv
1509.00519 (IWAE) and Kingma, Rezende, Mohamed, Welling, NIPS 2014, arXiv 1406.5298 (M2).

Learns a generative model with continuous latent variables together with a net that infers them. New was to draw the
latent as a differentiable function of noise, so that one bound trains both nets by plain gradients. The kit holds what
grew from it: importance-weighted bounds, conditions, half-labelled data, flows, a second stochastic layer.

Claim: with 20 samples a picture, the importance-weighted bound gives a test negative log-likelihood at least 0.3 nats
lower than the mean over samples, at equally many steps.

    z = mu(x) + sigma(x) eps,   p(z) = N(0, I)                                          reparameterised
    B:   L(x) = E_q log p(x|z) - KL,   KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)    analytic divergence
    A:   L(x) = E_q [log p(x, z) - log q(z|x)]                                          by sampling
    L_K(x) = E log 1/K sum_k w_k,   w_k = p(x, z_k) / q(z_k|x),   L_1 = L <= L_K <= log p(x)
    its gradient: sum_k (w_k / sum w) d log w_k;   DReG: the encoder's with squared weights, along z alone
    loss = -E log p(x|z) + beta sum_j max(KL_j, lambda)                                 beta schedule, free bits
    M2:  U(x) = sum_y q(y|x) (L(x, y) + log q(y|x)),   L(x, y) = -E log p(x|y, z) - log p(y) + KL

Differs from the paper:
- laptop preset: 16x16 glyphs made binary by a fixed seed, nets 256-128-128-20 with relu, Adam; the paper's 784-500-z
with tanh and Adagrad is the preset paper
- nets begin at the mean picture, as in the IWAE authors' code: the encoder sees what differs from it, the decoder's bias
is its logit; weights are Glorot's
- no weight decay (the paper puts a N(0, I) prior on the decoder's weights)
- wake-sleep is built as the baseline, Monte-Carlo EM is not
- M2 without M1 below it; the classifier's weight alpha is per picture, the paper's alpha / N
- IAF with one masked layer of 64 units a step and 32 context numbers; planar flows get u, w and b from the encoder
- flows take the divergence by sampling, so estimator B's lower variance is lost, and have no path gradient
- pictures of a user's are cut square only where `size` is given; Frey faces and CelebA are read from a folder of files

Shapes: K samples, B batch, N rows, C H W a picture, Z latent features (Z2 of a second layer), Y classes, P planes.
"""

from __future__ import annotations

from cambrian.systems.likelihood.vae._pixels import LIKELIHOODS, Pixels
from cambrian.systems.likelihood.vae.model import VAE, Bound, Draw

__all__ = ["LIKELIHOODS", "VAE", "Bound", "Draw", "Pixels"]
