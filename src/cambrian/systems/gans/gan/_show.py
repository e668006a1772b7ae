"""What a trained GAN measures, shows and lets its user do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.data import images as pictures
from cambrian.data.split import Batch
from cambrian.engine.recipe import Recipe, action
from cambrian.engine.samples import Animation, Gallery, Images, Points, Table
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.target import Space, Target, wrap
from cambrian.metrics.judges import Judge, judge_of
from cambrian.metrics.parzen import parzen_score
from cambrian.nn.adversarial import (
    FAKE,
    REAL,
    DCGANGenerator,
    MovingAverage,
    discriminator_accuracy,
    invert,
    source_logit,
)
from cambrian.systems.gans._judging import judged
from cambrian.systems.gans.gan import _tools
from cambrian.systems.gans.gan._config import Config
from cambrian.systems.gans.gan.model import GAN

FRAMES = 12  # sheets kept while training, for the animation


class Measuring(Recipe[Config]):
    """Evaluation: accuracy of the classifier, modes of points, and a judge's scores of images."""

    gan: GAN
    show_z: Tensor
    semi: bool
    averaged: MovingAverage

    def _real(self, batch: Batch) -> Tensor:
        if self.data.kind == "points":
            return batch["point"]
        return (pictures.signed if self.gan.signed else pictures.unit)(batch["image"])

    def _latent(self, count: int, generator: torch.Generator) -> Tensor:
        return self.gan.prior(count, generator).to(self.device)

    def _best(self) -> GAN:
        """The averaged model where there is one."""
        model = self.averaged.averaged if self.config.ema else self.gan
        assert isinstance(model, GAN)
        return model

    def _made(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples on the CPU; images in [0, 1]."""
        model = self._best()
        z = self._latent(count, generator)
        return model.show(torch.cat([model.generate(rows) for rows in z.split(250)])).cpu()

    @torch.no_grad()
    def _keep_frame(self) -> None:
        done, total = self.iteration + 1, self.config.steps
        if FRAMES * done // total > FRAMES * (done - 1) // total and self.data.kind != "points":
            self.gan.eval()
            frame = self.gan.show(self.gan.generate(self.show_z.to(self.device))).cpu()
            self.gan.train()
            self.extra["frames"] = torch.cat((self.extra["frames"], frame[None]))

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """`accuracy` of a semi-supervised D; of points, modes; of images with labels, `classifier_score` (1 to K) and
        `frechet` in a judge's features where the judge is good enough; `d_accuracy` (0.5: D cannot tell)."""
        model, right, count = self._best(), 0, 0
        if self.semi:
            for batch in self.batches(split):
                right += int((model.discriminate(self._real(batch)).argmax(1) == batch["label"]).sum())
                count += len(batch["label"])
        made = self._made(self.config.samples, generator)
        held = self._real(next(self.batches(split, min(500, self.config.samples))))
        fakes = made[: len(held)].to(self.device)
        on_real, on_fake = self._source(held), self._source(fakes.mul(2).sub(1) if model.signed else fakes, FAKE)
        out = {"d_accuracy": float(discriminator_accuracy(on_real, on_fake))}
        if self.semi:
            return {"accuracy": right / count, **out}
        return out | judged(self.data, made)

    def _source(self, x: Tensor, source: int = REAL) -> Tensor:
        logits = self._best().discriminate(x, (source,))
        return source_logit(logits) if self.semi else logits[:, 0]

    def judge(self) -> Judge:
        """The classifier that scores samples of this dataset, trained on its labels once and cached."""
        return judge_of(self.data.split("train"), self.data.split("test"), len(self.data.info["classes"]))


class Showing(Measuring):
    """Samples and actions."""

    def sample(self, n: int, generator: torch.Generator) -> Gallery | Points:
        """A sheet of samples, and the same 16 latents while training went on."""
        made = self._made(n, generator)
        if self.data.kind == "points":
            return Points(made, torch.tensor(self.data.info["centres"]), limit=6.0)
        frames = [Images(frame, columns=4) for frame in self.extra["frames"]]
        return Gallery({"samples": Images(made)} | ({"over time": Animation(frames)} if frames else {}))

    def target(self) -> Target:
        """The discriminator as a classifier; without class logits (labels_per_class=0) its features can still be
        probed.
        """
        if self.data.kind == "points":
            raise CapabilityError("a discriminator of points is no image classifier; train gan on images")
        model = self._best()
        if model.reference:
            raise CapabilityError("virtual batch norm needs its reference batch beside every input; train without it")
        space = Space.image(model.shape, *((-1.0, 1.0) if model.signed else (0.0, 1.0)))
        network: nn.Module = model.discriminator
        return wrap(network, space=space, classes=self.data.info["classes"], data=self.data)

    @action
    def interpolate(self, n: int = 9, rows: int = 4, seed: int = 0) -> Images:
        """Walks of `n` steps between random latents, one a row."""
        self._images()
        ends = self._latent(2 * rows, torch.Generator().manual_seed(seed)).unflatten(0, (2, rows))
        way = torch.linspace(0, 1, n, device=self.device)[None, :, None]
        z = torch.lerp(ends[0][:, None], ends[1][:, None], way).flatten(0, 1)
        return Images(self._draw(z), columns=n)

    @action
    def arithmetic(
        self, plus: str, minus: str, other: str, expected: str = "", triples: int = 100, seed: int = 0
    ) -> Gallery:
        """`plus - minus + other` on class names: three rows of 3 exemplars, the 3x3 result; with `expected`, how
        often the judge sees that class in latent and in pixel arithmetic."""
        classes = [self._class(name) for name in (plus, minus, other, expected or other)]
        draw, pools = torch.Generator().manual_seed(seed), []
        for label in classes[:3]:
            prior = lambda count: self._latent(count, draw)  # noqa: E731
            pools.append(_tools.exemplars(self._draw, prior, self.judge(), label, 12))
        chosen = [pool[:3] for pool in pools]
        self._best().eval()
        result = self._best().arithmetic(*chosen, generator=draw).cpu()
        shown = {
            "exemplars": Images(torch.cat([self._draw(z) for z in chosen]), columns=3),
            "result": Images(result, columns=3),
        }
        if not expected:
            return Gallery(shown)
        shares = _tools.arithmetic_trial(self._draw, pools, self.judge(), classes[3], triples, draw)
        row = {"expected": expected, "accepted in latent space": shares[0], "accepted in pixels": shares[1]}
        return Gallery({**shown, "trial": Table.of([row])})

    @action
    def turn(self, start: str, end: str, rows: int = 4, n: int = 7, strength: float = 1.0, seed: int = 0) -> Images:
        """Add the vector between the mean latents of two classes to other samples, from -strength to strength."""
        ends = [self._class(name) for name in (start, end)]
        draw = torch.Generator().manual_seed(seed)
        prior = lambda count: self._latent(count, draw)  # noqa: E731
        a, b = (_tools.exemplars(self._draw, prior, self.judge(), label, 12).mean(0) for label in ends)
        z = self._latent(rows, draw)[:, None] + torch.linspace(-strength, strength, n)[None, :, None] * (b - a) / 2
        return Images(self._draw(z.flatten(0, 1)), columns=n)

    @torch.no_grad()
    def _draw(self, z: Tensor) -> Tensor:
        model = self._best().eval()
        return torch.cat([model.show(model.generate(rows)).cpu() for rows in z.split(250)])

    def _class(self, name: str) -> int:
        names = self.data.info["classes"]
        if name not in names:
            raise ConfigError(f"{self.data.name} has no class {name!r}; classes: {', '.join(names)}")
        return names.index(name)

    def _images(self) -> None:
        if self.data.kind != "images":
            raise CapabilityError(f"this action needs images, the run has {self.data.kind}")


class Probing(Showing):
    """Actions that look into the nets, and at what the samples are near to."""

    @action
    def remove(self, n: int = 8, found: int = 48, block: int = -1, seed: int = 0) -> Images:
        """Take glasses off: faces with glasses are inverted, the generator's maps that draw the glasses' box are
        found by logistic regression and set to zero. Rows: the faces as generated, and without these maps."""
        up, test = self._best().generator, self.data.split("test")
        if not isinstance(up, DCGANGenerator) or self.data.name != "faces" or self._best().reference:
            raise CapabilityError("remove needs arch=dcgan trained on the faces world, where glasses' boxes are known")
        up.eval()
        batch = test[torch.arange(min(len(test), 6 * found))]
        chosen = (batch["attributes"][:, 2] > 0).nonzero().flatten()[:found]
        draw = torch.Generator().manual_seed(seed)
        z, _ = invert(up, self._real(batch)[chosen], prior=self._latent, generator=draw, restarts=1, steps=30)
        at = block % len(up.blocks)
        filters = _tools.object_filters(up, z, batch["glasses_box"][chosen], at)
        bare = _tools.without_filters(up, z[:n], filters, at)
        return Images(self._best().show(torch.cat((up(z[:n]).detach(), bare))), columns=n)

    @action
    def probe(self, n: int = 2000, cost: float = 1e-3) -> Table:
        """Accuracy of a linear SVM on D's features and on pixels, trained on `n` labelled samples."""
        self._images()
        parts = [self.data.split(name)[torch.arange(min(n, len(self.data.split(name))))] for name in ("train", "test")]
        self._best().eval()
        features = [torch.cat([self._best().features(x) for x in self._real(b).split(250)]) for b in parts]
        labels = [b["label"] for b in parts]
        pixels = [self._real(b).flatten(1) for b in parts]
        rows = {name: _tools.linear_probe((x[0], labels[0]), (x[1], labels[1]), cost) for name, x in (("features", features), ("pixels", pixels))}  # fmt: skip
        return Table.of([{"input": name, "test accuracy": value} for name, value in rows.items()])

    @action
    def neighbours(self, n: int = 8, seed: int = 0) -> Images:
        """Samples above their nearest training images: copies would show."""
        self._images()
        train = self.data.split("train")
        real = pictures.unit(train[torch.arange(min(len(train), 10_000))]["image"])
        made = self._draw(self._latent(n, torch.Generator().manual_seed(seed)))
        return Images(torch.cat((made, real[_tools.nearest_neighbours(made, real)])), columns=n)

    @action
    def parzen(self, samples: int = 10_000, seed: int = 0) -> Table:
        """The figure of 2014: mean log-likelihood of test data under a Parzen window on samples, sigma by held-out
        data.
        """
        self._images()
        with torch.no_grad():
            made = self._made(samples, torch.Generator().manual_seed(seed)).flatten(1)
        rows = [pictures.unit(b["image"]).flatten(1) for b in (self.data.split(s)[torch.arange(min(1000, len(self.data.split(s))))] for s in ("valid", "test"))]  # fmt: skip
        nats, sigma = parzen_score(rows[0], rows[1], made)
        return Table.of([{"log-likelihood (nats)": nats, "sigma": sigma, "samples": samples}])
