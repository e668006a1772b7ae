"""Auto-encoders whose reconstruction error is an energy, and the model. Shapes as on the card."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.adversarial import REAL, DCGANDiscriminator, SplitBatchNorm, UpBlock, stages_for
from cambrian.studies.many import StackedDropout
from cambrian.systems.gans._nets import POINT_SCALE, GenerativeModel, generator_for
from cambrian.systems.gans.ebgan._ladder import Ladder


class Encoder(nn.Module):
    """`[B, *shape] -> [B, S]`: leaky ReLU layers, batch norm by source after all but the first, dropout after each."""

    def __init__(
        self, *, shape: Sequence[int], hidden: Sequence[int], norm: str = "split", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not hidden or norm not in ("split", "none"):
            raise ConfigError(f"an encoder needs a hidden layer and norm split or none, got {hidden} and {norm!r}")
        widths = [torch.Size(shape).numel(), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        later = norm == "split"
        self.norms = nn.ModuleList(
            SplitBatchNorm(features=width) if later and i else nn.Identity() for i, width in enumerate(hidden)
        )
        self.dropout = StackedDropout(dropout)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms):
            x = layer(x)
            x = norm(x, sources) if isinstance(norm, SplitBatchNorm) else norm(x)
            x = self.dropout(F.leaky_relu(x, 0.2))
        return x


class AutoEncoder(nn.Module):
    """`[B, *shape] ->` energies `[B]` and codes `[B, S]`; the decoder is one layer, as in the paper's grid."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: Sequence[int],
        norm: str = "split",
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = Encoder(shape=shape, hidden=hidden, norm=norm, dropout=dropout)
        self.decoder = nn.Linear(hidden[-1], torch.Size(shape).numel())

    def reconstruct(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`[B, *shape]`."""
        return self.decoder(self.encoder(x * self.scale, sources)).view_as(x) / self.scale

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor]:
        """`sources` names the equal runs that the batch consists of."""
        x = x.flatten(1) * self.scale
        code = self.encoder(x, sources)
        return (self.decoder(code) - x).square().mean(1), code


class ConvAutoEncoder(nn.Module):
    """The same for square images: strided 5x5 convolutions down (the paper's 64-128-256) and their mirror up."""

    def __init__(self, *, shape: Sequence[int], base: int, norm: str = "split") -> None:
        super().__init__()
        channels, size = shape[0], shape[1]
        stages = min(3, stages_for(size))
        self.encoder = DCGANDiscriminator(channels=channels, size=size, base=base, stages=stages, norm=norm)
        self.encoder.head = nn.Sequential(nn.Identity())
        widths = [base * 2**i for i in reversed(range(stages))] + [channels]
        self.decoder = nn.Sequential(
            *(
                UpBlock(inputs=a, outputs=b, norm="none", last=i == stages - 1)
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            )
        )

    def reconstruct(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`[B, C, S, S]`."""
        return self.decoder(self.encoder.maps(x, sources)[-1])

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor]:
        code = self.encoder.maps(x, sources)[-1]
        return (self.decoder(code) - x).square().flatten(1).mean(1), code.flatten(1)


class EBGAN(GenerativeModel):
    """`EBGAN(shape=(1, 28, 28), pt_weight=0.1, margin=10.0)`; `energy(x)`, `sample(n)`.

    `margin=None` is the rule of `cambrian.nn.adversarial.Margin`; the two numbers are kept beside the nets so that a
    saved model tells the scale of its energies. With `classes`, the discriminator is a ladder network that classifies.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        pt_weight: float = 0.1,
        margin: float | None = None,
        latent: int = 64,
        arch: str = "connected",
        hidden: Sequence[int] = (256, 256),
        hidden_d: Sequence[int] = (256,),
        base: int = 64,
        norm: str = "split",
        dropout: float = 0.0,
        classes: int = 0,
        noise: float = 0.3,
        prior: str = "uniform",
    ) -> None:
        super().__init__(shape=shape, latent=latent, prior=prior)
        self.pt_weight, self.margin = pt_weight, margin
        self.generator = generator_for(shape, arch=arch, latent=latent, hidden=hidden, base=base, norm=norm)
        if classes:
            self.discriminator: nn.Module = Ladder(shape=shape, hidden=hidden_d, classes=classes, noise=noise)
        elif arch == "dcgan" and len(shape) == 3:
            self.discriminator = ConvAutoEncoder(shape=shape, base=base, norm=norm)
        else:
            scale, norm = (POINT_SCALE, "none") if len(shape) == 1 else (1.0, norm)
            self.discriminator = AutoEncoder(shape=shape, hidden=hidden_d, norm=norm, dropout=dropout, scale=scale)

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """Energies `[B]` of samples, in evaluation mode: low where they look like data."""
        return self._evaluated(lambda part: self.discriminator(part)[0], x)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What the auto-encoder makes of samples `[B, *shape]`."""
        return self._evaluated(self.discriminator.reconstruct, x)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of the ladder; `CapabilityError` for a model without classes."""
        if not isinstance(self.discriminator, Ladder):
            raise CapabilityError("only a model with classes (labels_per_class > 0) classifies")
        return self._evaluated(self.discriminator.classify, x)

    def _evaluated(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        training = self.training
        self.eval()
        try:
            return torch.cat([function(part) for part in self.check(x).split(256)])
        finally:
            self.train(training)
