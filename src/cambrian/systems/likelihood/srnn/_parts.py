"""What all models of the comparison share: embedding, output, shapes, and the bound that they return.

Shapes: B batch, T time, X features of a frame, H hidden, E embedding, Z latent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.nn.latent import DiagGaussian
from cambrian.nn.likelihood.bernoulli import Bernoulli
from cambrian.nn.likelihood.gmm import DiagMixture

LIKELIHOODS = ("gauss", "gmm", "bernoulli")
State = dict[str, Tensor]


class ClippedLeaky(nn.Module):
    """min(max(leaky(x), -3), 3) with slope 1/3 below zero: the authors' nonlinearity."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 1 / 3).clamp(-3.0, 3.0)


def mlp(inputs: int, width: int, outputs: int | None = None, *, layers: int = 2, small: bool = False) -> nn.Sequential:
    """`layers` hidden layers of `width`; with `outputs` a linear layer after them, uniform in +-1e-3 when `small`."""
    sizes = [inputs] + [width] * layers
    parts: list[nn.Module] = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), ClippedLeaky())]
    if outputs is not None:
        last = nn.Linear(sizes[-1], outputs)
        if small:
            nn.init.uniform_(last.weight, -1e-3, 1e-3)
            nn.init.zeros_(last.bias)
        parts.append(last)
    return nn.Sequential(*parts)


def gru(inputs: int, hidden: int) -> nn.GRU:
    """A GRU, batch first, with orthogonal recurrent weights."""
    made = nn.GRU(inputs, hidden, batch_first=True)
    for gate in made.weight_hh_l0.data.chunk(3):
        nn.init.orthogonal_(gate)
    return made


def backwards(layer: nn.GRU, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Run `layer` from each sequence's own end to its beginning; outputs [B, T, H] stay at their inputs' positions."""
    if lengths is None:
        return layer(x.flip(1))[0].flip(1)
    at = torch.arange(x.shape[1], device=x.device)
    order = torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)  # its own inverse; padding stays behind
    turned = layer(x.gather(1, order[..., None].expand_as(x)))[0]
    return turned.gather(1, order[..., None].expand_as(turned))


@dataclass
class Bound:
    """`log_px` and `kl` [B, T] in nats, zero beyond a sequence's length; what the chunk after this one starts from in
    `state`; the latent path with its distributions [B, T, Z] (None for a plain RNN)."""

    log_px: Tensor
    kl: Tensor
    state: State
    z: Tensor | None = None
    prior: DiagGaussian | None = None
    posterior: DiagGaussian | None = None

    @property
    def value(self) -> Tensor:
        """[B]: the lower bound on log p(x), for a plain RNN log p(x) itself."""
        return (self.log_px - self.kl).sum(1)


class FrameModel(nn.Module, Pretrained):
    """Base: reads frames x [B, T, X], each predicted from those before it."""

    def __init__(
        self, *, x_dim: int, hidden: int, embed: int, width: int, output_in: int, likelihood: str, mixtures: int
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ConfigError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {likelihood!r}")
        self.x_dim, self.hidden = x_dim, hidden
        self.head = (
            Bernoulli() if likelihood == "bernoulli" else DiagMixture(x_dim, mixtures if likelihood == "gmm" else 1)
        )
        self.embed = mlp(x_dim, width, embed, layers=1)
        self.n_params = x_dim if isinstance(self.head, Bernoulli) else self.head.n_params
        self.output = mlp(output_in, width, self.n_params, small=likelihood != "gmm")

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        """The bound on log p(x) of x [B, T, X], one latent path a sequence; raises `ShapeError`."""
        raise NotImplementedError

    def extend(self, x: Tensor, state: State, generator: torch.Generator, temperature: float) -> tuple[Tensor, State]:
        """One frame [B, X] after `state`, and the state after it."""
        raise NotImplementedError

    def start(self, batch: int, like: Tensor) -> State:
        """The state before the first frame."""
        raise NotImplementedError

    def check(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Raises `ShapeError` unless x is a finite float [B, T, X] and lengths fit."""
        if x.dim() != 3 or x.shape[2] != self.x_dim or not x.is_floating_point() or 0 in x.shape:
            raise ShapeError(f"sequences must be float [B, T, {self.x_dim}], not {x.dtype} {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise ShapeError("sequences hold NaN or infinity")
        if lengths is not None and (
            lengths.shape != x.shape[:1] or int(lengths.min()) < 0 or int(lengths.max()) > x.shape[1]
        ):
            raise ShapeError(f"lengths must be {len(x)} integers in 0..{x.shape[1]}, not {lengths.tolist()[:8]}")

    def embedded(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, E] of the frames before (u_t = x_{t-1}) and of the frames themselves, in one pass."""
        both = self.embed(torch.cat((first[:, None], x), 1))
        return both[:, :-1], both[:, 1:]

    def log_px(self, params: Tensor, x: Tensor) -> Tensor:
        """[B, T], summed over the features of a frame."""
        if isinstance(self.head, Bernoulli):
            return self.head.log_prob(params[..., None], x).sum(-1)
        return self.head.log_prob(params, x)

    def draw(self, params: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
        """One frame [B, X] from the output net's params [B, n_params]."""
        if isinstance(self.head, Bernoulli):
            return self.head.sample(params[..., None], generator, temperature)
        return self.head.sample(params, generator, temperature)

    @torch.no_grad()
    def sample(
        self, n: int, steps: int, generator: torch.Generator, *, prefix: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """n sequences of `steps` new frames [n, steps, X]; after `prefix` [n, T, X], if given."""
        like = next(self.parameters())
        if prefix is None:
            state = self.start(n, like)
            last = like.new_zeros(n, self.x_dim)
        else:
            state = self.elbo(prefix, generator=generator).state
            last = prefix[:, -1]
        frames = []
        for _ in range(steps):
            last, state = self.extend(last, state, generator, temperature)
            frames.append(last)
        return torch.stack(frames, 1)

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int, generator: torch.Generator, *, lengths: Tensor | None = None) -> Tensor:
        """log (1/K) sum_k p(x, z_k) / q(z_k | x) [B] with K whole latent paths a sequence (Burda et al. 2016)."""
        wide = x.repeat_interleave(k, 0)
        found = self.elbo(wide, None if lengths is None else lengths.repeat_interleave(k), generator=generator)
        weight = found.log_px
        if found.z is not None and found.prior is not None and found.posterior is not None:
            ratio = found.prior.log_prob(found.z) - found.posterior.log_prob(found.z)
            weight = weight + ratio * within(x.shape[1], None if lengths is None else lengths.repeat_interleave(k), x)
        return torch.logsumexp(weight.sum(1).view(-1, k), 1) - torch.log(torch.tensor(float(k)))

    def posterior(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Means and standard deviations [B, T, Z] of q(z_t | z_{t-1}, .) along one sampled path."""
        found = self.elbo(x, generator=generator).posterior
        if found is None:
            raise ShapeError("a plain RNN has no latent path")
        return found.mean, found.std


def within(steps: int, lengths: Tensor | None, like: Tensor) -> Tensor:
    """[B, T] or [1, T]: 1 inside a sequence, 0 in its padding."""
    if lengths is None:
        return like.new_ones(1, steps)
    return (torch.arange(steps, device=like.device) < lengths.to(like.device)[:, None]).to(like.dtype)


def noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)
