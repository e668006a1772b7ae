"""PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications.

Tim Salimans, Andrej Karpathy, Xi Chen, Diederik Kingma. ICLR 2017. arXiv 1701.05517.

Gives the exact probability of a picture, pixel by pixel, each from all before it, and so samples, completes and codes pictures
without loss. New were a mixture of logistics over the grey levels in place of a 256-way softmax, two streams of shifted convolutions
without masks, and down-sampling with short-cuts in place of wide kernels.

Claim: after 100 steps the mixture of logistics has at least 0.3 bits a sub-pixel less than a 256-way softmax on the same network,
and after 300 still no more.

    u  sees the rows above,  l  sees the rows above and the pixels to the left
    c_1 = conv(f(x)) + W f(a),  c_2 = conv(dropout f(c_1)) + V h,  (p, q) = c_2,  x <- x + p sigmoid(q),  f(x) = elu([x, -x])
    P(x) = sum_k pi_k prod_c [S((x_c + h - m_kc) / s_kc) - S((x_c - h - m_kc) / s_kc)],  open at 0 and 255

Differs from the paper:
- laptop preset: 32 filters, one resolution with 4 pairs up and 4 down, 5 components, 8 x 8 crops of photographs, 300 steps (the claim's
network); `stages=3` is the paper's shape; CIFAR-10 and ImageNet are used where the user has them
- samples are rounded to the 8-bit grid before they condition the next channel; the released code leaves them continuous
- the average of the weights is warmed up: decay min(0.9995, (1 + t) / (10 + t))
- crops of photographs stand alone; they are not mixed with drawn shapes
- small receptive fields: the network without down-sampling is there (`stages=1`), its NIN and autoregressive-channel variants are
left out; so are ELU and ReLU in place of concat_elu, and attributes other than the class

Shapes: B pictures, C channels, H x W pixels, F filters, K components, P outputs a pixel.
"""

from __future__ import annotations

from cambrian.nn.likelihood.dmol import dmol_log_prob, dmol_sample
from cambrian.systems.likelihood.pixelcnn_pp.model import PixelCNNpp

__all__ = ["PixelCNNpp", "dmol_log_prob", "dmol_sample"]
