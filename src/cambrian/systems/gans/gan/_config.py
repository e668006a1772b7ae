"""Options of the GAN recipe."""

from __future__ import annotations

from cambrian.engine.config import config, option
from cambrian.errors import ConfigError

TRICKS = ("minibatch", "history", "smoothing", "virtual-bn")


@config
class Config:
    """Options of one GAN. `labels_per_class=0` plays the unsupervised game; above 0, D is a K-class classifier."""

    steps: int = option(3600, "training iterations", low=1)
    batch: int = option(64, "samples of each source per step", low=2)
    arch: str = option("mlp", "nets: 2014 maxout, weight-normed mlp, dcgan, 9-conv cifar", choices=("maxout", "mlp", "dcgan", "cifar"))  # fmt: skip
    loss: str = option("feature_matching", "what G minimises", choices=("ns", "minimax", "feature_matching"))
    tricks: tuple[str, ...] = option((), "techniques switched on", choices=TRICKS)  # type: ignore[reportAssignmentType]
    labels_per_class: int = option(2, "labelled samples of each class; 0 is the unsupervised game", low=0)
    unlabelled: str = option("real", "unlabelled images: as they are, pixels shuffled, not used", choices=("real", "permuted", "none"))  # fmt: skip
    latent: int = option(100, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((500, 250, 250), "widths of the fully connected discriminator", low=1)
    hidden_g: tuple[int, ...] = option((500, 500), "widths of the fully connected generator", low=1)
    base: int = option(32, "channels of the convolution next to the picture", low=1)
    noise_in: float = option(0.3, "sd of the noise on the mlp discriminator's input", low=0.0)
    noise: float = option(0.5, "sd of the noise on its hidden layers", low=0.0)
    kernels: int = option(100, "minibatch discrimination: B kernels", low=1)
    dims: int = option(5, "minibatch discrimination: C dimensions of each", low=1)
    optimiser: str = option("adam", "adam, or sgd with momentum rising 0.5 -> 0.7", choices=("adam", "momentum"))
    lr: float = option(3e-4, "step size", low=0.0)
    lr_d: float | None = option(None, "step size of D where it differs", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    decay: str = option("none", "step size: constant, to 0 over the last third, 4e-6 off per step", choices=("none", "third", "exponential"))  # fmt: skip
    d_turns: int = option(1, "k, D updates per G update", low=1)
    ema: float = option(0.0, "decay of the averaged D that classifies and the averaged G that samples; 0 is off", low=0.0, high=0.99999)  # fmt: skip
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(2000, "generated samples per evaluation", low=16)

    def check(self) -> None:
        if "virtual-bn" in self.tricks and self.arch != "dcgan":
            raise ConfigError(f"virtual-bn replaces the batch norm of arch dcgan; arch is {self.arch!r}")
        if self.labels_per_class == 0 and self.unlabelled != "real":
            raise ConfigError(f"unlabelled={self.unlabelled!r} needs labels_per_class > 0, or nothing is left to learn")
        if self.labels_per_class and self.d_turns > 1:
            raise ConfigError("d_turns > 1 is for the unsupervised game; set labels_per_class=0")
