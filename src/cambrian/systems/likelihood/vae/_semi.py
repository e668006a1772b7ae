"""M2 of Kingma et al. 2014 (arXiv 1406.5298): a conditional VAE whose class is a latent variable where nobody tells it.

    labelled    -L(x, y) = E_q(z|x,y) log p(x|y,z) + log p(y) - KL(q(z|x,y) || p(z))
    unlabelled  -U(x)    = sum_y q(y|x) (-L(x, y)) + H(q(y|x))
    loss        = sum L + sum U + alpha (-log q(y|x)) on labelled pictures

Shapes: B batch, C H W a picture, Y classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError
from cambrian.systems.likelihood.vae.model import VAE


def labelled_bound(model: VAE, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """-L(x, y) [B], a bound on log p(x, y) with uniform p(y)."""
    return model.elbo(x, generator, y=y).value - math.log(model.classes)


def unlabelled_bound(model: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
    """-U(x) [B], a bound on log p(x): every class is tried, none is sampled."""
    log_q = F.log_softmax(model.classify(x), 1)
    values = labelled_bound(model, *every_class(x, model.classes), generator).view(model.classes, len(x)).T
    return (log_q.exp() * (values - log_q)).sum(1)


@torch.no_grad()
def marginal_nll(model: VAE, x: Tensor, generator: torch.Generator, samples: int = 500) -> Tensor:
    """Importance estimate of -log sum_y p(y) p(x|y) [B], `samples` a class."""
    every, y = every_class(x, model.classes)
    nll = model.nll(every, generator, samples, y).view(model.classes, len(x))
    return math.log(model.classes) - torch.logsumexp(-nll, 0)


def every_class(x: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Each picture with each class: [Y B, C, H, W] and int64 [Y B], class by class."""
    y = torch.arange(classes, device=x.device).repeat_interleave(len(x))
    return x.repeat(classes, 1, 1, 1), y


def labelled_positions(label: Tensor, count: int, classes: int, seed: int) -> Tensor:
    """Which `count` training samples keep their label: equally many of each class, int64 sorted. `ConfigError` if too few."""
    share, rest = divmod(count, classes)
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for number in range(classes):
        members = (label == number).nonzero().flatten()
        wanted = share + (number < rest)
        if wanted > len(members):
            raise ConfigError(f"{count} labels need {wanted} samples of class {number}, there are {len(members)}")
        kept.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(kept).sort().values
