"""A Neural Representation of Sketch Drawings.

David Ha, Douglas Eck. ICLR 2018. arXiv 1704.03477.

Draws with a pen, stroke by stroke. A bidirectional LSTM reads a drawing into a latent vector; an autoregressive LSTM
writes it back as a sequence of offsets (a mixture of 2-D Gaussians) and pen states. New was to model drawings as
motions and not as pixels, so that they can be finished, blended and added like vectors.

Claim: reading the drawing into a latent vector lowers the test reconstruction loss by at least 0.2 against the same
decoder without one, at equally many steps.

    h       = [LSTM_fwd(S); LSTM_bwd(S)],  mu = W h + b,  s = W' h + b',  z = mu + exp(s / 2) eps
    h0, c0  = tanh(W_z z + b_z),           step i reads [S_{i-1}; z]
    L_s     = -1/N_max sum_{i <= N_s} log sum_j pi_j N(dx, dy | mu_j, sigma_j, rho_j)
    L_p     = -1/N_max sum_{i <= N_max} sum_k p_k log q_k            padding counts in training, not in evaluation
    L_KL    = -1/(2 N_z) sum(1 + s - mu^2 - exp(s))
    loss    = L_s + L_p + w_KL eta max(L_KL, KL_min),   eta = 1 - (1 - eta_min) R^step
    sampling at temperature tau: mixture and pen logits / tau, sigma^2 * tau

Differs from the paper:
- laptop preset: encoder 64, decoder 128, 10 mixtures, at most 32 points, batch 32, Adam 5e-3, R = 0.01^(2 / steps), and
N_z 64: what a nat of z costs against what it saves is w_KL N_max / N_z, a quarter here and about a half in the paper
- N_max is the longest drawing plus 1; evaluation counts the end of a drawing once, so that its probability is part
of the bound (the released code leaves it out)
- log-densities are summed in log space with log sigma >= -7 and |rho| <= 0.999; the released code adds 1e-6 inside the
log, which bounds its losses at 13.8 per point, so very unlikely points weigh more here
- sigma^2 is scaled by tau as the paper says; the released code scales sigma by tau (`reference_temperature`)
- a fixed padded length in place of length-bucketed batches, because the pen loss runs to N_max in training
- arithmetic is shown, not measured; the sweep over w_KL is left to `--set kl_weight`

Shapes: B batch, N = N_max points, Z latent, H hidden, M mixtures. stroke-5 rows are (dx, dy, down, up, end).
"""

from __future__ import annotations
