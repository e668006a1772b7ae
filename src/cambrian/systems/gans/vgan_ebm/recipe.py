"""The recipe of VGAN and VCD, and of a plain GAN with the same body to compare features with.

Shapes: B batch, Z latent, F features, K experts, N samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.config import config, option
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Gallery, Images, Plot, Sample
from cambrian.errors import CapabilityError
from cambrian.nn.adversarial import FAKE, REAL, Player, discriminator_loss, generator_loss
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans.vgan_ebm.model import NETS, VCD, VGAN, entropy_surrogate, product_energy
from cambrian.worlds import glyphs

MODES = ("vgan", "vcd", "gan")
PROBED = (2000, 1000)  # training and test samples of the linear probe
MOST = 64  # classes that a probe is tried on
USED = 0.1  # an expert is used when both of its values have this share of the data
CHAIN = 10


@config
class Config:
    """Options of an energy model and its sampler."""

    steps: int = option(1500, "energy steps", low=1)
    batch: int = option(64, "samples per step", low=2)
    mode: str = option("vgan", "a generator (vgan), a transition (vcd), or a plain GAN of the same body", choices=MODES)
    k: int = option(1, "generator steps per energy step", low=1)
    rho: float = option(0.01, "vcd: share of the energy against the reconstruction", low=0.0, high=1.0)
    gain: float = option(1.0, "vcd: scale of the encoder's output before tanh", low=0.0)
    experts: int = option(100, "K, binary experts of the energy", low=1)
    entropy: float = option(1.0, "weight of the generator's entropy surrogate (vgan)", low=0.0)
    data_entropy: bool = option(True, "keep the experts busy on data: the surrogate as a regulariser of the energy")
    features: int = option(128, "F, width of the layer that the experts read", low=1)
    optim: str = option("adadelta", "optimiser of both players (paper: adadelta)", choices=("adadelta", "adam"))
    lr: float = option(0.1, "step size of the generator", low=0.0)
    lr_d: float = option(0.1, "step size of the energy", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    arch: str = option("pool", "nets for images; points always use connected nets", choices=NETS)
    latent: int = option(256, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of connected nets; the first is the generator's dense layer")
    base: int = option(16, "width of the convolutions next to the image", low=1)
    size: int | None = option(16, "edge of the images; None is the world's own", low=4)
    clutter: bool = option(False, "glyphs in colour, over textures and smaller characters")
    samples: int = option(1000, "samples that are judged", low=2)


@recipe("vgan-ebm", data="glyphs")
class VGANRecipe(AdversarialRecipe[Config]):
    """k steps of the generator, one of the energy."""

    model: VGAN
    presets = {
        "smoke": Config(
            steps=60, batch=32, optim="adam", lr=1e-3, lr_d=1e-3, base=8, latent=32, hidden=(64,), samples=250
        ),
        "laptop": Config(),
        "paper": Config(steps=60_000, batch=100, base=64, size=None, samples=5000),
    }
    headline = ("frechet", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        if config.clutter and source.kind == "world" and source.value == "glyphs":
            return glyphs.load(size=config.size or 28, colour=True, ground="texture", distractors=2)
        return super().load_data(config, source)

    def build(self, config: Config, data: Data) -> None:
        sizes: dict[str, Any] = {
            "shape": data.info["shape"], "latent": config.latent, "arch": config.arch, "hidden": config.hidden,
            "base": config.base, "features": config.features, "experts": 1 if config.mode == "gan" else config.experts,
        }  # fmt: skip
        made = VCD(**sizes, gain=config.gain) if config.mode == "vcd" else VGAN(**sizes)
        self.model = made.to(self.device)
        sampler = [self.model.generator, *([self.model.encoder] if isinstance(self.model, VCD) else [])]
        self.g_optim = self._optimiser(*sampler, lr=config.lr)
        self.e_optim = self._optimiser(self.model.body, self.model.experts, lr=config.lr_d)
        self.watch()

    def _optimiser(self, *nets: nn.Module, lr: float) -> Any:
        if self.config.optim == "adam":
            return self.adam(*nets, lr=lr, beta1=self.config.beta1)
        return self.optimiser(torch.optim.Adadelta, [p for net in nets for p in net.parameters()], lr=lr)

    def critics(self) -> list[nn.Module]:
        return [self.model.body]

    def source_logits(self, x: Tensor, source: int = REAL) -> Tensor | None:
        return self.model.logits(x).flatten() if self.config.mode == "gan" else None

    # -- one round --------------------------------------------------------------------------------------------------

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        losses = {"vgan": (self._vgan, self._energy), "vcd": (self._vcd, self._energy), "gan": (self._fool, self._tell)}
        sampler, critic = losses[self.config.mode]
        return [
            Player("g", self.g_optim, lambda turn: sampler(x), turns=self.config.k),
            Player("e", self.e_optim, lambda turn: critic(x)),
        ]

    def _vgan(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`mean E(G(z)) - Hs`: algorithm 1, the generator."""
        logits = self.model.logits(self.model.generate(self.latent(len(x))))
        energy, entropy = product_energy(logits).mean(), entropy_surrogate(logits)
        return energy - self.config.entropy * entropy, {"entropy": entropy.detach()}

    def _vcd(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`rho E(x~) + (1 - rho) |Dec(h) - x|^2`."""
        assert isinstance(self.model, VCD)
        h, rho = self.model.encode(x), self.config.rho
        codes = torch.cat((h, self.model.disturb(h, self.rng)))
        again, moved = self.model.decode(codes, (REAL, FAKE)).chunk(2)
        error = (again - x).flatten(1).square().sum(1).mean()
        # at rho = 0 the energy has no say: its pass is left out
        energy = product_energy(self.model.logits(moved)).mean() if rho > 0 else error.new_zeros(())
        return rho * energy + (1.0 - rho) * error, {"error": error.detach()}

    def _energy(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`mean E(x) - mean E(G(z)) - Hs(data)`; data and samples go through the body as one batch."""
        on_data, on_fake = self.model.logits(torch.cat((x, self._negatives(x)))).chunk(2)
        real, fake = product_energy(on_data).mean(), product_energy(on_fake).mean()
        regulariser = entropy_surrogate(on_data) if self.config.data_entropy else real.new_zeros(())
        return real - fake - regulariser, {"energy_data": real.detach(), "energy_fake": fake.detach()}

    @torch.no_grad()
    def _negatives(self, x: Tensor) -> Tensor:
        """Samples of the generator, or one transition from data."""
        if isinstance(self.model, VCD):
            return self.model.move(x, self.rng)
        return self.model.generate(self.latent(len(x)))

    def _fool(self, x: Tensor) -> Tensor:
        return generator_loss(self.model.logits(self.model.generate(self.latent(len(x)))))

    def _tell(self, x: Tensor) -> Tensor:
        return discriminator_loss(*self.model.logits(torch.cat((x, self._negatives(x)))).chunk(2))

    # -- figures and pictures ---------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The base's figures; mean energies of data, samples and noise, `bits_used` of K experts; `probe_accuracy` of
        a linear classifier on the features; with vcd the mean squared `recon_error`."""
        out = super().evaluate(split, generator)
        held = self.real(next(self.batches(split, min(500, self.config.samples))))
        if self.config.mode != "gan":
            out |= {f"energy_{name}": float(e.mean()) for name, e in self._energies(held, generator).items()}
            out["bits_used"] = float(used(torch.sigmoid(self.model.logits(held)).mean(0)))
        if isinstance(self.model, VCD):
            out["recon_error"] = float((self.model.reconstruct(held) - held).square().mean())
        if 2 <= len(self.data.info.get("classes", ())) <= MOST:
            out["probe_accuracy"] = self._probe(split)
        return out

    def _energies(self, held: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        made = self.model.generate(self.latent(len(held), generator))
        noise = 2.0 * torch.rand(held.shape, generator=generator).to(held) - 1.0
        parts = {"data": held, "generated": made, "noise": noise * (1.0 if self.model.images else held.abs().max())}
        return {name: product_energy(self.model.logits(x)) for name, x in parts.items()}

    def _probe(self, split: str) -> float:
        parts = []
        for name, most in zip(("train", split), PROBED, strict=True):
            samples = self.data.split(name)
            batch = samples[torch.arange(min(most, len(samples)))]
            x = self.real(batch).to(self.device)
            parts += [torch.cat([self.model.features(part) for part in x.split(250)]).cpu(), batch["label"]]
        return ridge_accuracy(*parts, classes=len(self.data.info["classes"]))

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """The base's sheets, the energies and the experts; with vcd, chains."""
        shown = super().sample(n, generator)
        if self.config.mode == "gan" or not isinstance(shown, Gallery):
            return shown
        more: dict[str, Sample] = {"energies": self.energies(), "experts": self.bits()}
        chains: dict[str, Sample] = {"chains": self.chain()} if self.config.mode == "vcd" else {}
        return Gallery({**shown.items, **chains, **more})

    @action
    @torch.no_grad()
    def energies(self, seed: int = 0) -> Plot:
        """Histograms of the energy of held-out data, of samples and of uniform noise."""
        self._need_energy()
        found = self._energies(self._held(), torch.Generator().manual_seed(seed))
        figure, axes = _figure()
        low, high = (float(f(torch.stack([f(e) for e in found.values()]))) for f in (torch.min, torch.max))
        for name, energy in found.items():
            axes.hist(energy.cpu().numpy(), bins=40, range=(low - 0.1, high + 0.1), alpha=0.5, label=name)
        axes.set(xlabel="energy (nats)", ylabel="samples")
        axes.legend(fontsize=7)
        return Plot(figure)

    @action
    @torch.no_grad()
    def bits(self) -> Plot:
        """How often each expert says 1 on held-out data, sorted: an expert at 0 or 1 tells nothing."""
        self._need_energy()
        shares = torch.sigmoid(self.model.logits(self._held())).mean(0).sort().values.cpu()
        figure, axes = _figure()
        axes.bar(range(len(shares)), shares.numpy(), width=1.0)
        axes.set(xlabel=f"experts, {used(shares)} of {len(shares)} in use", ylabel="mean value", ylim=(0, 1))
        return Plot(figure)

    @action
    @torch.no_grad()
    def chain(self, n: int = 8, steps: int = CHAIN, seed: int = 0) -> Images:
        """Chains of transitions, one a row; the first column is a held-out picture."""
        self.need_images()
        if not isinstance(self.model, VCD):
            raise CapabilityError(f"mode={self.config.mode} has no transitions; use mode=vcd")
        states = self.model.chain(self._held()[:n], steps, torch.Generator().manual_seed(seed))  # [steps + 1, n, ...]
        return Images(self.model.show(states.transpose(0, 1).flatten(0, 1)).cpu(), columns=steps + 1)

    def _held(self) -> Tensor:
        return self.real(next(self.batches("test", 500)))

    def _need_energy(self) -> None:
        if self.config.mode == "gan":
            raise CapabilityError("mode=gan has no energy; use mode=vgan or vcd")


def used(shares: Tensor) -> int:
    """How many experts take both values on at least a tenth of the data; `shares [K]` of the value 1."""
    return int(((shares > USED) & (shares < 1.0 - USED)).sum())


def ridge_accuracy(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor, *, classes: int, ridge: float = 1e-3) -> float:
    """Accuracy on `held_x [M, F]` of the linear map that fits one-hot labels `y [N]` by least squares on `x [N, F]`."""
    x, held_x = x.double(), held_x.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    a, b = ((part - mean) / scale for part in (x, held_x))
    target = torch.nn.functional.one_hot(y, classes).double()
    gram = a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=a.dtype)
    weight = torch.linalg.solve(gram, a.T @ (target - target.mean(0)) / len(a))
    return float(((b @ weight + target.mean(0)).argmax(1) == held_y).double().mean())


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.0), layout="constrained")
    return figure, figure.add_subplot()
