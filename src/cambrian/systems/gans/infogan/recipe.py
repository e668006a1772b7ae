"""The recipe: the game with the information term, or the plain game and a reader trained after it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Curves, Gallery, Images, Sample, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.metrics.matching import contingency, matched_accuracy, matching, rank_correlation
from cambrian.nn.adversarial import FAKE, REAL, Player, discriminator_loss, generator_loss
from cambrian.systems.gans._game import AdversarialRecipe
from cambrian.systems.gans._judging import label_sample
from cambrian.systems.gans.infogan._factors import moments
from cambrian.systems.gans.infogan.model import ARCHS, InfoGAN, information_of

LOOKS = 200  # points of the curve of the bound
UNEVEN = 2.0  # classes whose shares differ by this factor are too uneven for a uniform code


@config
class Config:
    """Options of one InfoGAN; `weight=0` with `posthoc` is the baseline."""

    steps: int = option(2000, "rounds, the reader's own at the end included", low=1)
    batch: int = option(128, "samples per step", low=2)
    codes: tuple[str, ...] = option(("cat:10", "uniform:2"), "codes: cat:K and uniform:N")
    latent: int = option(62, "Z, noise variables that no term regularises", low=1)
    weight: float = option(1.0, "lambda of the categorical codes", low=0.0)
    weight_cont: float = option(0.1, "lambda of the continuous codes (released MNIST run: 1)", low=0.0)
    fix_std: bool = option(True, "Q's standard deviation of continuous codes is 1; false learns it")
    posthoc: int = option(0, "last rounds in which only the reader learns, on samples of the finished G", low=0)
    shuffle_codes: bool = option(False, "sabotage: ask Q for the codes of another sample")
    arch: str = option("connected", "nets of images; infogan is the paper's MNIST net", choices=ARCHS)
    hidden: tuple[int, ...] = option((256, 256), "widths of connected nets", low=1)
    base: int = option(64, "channels next to the picture of convolutional nets", low=1)
    q_hidden: int = option(128, "width of Q's own layer", low=1)
    norm: str = option("split", "batch norm in D: by source, or none", choices=("split", "none"))
    lr: float = option(1e-3, "Adam step size of G", low=0.0)
    lr_d: float = option(2e-4, "Adam step size of D and Q", low=0.0)
    beta1: float = option(0.5, "Adam's first decay", low=0.0, high=0.999)
    size: int | None = option(None, "resize images to this edge; None leaves them", low=4)
    samples: int = option(2000, "generated samples per evaluation", low=16)

    def check(self) -> None:
        if self.posthoc >= self.steps:
            raise ConfigError(f"posthoc counts within steps: {self.posthoc} of {self.steps} leaves no round to play")


CLAIM = Claim(
    name="classes",
    statement="Without labels, the categorical code names the class of held-out digits (one to one) at least 30 points "
    "more often than a reader trained after the same game without the information term.",
    metric="accuracy",
    direction="higher",
    margin=0.30,
    paper="section 7.2: the categorical code classifies MNIST digits with 5 % error",
    arms={"information": Arm(), "reader afterwards": Arm({"weight": 0.0, "weight_cont": 0.0, "steps": 3000, "posthoc": 1000})},
    system="information",
    baselines=("reader afterwards",),
    sabotage=Arm({"shuffle_codes": True}),
)  # fmt: skip


@recipe("infogan", data="digits")
class InfoGANRecipe(AdversarialRecipe[Config]):
    """D with Q on one trunk, then G, each on codes of their own."""

    model: InfoGAN
    presets = {
        "smoke": Config(steps=120, hidden=(64,), q_hidden=32, lr_d=1e-3, samples=500),
        "laptop": Config(),
        "paper": Config(steps=5000, arch="infogan", weight_cont=1.0),
    }
    claims = (CLAIM,)
    headline = ("mi_cat", "higher")

    def build(self, config: Config, data: Data) -> None:
        """Nets, optimisers, the bound's history, and a warning where classes are uneven."""
        self.model = InfoGAN(
            shape=data.info["shape"],
            codes=config.codes,
            noise=config.latent,
            arch=config.arch,
            hidden=config.hidden,
            base=config.base,
            q_hidden=config.q_hidden,
            norm=config.norm,
            fix_std=config.fix_std,
        )
        self.g_optim = self.adam(self.model.generator, lr=config.lr, beta1=config.beta1)
        self.d_optim = self.adam(self.model.discriminator, lr=config.lr_d, beta1=config.beta1)
        self.watch()
        self.extra["bound"] = torch.zeros(0, 3)
        self._warn_of_uneven_classes()

    def _warn_of_uneven_classes(self) -> None:
        classes = len(self.data.info["classes"])
        if classes < 2 or classes not in self.model.codes.categories:
            return
        counts = torch.bincount(label_sample(self.data), minlength=classes)
        if float(counts.max()) > UNEVEN * float(counts.min()):
            warnings.warn(
                f"classes have {int(counts.min())} to {int(counts.max())} samples; the code is uniform and will split "
                "frequent classes and merge rare ones",
                stacklevel=2,
            )

    # -- the game ----------------------------------------------------------------------------------------------------

    def players(self, x: Tensor, batch: Batch) -> list[Player]:
        """D and Q, then G; in the last `posthoc` rounds Q alone."""
        model, config = self.model, self.config

        def gain(z: Tensor, params: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            found = information_of(model, z, params, config.shuffle_codes)
            return config.weight * found["cat"] + config.weight_cont * found["cont"], found

        def read(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            z = self.latent(count)
            with torch.no_grad():
                fake = model.generate(z)
            logits, params = model.discriminator(torch.cat((x, fake)), (REAL, FAKE))
            return z, *logits.chunk(2), params.chunk(2)[1]

        def d_loss(turn: int) -> Tensor:
            z, on_real, on_fake, params = read(len(x))
            return discriminator_loss(on_real, on_fake) - gain(z, params)[0]

        def q_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            z, _, _, params = read(len(x))
            found = information_of(model, z, params, config.shuffle_codes)
            return -sum(found.values()), self._reported(found)

        def g_loss(turn: int) -> tuple[Tensor, dict[str, Tensor]]:
            z = self.latent(len(x))  # fresh codes: G must not be paid for those that Q has just learnt from
            logits, params = model.discriminator(model.generate(z), (FAKE,))
            term, found = gain(z, params)
            return generator_loss(logits) - term, self._reported(found)

        if self.iteration >= config.steps - config.posthoc:
            return [Player("q", self.d_optim, q_loss)]
        return [Player("d", self.d_optim, d_loss), Player("g", self.g_optim, g_loss)]

    def _reported(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The bound as scalars, and now and then as a point of its curve."""
        if self.iteration % max(1, self.config.steps // LOOKS) == 0:
            point = torch.stack([torch.tensor(float(self.iteration)), *(v.detach().cpu() for v in found.values())])
            self.extra["bound"] = torch.cat((self.extra["bound"], point[None]))
        return {f"mi_{kind}": value.detach() for kind, value in found.items()}

    def source_logits(self, x: Tensor, source: int = REAL) -> Tensor:
        """The first of the two heads."""
        return self.model.discriminator(x, (source,))[0]

    # -- figures -----------------------------------------------------------------------------------------------------

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """The family's figures, the bound on fresh samples (`mi_cat` reaches `h_cat` = H(c) at best), and where there
        are labels `accuracy`: how often the first categorical code names the class, matched one to one."""
        out = super().evaluate(split, generator)
        z = self.latent(self.config.samples, generator)
        params = torch.cat([self.model.discriminator(self.model.generate(part), (FAKE,))[1] for part in z.split(250)])
        found = self.model.codes.information(params, z[:, self.model.noise :])
        out |= {f"mi_{kind}": float(value) for kind, value in found.items()}
        out["h_cat"] = self.model.codes.entropy["cat"]
        counts = self.counts(split)
        return out if counts is None else {"accuracy": matched_accuracy(counts), **out}

    @torch.no_grad()
    def counts(self, split: str) -> Tensor | None:
        """How often category k (first code, `[K, classes]`) is read off samples of each class; None without either."""
        classes = len(self.data.info["classes"])
        if classes < 2 or not self.model.codes.categories:
            return None
        found = torch.zeros(self.model.codes.categories[0], classes, dtype=torch.int64)
        for batch in self.batches(split):
            code = self.model.encode(self.real(batch))["cat"][:, self.model.codes.place("cat0")].argmax(1)
            found += contingency(code.cpu(), batch["label"].cpu(), tuple(found.shape))
        return found

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """What the family shows, a traversal of every code, the bound over time, and codes against classes."""
        items: dict[str, Sample] = {"samples": super().sample(n, generator)}
        if self.model.images:
            items |= {f"code {name}": self.traverse(name) for name in self.model.codes.names}
        bound, entropy = self.extra["bound"], self.model.codes.entropy
        if len(bound):
            steps = bound[:, 0].tolist()
            lines = {"L_I, categorical": (steps, bound[:, 1].tolist())}
            lines["H(c)"] = (steps[:: max(1, len(steps) - 1)], [entropy["cat"]] * len(steps[:: max(1, len(steps) - 1)]))
            items["information"] = Curves(lines, y="nats")
        counts = self.counts("test")
        return Gallery(items if counts is None else {**items, "codes and classes": self._confusion(counts)})

    def _confusion(self, counts: Tensor) -> Table:
        names = self.data.info["classes"]
        rows = []
        for code, (row, named) in enumerate(zip(counts.tolist(), matching(counts).tolist(), strict=True)):
            rows.append({"code": code, "stands for": names[named] if named >= 0 else "", **dict(zip(names, row))})
        return Table.of(rows)

    @action
    def traverse(self, code: str = "cat0", lo: float = -2.0, hi: float = 2.0, steps: int = 11, rows: int = 6, seed: int = 0) -> Images:  # fmt: skip
        """One code turned along each row, everything else held: categories, or a continuous code from `lo` to `hi`."""
        self.need_images()
        z, columns = self.model.turned(code, lo=lo, hi=hi, steps=steps, rows=rows, seed=seed)
        return Images(self.decoded(z.to(self.device)), columns=columns)

    @action
    def confusion(self, split: str = "test") -> Table:
        """How often each category is read off samples of each class, and the class that it stands for."""
        self.model.eval()
        counts = self.counts(split)
        if counts is None:
            raise CapabilityError("a confusion table needs labelled data and a categorical code")
        return self._confusion(counts)

    @action
    def factors(self, n: int = 2000, seed: int = 0) -> Table:
        """Spearman's rank correlation of every continuous code with slant, width, height and ink of generated images:
        over all of them, and the mean of its size within each category (a code may turn one digit left, another right).
        """
        self.need_images()
        codes = self.model.codes
        if not codes.continuous:
            raise CapabilityError("this run has no continuous code; set codes to hold uniform:N")
        z = self.latent(n, torch.Generator().manual_seed(seed))
        self.model.eval()
        measured, c = moments(self.decoded(z)), z[:, self.model.noise :].cpu().double()
        group = c[:, codes.place("cat0")].argmax(1) if codes.categories else torch.zeros(n, dtype=torch.int64)
        rows = []
        for name in (name for name in codes.names if name.startswith("cont")):
            values = c[:, codes.place(name)].flatten()
            row = {"code": name}
            for factor, found in measured.items():
                row[factor] = rank_correlation(values, found)
                row[f"|{factor}| within"] = within_groups(values, found, group)
            rows.append(row)
        return Table.of(rows)


def within_groups(first: Tensor, second: Tensor, group: Tensor) -> float:
    """Mean size of the rank correlation of two samples `[N]` within groups int64 `[N]`; groups of one are left out."""
    inside = [group == g for g in group.unique()]
    sizes = [abs(rank_correlation(first[at], second[at])) for at in inside if int(at.sum()) > 1]
    return sum(sizes) / max(1, len(sizes))
