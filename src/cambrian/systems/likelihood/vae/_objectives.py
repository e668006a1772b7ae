"""What a VAE is trained on: the bounds and their estimators, and wake-sleep as the older way.

Shapes: K samples, B batch, C H W a picture, Z latent features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cambrian.errors import CapabilityError
from cambrian.nn.latent import PATH_ONLY, DiagGaussian, Funnel, bound_loss, effective_samples, free_bits
from cambrian.systems.likelihood.vae.model import VAE

OBJECTIVES = ("elbo", "elbo-sampled", "stl", "iwae", "dreg", "wake-sleep")
WEIGHTED = ("iwae", "dreg")  # objectives whose samples get importance weights


def analytic_loss(
    model: VAE, x: Tensor, generator: torch.Generator, samples: int, y: Tensor | None, beta: float, floor: float
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """SGVB estimator B: -E log p(x|z) + beta KL with the divergence by its formula; `floor` nats a feature are free."""
    bound = model.elbo(x, generator, samples, y)
    kl = bound.kl.sum(1).mean() if floor == 0.0 else free_bits(bound.kl, floor)
    reconstruction = bound.reconstruction.mean()
    return beta * kl - reconstruction, {
        "reconstruction": reconstruction.detach(),
        "kl": bound.kl.detach().sum(1).mean(),
    }


def sampled_loss(
    model: VAE, x: Tensor, generator: torch.Generator, samples: int, y: Tensor | None, kind: str, uniform: bool = False
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """SGVB estimator A (`elbo`), sticking the landing (`stl`), `iwae` and `dreg`: all from the log weights [K, B]."""
    funnel = Funnel() if kind == "dreg" else None
    draw = model.draw(x, samples, generator, y, path_only=kind in PATH_ONLY, funnel=funnel)
    log_w = model.log_weights(x, draw, y)
    if funnel is not None and not uniform:
        funnel.close(log_w)
    scalars = {"elbo": log_w.detach().mean()}
    if samples > 1:
        scalars["effective_samples"] = effective_samples(log_w).mean()
    return bound_loss(log_w, kind, uniform=uniform), scalars


def wake_sleep_loss(
    model: VAE, x: Tensor, generator: torch.Generator, samples: int, y: Tensor | None
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The Helmholtz machine (Hinton et al. 1995) with the VAE's nets: no gradient passes through a sample.

    Wake: the decoder learns log p(x, z) with z ~ q(z|x). Sleep: the encoder learns log q(z|x) of dreams (x, z) ~ p.
    """
    if model.second or model.flow is not None or model.prior is not None:
        raise CapabilityError("wake-sleep trains one stochastic layer with the prior N(0, I), without a flow")
    with torch.no_grad():
        q = model.encode(x, y)
        z = q.sample(generator, samples)
        dreamt = model.codes(len(x), generator, y)
        dream = model.pixels.sample(model.planes(dreamt[None], y)[0], generator, model.logvar)
    log_p = model.log_likelihood(x, z, y)
    wake = -log_p.mean() - DiagGaussian.standard(z).log_prob(z).mean()
    sleep = -model.encode(dream, y).log_prob(dreamt).mean()
    return wake + sleep, {"wake": wake.detach(), "sleep": sleep.detach(), "reconstruction": log_p.detach().mean()}


def objective_loss(
    model: VAE,
    x: Tensor,
    generator: torch.Generator,
    *,
    objective: str = "elbo",
    samples: int = 1,
    y: Tensor | None = None,
    beta: float = 1.0,
    floor: float = 0.0,
    uniform: bool = False,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The scalar loss of pictures x [B, C, H, W], and what to log; beta and the floor act on objective `elbo` alone."""
    if objective == "wake-sleep":
        return wake_sleep_loss(model, x, generator, samples, y)
    if objective == "elbo":
        return analytic_loss(model, x, generator, samples, y, beta, floor)
    kind = "elbo" if objective == "elbo-sampled" else objective
    return sampled_loss(model, x, generator, samples, y, kind, uniform)
