"""Towards Conceptual Compression.

Karol Gregor, Frederic Besse, Danilo Jimenez Rezende, Ivo Danihelka, Daan Wierstra. NIPS 2016. arXiv 1604.08772.

A recurrent convolutional VAE draws a picture in T steps: its early latents hold the gist, the later ones the detail.
New was to read this as compression: send the latents of the first steps and let the model imagine the rest. The paper
counts divergences; here the files are real, lossless by bits-back coding and lossy by relative-entropy coding.

Claim: at 0.2 bits per dimension of real coded bytes, headers excluded for everybody, the lossy codec's mean PSNR on a
montage of 64 test pictures is at least 1 dB above that of JPEG and of JPEG 2000 at no fewer bytes.

    eps     = x - mu(r_{t-1})
    h_e     = LSTM_E([x, eps, h_d], h_e),          q_t = N(mu_q(h_e), sig_q^2(h_e))
    p_t     = N(mu_p(h_d), sig_p^2(h_d))           from h_d before this step's update
    z_t ~ q_t,   L_t = KL(q_t || p_t)
    h_d     = LSTM_D([z_t, r_{t-1}], h_d),         r_t = r_{t-1} + W(h_d)
    p(x|z)  = N(mu, exp(alpha)) of (mu, alpha) = r_T: the mass of each pixel's bin, or L_x = log q_x / p_x
    loss    = beta L_x + sum_t L_t

Differs from the paper:
- laptop preset: 16x16 pictures, cells of 4x4 pixels (`scale=4`; the paper halves), kernels of 3, 48 maps, T = 4, on the
figures of few values (`variety="few"`): on the full world the margin was not reached in pilots
- beta falls from 4 to 0.35 at the laptop preset, so that bits are free first and the latents hold what the first 0.2
bits/dim should say; beta = 1 gives likelihoods
- `spread="picture"`: one sigma for all pixels of a picture, so that the loss counts the logarithm of its mean squared
error as PSNR does; with the paper's sigma a pixel (`spread="pixel"`) grounds were refined and figures given up
- pixels are coded as the mass of their bin (`likelihood="discretized"`); the paper's uniform observation is
`likelihood="gaussian"`
- initial states are zero and the initial canvas one value a channel, so that any size can be drawn
- the canvas is written by a 3x3 convolution and a pixel shuffle; its log sigma is shifted by -3
- the step size rises for 50 steps and falls along a cosine; Adam otherwise
- the files and their coders are not in the paper, nor is the sheet of 64 pictures that JPEG and JPEG 2000 code as one
- ImageNet and attribute-conditioned likelihoods are left out; two layers (`layers=2`) are built, not part of the claim

Shapes: B batch, C channels, H x W pixels, T steps, Z latent maps on cells of `scale` x `scale` pixels.
"""

from __future__ import annotations

from cambrian.systems.likelihood.conv_draw._codec import Encoded, decode, encode, read_header
from cambrian.systems.likelihood.conv_draw.model import ConvDRAW

__all__ = ["ConvDRAW", "Encoded", "decode", "encode", "read_header"]
