"""Training and measuring VAEs. Shapes: B batch, C H W a picture, Z latent features, Y classes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.images import unit
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.recipe import recipe
from cambrian.errors import CapabilityError, DataError
from cambrian.inspect.generative import ModuleGenTarget, wrap_generative
from cambrian.inspect.target import Space
from cambrian.metrics.judges import judge_of
from cambrian.nn.latent import active_units, cyclic_weight, exponential_weight, linear_weight
from cambrian.systems.likelihood.vae import _worlds
from cambrian.systems.likelihood.vae._claims import CLAIMS
from cambrian.systems.likelihood.vae._config import CYCLES, Config
from cambrian.systems.likelihood.vae._objectives import objective_loss
from cambrian.systems.likelihood.vae._pictures import Pictures
from cambrian.systems.likelihood.vae._semi import labelled_bound, labelled_positions, marginal_nll, unlabelled_bound
from cambrian.systems.likelihood.vae.model import VAE
from cambrian.worlds.glyphs import ALNUM

ROWS = 100  # pictures that evaluation takes at once
JUDGED = 50  # samples of each class that the judge sees
JUDGE_ROWS, JUDGE_STEPS = 10_000, 800  # what it is trained on: binary pictures of this size take more than grey ones
RATE = 1e-3  # what the exponential schedule leaves of the distance to its end

SHARED = ("likelihood", "latent", "hidden", "base", "activation", "second", "embed", "learned_prior", "flow", "flow_layers", "sigma", "levels")  # fmt: skip


@recipe("vae", data="glyphs")
class VAERecipe(Pictures):
    """Trains a VAE, a conditional one or M2 on pictures, by the objective that is asked for."""

    presets = {
        "smoke": Config(steps=150, hidden=(64,), latent=8, train_size=600, test_size=100, eval_samples=20),
        "laptop": Config(steps=2500, activation="relu", characters=ALNUM, train_size=10_000),
        "paper": Config(
            steps=200_000, batch=100, hidden=(500,), latent=20, optimiser="adagrad", lr=1e-2, size=28, eval_samples=5000
        ),
    }
    claims = CLAIMS
    headline = ("nll", "lower")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        return _worlds.load(
            source,
            size=config.size,
            channels=config.channels,
            train=config.train_size,
            test=config.test_size,
            characters=config.characters,
            binarise=config.binarise if config.likelihood == "bernoulli" else "none",
        )

    def build(self, config: Config, data: Data) -> None:
        train = data.split("train")
        some = train[torch.arange(min(2000, len(train)))]
        if config.likelihood == "bernoulli" and not data.info.get("binary") and not _worlds.is_binary(train):
            warnings.warn(
                "grey pixels under a Bernoulli likelihood: the cross-entropy is no log-likelihood, so nll compares with "
                "nothing; use binarise=static or another likelihood",
                stacklevel=2,
            )
        self.classes = self._class_count(config, data)
        self.model = self._model(config, tuple(data.info["shape"]))
        self.model.initialise(unit(some["image"]).mean(0))
        factory = torch.optim.Adam if config.optimiser == "adam" else torch.optim.Adagrad
        self.optim = self.optimiser(factory, self.model.parameters(), lr=config.lr)
        if config.model == "m2":
            label = train[torch.arange(len(train))]["label"]
            self.known = labelled_positions(label, config.labels, self.classes, seed=self.seed)

    def _class_count(self, config: Config, data: Data) -> int:
        classes = len(data.info.get("classes", ()))
        if config.model != "vae" and classes < 2:
            raise DataError(f"{data.name} has no classes, which model={config.model} needs; use model=vae")
        return classes

    def _model(self, config: Config, shape: tuple[int, ...]) -> VAE:
        settings: dict[str, Any] = {
            "shape": shape,
            "encoder": config.arch,
            "decoder": config.arch,
            "classes": 0 if config.model == "vae" else self.classes,
            "recogniser": config.model == "m2",
            **{name: getattr(config, name) for name in SHARED},
        }
        return VAE(**settings)

    # -- training ---------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        config = self.config
        x = self._seen(batch)
        beta = self._beta()
        if config.model == "m2":
            loss, scalars = self._semi_supervised(x)
        else:
            loss, scalars = objective_loss(
                self.model, x, self.rng, objective=config.objective, samples=config.samples, y=self._told(batch),
                beta=beta, floor=config.free_bits, uniform=config.uniform_weights,
            )  # fmt: skip
        for group in self.optim.param_groups:
            group["lr"] = config.lr * config.lr_end ** (self.iteration / config.steps)
        self.minimise(loss, self.optim)
        return {"loss": loss.detach(), **scalars, **({"beta": beta} if config.objective == "elbo" else {})}

    def _seen(self, batch: Batch) -> Tensor:
        """Pictures in [0, 1], with new coins where they are tossed at each visit."""
        image = batch["image"]
        if self.data.info.get("binary") == "dynamic":
            image = _worlds.toss(image, batch["key"])
        return unit(image)

    def _told(self, batch: Batch) -> Tensor | None:
        if self.config.model == "vae":
            return None
        return batch["label"].roll(1, 0) if self.config.shuffle_labels else batch["label"]

    def _beta(self) -> float:
        config, at = self.config, self.iteration
        over = config.warmup or max(1, config.steps // 2)
        share = {
            "constant": 1.0,
            "linear": linear_weight(at, over),
            "exponential": exponential_weight(at, RATE ** (1.0 / over), 0.0),
            "cyclic": cyclic_weight(at, max(1, over // CYCLES)) if at < over else 1.0,
        }
        return config.beta * share[config.schedule]

    def _semi_supervised(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The labelled half is drawn anew from the few that keep a label; the batch itself stands for the rest."""
        known = self.known[torch.randint(len(self.known), (len(x),), generator=self.rng)]
        batch = {name: field.to(self.device) for name, field in self.data.split("train")[known].items()}
        told, y = unit(batch["image"]), batch["label"]
        if self.data.info.get("binary") == "dynamic":
            draws = torch.rand(told.shape, generator=self.rng).to(told)
            told = (draws < told).to(told)
        labelled = labelled_bound(self.model, told, y, self.rng).mean()
        unlabelled = unlabelled_bound(self.model, x, self.rng).mean()
        wrong = F.cross_entropy(self.model.classify(told), y)
        share = len(self.known) / len(self.data.split("train"))
        # a labelled picture counts as often as it occurs; the classifier's loss by alpha N / labels of that
        loss = -unlabelled - share * labelled + self.config.alpha * wrong
        return loss, {"labelled": labelled.detach(), "unlabelled": unlabelled.detach(), "classifier": wrong.detach()}

    # -- measuring --------------------------------------------------------------------------------------------------

    def gen_target(self) -> ModuleGenTarget:
        """The trained encoder and decoder on pictures in [0, 1], for verbs on generative models."""
        model = self.model
        if model.classes:
            raise CapabilityError("a conditional VAE encodes a picture and its class; verbs take unconditional ones")

        def code(x: Tensor) -> tuple[Tensor, Tensor]:
            q = model.encode(x)
            return q.mean, q.logvar

        def neg_elbo(x: Tensor) -> Tensor:
            return -model.elbo(x, torch.Generator().manual_seed(0)).value

        space = Space.image(tuple(self.data.info["shape"]))
        return wrap_generative(
            model, space=space, latent_shape=(model.latent,), encode=code, decode=model.decode, neg_elbo=neg_elbo
        )

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """In nats a picture: `elbo` (a bound from below), its `reconstruction` and `kl`, and `nll`, an importance estimate of
        -log p(x), above it on average; `active_units`; with 8-bit probabilities `bits_per_dim`.

        beta, free bits and annealing play no part. Conditional models are measured given the class; M2 over all
        classes, with the classifier's `accuracy`.
        """
        rows, codes = [], []
        for batch in self.batches(split, ROWS):
            if self.config.eval_rows and len(rows) * ROWS >= self.config.eval_rows:
                break
            x, y = unit(batch["image"]), self._given(batch)
            rows.append(torch.stack(self._measured(x, y, batch["label"], generator)))
            codes.append(self.model.encode(x, y).mean)
        elbo, reconstruction, kl, nll, right = torch.cat(rows, 1).mean(1).tolist()
        found = {"nll": nll, "elbo": elbo, "reconstruction": reconstruction, "kl": kl}
        found["active_units"] = float(active_units(torch.cat(codes)))
        if self.model.pixels.bins == 256:
            found["bits_per_dim"] = nll / math.log(2.0) / math.prod(self.model.shape)
        if self.config.model == "m2":
            found["accuracy"] = right
        if self.config.judge:
            found |= self._judged(generator)
        return found

    def _given(self, batch: Batch) -> Tensor | None:
        """The class that a picture is encoded and decoded with: its own, or for M2 the one that it recognises."""
        if self.config.model == "m2":
            return self.model.classify(unit(batch["image"])).argmax(1)
        return batch["label"] if self.config.model == "cvae" else None

    def _measured(self, x: Tensor, y: Tensor | None, label: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Bound, reconstruction, divergence, -log p(x) and whether the class was recognised, each [B] float64."""
        bound = self.model.elbo(x, generator, y=y)
        elbo = bound.value
        if self.config.model == "m2":
            elbo = unlabelled_bound(self.model, x, generator)
            nll = marginal_nll(self.model, x, generator, max(1, self.config.eval_samples // self.classes))
        else:
            nll = self.model.nll(x, generator, self.config.eval_samples, y)
        right = torch.zeros(len(x)) if y is None else (y == label).float().cpu()
        return [part.double().cpu() for part in (elbo, bound.reconstruction, bound.kl.sum(1), nll, right)]

    def _judged(self, generator: torch.Generator) -> dict[str, float]:
        """Share of samples that a classifier, trained on the same kind of pictures, takes for the class asked for."""
        judge = judge_of(
            self.data.split("train"), self.data.split("test"), self.classes, limit=JUDGE_ROWS, steps=JUDGE_STEPS
        )
        y = torch.arange(self.classes).repeat_interleave(JUDGED)
        made = self.model.sample(len(y), generator, y.to(self.device), pixels=self.config.likelihood == "bernoulli")
        seen = judge.probabilities(made.cpu()).argmax(1)
        return {"judged": float((seen == y).double().mean()), "judge_accuracy": judge.accuracy}
