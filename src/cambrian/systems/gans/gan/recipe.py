"""The recipe: one discriminator turn and one generator turn an iteration, supervised by a few labels or by none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.recipe import recipe
from cambrian.errors import ConfigError, DataError
from cambrian.nn.adversarial import (
    FAKE,
    REAL,
    HistoricalAverage,
    MovingAverage,
    Player,
    discriminator_accuracy,
    discriminator_loss,
    feature_matching,
    generator_loss,
    part,
    play,
    semi_supervised_loss,
    source_logit,
)
from cambrian.systems.gans import _worlds
from cambrian.systems.gans.gan._config import Config
from cambrian.systems.gans.gan._show import Probing
from cambrian.systems.gans.gan.model import GAN

CLAIM = Claim(
    name="semi-supervised",
    statement="A classifier that plays the feature-matching game on unlabelled digits beside 2 labels per class is at "
    "least 3 points more accurate than the same net, noise and label updates without the game.",
    metric="accuracy",
    direction="higher",
    margin=0.03,
    paper="Salimans et al. 2016, table 1: MNIST, 100 labels, 93 +- 6.5 of 10,000 wrong",
    arms={"semi-supervised": Arm(), "labels only": Arm({"unlabelled": "none"})},
    system="semi-supervised",
    baselines=("labels only",),
    sabotage=Arm({"unlabelled": "permuted"}),
)


class Playing(Probing):
    """The two games: which players there are and what they minimise."""

    labelled_x: Tensor
    labelled_y: Tensor
    g_optim: torch.optim.Optimizer
    d_optim: torch.optim.Optimizer

    def _unsupervised(self, x: Tensor) -> list[Player]:
        turns, smooth = self.config.d_turns, 0.9 if "smoothing" in self.config.tricks else 1.0
        count = len(x) // turns
        fake = self.gan.generate(self._latent(count, self.rng))  # made once: the last D turn's fakes are G's

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            real = part({"x": x}, turn, turns)["x"]
            made = (fake if turn == turns - 1 else self.gan.generate(self._latent(count, self.rng))).detach()
            logits = self.gan.discriminate(torch.cat((real, made)), (REAL, FAKE))
            on_real, on_fake = logits.chunk(2)
            loss = discriminator_loss(on_real, on_fake, smooth) + self._history("d")
            return loss, {"d_accuracy": discriminator_accuracy(on_real, on_fake)}

        def g_loss(turn: int) -> Tensor:
            if self.config.loss == "feature_matching":
                return self._matching(x[:count], fake) + self._history("g")
            return generator_loss(self.gan.discriminate(fake, (FAKE,)), self.config.loss) + self._history("g")

        return [Player("d", self.d_optim, d_loss, turns=turns), Player("g", self.g_optim, g_loss)]

    def _semi_supervised(self, x: Tensor) -> list[Player]:
        """D: cross-entropy on labels, and real against fake through the same K logits. G: as configured."""
        pick = torch.randint(len(self.labelled_y), (len(x),), generator=self.rng)
        seen, label = self.labelled_x[pick].to(x), self.labelled_y[pick].to(x.device)
        if self.config.unlabelled == "none":
            return [Player("d", self.d_optim, lambda _: F.cross_entropy(self.gan.discriminate(seen), label))]
        fake = self.gan.generate(self._latent(len(x), self.rng))

        def d_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            logits = self.gan.discriminate(torch.cat((seen, x, fake.detach())), (REAL, REAL, FAKE))
            on_seen, on_real, on_fake = logits.chunk(3)
            supervised = F.cross_entropy(on_seen, label)
            loss = supervised + semi_supervised_loss(on_real, on_fake) + self._history("d")
            accuracy = discriminator_accuracy(source_logit(on_real), source_logit(on_fake))
            return loss, {"d_accuracy": accuracy, "cross_entropy": supervised.detach()}

        def g_loss(turn: int) -> Tensor:
            if self.config.loss == "feature_matching":
                return self._matching(x, fake) + self._history("g")
            logits = source_logit(self.gan.discriminate(fake, (FAKE,)))
            return generator_loss(logits, self.config.loss) + self._history("g")

        return [Player("d", self.d_optim, d_loss), Player("g", self.g_optim, g_loss)]

    def _matching(self, real: Tensor, fake: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.gan.deep_features(real, (REAL,))
        # the released code matches squared means on vectors and absolute ones on convolutional nets
        return feature_matching(
            goal, self.gan.deep_features(fake, (FAKE,)), "absolute" if self.gan.signed else "squared"
        )

    def _history(self, player: str) -> Tensor | float:
        return getattr(self, f"{player}_history").penalty() if "history" in self.config.tricks else 0.0


@recipe("gan", data="digits")
class GANRecipe(Playing):
    """Trains G and D in turns; see `Config` for the game, the nets and the tricks."""

    presets = {
        "smoke": Config(steps=120, hidden=(64, 32), hidden_g=(64,), lr=3e-3, labels_per_class=10),
        "laptop": Config(),
        "paper": Config(
            steps=600_000, batch=100, hidden=(1000, 500, 250, 250, 250), labels_per_class=10, ema=0.9999, decay="third"
        ),
    }
    claims = (CLAIM,)
    headline = ("accuracy", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        return _worlds.load(source, size=config.size)

    def build(self, config: Config, data: Data) -> None:
        shape = tuple(data.info["shape"])
        self.semi = config.labels_per_class > 0
        if self.semi and (data.kind == "points" or len(data.info["classes"]) < 2):
            raise ConfigError(f"{data.name} has no labels to learn from; set labels_per_class=0")
        self.gan = GAN(
            shape=shape,
            arch="points" if data.kind == "points" else config.arch,
            outputs=len(data.info["classes"]) if self.semi else 1,
            latent=config.latent,
            hidden=config.hidden,
            hidden_g=config.hidden_g,
            base=config.base,
            noise_in=config.noise_in,
            noise=config.noise,
            kernels=config.kernels if "minibatch" in config.tricks else 0,
            dims=config.dims,
            reference=config.batch if "virtual-bn" in config.tricks else 0,
        )
        train = data.split("train")
        self.gan.initialise(self._real(train[torch.randperm(len(train))[: max(config.batch, 2)]]))
        if self.semi:
            index = labelled_subset(data, config.labels_per_class, self.seed)
            chosen = train[index]
            self.labelled_x, self.labelled_y = self._real(chosen), chosen["label"]
        self._optimisers(config)
        self.show_z = self.gan.prior(16, torch.Generator().manual_seed(0))
        self.extra = {"frames": torch.zeros(0, 16, *shape)}

    def _optimisers(self, config: Config) -> None:
        g, d = self.gan.generator, self.gan.discriminator
        for name, net, lr in (("g", g, config.lr), ("d", d, config.lr_d or config.lr)):
            if config.optimiser == "adam":
                made = self.optimiser(torch.optim.Adam, net.parameters(), lr=lr, betas=(config.beta1, 0.999))
            else:
                made = self.optimiser(torch.optim.SGD, net.parameters(), lr=lr, momentum=0.5)
            setattr(self, f"{name}_optim", made)
        if "history" in config.tricks:
            self.g_history, self.d_history = HistoricalAverage(g), HistoricalAverage(d)
        if config.ema:
            self.averaged = MovingAverage(self.gan, config.ema, warm=True)

    # -- training -------------------------------------------------------------------------------------------------

    def critics(self) -> list[nn.Module]:
        """The nets that training methods may disturb."""
        return [self.gan.discriminator]

    def real(self, batch: Batch) -> Tensor:
        """The batch's samples in the nets' range."""
        return self._real(batch)

    def latent(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `[count, Z]`, from the recipe's own generator unless another is given."""
        return self._latent(count, generator or self.rng)

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        config = self.config
        self._schedule()
        x = self._real(batch)
        if config.unlabelled == "permuted":
            x = shuffle_pixels(x, batch["index"])
        turns = self._semi_supervised(x) if self.semi else self._unsupervised(x)
        scalars = play(turns, minimise=self.minimise, iteration=self.iteration)
        if "history" in config.tricks:
            self.g_history.record()
            self.d_history.record()
        if config.ema:
            self.averaged.update(self.gan)
        self._keep_frame()
        return scalars

    def _schedule(self) -> None:
        config, done = self.config, self.iteration / self.config.steps
        scale = {"none": 1.0, "third": min(1.0, 3 * (1 - done)), "exponential": (1 - 4e-6) ** self.iteration}[
            config.decay
        ]
        for optimiser, lr in ((self.g_optim, config.lr), (self.d_optim, config.lr_d or config.lr)):
            for group in optimiser.param_groups:
                if config.decay != "none":
                    group["lr"] = lr * scale
                if config.optimiser == "momentum":
                    group["momentum"] = 0.5 + 0.2 * done


def labelled_subset(data: Data, per_class: int, seed: int) -> Tensor:
    """Positions of `per_class` training samples of every class, drawn by `seed`; `DataError` where a class has
    fewer.
    """
    train = data.split("train")
    labels = torch.cat([train[index]["label"] for index in torch.arange(len(train)).split(4096)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for number, name in enumerate(data.info["classes"]):
        members = order[labels[order] == number][:per_class]
        if len(members) < per_class:
            raise DataError(
                f"class {name!r} of {data.name} has {len(members)} training samples, {per_class} are asked for"
            )
        chosen.append(members)
    return torch.cat(chosen)


def shuffle_pixels(x: Tensor, index: Tensor) -> Tensor:
    """Every image's pixels in an order of its own, always the same for the same position: intensities without
    shape.
    """
    rows = x.flatten(2)
    orders = torch.stack(
        [torch.randperm(rows.shape[2], generator=torch.Generator().manual_seed(int(i))) for i in index]
    )
    return rows.gather(2, orders.to(x.device)[:, None].expand_as(rows)).view_as(x)
