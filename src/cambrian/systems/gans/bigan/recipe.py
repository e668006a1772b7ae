"""The recipe: the joint game or one of its comparisons, the features' worth on the way, and probes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Scalars, action, recipe
from cambrian.engine.samples import Curves, Gallery, Sample, Table
from cambrian.metrics.neighbours import neighbour_accuracy
from cambrian.nn.adversarial import FAKE, REAL, JointPairs, Player, generator_loss
from cambrian.systems.gans._joint import PAIRS, JointRecipe, reconstruction_ratio
from cambrian.systems.gans._nets import ARCHITECTURES, PRIORS
from cambrian.systems.gans.bigan.model import ENCODERS, METHODS, BiGAN
from cambrian.systems.gans.gan._tools import linear_probe

LEARNT, PROBED = 4000, 1000  # samples that a probe learns from, and that it is tried on


@config
class Config:
    """Options of one bidirectional game."""

    steps: int = option(5000, "rounds: one step of D, one of encoder and generator", low=1)
    batch: int = option(128, "samples per round", low=2)
    method: str = option("bigan", "bigan, or a comparison: D's features, (joint) latent regressor, autoencoders", choices=METHODS)  # fmt: skip
    pair: str = option("kept", "permuted: D sees each x with the code of another one", choices=PAIRS)
    arch: str = option("connected", "nets of images", choices=ARCHITECTURES)
    encoder: str = option("same", "encoder of images: as arch, or AlexNet's five convolutions", choices=ENCODERS)
    zoom: int = option(1, "edge that the encoder sees over the edge that the generator makes", low=1)
    latent: int = option(50, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of fully connected layers", low=1)
    base: int = option(32, "width of the convolutional nets next to the image", low=1)
    prior: str = option("uniform", "U(-1, 1) or N(0, 1) for each latent", choices=PRIORS)
    norm_d: bool = option(True, "batch norm in D")
    dropout: float = option(0.0, "dropout on D's hidden layers", low=0.0, high=0.95)
    regress: float = option(0.25, "weight of the latent regression in G's loss, jlr only; 1 degenerates", low=0.0)
    lr: float = option(2e-4, "Adam's step size of encoder and generator", low=0.0)
    lr_d: float | None = option(None, "Adam's step size of D; None is lr", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    weight_decay: float = option(0.0, "L2 penalty in Adam's gradient (paper: 2.5e-5)", low=0.0)
    decay: bool = option(False, "lower the rates to 0 over the second half of the run")
    look: int = option(250, "rounds between two looks at the features on the validation split; 0 never looks", low=0)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(1000, "samples judged", low=2)


CLAIM = Claim(
    name="inversion",
    statement="The encoder learns to invert the generator though no loss asks for it: on held-out digits the error "
    "of G(E(x)), over the error against another digit's, is at least 0.15 lower than where the discriminator sees "
    "each digit with the code of another one.",
    metric="reconstruction_ratio",
    direction="lower",
    margin=0.15,
    paper="theorem 2: E = G^-1 at the optimum; figure 2 shows reconstructions; the released log ends at 5.95 / 9.60",
    arms={"bigan": Arm(), "permuted pairs": Arm({"pair": "permuted"})},
    system="bigan",
    baselines=("permuted pairs",),
    sabotage=Arm({"pair": "permuted"}),
)


@recipe("bigan", data="digits")
class BiGANRecipe(JointRecipe[Config]):
    """D on pairs, then encoder and generator on the same pairs; or a comparison's losses."""

    presets = {
        "smoke": Config(steps=250, batch=64, latent=16, hidden=(64, 64), lr=1e-3, look=100, samples=400),
        "laptop": Config(),
        "paper": Config(steps=187_500, hidden=(1024, 1024), weight_decay=2.5e-5, decay=True, look=5000, samples=10_000),
    }
    claims = (CLAIM,)
    headline = ("frechet", "lower")
    model: BiGAN

    def build(self, config: Config, data: Data) -> None:
        self.model = BiGAN(
            shape=tuple(data.info["shape"]),
            method=config.method,
            arch=config.arch,
            encoder=config.encoder,
            latent=config.latent,
            hidden=config.hidden,
            base=config.base,
            zoom=config.zoom,
            prior=config.prior,
            norm_d=config.norm_d,
            dropout=config.dropout,
        )
        self.lr_d = config.lr if config.lr_d is None else config.lr_d
        self.eg_optim = self._adam([*self.model.encoder.parameters(), *self.model.generator.parameters()], config.lr)
        if not self.model.autoencodes:
            self.d_optim = self._adam(list(self.model.discriminator.parameters()), self.lr_d)
        self.extra = {"looks": torch.zeros(0, 3)}
        self.watch()

    def _adam(self, parameters: list[Any], lr: float) -> Any:
        settings = {"betas": (self.config.beta1, 0.999), "weight_decay": self.config.weight_decay}
        return self.optimiser(torch.optim.Adam, parameters, lr=lr, **settings)

    # -- the game and its comparisons ---------------------------------------------------------------------------------

    def judge_pairs(self, pairs: JointPairs) -> tuple[Tensor, Tensor] | None:
        if self.model.autoencodes:
            return None
        if self.config.method == "bigan":
            return super().judge_pairs(pairs)
        both = torch.cat((pairs.x, pairs.x_tilde))
        on_real, on_fake = self.model.discriminator(both, (REAL, FAKE)).flatten().chunk(2)
        return on_real, on_fake

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        if self.config.method == "bigan":
            return super().players(x, batch)
        if self.model.autoencodes:
            return [Player("eg", self.eg_optim, lambda turn: self._rebuilding(x))]
        return self._regressing(x)

    def _rebuilding(self, x: Tensor) -> Tensor:
        error = self.model.seen(x) - self.model.generate(self.model.code(x))
        return error.square().mean() if self.config.method == "ae-l2" else error.abs().mean()

    def _regressing(self, x: Tensor) -> list[Player]:
        """A GAN, and an encoder that learns which z made G(z); G feels that `regress` times with `jlr`, else not."""
        z = self.latent(len(x))
        made = self.model.generate(z)
        pairs = JointPairs(self.model.seen(x), z, made, z)
        felt = self.config.regress if self.config.method == "jlr" else 0.0

        def eg_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            read = felt * made + (1 - felt) * made.detach()  # the same numbers, `felt` times the gradient
            error = (z - self.model.code(self.model.enlarged(read))).square().mean()
            on_fake = self.model.discriminator(made, (FAKE,))
            return generator_loss(on_fake) + error, {"latent_error": error.detach()}

        return [self.d_player(pairs), Player("eg", self.eg_optim, eg_loss)]

    def step(self, batch: Batch) -> Scalars:
        """One round; the rates fall first, the features are looked at last."""
        if self.config.decay:
            left = min(1.0, 2.0 * (1.0 - self.iteration / self.config.steps))
            for optimiser, lr in ((self.eg_optim, self.config.lr), (getattr(self, "d_optim", None), self.lr_d)):
                for group in optimiser.param_groups if optimiser is not None else ():
                    group["lr"] = lr * left
        scalars = super().step(batch)
        if self.config.look and (self.iteration + 1) % self.config.look == 0:
            self._look()
        return scalars

    @torch.no_grad()
    def _look(self) -> None:
        """Accuracy of 1-NN and the reconstruction ratio on the validation split: what early stopping may look at."""
        if self.data.valid is None or len(self.data.info["classes"]) < 2:
            return
        draw = torch.Generator().manual_seed(0)
        self.model.eval()
        _, pairs, rebuilt = self.held_out("valid", draw)
        row = [
            self.iteration + 1,
            self.knn("penultimate", "valid"),
            reconstruction_ratio(pairs.x, rebuilt, draw),
        ]
        self.model.train()
        self.extra["looks"] = torch.cat((self.extra["looks"], torch.tensor([row], dtype=torch.float32)))

    # -- what is measured and shown -----------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The figures of the family and of reconstructions; with labels `knn`, the share of `split` whose nearest
        training sample in the penultimate layer has its label, and `knn_code` in E(x)."""
        out = super().evaluate(split, generator)
        if len(self.data.info["classes"]) < 2:
            return out
        return out | {"knn": self.knn("penultimate", split), "knn_code": self.knn("code", split)}

    def knn(self, layer: str, split: str = "test") -> float:
        """Accuracy of classifying by the nearest training sample in a layer."""
        return neighbour_accuracy(self._features(layer, "train", LEARNT), self._features(layer, split, PROBED))

    def _features(self, layer: str, split: str, limit: int) -> tuple[Tensor, Tensor]:
        """Features and labels of the first `limit` samples of a split, on the CPU."""
        held = self.data.split(split)
        index = torch.arange(min(limit, len(held)))
        found = []
        for part in index.split(500):
            batch = held[part]
            x = self.real(batch).to(self.device)
            found.append((self.model.features(x, layer).cpu(), batch["label"]))
        features, label = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, label

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """What the family shows, reconstructions, and the features' worth over time."""
        shown = super().sample(n, generator)
        assert isinstance(shown, Gallery)
        return Gallery({**shown.items, "features over time": self.curve()}) if len(self.extra["looks"]) else shown

    @action
    def curve(self) -> Curves:
        """1-NN accuracy in the penultimate layer and the reconstruction ratio, both on the validation split."""
        step, accuracy, ratio = self.extra["looks"].T.tolist() if len(self.extra["looks"]) else ([], [], [])
        return Curves({"1-NN accuracy": (step, accuracy), "reconstruction ratio": (step, ratio)})

    @action
    def knn_probe(self) -> Table:
        """Test accuracy of the nearest neighbour in every layer."""
        self.need_images()
        return Table.of([{"layer": layer, "1-NN": self.knn(layer)} for layer in self.model.layers()])

    @action
    def linear_probe(self, cost: float = 1e-3) -> Table:
        """Test accuracy of a linear SVM on every layer (the paper's probes of conv1 to conv5)."""
        self.need_images()
        rows = []
        for layer in self.model.layers():
            train, test = self._features(layer, "train", LEARNT), self._features(layer, "test", PROBED)
            rows.append({"layer": layer, "features": train[0].shape[1], "accuracy": linear_probe(train, test, cost)})
        return Table.of(rows)
