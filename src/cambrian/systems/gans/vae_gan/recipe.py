"""The recipe of the VAE/GAN and its three relatives: one pass, three gradients, three players.

Shapes: B batch, Z latent, T attributes, N pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cambrian.data import images as pictures
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.loop import Loop
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Gallery, Images, Sample
from cambrian.errors import CapabilityError, ConfigError
from cambrian.metrics.judges import REQUIRED_ACCURACY
from cambrian.nn.adversarial import REAL, Player, invert, parameters_of
from cambrian.nn.adversarial.losses import GENERATOR_LOSSES
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._nets import ARCHITECTURES
from cambrian.systems.gans.vae_gan import _judging
from cambrian.systems.gans.vae_gan.model import VAEGAN, VARIANTS, Terms, mean_difference, solved, throttle
from cambrian.worlds import faces

VECTORS_FROM = 2000  # training pictures that attribute vectors are means of
SHOWN = 8


@config
class Config:
    """Options of a VAE/GAN."""

    steps: int = option(1000, "rounds of encoder, decoder and discriminator", low=1)
    batch: int = option(32, "samples per round", low=2)
    variant: str = option("vae-gan", "which system of the paper's comparison", choices=VARIANTS)
    gamma: float = option(0.1, "weight of the reconstruction error in the decoder's loss", low=0.0)
    gan_weight: float = option(1.0, "weight of the GAN's loss in the decoder's loss", low=0.0)
    feature_loss: str = option("dis", "where reconstruction errors are measured", choices=("dis", "pixel"))
    sigma: float = option(1.0, "standard deviation of the likelihood, in pixels or features (paper: 1)", low=0.01)
    loss: str = option("ns", "the decoder's side of the GAN (paper: minimax)", choices=GENERATOR_LOSSES)
    real_weight: float = option(0.5, "share of real samples in the discriminator's loss (released: 0.66)", low=0.0, high=1.0)  # fmt: skip
    joint_norm: bool = option(False, "one set of batch statistics for data and what is made, as the authors have it")
    margin: float | None = option(0.4, "throttle: how far a cost of D may be from `equilibrium` (released: 0.4)", low=0.0)  # fmt: skip
    equilibrium: float = option(0.68, "the cost of D that the throttle holds", low=0.0)
    gan_steps: int = option(0, "vae-dis: of the steps, so many train the GAN first", low=0)
    conditional: bool = option(False, "give the attributes to encoder, decoder and discriminator")
    texture: bool = option(True, "faces with freckles and strands of hair")
    lr: float = option(1e-3, "RMSProp's rate of encoder and decoder (paper: 3e-4)", low=0.0)
    lr_d: float = option(3e-4, "RMSProp's rate of the discriminator", low=0.0)
    arch: str = option("dcgan", "nets for images; points always use connected nets", choices=ARCHITECTURES)
    latent: int = option(128, "Z, latent size", low=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of connected nets")
    base: int = option(16, "width of the convolutions next to the image", low=1)
    size: int | None = option(None, "edge of the images; None is the world's own", low=4)
    samples: int = option(1000, "samples and reconstructions that are judged", low=2)

    def check(self) -> None:
        """The separate GAN's steps are a part of all."""
        if self.gan_steps and self.variant != "vae-dis":
            raise ConfigError(f"gan_steps is for variant=vae-dis, not {self.variant}")
        if self.gan_steps >= self.steps:
            raise ConfigError(f"gan_steps must leave steps for the VAE, got {self.gan_steps} of {self.steps}")


CLAIM = Claim(
    name="reconstructions",
    statement="Measuring errors in the features of the discriminator keeps fine texture: after equally many updates, "
    "VAE/GAN reconstructions of held-out faces have at most 0.8 times the Frechet distance of the pixel VAE's, be its "
    "likelihood as wide as the paper's (sigma 1) or sharper (0.3).",
    metric="recon_frechet",
    direction="lower",
    margin=0.8,
    compare="ratio",
    paper="figure 4 and table 1: sharper reconstructions; attribute similarity .9114 (VAE/GAN) to .9030 (VAE)",
    arms={"vae-gan": Arm(), "vae": Arm({"variant": "vae"}), "sharp vae": Arm({"variant": "vae", "sigma": 0.3})},
    system="vae-gan",
    baselines=("vae", "sharp vae"),
    sabotage=Arm({"feature_loss": "pixel", "gan_weight": 0.0}),
)


@recipe("vae-gan", data="faces")
class VAEGANRecipe(AdversarialRecipe[Config]):
    """Encoder, decoder and discriminator from one batch: the gradients first, then the steps."""

    model: VAEGAN
    presets = {
        "smoke": Config(steps=40, base=8, latent=32, size=16, texture=False, samples=200, lr=2e-3, lr_d=1e-3),
        "laptop": Config(),
        "paper": Config(
            steps=60_000,
            batch=64,
            size=64,
            base=64,
            gamma=1e-5,
            loss="minimax",
            real_weight=0.66,
            joint_norm=True,
            margin=0.35,
            lr=3e-4,
            samples=5000,
        ),
    }
    claims = (CLAIM,)
    headline = ("recon_error", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        if source.kind == "world" and source.value == "faces":
            return faces.load(size=config.size or 32, texture=config.texture)
        return super().load_data(config, source)

    def build(self, config: Config, data: Data) -> None:
        self.model = VAEGAN(
            shape=data.info["shape"],
            latent=config.latent,
            variant=config.variant,
            arch=config.arch,
            hidden=config.hidden,
            base=config.base,
            attributes=_judging.names_of(data),
            conditional=config.conditional,
        ).to(self.device)
        for name, lr in (("generator", config.lr), ("encoder", config.lr), ("discriminator", config.lr_d), ("rival", config.lr)):  # fmt: skip
            net = getattr(self.model, name, None)
            if net is not None:
                setattr(self, f"{name}_optim", self.optimiser(torch.optim.RMSprop, net.parameters(), lr=lr))
        self.watch()

    def source_logits(self, x: Tensor, source: int = REAL) -> Tensor | None:
        return None if self.config.conditional else super().source_logits(x, source)

    # -- one round --------------------------------------------------------------------------------------------------

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        c = self.config
        traits = _judging.traits_of(self.data, batch).to(x) if c.conditional else None
        common: dict[str, Any] = {"traits": traits, "joint": c.joint_norm, "kind": c.loss}
        z_p = self.latent(len(x))
        if c.variant == "gan":
            return self._solve(self.model.game(x, z_p, **common), ("discriminator", "generator"))
        if c.variant == "vae-dis" and self.iteration < c.gan_steps:
            return self._solve(self.model.game(x, z_p, **common), ("discriminator", "rival"))
        terms = self.model.terms(x, z_p, self.rng, pixel=c.feature_loss == "pixel", sigma=c.sigma, **common)
        if c.variant == "vae-gan":
            return self._solve(terms, ("encoder", "generator", "discriminator"))
        return self._solve(terms, ("encoder", "generator"))

    def _solve(self, terms: Terms, nets: Sequence[str]) -> list[Player]:
        """Every net's gradient of its own loss on the shared graph; nets that the throttle rests are left out."""
        c = self.config
        # without a GAN's loss, gamma would only scale the decoder's one loss
        gamma = 1.0 if terms.fool is None else c.gamma
        if c.margin is not None and terms.real is not None and terms.fake is not None:
            decoder, discriminator = throttle(float(terms.real.detach()), float(terms.fake.detach()), equilibrium=c.equilibrium, margin=c.margin)  # fmt: skip
            rests = {"generator": not decoder, "rival": not decoder, "discriminator": not discriminator}
            nets = [net for net in nets if not rests.get(net, False)]
        players = []
        for net in nets:
            if net == "encoder":
                loss = terms.encoder()
            else:
                loss = terms.discriminator(c.real_weight) if net == "discriminator" else terms.decoder(gamma, c.gan_weight)  # fmt: skip
            optimiser = getattr(self, f"{net}_optim")
            parameters = parameters_of(optimiser)
            gradients = torch.autograd.grad(loss, parameters, retain_graph=net != nets[-1])
            report = _report(terms) if net == nets[0] else {}
            players.append(Player(net, optimiser, _told(loss, parameters, gradients, report)))
        return players

    def step(self, batch: Batch) -> Any:
        """One round; after the last one the attribute vectors are learnt."""
        scalars = super().step(batch)
        if self.iteration + 1 == self.config.steps and self._editable():
            train = self.data.split("train")
            some = train[torch.arange(min(VECTORS_FROM, len(train)))]
            self.model.eval()
            self.model.learn_attributes(self._placed(some), _judging.traits_of(self.data, some).to(self.device))
            self.model.train()
        return scalars

    def _editable(self) -> bool:
        return bool(self.model.attributes) and self.config.variant != "gan" and not self.config.conditional

    def _placed(self, batch: Batch) -> Tensor:
        return self.real(batch).to(self.device)

    # -- figures and pictures ---------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The base's figures, and of reconstructions `recon_error` (mean squared error of the nets' range), `kl` (nats)
        and, by the attribute judge, `recon_frechet`, `recon_attributes`, `edit_flipped`, `edit_others`; with
        `conditional` the likeness of attributes asked for and seen."""
        out = super().evaluate(split, generator)
        samples = self.data.split(split)
        held = samples[torch.arange(min(len(samples), self.config.samples))]
        judge = _judging.attribute_judge(self.data) if self.model.attributes else None
        able = judge is not None and judge.accuracy >= REQUIRED_ACCURACY
        if self.config.conditional and judge is not None and able:
            z = self.latent(len(held["image"]), generator)
            out |= _judging.judged_conditions(judge, self.decoded(z), z[:, self.model.latent :].cpu())
        if self.config.variant == "gan":
            return out
        x, again, kl = self._reconstructed(held)
        out |= {"recon_error": float((x - again).square().mean()), "kl": kl}
        if judge is not None:
            out |= _judging.judged_reconstructions(self.data, judge, held, self.model.show(again).cpu())
        if judge is not None and able and self._editable():
            out |= self._edits(judge, held)
        return out

    def _reconstructed(self, held: Batch) -> tuple[Tensor, Tensor, float]:
        """Samples, their reconstructions and the mean KL divergence of their posteriors."""
        x, traits = self._placed(held), self._known(held)
        parts, kl = [], 0.0
        for start in range(0, len(x), 250):
            part, told = x[start : start + 250], None if traits is None else traits[start : start + 250]
            q = self.model.encode(part, told)
            parts.append(self.model.decode(q.mean, told))
            kl += float(0.5 * (q.logvar.exp() + q.mean.square() - 1 - q.logvar).sum()) / len(x)
        return x, torch.cat(parts), kl

    def _known(self, batch: Batch) -> Tensor | None:
        return _judging.traits_of(self.data, batch).to(self.device) if self.config.conditional else None

    def _edits(self, judge: Any, held: Batch) -> dict[str, float]:
        train = self.data.split("train")
        some = train[torch.arange(min(VECTORS_FROM, len(train)))]
        codes = _judging.codes_of(self.model, self._placed(some))
        vectors = mean_difference(codes, _judging.traits_of(self.data, some).to(self.device))
        edited = {name: field[: _judging.EDITED] for name, field in held.items()}
        at = _judging.codes_of(self.model, self._placed(edited))
        return _judging.judged_edits(judge, self.decoded, at, _judging.traits_of(self.data, edited).to(at), vectors)

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """The base's sheets; held-out pictures above their reconstructions, and attribute strips."""
        shown = super().sample(n, generator)
        if not isinstance(shown, Gallery) or self.config.variant == "gan":
            return shown
        return Gallery({**shown.items, "reconstructions": self.reconstructions()} | self._strips())

    def _strips(self) -> dict[str, Sample]:
        learnt = self._editable() and bool(self.model.directions.any())
        return {"attributes": self.attributes()} if learnt else {}

    @action
    @torch.no_grad()
    def reconstructions(self, n: int = SHOWN) -> Images:
        """Held-out pictures above their reconstructions."""
        self.need_images()
        held = self._some(n)
        return Images(self._pictures(held["image"], self._reconstructed(held)[1]), columns=len(held["image"]))

    @action
    @torch.no_grad()
    def attributes(self, n: int = SHOWN) -> Images:
        """Held-out pictures, reconstructions, and a row for each attribute: added where missing, else removed."""
        self.need_images()
        held = self._some(n)
        traits = _judging.traits_of(self.data, held).to(self.device)
        z = self.model.encode(self._placed(held)).mean
        rows = [self.model.decode(z)]
        for number, name in enumerate(self.model.attributes):
            amount = 1.0 - 2.0 * traits[:, number : number + 1]
            rows.append(self.model.decode(z + amount * self.model.attribute_vector(name)))
        return Images(self._pictures(held["image"], torch.cat(rows)), columns=len(held["image"]))

    @action
    def invert(self, n: int = SHOWN, restarts: int = 2, steps: int = 30, seed: int = 0) -> Images:
        """Held-out pictures, above what the decoder makes of codes found by L-BFGS on pixel errors: the nearest that it
        can draw, whatever the encoder says. Works for the variant gan too."""
        self.need_images()
        test = self.data.split("test")
        held = test[torch.arange(min(n, len(test)))]
        draw = torch.Generator().manual_seed(seed)
        found, _ = invert(self._eval().model.generate, self._placed(held), prior=self.latent, generator=draw, restarts=restarts, steps=steps)  # fmt: skip
        with torch.no_grad():
            return Images(self._pictures(held["image"], self.model.generate(found)), columns=len(held["image"]))

    @action
    def compare(self, steps: int = 0, n: int = SHOWN) -> Gallery:
        """Train the other variants as long (or `steps`), and show all reconstructions below the held-out pictures."""
        self.need_images()
        held, rows = self._some(n), {self.config.variant: self}
        for variant in VARIANTS:
            if variant not in rows:
                rows[variant] = self._twin(variant, steps or self.iteration or self.config.steps)
        drawn = {"gan": rows.pop("gan").drawn(n, torch.Generator().manual_seed(0))}
        with torch.no_grad():
            sheets = [rows[name]._eval()._reconstructed(held)[1] for name in VARIANTS if name in rows]
        names = ", ".join(name for name in VARIANTS if name in rows)
        shown = Images(self._pictures(held["image"], torch.cat(sheets)), columns=n)
        return Gallery({f"held out, {names}": shown, "samples of gan": Images(drawn["gan"], columns=n)})

    def _twin(self, variant: str, steps: int) -> VAEGANRecipe:
        first = steps if variant == "vae-dis" else 0
        settings = dataclasses.replace(self.config, variant=variant, steps=steps + first, gan_steps=first)
        loop = Loop(type(self)(settings, data=self.data, seed=self.seed, device=self.device))
        with torch.enable_grad():
            for _ in range(settings.steps):
                loop.advance()
        return loop.recipe._eval()  # type: ignore[attr-defined]

    def _eval(self) -> VAEGANRecipe:
        self.model.eval()
        return self

    def _some(self, n: int) -> Batch:
        if self.config.variant == "gan":
            raise CapabilityError("the variant gan has no encoder; use vae, vae-dis or vae-gan")
        test = self.data.split("test")
        return test[torch.arange(min(n, len(test)))]

    def _pictures(self, image: Tensor, made: Tensor) -> Tensor:
        return torch.cat((pictures.unit(image), self.model.show(made).cpu()))


def _told(loss: Tensor, parameters: list[Any], gradients: Sequence[Tensor], report: dict[str, Tensor]) -> Any:
    return lambda turn: (solved(loss, parameters, gradients), report)


def _report(terms: Terms) -> dict[str, Tensor]:
    known = {"prior": terms.prior, "error": terms.error, "d_real": terms.real, "d_fake": terms.fake}
    return {name: term.detach() for name, term in known.items() if term is not None}
