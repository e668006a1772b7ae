"""The ordinary game with fully connected nets and nothing else: no noise, dropout, or norm in the discriminator.

`gan` has such nets only with weight normalisation or dropout, which slow a fresh discriminator down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambrian.data.split import Batch, Data
from cambrian.engine.config import config, option
from cambrian.nn.adversarial import FAKE, REAL, Player, discriminator_accuracy, discriminator_loss, generator_loss
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._nets import GenerativeModel, discriminator_for, generator_for


@config
class PlainConfig:
    """Options of the plain game."""

    steps: int = option(2000, "rounds", low=1)
    batch: int = option(64, "samples of each source per step", low=2)
    latent: int = option(64, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the discriminator", low=1)
    hidden_g: tuple[int, ...] = option((256, 256), "widths of the generator", low=1)
    lr: float = option(1e-3, "Adam step size of both", low=0.0)
    samples: int = option(500, "samples per evaluation", low=2)


class PlainGAN(GenerativeModel):
    """Two fully connected nets; images are in [-1, 1]."""

    def __init__(self, *, shape: Sequence[int], latent: int, hidden: Sequence[int], hidden_g: Sequence[int]) -> None:
        super().__init__(shape=shape, latent=latent)
        common = {"arch": "connected", "base": 1, "norm": "none"}
        self.generator = generator_for(shape, latent=latent, hidden=hidden_g, **common)
        self.discriminator = discriminator_for(shape, hidden=hidden, **common)


class PlainRecipe(AdversarialRecipe[PlainConfig]):
    """One D turn and one non-saturating G turn a round."""

    slug = "principled-gan"
    model: PlainGAN

    def build(self, config: PlainConfig, data: Data) -> None:
        shape = tuple(data.info["shape"])
        self.model = PlainGAN(shape=shape, latent=config.latent, hidden=config.hidden, hidden_g=config.hidden_g)
        self.g_optim = self.adam(self.model.generator, lr=config.lr)
        self.d_optim = self.adam(self.model.discriminator, lr=config.lr)
        self.watch()

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        net, fake = self.model.discriminator, self.model.generate(self.latent(len(x)))

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            logits = net(torch.cat((x, fake.detach())), (REAL, FAKE)).chunk(2)
            return discriminator_loss(*logits), {"d_accuracy": discriminator_accuracy(*logits)}

        g = Player("g", self.g_optim, lambda turn: generator_loss(net(fake, (FAKE,))))
        return [Player("d", self.d_optim, d_loss), g]
