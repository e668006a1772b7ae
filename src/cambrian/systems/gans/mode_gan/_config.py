"""Options of a mode-regularised GAN."""

from __future__ import annotations

from cambrian.engine.config import config, option
from cambrian.errors import ConfigError
from cambrian.systems.gans._nets import ARCHITECTURES, PRIORS
from cambrian.systems.gans.mode_gan.model import GAMES


@config
class Config:
    """The game, the nets, and how they learn."""

    steps: int = option(1000, "rounds of the game", low=1)
    batch: int = option(64, "samples per round", low=2)
    game: str = option("reg", "reg: regularised; mdgan: two discriminators; gan: no encoder", choices=GAMES)
    l1: float = option(10.0, "weight of the mean squared distance to the data", low=0.0)
    l2: float = option(0.4, "weight of the reward for reconstructions that look real (reg)", low=0.0)
    lam: float = option(0.01, "weight of that reward in the manifold step (mdgan)", low=0.0)
    distance: str = option("pixels", "what d compares: pixels, or D's last features", choices=("pixels", "features"))
    detach_reg: bool = option(False, "stop the regulariser's gradient before G, so that only E learns from it")
    arch: str = option("dcgan", "nets of images; points always use connected ones", choices=ARCHITECTURES)
    latent: int = option(64, "Z, latent size", low=1)
    prior: str = option("normal", "law of the latents; with uniform, codes pass a tanh", choices=PRIORS)
    hidden: tuple[int, ...] = option((128, 128, 128), "hidden layers of connected nets", low=1)
    base: int = option(16, "channels of the generator next to the image (dcgan)", low=1)
    base_d: int = option(0, "channels of D and E next to the image; 0: half of the generator's", low=0)
    dropout: float = option(0.0, "dropout in connected discriminators", low=0.0, high=0.9)
    optimiser: str = option("adam", "of all players", choices=("adam", "sgd"))
    lr: float = option(2e-4, "step size of G and E", low=0.0)
    lr_d: float = option(0.0, "step size of the discriminators; 0: that of G", low=0.0)
    beta1: float = option(0.5, "Adam's first decay; SGD's momentum", low=0.0, high=0.999)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(10_000, "samples that are judged", low=8)

    def check(self) -> None:
        """Conditions across fields."""
        if self.game == "mdgan" and (self.distance == "features" or self.detach_reg):
            raise ConfigError("distance=features and detach_reg belong to the game reg, not to mdgan")
