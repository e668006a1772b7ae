"""Options of a population of GANs."""

from __future__ import annotations

from cambrian.engine.config import config, option
from cambrian.errors import ConfigError
from cambrian.systems.gans._nets import ARCHITECTURES
from cambrian.systems.gans.gap.model import read_member


@config
class Config:
    """Who plays, how often they change partners, and the nets."""

    steps: int = option(2000, "updates of every member", low=1)
    batch: int = option(64, "samples per member and update", low=2)
    members: tuple[str, ...] = option(("gan",) * 4, "kind and prior of each: gan or gran, maybe with :uniform")
    swap_every: int = option(10, "K, updates between two exchanges of discriminators; 0: never", low=0)
    pool: int = option(4, "further independent GANs, trained alike, whose discriminators judge all", low=0)
    noise: float = option(0.1, "Gaussian noise on D's input, which falls to 0 over the run", low=0.0)
    clip: float = option(5.0, "largest gradient norm of a member's net; 0: no limit", low=0.0)
    limit: int = option(0, "train on the first so many samples only; 0: on all", low=0)
    arch: str = option("connected", "nets of images; points always use connected ones", choices=ARCHITECTURES)
    latent: int = option(32, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((128, 128), "hidden layers of connected nets", low=1)
    base: int = option(16, "channels next to the image (dcgan)", low=1)
    norm: str = option("split", "batch norm in generators of images; or none", choices=("split", "none"))
    norm_d: str = option(
        "none", "batch norm in discriminators of images, per source; or none", choices=("split", "none")
    )
    strokes: int = option(3, "T, strokes of a member of kind gran", low=1)
    lr: float = option(1e-3, "Adam step size of generators", low=0.0)
    lr_d: float = option(0.0, "Adam step size of discriminators; 0: that of generators", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(2000, "samples that are judged", low=8)

    def check(self) -> None:
        """Conditions across fields."""
        if not self.members:
            raise ConfigError("members must name at least one")
        for text in self.members:
            read_member(text)
        if self.limit and self.limit < self.batch:
            raise ConfigError(f"limit must be 0 or at least the batch ({self.batch}), not {self.limit}")
