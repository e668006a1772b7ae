"""The recipe: the joint game with its forms (few labels, conditions), and the toy's two comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data import images as pictures
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Gallery, Images, Plot, Sample, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.adversarial import JointPairs, Player, generator_loss
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.gans._joint import PAIRS, JointRecipe
from cambrian.systems.gans.ali._show import latent_figure
from cambrian.systems.gans.ali.model import ALI, ARCHITECTURES
from cambrian.systems.gans.gan._tools import linear_probe
from cambrian.systems.gans.gan.recipe import labelled_subset

SHOWN = 2000  # codes on the picture of the latent space


@config
class Config:
    """Options of one game with inference."""

    steps: int = option(3000, "rounds: one step of D, one of encoder and decoder", low=1)
    batch: int = option(128, "samples per round", low=2)
    game: str = option("ali", "ali; of the toy: gan (D sees x alone, the encoder regresses z on G(z)) or vae", choices=("ali", "gan", "vae"))  # fmt: skip
    pair: str = option("kept", "permuted: D sees each x with the code of another one", choices=PAIRS)
    arch: str = option("connected", "nets of images: cifar is the paper's table", choices=ARCHITECTURES)
    latent: int = option(64, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of fully connected layers", low=1)
    base: int = option(32, "width of the convolutional nets; the paper's table is 32", low=1)
    stochastic: bool = option(True, "draw codes from q(z|x); false takes its mean")
    labels_per_class: int = option(0, "labels a class that D learns from; 0 = unsupervised", low=0)
    conditional: bool = option(False, "tell encoder, decoder and D the label")
    dropout_in: float = option(0.2, "dropout on D's input", low=0.0, high=0.95)
    dropout: float = option(0.3, "dropout before D's other layers (paper: 0.5)", low=0.0, high=0.95)
    init: float = option(0.0, "deviation of the initial weights (paper: 0.01); 0 is torch's own", low=0.0)
    lr: float = option(2e-4, "Adam's step size of encoder and decoder", low=0.0)
    lr_d: float | None = option(None, "Adam's step size of D; None is lr", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    sigma: float = option(0.2, "deviation of the vae's decoder", low=1e-3)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(1000, "samples judged", low=2)

    def check(self) -> None:
        """A classifier that is told the label learns nothing, and only ALI's D sees codes."""
        if self.conditional and self.labels_per_class:
            raise ConfigError("labels_per_class and conditional exclude each other; set one of them to its default")
        if self.game != "ali" and (self.labels_per_class or self.pair != "kept"):
            raise ConfigError(f"labels_per_class and pair belong to game=ali, this is {self.game}")
        if self.game == "vae" and not self.stochastic:
            raise ConfigError("a vae draws its codes; set stochastic=true")


CLAIM = Claim(
    name="inference",
    statement="The discriminator of pairs teaches the encoder to infer: held-out digits, rebuilt through a sampled "
    "code, are of their own class by the nearest real digit at least 15 points more often than where the same "
    "discriminator sees each digit with the code of another one.",
    metric="kept_class",
    direction="higher",
    margin=0.15,
    paper="figures 2-5: reconstructions of SVHN, CIFAR-10, CelebA and Tiny ImageNet keep what is shown (no figure is given)",
    arms={"ali": Arm(), "permuted pairs": Arm({"pair": "permuted"})},
    system="ali",
    baselines=("permuted pairs",),
    sabotage=Arm({"pair": "permuted"}),
)


@recipe("ali", data="digits")
class ALIRecipe(JointRecipe[Config]):
    """D on pairs, then encoder and decoder on the same pairs."""

    presets = {
        "smoke": Config(steps=250, batch=64, latent=16, hidden=(64, 64), lr=1e-3, samples=400),
        "laptop": Config(),
        "paper": Config(steps=3_237_500, batch=100, arch="cifar", dropout=0.5, init=0.01, lr=1e-4, samples=10_000),
    }
    claims = (CLAIM,)
    headline = ("frechet", "lower")
    model: ALI

    def build(self, config: Config, data: Data) -> None:
        shape, classes = tuple(data.info["shape"]), len(data.info["classes"])
        if (config.labels_per_class or config.conditional) and classes < 2:
            raise ConfigError(f"{data.name} has no labels; set labels_per_class=0 and conditional=false")
        self.model = ALI(
            shape=shape,
            arch=config.arch,
            latent=config.latent,
            hidden=config.hidden,
            base=config.base,
            stochastic=config.stochastic,
            classes=classes if config.labels_per_class else 0,
            conditions=classes if config.conditional else 0,
            dropout_in=config.dropout_in,
            dropout=config.dropout,
            init=config.init,
        )
        train = data.split("train")
        if self.model.images:
            first = train[torch.arange(min(1000, len(train)))]["image"]
            self.model.initialise(pictures.unit(first).mean(0))
        if config.labels_per_class:
            chosen = train[labelled_subset(data, config.labels_per_class, self.seed)]
            self.labelled_x, self.labelled_y = self.real(chosen), chosen["label"]
        lr_d = config.lr if config.lr_d is None else config.lr_d
        self.d_optim = self.adam(self.model.discriminator, lr=lr_d, beta1=config.beta1)
        self.eg_optim = self.adam(self.model.encoder, self.model.generator, lr=config.lr, beta1=config.beta1)
        self.watch()

    # -- the game -----------------------------------------------------------------------------------------------------

    def condition(self, batch: Batch) -> Tensor | None:
        """Unit vectors `[B, A]` of the labels, where the nets are told them."""
        return F.one_hot(batch["label"], self.model.conditions) if self.config.conditional else None

    def infer(self, x: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.model.code(x, generator, self.condition(batch))

    def prior_for(self, batch: Batch, count: int, generator: torch.Generator) -> Tensor:
        """The decoder is told the labels of the encoder's batch, so that D learns nothing from their shares."""
        z = self.latent(count, generator)
        return self.model.beside(z[:, : self.config.latent], self.condition(batch))

    def source(self, logits: Tensor) -> Tensor:
        return self.model.source(logits)

    def judge_pairs(self, pairs: JointPairs) -> tuple[Tensor, Tensor] | None:
        if self.config.game == "vae":
            return None
        return super().judge_pairs(pairs.blind() if self.config.game == "gan" else pairs)

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        if self.config.game == "gan":
            return self._regressing(self.pairs(x, batch, self.rng))
        if self.config.game == "vae":
            return [Player("eg", self.eg_optim, lambda turn: self._evidence(x, batch))]
        d, eg = super().players(x, batch)
        return [replace(d, loss=self._labelled(d)) if self.config.labels_per_class else d, eg]

    def _labelled(self, d: Player) -> Callable[[int], tuple[Tensor, dict[str, Any]]]:
        """D's loss of a round, and the cross-entropy of labelled pairs among the K + 1 classes."""

        def loss(turn: int) -> tuple[Tensor, dict[str, Any]]:
            pick = torch.randint(len(self.labelled_y), (self.config.batch,), generator=self.rng)
            x, label = self.labelled_x[pick].to(self.device), self.labelled_y[pick].to(self.device)
            logits = self.model.discriminator(x, self.model.code(x, self.rng).detach())
            labelled = F.cross_entropy(F.pad(logits, (0, 1)), label)  # the class of decoder pairs has logit 0
            outcome = d.loss(turn)
            assert isinstance(outcome, tuple)
            plain, scalars = outcome
            return plain + labelled, {**scalars, "cross_entropy": labelled.detach()}

        return loss

    def _regressing(self, pairs: JointPairs) -> list[Player]:
        """The toy's GAN: D and G see no codes; the encoder learns -log q(z | G(z)), which G does not feel."""

        def eg_loss(turn: int) -> Tensor:
            logits = self.source(self.model.discriminator(pairs.x_tilde, torch.zeros_like(pairs.z)))
            z, told = pairs.z.split([self.config.latent, self.model.conditions], dim=1)
            posterior = self.model.posterior(pairs.x_tilde.detach(), told)
            return generator_loss(logits) - posterior.log_prob(z).mean()

        return [self.d_player(pairs), Player("eg", self.eg_optim, eg_loss)]

    def _evidence(self, x: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The toy's VAE: minus the evidence bound, up to a constant."""
        told = self.condition(batch)
        posterior: DiagGaussian = self.model.posterior(x, told)
        rebuilt = self.model.generate(self.model.beside(posterior.sample(self.rng), told))
        error = (x - rebuilt).flatten(1).square().sum(1).mean() / (2 * self.config.sigma**2)
        divergence = kl_diag(posterior).sum(1).mean()
        return error + divergence, {"error": error.detach(), "kl": divergence.detach()}

    # -- what is measured and shown -----------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The figures of the family and of reconstructions; with labels, `accuracy` of D as a classifier."""
        out = super().evaluate(split, generator)
        if not self.config.labels_per_class:
            return out
        right = [
            (self.model.classify(self.real(batch)).argmax(1) == batch["label"]).float() for batch in self.batches(split)
        ]
        return {"accuracy": float(torch.cat(right).mean()), **out}

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """What the family shows, reconstructions, ways between real images, and the codes."""
        shown = super().sample(n, generator)
        assert isinstance(shown, Gallery)
        more = {"between": self.between()} if self.model.images else {}
        return Gallery({**shown.items, **more, "codes": self.codes()})

    @action
    def codes(self) -> Plot:
        """Codes of held-out samples coloured by class, and their quantiles against the prior's."""
        z, label = self._encoded("test", SHOWN)
        return Plot(latent_figure(z, label))

    @action
    def between(self, n: int = 9, rows: int = 4) -> Images:
        """Ways of `n` steps through latent space between real test images."""
        self.need_images()
        test = self.data.split("test")[torch.arange(2 * rows)]
        first, second = self.real({name: tensor.to(self.device) for name, tensor in test.items()}).chunk(2)
        told = self.condition(test)
        way = self.model.interpolate(first, second, n, None if told is None else told[:rows].to(self.device))
        return Images(way.flatten(0, 1).cpu(), columns=n)

    @action
    def conditions(self, n: int = 10, seed: int = 0) -> Images:
        """One row for each class the decoder can be told, the same latents in every row."""
        self.need_images()
        if not self.config.conditional:
            raise CapabilityError("this model is told no classes; train with conditional=true")
        z = self.latent(n, torch.Generator().manual_seed(seed))[:, : self.config.latent]
        every = torch.eye(self.model.conditions, device=self.device)
        rows = [self.model.decode(z, each.expand(n, -1)) for each in every]
        return Images(torch.cat(rows).cpu(), columns=n)

    @action
    def svm(self, labels: int = 100, draws: int = 10, seed: int = 0) -> Table:
        """Test accuracy of a linear SVM on the encoder's features, learnt from `labels` samples; over random draws."""
        self.need_images()
        train, train_label = self._encoded("train", 10_000, features=True)
        test = self._encoded("test", 10_000, features=True)
        draw = torch.Generator().manual_seed(seed)
        picks = [torch.randperm(len(train), generator=draw)[:labels] for _ in range(draws)]
        found = torch.tensor([linear_probe((train[pick], train_label[pick]), test) for pick in picks])
        row = {"labels": labels, "draws": draws, "features": train.shape[1]}
        return Table.of([row | {"accuracy": float(found.mean()), "deviation": float(found.std())}])

    @torch.no_grad()
    def _encoded(self, split: str, limit: int, features: bool = False) -> tuple[Tensor, Tensor]:
        """Mean codes, or features, and labels of the first `limit` samples of a split, on the CPU."""
        out, count = [], 0
        for batch in self.batches(split):
            x, told = self.real(batch), self.condition(batch)
            made = self.model.features(x, told) if features else self.model.encode(x, condition=told)
            out.append((made.cpu(), batch["label"].cpu()))
            count += len(x)
            if count >= limit:
                break
        z, label = (torch.cat(part)[:limit] for part in zip(*out, strict=True))
        return z, label
