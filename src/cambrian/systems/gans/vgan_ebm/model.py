"""The bounded energy and its variational bound as pure functions; an energy with a generator, and with a transition.

Shapes: B batch, Z latent, C H W an image, F features, K experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL, DCGANGenerator, SplitBatchNorm
from cambrian.systems.gans._nets import ARCHITECTURES, GenerativeModel, discriminator_for, generator_for

NETS = ("pool", *ARCHITECTURES)


def binary_entropy(logits: Tensor) -> Tensor:
    """`H_b(sigmoid(a))` in nats for each logit `a`.

    `sp(a) - a sigmoid(a)` is the same, but for large a it is a difference of large numbers; H_b is even, so `-|a|`
    serves, with which both terms are small and positive.
    """
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def product_energy(logits: Tensor) -> Tensor:
    """`E = sum_j H_b(sigmoid(a_j))`: expert logits `[B, K]` -> `[B]`, in [0, K log 2]; low where all experts are sure."""
    return binary_entropy(logits).sum(1)


def entropy_surrogate(logits: Tensor) -> Tensor:
    """`Hs = sum_j H_b(mean_i sigmoid(a_ij))`: expert logits `[B, K]` -> a scalar, high where the batch uses both values
    of every expert equally."""
    # both sides are means of sigmoids: 1 - p would lose what is left of p near 1
    shares = torch.stack((torch.sigmoid(logits).mean(0), torch.sigmoid(-logits).mean(0))).clamp_min(1e-12)
    return -(shares * shares.log()).sum()


def nll_bound(real: Tensor, fake: Tensor, entropy: Tensor) -> Tensor:
    """`E_data E - E_q E + H(q)`, at most the negative log-likelihood and equal to it where q is the model itself."""
    return real.mean() - fake.mean() + entropy


class PooledBody(nn.Module):
    """Two 5x5 convolutions, each with 2x2 max-pooling, and a dense layer: `[B, C, S, S] -> [B, outputs]`, no norm."""

    def __init__(self, *, shape: Sequence[int], base: int, outputs: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.maps = nn.Sequential(
            nn.Conv2d(shape[0], base, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(base, 2 * base, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.dense = nn.Linear(2 * base * _quarter(shape) ** 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError(f"images must be [batch, {', '.join(map(str, self.shape))}], got {tuple(x.shape)}")
        return self.dense(self.maps(x).flatten(1))


class DeconvGenerator(nn.Module):
    """Two dense layers and two 5x5 deconvolutions, batch norm but at the end: `[B, Z] -> [B, C, S, S]` in [-1, 1].

    `sources` names the kinds of codes that the batch consists of, in equal runs: each has batch statistics of its own.
    """

    def __init__(self, *, shape: Sequence[int], latent: int, hidden: int, base: int) -> None:
        super().__init__()
        self.first = (2 * base, _quarter(shape), _quarter(shape))
        width = torch.Size(self.first).numel()
        self.layers = nn.ModuleList(
            (
                nn.Linear(latent, hidden),
                nn.Linear(hidden, width),
                nn.ConvTranspose2d(2 * base, base, 5, 2, 2, output_padding=1),
            )
        )
        self.norms = nn.ModuleList(SplitBatchNorm(features=size) for size in (hidden, width, base))
        self.last = nn.ConvTranspose2d(base, shape[0], 5, 2, 2, output_padding=1)

    def forward(self, z: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        x = z
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = F.relu(norm(layer(x.unflatten(1, self.first) if number == 2 else x), sources))
        return torch.tanh(self.last(x))


def _quarter(shape: Sequence[int]) -> int:
    if shape[1] != shape[2] or shape[1] % 4:
        raise ShapeError(f"these nets halve square images twice, got {shape[1]}x{shape[2]}; set size= to cut them")
    return shape[1] // 4


def body_for(shape: Sequence[int], *, arch: str, hidden: Sequence[int], base: int, outputs: int) -> nn.Module:
    """`[B, *shape] -> [B, outputs]` without batch norm, for energies and encoders."""
    if arch == "pool" and len(shape) == 3:
        return PooledBody(shape=shape, base=base, outputs=outputs)
    arch = "connected" if arch == "pool" else arch
    return discriminator_for(shape, arch=arch, hidden=hidden, base=base, outputs=outputs, norm="none")


class VGAN(GenerativeModel):
    """An energy of K experts on features of a body, and a generator; `energy`, `features`, `logits`, `sample`."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent: int = 100,
        experts: int = 100,
        features: int = 128,
        arch: str = "pool",
        hidden: Sequence[int] = (256, 256),
        base: int = 16,
        prior: str = "normal",
    ) -> None:
        super().__init__(shape=shape, latent=latent, prior=prior)
        if arch not in NETS:
            raise ConfigError(f"arch {arch!r} is unknown; use one of {', '.join(NETS)}")
        if experts < 1 or features < 1:
            raise ConfigError(f"experts and features must be >= 1, got {experts} and {features}")
        hidden = tuple(hidden)
        if arch == "pool" and self.images:
            self.generator: nn.Module = DeconvGenerator(shape=shape, latent=latent, hidden=hidden[0], base=base)
        else:
            nets = "connected" if arch == "pool" else arch
            self.generator = generator_for(shape, arch=nets, latent=latent, hidden=hidden, base=base)
        self.body = body_for(shape, arch=arch, hidden=hidden, base=base, outputs=features)
        self.experts = nn.Linear(features, experts)

    def features(self, x: Tensor) -> Tensor:
        """`phi(x) [B, F]`, what the experts read."""
        return F.relu(self.body(x))

    def logits(self, x: Tensor) -> Tensor:
        """`w_j . phi(x) + b_j`, `[B, K]`."""
        return self.experts(self.features(x))

    def energy(self, x: Tensor) -> Tensor:
        """`E(x) [B]` of samples in the nets' range, between 0 and K log 2."""
        return product_energy(self.logits(self.check(x)))


class VCD(VGAN):
    """The energy with a transition in place of a sampler: half of a code is replaced by noise, and decoded again.

    Codes lie in [-1, 1]^Z; `sample` decodes pure noise. Batch norm keeps whole and disturbed codes apart. `gain` scales
    what the encoder starts with: the larger, the closer codes are to -1 and 1, and the more of them noise leaves.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent: int = 256,
        arch: str = "pool",
        hidden: Sequence[int] = (256, 256),
        base: int = 16,
        gain: float = 1.0,
        **more: int,
    ) -> None:
        super().__init__(shape=shape, latent=latent, arch=arch, hidden=hidden, base=base, prior="uniform", **more)
        self.encoder = body_for(shape, arch=arch, hidden=tuple(hidden), base=base, outputs=latent)
        self.gain = gain

    def encode(self, x: Tensor) -> Tensor:
        """Codes `h [B, Z]` in [-1, 1]."""
        return torch.tanh(self.gain * self.encoder(x))

    def disturb(self, h: Tensor, generator: torch.Generator) -> Tensor:
        """`m z + (1 - m) h`: each coordinate of `h [B, Z]` is replaced by one of the prior with probability 1/2."""
        z = self.prior(len(h), generator)
        replace = (torch.rand(h.shape, generator=generator) < 0.5).to(h.device)
        return torch.where(replace, z, h)

    def decode(self, codes: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """Samples of codes `[B, Z]`: whole ones (`REAL`), disturbed ones (`FAKE`), or equal runs of both."""
        if isinstance(self.generator, DCGANGenerator):  # its norm knows one kind of codes only
            return torch.cat([self.generator(run) for run in codes.chunk(len(sources))])
        return self.generator(codes, sources)

    def generate(self, z: Tensor) -> Tensor:
        """`[B, Z] -> [B, *shape]` of disturbed codes, of which pure noise is the extreme."""
        return self.decode(z, (FAKE,))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoded code of `x [B, *shape]`."""
        return self.decode(self.encode(x))

    def move(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One transition from `x [B, *shape]`, differentiable."""
        return self.generate(self.disturb(self.encode(x), generator))

    @torch.no_grad()
    def chain(self, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """The chain of transitions that starts in `x [B, *shape]`: `[steps + 1, B, *shape]`."""
        if steps < 0:
            raise ConfigError(f"a chain has 0 or more steps, not {steps}")
        states = [self.check(x)]
        for _ in range(steps):
            states.append(self.move(states[-1], generator))
        return torch.stack(states)

    def transition(self, x: Tensor, steps: int = 1, seed: int = 0) -> Tensor:
        """Where the chain stands after `steps` transitions, `[B, *shape]`."""
        return self.chain(x, steps, torch.Generator().manual_seed(seed))[-1]
