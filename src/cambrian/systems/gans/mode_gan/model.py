"""`ModeGAN`: generator, encoder and discriminators as one model, and the losses that tie them to the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.adversarial import FAKE, REAL
from cambrian.systems.gans._nets import POINT_SCALE, GenerativeModel, discriminator_for, generator_for

GAMES = ("gan", "reg", "mdgan")
DRAWN, ENCODED = REAL, FAKE  # where a latent comes from: the generator normalises both kinds for themselves


def distance(x: Tensor, again: Tensor) -> Tensor:
    """`d`: mean squared difference of samples `[B, ...]` or of their features, a scalar; points are scaled first."""
    if x.shape != again.shape:
        raise ShapeError(f"samples and reconstructions differ in shape: {tuple(x.shape)} and {tuple(again.shape)}")
    scale = POINT_SCALE if x.shape[1:] == (2,) else 1.0
    return F.mse_loss(again, x) * scale**2


def mode_regulariser(apart: Tensor, logits: Tensor, *, l1: float, l2: float) -> Tensor:
    """`R = l1 d - l2 E log D(G(E(x)))` from the distance and the logits `[B, 1]` of reconstructions.

    `-log D = sp(-logit)` is what a generator minimises, so the second term rewards reconstructions that look real.
    """
    return l1 * apart + l2 * F.softplus(-logits).mean()


def manifold_loss(apart: Tensor, logits: Tensor, *, weight: float, lam: float) -> Tensor:
    """What G and E minimise in the manifold step: `weight d - lambda E log D1(G(E(x)))`."""
    return weight * apart + lam * F.softplus(-logits).mean()


class ModeGAN(GenerativeModel):
    """Samples of `shape`; `game` is `reg` (Reg-GAN), `mdgan` (two discriminators) or `gan` (no encoder).

    `encoder` maps a sample to a latent, within [-1, 1] where the prior is uniform. `discriminator` judges samples (of
    an MDGAN: against reconstructions), `manifold` (MDGAN) judges reconstructions against data.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        game: str = "reg",
        arch: str = "dcgan",
        latent: int = 64,
        prior: str = "normal",
        hidden: Sequence[int] = (128, 128, 128),
        base: int = 16,
        base_d: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape=shape, latent=latent, prior=prior)
        if game not in GAMES:
            raise ConfigError(f"game {game!r} is unknown; use one of {', '.join(GAMES)}")
        self.game = game
        down = {"arch": arch, "hidden": hidden, "base": base_d}
        self.generator = generator_for(shape, arch=arch, latent=latent, hidden=hidden, base=base)
        self.discriminator = discriminator_for(shape, **down, dropout=dropout)
        self.encoder = discriminator_for(shape, **down, outputs=latent) if game != "gan" else None
        self.manifold = discriminator_for(shape, **down, dropout=dropout) if game == "mdgan" else None

    def encode(self, x: Tensor) -> Tensor:
        """`[B, *shape] -> [B, Z]`, in the range of the prior."""
        return self._encode(self.check(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """`G(E(x))` `[B, *shape]`."""
        return self.generator(self.encode(x), sources=(ENCODED,))

    def scores(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B]` of data, samples and reconstructions, from one pass over the three."""
        fake, again = self.generate_both(z, self.check(x))
        real, drawn, back = self.discriminator(torch.cat((x, fake, again)), (REAL, FAKE, FAKE)).flatten().chunk(3)
        return real, drawn, back

    def generate_both(self, z: Tensor, x: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """`G(z)` and `G(E(x))`, each `[B, *shape]`, from one pass over both kinds of latents.

        With `detach` the second one carries no gradient to G, only to E.
        """
        codes = self._encode(x)
        if not detach:
            fake, again = self.generator(torch.cat((z, codes)), sources=(DRAWN, ENCODED)).split(len(z))
            return fake, again
        frozen = {name: parameter.detach() for name, parameter in self.generator.named_parameters()}
        again = functional_call(self.generator, frozen, (codes,), {"sources": (ENCODED,)})
        return self.generator(z, sources=(DRAWN,)), again

    def _encode(self, x: Tensor) -> Tensor:
        if self.encoder is None:
            raise CapabilityError("a plain GAN has no encoder; choose the game reg or mdgan")
        codes = self.encoder(x)
        return torch.tanh(codes) if self.prior_kind == "uniform" else codes
