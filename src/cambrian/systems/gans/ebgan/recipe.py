"""The recipe: the energy game on any world, and with a few labels the ladder network's. The claim is the grid's, `_study`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data import images as pictures
from cambrian.data.split import Batch, Data
from cambrian.engine.config import config, option
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Gallery, Images, Sample, Table
from cambrian.errors import ConfigError
from cambrian.nn.adversarial import FAKE, REAL, Margin, Player, margin_loss, pulling_away
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._nets import ARCHITECTURES
from cambrian.systems.gans.ebgan import _study
from cambrian.systems.gans.ebgan._ladder import Ladder
from cambrian.systems.gans.ebgan.model import EBGAN
from cambrian.systems.gans.gan.recipe import labelled_subset

INTRUDERS = ("noise", "shuffled", "negative", "generated")


@config
class Config:
    """Options of one EBGAN."""

    steps: int = option(3000, "rounds", low=1)
    batch: int = option(128, "samples per step", low=2)
    pt_weight: float = option(0.1, "weight of the pulling-away term; 0 leaves it out", low=0.0)
    margin: float | None = option(None, "m on the scale of the energy; None: margin_factor x energy of data at start", low=0.0)  # fmt: skip
    margin_factor: float = option(1.5, "margin by rule, in mean energies of data at initialisation", low=0.01)
    margin_falls: bool = option(False, "let the margin fall linearly to 0 over the run, as in the semi-supervised game")
    labels_per_class: int = option(0, "labelled images of each class: D is a ladder network and classifies", low=0)
    noise: float = option(0.3, "standard deviation of the ladder's noise", low=0.0)
    arch: str = option("connected", "nets of images; points are always connected", choices=ARCHITECTURES)
    latent: int = option(64, "Z, latent size, U(-1, 1)", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of a connected generator", low=1)
    hidden_d: tuple[int, ...] = option((256,), "widths of the connected encoder, the last the code's; one decoding layer", low=1)  # fmt: skip
    base: int = option(32, "channels next to the picture of convolutional nets", low=1)
    norm: str = option("split", "batch norm: by source, or none", choices=("split", "none"))
    dropout: float = option(0.0, "dropout in the connected encoder", low=0.0, high=0.95)
    lr: float = option(1e-3, "Adam step size of G", low=0.0)
    lr_d: float | None = option(None, "Adam step size of D where it differs", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(2000, "generated samples per evaluation", low=16)

    def check(self) -> None:
        if self.labels_per_class and self.arch != "connected":
            raise ConfigError("the ladder network is fully connected; set arch=connected or labels_per_class=0")


@recipe("ebgan", data="digits")
class EBGANRecipe(AdversarialRecipe[Config]):
    """D, the auto-encoder, then G on the same samples."""

    model: EBGAN
    presets = {
        "smoke": Config(steps=150, hidden=(64,), hidden_d=(64,), samples=500),
        "laptop": Config(),
        "paper": Config(steps=100_000, arch="dcgan", base=64, size=64, latent=100, lr=2e-4),
    }
    headline = ("frechet", "lower")

    def build(self, config: Config, data: Data) -> None:
        """Nets, optimisers, the margin, and the labelled images of the semi-supervised game."""
        classes = len(data.info["classes"]) if config.labels_per_class else 0
        if config.labels_per_class and (data.kind == "points" or classes < 2):
            raise ConfigError(f"{data.name} has no labels to learn from; set labels_per_class=0")
        self.model = EBGAN(
            shape=data.info["shape"],
            pt_weight=config.pt_weight,
            margin=config.margin,
            latent=config.latent,
            arch=config.arch,
            hidden=config.hidden,
            hidden_d=config.hidden_d,
            base=config.base,
            norm=config.norm,
            dropout=config.dropout,
            classes=classes,
            noise=config.noise,
        )
        self.margin = Margin(
            config.margin, config.margin_factor, decay_steps=config.steps if config.margin_falls else 0
        )
        self.g_optim = self.adam(self.model.generator, lr=config.lr, beta1=config.beta1)
        lr_d = config.lr if config.lr_d is None else config.lr_d
        self.d_optim = self.adam(self.model.discriminator, lr=lr_d, beta1=config.beta1)
        if classes:
            chosen = data.split("train")[labelled_subset(data, config.labels_per_class, self.seed)]
            self.labelled_x, self.labelled_y = self.real(chosen), chosen["label"]
        self.watch()

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        """L_D, then L_G with the pulling-away term; of labelled images, also cross-entropy for D."""
        model, fake = self.model, self.model.generate(self.latent(len(x)))

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            energy, _ = model.discriminator(torch.cat((x, fake.detach())), (REAL, FAKE))
            real, made = energy.chunk(2)
            margin = self.margin.update(real)
            found = {"margin": margin, "energy_real": real.mean().detach(), "energy_fake": made.mean().detach()}
            return margin_loss(real, made, margin) + self._supervised(found), found

        def g_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            energy, codes = model.discriminator(fake, (FAKE,))
            if not self.config.pt_weight:
                return energy.mean(), {}
            away = pulling_away(codes)
            return energy.mean() + self.config.pt_weight * away, {"pulling_away": away.detach()}

        return [Player("d", self.d_optim, d_loss), Player("g", self.g_optim, g_loss)]

    def _supervised(self, found: dict[str, Tensor]) -> Tensor | float:
        net = self.model.discriminator
        if not isinstance(net, Ladder):
            return 0.0
        pick = torch.randint(len(self.labelled_y), (self.config.batch,), generator=self.rng)
        logits = net.classify(self.labelled_x[pick].to(self.device))
        loss = F.cross_entropy(logits, self.labelled_y[pick].to(self.device))
        found["cross_entropy"] = loss.detach()
        return loss

    def source_logits(self, x: Tensor, source: int = REAL) -> None:
        """None: an energy has no threshold of its own; `evaluate` gives the area under the ROC curve."""
        return None

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The family's figures; mean energies of held-out data and samples beside the margin; `energy_auc`, how
        well energy tells them apart (0.5: not at all); `code_cosine`, the mean |cos| of pairs of samples' codes (1: all
        alike); and the `accuracy` of a ladder network."""
        out = super().evaluate(split, generator)
        energies, right, count = [], 0, 0
        for batch in self.batches(split):
            x = self.real(batch)
            energies.append(self.model.discriminator(x)[0])
            if isinstance(self.model.discriminator, Ladder):
                right += int((self.model.discriminator.classify(x).argmax(1) == batch["label"]).sum())
            count += len(x)
        made, codes = self.model.discriminator(self.model.generate(self.latent(250, generator)))
        held = torch.cat(energies)
        out |= {"energy_real": float(held.mean()), "energy_fake": float(made.mean()), "energy_auc": roc(held, made)}
        out |= {"margin": float(self.margin()), "code_cosine": mean_cosine(codes)}
        return {"accuracy": right / count, **out} if self.config.labels_per_class else out

    @action
    def anomalies(self, n: int = 16, seed: int = 0) -> Gallery:
        """Held-out images ranked by energy, and how well energy tells them from intruders (area under the ROC curve):
        uniform noise, shuffled pixels, negatives, the run's own samples."""
        self.need_images()
        x = torch.cat([self.real(batch) for batch in self.batches("test")])[:1000]
        energy = self.model.energy(x)
        order = energy.argsort()
        draw = torch.Generator().manual_seed(seed)
        rows = [{"intruders": kind, "AUC": roc(energy, self.model.energy(self._intruders(kind, x, draw)))} for kind in INTRUDERS]  # fmt: skip
        shown = self.model.show(x).cpu()
        ends: dict[str, Sample] = {
            "lowest energy": Images(shown[order[:n].cpu()]),
            "highest energy": Images(shown[order[-n:].cpu()]),
        }
        return Gallery({**ends, "ranking": Table.of(rows)})

    def _intruders(self, kind: str, x: Tensor, draw: torch.Generator) -> Tensor:
        if kind == "noise":
            return (2.0 * torch.rand(x.shape, generator=draw) - 1.0).to(x)
        if kind == "shuffled":
            order = torch.rand(x.flatten(1).shape, generator=draw).argsort(1).to(x.device)
            return x.flatten(1).gather(1, order).view_as(x)
        if kind == "negative":
            return -x
        self.model.eval()
        with torch.no_grad():
            return self.model.generate(self.latent(len(x), draw))

    @action
    def reconstructions(self, n: int = 8, seed: int = 0) -> Images:
        """Held-out images, what the auto-encoder makes of them, samples, and what it makes of those: four rows."""
        self.need_images()
        test = self.data.split("test")
        x = pictures.signed(test[torch.arange(min(n, len(test)))]["image"]).to(self.device)
        made = self._intruders("generated", x, torch.Generator().manual_seed(seed))
        rows = [part for kind in (x, made) for part in (kind, self.model.reconstruct(kind))]
        return Images(self.model.show(torch.cat(rows)).clamp(0, 1).cpu(), columns=len(x))

    @action
    def grid(self, preset: str = "smoke", seed: int = 0) -> Sample:
        """A hyper-parameter grid of EBGAN against the plain GAN on digits: both histograms, and the ratio of lower
        quartiles with a bootstrap interval over cells. This run's weights play no part."""
        with torch.enable_grad():
            return _study.grid(preset, seed=seed)


def mean_cosine(codes: Tensor) -> float:
    """Mean |cos| over all pairs of different rows `[B, S]`."""
    unit = F.normalize(codes, dim=1)
    cosines = (unit @ unit.T).abs()
    return float((cosines.sum() - cosines.diagonal().sum()) / (len(codes) * (len(codes) - 1)))


def roc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of telling `outside` `[M]` (higher) from `inside` `[N]` by one number."""
    from sklearn.metrics import roc_auc_score

    truth = torch.cat((torch.zeros(len(inside)), torch.ones(len(outside))))
    return float(roc_auc_score(truth.numpy(), torch.cat((inside, outside)).cpu().numpy()))
