"""The options of the VAE recipe."""

from __future__ import annotations

from cambrian.engine.config import config, option
from cambrian.errors import ConfigError
from cambrian.nn.latent import FLOWS
from cambrian.systems.likelihood.vae._nets import ACTIVATIONS, NETS
from cambrian.systems.likelihood.vae._objectives import OBJECTIVES, WEIGHTED
from cambrian.systems.likelihood.vae._pixels import LIKELIHOODS
from cambrian.systems.likelihood.vae._worlds import BINARISATIONS
from cambrian.worlds.glyphs import DIGITS

MODELS = ("vae", "cvae", "m2")
SCHEDULES = ("constant", "linear", "exponential", "cyclic")
OPTIMISERS = ("adam", "adagrad")
CYCLES = 4  # of the cyclic schedule, over the warm-up


@config
class Config:
    """Options of a VAE."""

    steps: int = option(2000, "training iterations", low=1)
    batch: int = option(64, "pictures per step", low=1)
    model: str = option("vae", "plain, conditional on the class, or semi-supervised (M2)", choices=MODELS)
    arch: str = option("mlp", "fully connected or convolutional nets", choices=NETS)
    hidden: tuple[int, ...] = option((128, 128), "hidden layers of the encoder; the decoder mirrors them", low=1)
    base: int = option(32, "channels of the first convolution", low=1)
    activation: str = option("tanh", "of the fully connected nets", choices=tuple(ACTIVATIONS))
    latent: int = option(20, "latent features", low=1)
    second: int = option(0, "features of a second stochastic layer; 0: one layer", low=0)
    flow: str = option("none", "flow that bends the posterior", choices=FLOWS)
    flow_layers: int = option(4, "layers of the flow", low=1)
    embed: int = option(10, "numbers that a class is embedded in", low=1)
    learned_prior: bool = option(False, "conditional: learn p(z|y) in place of N(0, I)")
    likelihood: str = option("bernoulli", "distribution of a pixel", choices=LIKELIHOODS)
    sigma: float = option(0.1, "deviation of the likelihood gaussian", low=1e-4)
    levels: int = option(16, "grey levels of the likelihood categorical", low=2, high=256)
    objective: str = option(
        "elbo", "elbo is SGVB estimator B, elbo-sampled A; stl is sticking the landing", choices=OBJECTIVES
    )
    samples: int = option(1, "posterior samples K a picture", low=1)
    uniform_weights: bool = option(False, "importance weights 1/K in place of w / sum w (a check of the claim)")
    beta: float = option(1.0, "weight of the divergence, in the end", low=0.0)
    schedule: str = option("constant", "how that weight is reached", choices=SCHEDULES)
    warmup: int = option(0, "steps of the schedule; 0: half of the training", low=0)
    free_bits: float = option(0.0, "nats a latent feature may cost for free", low=0.0)
    labels: int = option(100, "m2: training pictures that keep their label", low=2)
    alpha: float = option(
        0.1, "m2: weight of the classifier's loss beside the bound of one picture (the paper's alpha / N)", low=0.0
    )
    shuffle_labels: bool = option(False, "cvae: give each training picture the class of another (a check of the claim)")
    optimiser: str = option("adam", "the paper's Adagrad, or Adam", choices=OPTIMISERS)
    lr: float = option(1e-3, "step size", low=0.0)
    lr_end: float = option(
        1.0, "share of the step size that is left at the end, reached geometrically", low=1e-6, high=1.0
    )
    binarise: str = option(
        "static", "bernoulli: coins for grey pixels tossed once, at each visit (training only), or never",
        choices=BINARISATIONS,
    )  # fmt: skip
    size: int | None = option(None, "side of the pictures; none: 16 for glyphs, else as they are", low=4)
    channels: int | None = option(None, "1 or 3; none: as the pictures are", choices=(1, 3))
    characters: str = option(DIGITS, "glyphs: which characters")
    train_size: int = option(4000, "glyphs: training pictures", low=100)
    test_size: int = option(1000, "glyphs: test pictures", low=20)
    eval_samples: int = option(1000, "importance samples for each test picture's likelihood", low=1)
    eval_rows: int = option(0, "pictures that are measured; 0: the whole split", low=0)
    judge: bool = option(False, "cvae: let a classifier judge whether samples are of the class asked for")

    def check(self) -> None:
        """Options that exclude each other."""
        plain = self.objective == "elbo"
        if not plain and (self.beta != 1.0 or self.schedule != "constant" or self.free_bits):
            raise ConfigError(f"beta, its schedule and free bits act on objective=elbo, not on {self.objective}")
        if self.free_bits and self.flow != "none":
            raise ConfigError("free bits need a divergence for each feature; a flow has one in all: use flow=none")
        if self.uniform_weights and self.objective not in WEIGHTED:
            raise ConfigError(f"uniform_weights replaces the weights of {' or '.join(WEIGHTED)}; objective is {self.objective}")  # fmt: skip
        if self.flow != "none" and self.objective not in ("elbo", "elbo-sampled", "iwae"):
            raise ConfigError(f"with a flow the objective is elbo, elbo-sampled or iwae, not {self.objective}")
        if self.objective == "wake-sleep" and (self.second or self.learned_prior):
            raise ConfigError("wake-sleep trains one stochastic layer with the prior N(0, I)")
        if self.model == "m2" and (not plain or self.beta != 1.0 or self.free_bits or self.samples != 1):
            raise ConfigError("m2 has an objective of its own: objective=elbo, samples=1, beta=1, no free bits")
        if (self.learned_prior or self.shuffle_labels or self.judge) and self.model == "vae":
            raise ConfigError("learned_prior, shuffle_labels and judge are for models that know the class: model=cvae")
