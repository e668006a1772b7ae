"""What the players of an adversarial game minimise, as pure functions of logits and features.

`D` without sigmoid is a logit `l`; `sp(t) = log(1 + e^t)`, so `log D = -sp(-l)` and `log(1 - D) = -sp(l)`.

    value         V    = E[-sp(-l(x))] + E[-sp(l(G(z)))]          Goodfellow et al. 2014 (1406.2661), eq. 1
    discriminator      = -V, real target lowered to `smooth`      Salimans et al. 2016 (1606.03498), section 3.4
    generator          = E[-sp(l(G(z)))] (minimax) or E sp(-l(G(z))) (non-saturating)
    K + 1 classes      D(x) = Z / (Z + 1), Z = sum_k exp(l_k)     Salimans et al., section 5
    least squares      targets 1 and 0                            Mao et al. 2016 (1611.04076)
    margin             E(x) + max(0, m - E(G(z)))                 Zhao et al. 2016 (1609.03126), eq. 1

Shapes: B batch, K classes, F features. Every loss is a scalar, the mean over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError

GENERATOR_LOSSES = ("ns", "minimax")


def discriminator_loss(real: Tensor, fake: Tensor, smooth: float = 1.0) -> Tensor:
    """`E sp(-l(x)) + E sp(l(G(z)))` with the real target at `smooth` (one-sided: the fake target stays 0)."""
    on_real = F.softplus(-real)
    if smooth != 1.0:
        on_real = smooth * on_real + (1.0 - smooth) * F.softplus(real)
    return on_real.mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor, kind: str = "ns") -> Tensor:
    """Non-saturating `E sp(-l)` or saturating `E log(1 - D) = -E sp(l)`, both to be minimised by the generator."""
    if kind == "ns":
        return F.softplus(-fake).mean()
    if kind == "minimax":
        return -F.softplus(fake).mean()
    raise ConfigError(f"generator loss {kind!r} is unknown; use one of {', '.join(GENERATOR_LOSSES)}")


def game_value(real: Tensor, fake: Tensor) -> Tensor:
    """`V(G, D)`, the quantity of which the discriminator seeks the maximum and the generator the minimum."""
    return -discriminator_loss(real, fake)


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance of the scores to 1 on data and to 0 on samples, halved."""
    return 0.5 * ((real - 1.0).square().mean() + fake.square().mean())


def least_squares_generator(fake: Tensor) -> Tensor:
    """Squared distance of the samples' scores to 1, halved."""
    return 0.5 * (fake - 1.0).square().mean()


def margin_loss(real_energy: Tensor, fake_energy: Tensor, margin: float) -> Tensor:
    """The energy-based discriminator: low energy on data, at least `margin` on samples."""
    return real_energy.mean() + F.relu(margin - fake_energy).mean()


def source_logit(logits: Tensor) -> Tensor:
    """The real-or-fake logit `[B]` of a `K`-class head `[B, K]`: `log Z`, since `D = Z / (Z + 1) = sigmoid(log Z)`.

    It is a log-sum-exp and must never go through `exp`: class logits beyond 88 would overflow float32.
    """
    if logits.ndim != 2:
        raise ShapeError(f"class logits must be [batch, classes], got {tuple(logits.shape)}")
    return torch.logsumexp(logits, dim=1)


def semi_supervised_loss(unlabelled: Tensor, fake: Tensor) -> Tensor:
    """The unsupervised half of the `K + 1`-class game from `K` logits each: `(sp(-log Z(x)) + sp(log Z(G(z)))) / 2`.

    `-lse + sp(lse) = sp(-lse)`, so this is the released `-0.5 E lse + 0.5 E sp(lse) + 0.5 E sp(lse_fake)`.
    """
    return 0.5 * discriminator_loss(source_logit(unlabelled), source_logit(fake))


def feature_matching(real: Tensor, fake: Tensor, norm: str = "squared") -> Tensor:
    """Distance of the batch means of features `[B, F...]`, averaged over features: `squared` (vectors) or `absolute`
    (what the released code uses on convolutional nets). Only the fake side carries gradient."""
    difference = real.detach().mean(dim=0) - fake.mean(dim=0)
    if norm == "squared":
        return difference.square().mean()
    if norm == "absolute":
        return difference.abs().mean()
    raise ConfigError(f"feature matching norm {norm!r} is unknown; use squared or absolute")


class HistoricalAverage(nn.Module):
    """`|| theta - (1/t) sum_i theta_i ||^2` (Salimans et al. 2016, section 3.3), the running mean kept as a buffer.

    Call `penalty` to get the term for the loss, and `record` once after each update of the parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters_of = tuple(module.parameters())  # a tuple, so that they are not registered a second time
        self.register_buffer("mean", torch.nn.utils.parameters_to_vector(self._parameters_of).detach().clone())
        self.register_buffer("count", torch.ones((), dtype=torch.int64))

    def penalty(self) -> Tensor:
        """Squared distance of the parameters to the mean of all values recorded so far."""
        return (torch.nn.utils.parameters_to_vector(self._parameters_of) - self.mean).square().sum()

    @torch.no_grad()
    def record(self) -> None:
        """Take the present parameters into the mean."""
        self.count += 1
        self.mean.lerp_(torch.nn.utils.parameters_to_vector(self._parameters_of), 1.0 / int(self.count))
