"""Sequential Neural Models with Stochastic Layers.

Marco Fraccaro, Soren Kaae Sonderby, Ulrich Paquet, Ole Winther. NIPS 2016. arXiv 1605.07571.

Stacks a layer of random states on a deterministic recurrent network, and infers them with a network that follows the
structure of their posterior: each depends on the one before it and on the future alone. New was to keep the two layers apart,
so that the deterministic path is computed once for a sequence and the stochastic layer can be smoothed.

Claim: on speech-like sound the bound is at least 2 nats a frame above the exact log-likelihood of an RNN with Gaussian
outputs and as many parameters, after equally many steps.

    d_t = GRU(d_{t-1}, x_{t-1})
    p(z_t | z_{t-1}, d_t) = N(mu_p, v_p),              p(x_t | d_t, z_t)
    q(z_t | z_{t-1}, a_t) = N(mu_p + mu_q, v_q),       a_t = GRU(a_{t+1}, [d_t, x_t]) (smoothing) or MLP([d_t, x_t])
    bound = sum_t E_q[log p(x_t | d_t, z_t)] - KL(q(z_t | z_{t-1}, a_t) || p(z_t | z_{t-1}, d_t))

Differs from the paper:
- laptop preset: 4 kHz sound in frames of 40 samples, d and a 64, z 16, hidden layers of 64, batch 32, 1,500 steps of Adam at 5e-3; one hidden
layer in the transition nets where the authors have two (their first layers share one product here)
- a sequence starts from zeros where the authors learn the first state; chunks of one clip are carried within a step, and
clips are not streamed across steps
- the divergence's weight rises over a share of the steps, in place of epochs; the learning rate is constant
- TIMIT, Blizzard and the music sets are not shipped: speech-like sound (`phones`), Bach's chorales (`chorales`), linear-Gaussian
series with an exact answer (`ssm`) and any folder of sound take their place
- the importance estimate uses whole latent paths; particle filters are left out

Shapes: B batch, T time, X features of a frame, H deterministic, A inference, E embedding, Z latent.
"""

from __future__ import annotations

from cambrian.systems.likelihood.srnn._baselines import RNN, STORN, VRNN
from cambrian.systems.likelihood.srnn.model import SRNN

__all__ = ["RNN", "SRNN", "STORN", "VRNN"]
