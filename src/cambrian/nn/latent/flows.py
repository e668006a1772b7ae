"""Normalising flows that bend a diagonal Gaussian posterior: planar and inverse autoregressive.

    z_0 ~ N(mu, sig^2),   z_t = f_t(z_{t-1}; context),   log q(z_T) = log q(z_0) - sum_t log |det df_t / dz_{t-1}|

Shapes: `...` any batch shape (K samples, B batch), Z latent features, H context features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError

FLOWS = ("none", "planar", "iaf")
SHIFT = math.log(math.e - 1.0)  # where the softplus is 1


class PlanarFlow(nn.Module):
    """z' = z + u tanh(w z + b), `layers` times (Rezende & Mohamed 2015, equation 10); u, w and b come from the context.

    u is moved along w so that w u > -1, which keeps each map invertible (their appendix A.1). Their softplus is shifted
    here to be 0 at 0: small contexts then give maps near the identity, where theirs contract each axis to 0.7 at once.
    """

    def __init__(self, *, latent: int, layers: int) -> None:
        super().__init__()
        self.latent, self.layers = latent, layers
        self.context = layers * (2 * latent + 1)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] and context [..., H] (shapes broadcast) -> bent z [..., Z] and log |det| [...]."""
        log_det = z.new_zeros(())
        for part in context.chunk(self.layers, -1):
            u, w, b = part.split((self.latent, self.latent, 1), -1)
            inner = (w * u).sum(-1, keepdim=True)
            u = u + (F.softplus(inner + SHIFT) - 1.0 - inner) * w / w.square().sum(-1, keepdim=True).clamp(min=1e-12)
            h = torch.tanh((w * z).sum(-1, keepdim=True) + b)
            log_det = log_det + torch.log1p(((1.0 - h.square()) * (w * u).sum(-1, keepdim=True))[..., 0])
            z = z + u * h
        return z, log_det


class MaskedStep(nn.Module):
    """z' = s z + (1 - s) m with s = sigmoid(.) and m from an autoregressive net of one hidden layer, which sees features
    before each one, and the context.
    """

    def __init__(self, *, latent: int, hidden: int, context: int) -> None:
        super().__init__()
        degree = torch.arange(latent)
        inner = torch.arange(hidden) % max(latent - 1, 1)
        self.register_buffer("mask_in", (inner[:, None] >= degree[None, :]).float(), persistent=False)
        self.register_buffer("mask_out", (degree[:, None] > inner[None, :]).float().repeat(2, 1), persistent=False)
        self.enter, self.leave = nn.Linear(latent, hidden), nn.Linear(hidden, 2 * latent)
        self.context = nn.Linear(context, hidden, bias=False)
        with torch.no_grad():
            self.leave.bias[latent:] = (
                2.0  # begins near the identity (Kingma et al. 2016, algorithm 1: forget-gate bias)
            )

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] and context [..., H] -> z' [..., Z] and log |det| [...]."""
        hidden = F.linear(z, self.enter.weight * self.mask_in, self.enter.bias) + self.context(context)
        m, s = F.linear(F.elu(hidden), self.leave.weight * self.mask_out, self.leave.bias).chunk(2, -1)
        gate = torch.sigmoid(s)
        return gate * z + (1.0 - gate) * m, F.logsigmoid(s).sum(-1)


class InverseAutoregressiveFlow(nn.Module):
    """`layers` masked steps, with the order of features reversed between them (Kingma et al. 2016, arXiv 1606.04934)."""

    def __init__(self, *, latent: int, layers: int, hidden: int = 64, context: int = 32) -> None:
        super().__init__()
        self.context = context
        steps = [MaskedStep(latent=latent, hidden=hidden, context=context) for _ in range(layers)]
        self.steps = nn.ModuleList(steps)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] and context [..., H] (shapes broadcast) -> bent z [..., Z] and log |det| [...]."""
        log_det = z.new_zeros(())
        for number, step in enumerate(self.steps):
            z = z.flip(-1) if number else z
            z, part = step(z, context)
            log_det = log_det + part
        return z, log_det


def flow_for(kind: str, *, latent: int, layers: int) -> PlanarFlow | InverseAutoregressiveFlow | None:
    """The flow called `kind`, or None for `none`. Raises `ConfigError`. Its `context` is how many numbers it wants."""
    if kind not in FLOWS:
        raise ConfigError(f"no flow {kind!r}; use one of {', '.join(FLOWS)}")
    if kind == "none":
        return None
    return (PlanarFlow if kind == "planar" else InverseAutoregressiveFlow)(latent=latent, layers=layers)
