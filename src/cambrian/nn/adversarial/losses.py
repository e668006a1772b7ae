"""What the players of an adversarial game minimise, as pure functions of logits and features.

`D` without sigmoid is a logit `l`; `sp(t) = log(1 + e^t)`, so `log D = -sp(-l)` and `log(1 - D) = -sp(l)`.

    value         V    = E[-sp(-l(x))] + E[-sp(l(G(z)))]          Goodfellow et al. 2014 (1406.2661), eq. 1
    discriminator      = -V, real target lowered to `smooth`      Salimans et al. 2016 (1606.03498), section 3.4
    generator          = E[-sp(l(G(z)))] (minimax) or E sp(-l(G(z))) (non-saturating)
    K + 1 classes      D(x) = Z / (Z + 1), Z = sum_k exp(l_k)     Salimans et al., section 5
    least squares      targets 1 and 0                            Mao et al. 2016 (1611.04076)
    margin             E(x) + max(0, m - E(G(z)))                 Zhao et al. 2016 (1609.03126), eq. 1
    pulling away       mean over pairs i != j of cos(S_i, S_j)^2  Zhao et al. 2016, section 2.4

Shapes: B batch, K classes, F features, S codes. Every loss is a scalar, the mean over the batch.
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


def margin_loss(real_energy: Tensor, fake_energy: Tensor, margin: float | Tensor) -> Tensor:
    """The energy-based discriminator: low energy on data, at least `margin` on samples."""
    return real_energy.mean() + F.relu(margin - fake_energy).mean()


def pulling_away(codes: Tensor) -> Tensor:
    """Mean squared cosine over all pairs of different rows of codes `[B >= 2, S]`: 0 orthogonal, 1 collinear.

    It stands in the generator's loss only. One Gram matrix, the smaller of `[B, B]` and `[S, S]`, holds all pairs:
    the sum of its squares is the same. Dead codes (all zero) count as orthogonal and have gradient 0.
    """
    if codes.ndim != 2 or codes.shape[0] < 2:
        raise ShapeError(f"the pulling-away term compares samples of a batch [B >= 2, S], got {tuple(codes.shape)}")
    # bounded before the root: a floor added to the norm itself would leave its infinite slope at 0
    unit = codes * codes.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    batch, size = unit.shape
    gram = unit @ unit.T if batch <= size else unit.T @ unit
    pairs = gram.square().sum() - unit.square().sum(1).square().sum()  # less each row's pair with itself
    return pairs / (batch * (batch - 1))


class Margin(nn.Module):
    """The margin of an energy: fixed, or by rule `factor` times the mean energy of data at initialisation.

    By rule (`value=None`) it is a running mean over the first `warm` batches that `update` sees, then it stands. A
    margin below the energy of data leaves the hinge dead from the start, one far above it is never reached. With
    `decay_steps` it falls linearly to 0 over so many updates after that, for games that end as classifiers.
    """

    def __init__(self, value: float | None = None, factor: float = 1.5, warm: int = 20, decay_steps: int = 0) -> None:
        super().__init__()
        if (value is not None and value < 0) or factor <= 0 or warm < 1 or decay_steps < 0:
            raise ConfigError(
                f"a margin is >= 0, its factor > 0, warm >= 1 and decay_steps >= 0: {value}, {factor}, {warm}, {decay_steps}"
            )
        self.factor, self.warm, self.decay_steps = factor, 0 if value is not None else warm, decay_steps
        self.register_buffer("start", torch.tensor(0.0 if value is None else float(value)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, real_energy: Tensor) -> Tensor:
        """Take in the energies of one batch of data, before the loss is formed; gives the margin as it now is."""
        self.updates += 1
        if int(self.updates) <= self.warm:
            self.start.lerp_(self.factor * real_energy.mean(), 1.0 / int(self.updates))
        return self()

    def forward(self) -> Tensor:
        """The margin, a scalar."""
        if not self.decay_steps:
            return self.start.clone()
        gone = (self.updates - self.warm).clamp_min(0) / self.decay_steps
        return self.start * (1.0 - gone).clamp_min(0.0)


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
