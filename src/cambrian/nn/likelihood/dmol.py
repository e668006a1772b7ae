"""The discretized mixture of logistics over the channels of a pixel (Salimans et al. 2017, arXiv 1701.05517, section 2.1).

    P(x) = sum_k pi_k prod_c [ S((x_c + h - m_kc) / s_kc) - S((x_c - h - m_kc) / s_kc) ],    S the logistic function

with h half a bin, and the first and last bins open. The mixture is shared by the channels; the means of green and blue depend
linearly on the values before them: m_G + c_0 x_R, m_B + c_1 x_R + c_2 x_G with c = tanh(.).

Shapes: `...` any, C = 1 or 3 channels, K components; the last axis of the parameters is
(K logits, C K means, C K log-scales, and for C = 3 another 3 K coefficients).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class DMOL:
    """Values are in [-1, 1] on a grid of `levels`: level v is 2 v / (levels - 1) - 1."""

    components: int = 10
    channels: int = 3
    levels: int = 256
    min_log_scale: float = -7.0
    max_log_scale: float = 7.0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.components < 1 or self.levels < 2:
            raise ShapeError("a mixture has 1 or 3 channels, a component and two levels at least")

    @property
    def n_params(self) -> int:
        return self.components * (10 if self.channels == 3 else 3)

    @property
    def half(self) -> float:
        """Half a bin's width."""
        return 1.0 / (self.levels - 1)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log pi [..., K], means and log-scales [..., C, K], coefficients [..., 3, K] or None. Raises `ShapeError`."""
        if params.shape[-1] != self.n_params:
            raise ShapeError(f"the last axis must hold {self.n_params} parameters, not {tuple(params.shape)}")
        k, c = self.components, self.channels
        logits, rest = params[..., :k], params[..., k:].unflatten(-1, (-1, k))
        coefficients = torch.tanh(rest[..., 2 * c :, :]) if c == 3 else None
        return (
            F.log_softmax(logits, -1),
            rest[..., :c, :],
            rest[..., c : 2 * c, :].clamp(self.min_log_scale, self.max_log_scale),
            coefficients,
        )

    def means(self, means: Tensor, coefficients: Tensor | None, x: Tensor) -> Tensor:
        """Means [..., C, K] given the values x [..., C] of the channels before each."""
        if coefficients is None:
            return means
        red, green = x[..., 0, None], x[..., 1, None]
        shift = torch.stack(
            (torch.zeros_like(coefficients[..., 0, :]), coefficients[..., 0, :] * red,
             coefficients[..., 1, :] * red + coefficients[..., 2, :] * green), -2,
        )  # fmt: skip
        return means + shift

    def log_prob(self, params: Tensor, target: Tensor) -> Tensor:
        """Log-probability [...] of target [..., C] (all channels together), in nats; target on the grid, in [-1, 1]."""
        if target.shape[-1] != self.channels or not bool((target.abs() <= 1 + 1e-4).all()):
            raise ShapeError(f"targets are [..., {self.channels}] in [-1, 1], not {tuple(target.shape)}")
        log_pi, means, log_scales, coefficients = self.split(params)
        offset = target[..., None] - self.means(means, coefficients, target)
        inverse = torch.exp(-log_scales)
        upper, lower = inverse * (offset + self.half), inverse * (offset - self.half)
        # S(b) - S(a) = S(b) S(-a) (1 - exp(a - b)), which loses nothing in the tails and needs no case for thin bins
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * self.half * inverse))
        first, last = target[..., None] < -1 + self.half, target[..., None] > 1 - self.half
        each = torch.where(first, F.logsigmoid(upper), torch.where(last, F.logsigmoid(-lower), inside))
        return torch.logsumexp(log_pi + each.sum(-2), -1)

    def sample(self, params: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Draw [..., C] on the grid."""
        shape, device = params.shape[:-1], generator.device
        gumbel = torch.rand(*shape, self.components, generator=generator, device=device).to(params)
        uniform = torch.rand(*shape, self.channels, generator=generator, device=device).to(params)
        return self.draw(params, gumbel, uniform, temperature)

    def draw(self, params: Tensor, choice: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """The draw [..., C] that uniform numbers give: `choice` [..., K] picks the component (Gumbel-max), `uniform` [..., C]
        the values, each rounded to the grid before the next channel's mean is formed from it. Temperature divides the logits
        and multiplies the scales."""
        log_pi, means, log_scales, coefficients = self.split(params)
        gumbel = -torch.log(-torch.log(choice.clamp(1e-7, 1 - 1e-7)))
        pick = (log_pi / max(temperature, 1e-6) + gumbel).argmax(-1)[..., None, None]
        mean, log_scale = (t.gather(-1, pick.expand(*t.shape[:-1], 1))[..., 0] for t in (means, log_scales))
        u = uniform.clamp(1e-5, 1 - 1e-5)
        noise = torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u)) * temperature
        if coefficients is None:
            return self.round(mean + noise)
        c0, c1, c2 = coefficients.gather(-1, pick.expand(*coefficients.shape[:-1], 1))[..., 0].unbind(-1)
        red = self.round(mean[..., 0] + noise[..., 0])
        green = self.round(mean[..., 1] + c0 * red + noise[..., 1])
        blue = self.round(mean[..., 2] + c1 * red + c2 * green + noise[..., 2])
        return torch.stack((red, green, blue), -1)

    def mean(self, params: Tensor) -> Tensor:
        """Mean [..., C] of the mixture without its edges; each channel at the mean of those before it, per component."""
        log_pi, means, _, coefficients = self.split(params)
        if coefficients is not None:
            red = means[..., 0, :]
            green = means[..., 1, :] + coefficients[..., 0, :] * red
            blue = means[..., 2, :] + coefficients[..., 1, :] * red + coefficients[..., 2, :] * green
            means = torch.stack((red, green, blue), -2)
        return (log_pi.exp()[..., None, :] * means).sum(-1)

    def round(self, x: Tensor) -> Tensor:
        """The nearest value of the grid."""
        return self.grid(self.level(x), x.dtype)

    def level(self, x: Tensor) -> Tensor:
        """The number int64 of the nearest level."""
        return ((x.clamp(-1, 1) + 1) * (self.levels - 1) / 2).round().long()

    def grid(self, level: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Level numbers as values."""
        return level.to(dtype) * (2.0 / (self.levels - 1)) - 1

    def cdf(self, params: Tensor, before: Tensor) -> Tensor:
        """What an entropy coder needs of the next channel: the cumulative distribution [..., levels + 1], from 0 to 1, of channel
        c given the values `before` [..., c] (c = 0, 1, 2)."""
        log_pi, means, log_scales, coefficients = self.split(params)
        c = before.shape[-1]
        known = F.pad(before, (0, self.channels - c))
        means, scale = self.means(means, coefficients, known), torch.exp(log_scales)
        weights = log_pi
        edges = (torch.arange(1, self.levels, dtype=params.dtype, device=params.device) - 0.5) * 2 * self.half - 1
        for j in range(c):
            low = (before[..., j, None] - self.half - means[..., j, :]) / scale[..., j, :]
            high = (before[..., j, None] + self.half - means[..., j, :]) / scale[..., j, :]
            low = torch.where(before[..., j, None] < -1 + self.half, torch.full_like(low, -torch.inf), low)
            high = torch.where(before[..., j, None] > 1 - self.half, torch.full_like(high, torch.inf), high)
            weights = weights + F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
        weights = torch.softmax(weights, -1)
        inner = torch.sigmoid((edges[:, None] - means[..., c, None, :]) / scale[..., c, None, :])
        inner = (inner * weights[..., None, :]).sum(-1).clamp(0, 1)
        return F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0)


def dmol_log_prob(params: Tensor, x: Tensor, components: int | None = None) -> Tensor:
    """Log-probability [B, H, W] of pictures x [B, C, H, W] in [-1, 1] under params [B, P, H, W]."""
    channels = x.shape[1]
    head = DMOL(components or params.shape[1] // (10 if channels == 3 else 3), channels)
    return head.log_prob(params.movedim(1, -1), x.movedim(1, -1))


def dmol_sample(params: Tensor, generator: torch.Generator, channels: int = 3, temperature: float = 1.0) -> Tensor:
    """Pictures [B, C, H, W] on the 8-bit grid, every pixel by itself, from params [B, P, H, W]."""
    head = DMOL(params.shape[1] // (10 if channels == 3 else 3), channels)
    return head.sample(params.movedim(1, -1), generator, temperature).movedim(-1, 1)
