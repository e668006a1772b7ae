"""Training a picture classifier: options, data, augmentation, learning rate and figures, whatever the network.

A recipe of this family gives `network(...)`; everything else is here.

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.data import augment, digits, images
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data, Split
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Scalars, Supervised
from cambrian.engine.samples import Gallery, Images, Table
from cambrian.errors import ConfigError, DataError
from cambrian.inspect.target import ModuleTarget, Space, wrap
from cambrian.worlds import glyphs, photos

CHARACTERS = {"digits": glyphs.DIGITS, "alnum": glyphs.ALNUM, "all": glyphs.ALL}
LARGEST_WORLD = 64  # embedded pictures are drawn at most this large


@config
class TrainingConfig:
    """Options of the training, and of the pictures, of any network."""

    steps: int = option(1300, "training steps", low=1)
    batch: int = option(64, "samples per step", low=1)
    size: int = option(32, "edge of the network's input", low=4)
    rescale: int | None = option(None, "shorter side before a window of size is cut; None: size itself", low=4)
    channels: int | None = option(None, "1 grey, 3 colour, None as the data is (embedded worlds: grey)", choices=(1, 3))
    samples: int = option(6000, "training samples drawn from an embedded world", low=10)
    characters: str = option("digits", "what glyphs shows", choices=tuple(CHARACTERS))
    lr: float = option(0.05, "learning rate of SGD", low=0.0)
    momentum: float = option(0.9, "momentum of SGD", low=0.0, high=0.999)
    weight_decay: float = option(5e-4, "weight decay", low=0.0)
    schedule: str = option("cosine", "plateau divides lr by 10, three times", choices=("cosine", "constant", "plateau"))
    look: int = option(500, "steps between two looks at the validation loss (plateau)", low=1)
    patience: int = option(3, "looks without improvement before lr falls (plateau)", low=1)
    flip: bool = option(False, "mirror half of the training pictures")
    crop: int = option(0, "pad by so many pixels and cut a random window", low=0)
    zoom: float = option(1.0, "scale jitter: enlarge by up to this factor and cut a random window", low=1.0, high=4.0)
    colour_noise: float = option(0.0, "standard deviation of PCA colour noise (paper: 0.1)", low=0.0)

    def check(self) -> None:
        """Conditions across fields."""
        if self.rescale is not None and self.rescale < self.size:
            raise ConfigError(f"rescale must be at least size {self.size}, not {self.rescale}")


C = TypeVar("C", bound=TrainingConfig)


class Classifier(Supervised[C]):
    """SGD with momentum on cross-entropy over keyed augmentation; a system gives `network`."""

    headline = ("accuracy", "higher")

    def network(self, classes: int, channels: int, size: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """The network for inputs `[B, channels, size, size]` in [0, 1]; `mean` and `std` are the pixels' by channel."""
        raise NotImplementedError

    @classmethod
    def load_data(cls, config: TrainingConfig, source: Source) -> Data:
        side = config.rescale or config.size
        if source.kind != "world":
            return images.load(source, size=side, channels=config.channels)
        side = min(side, LARGEST_WORLD)
        if source.value == "glyphs":
            text = CHARACTERS[config.characters]
            return glyphs.load(train=config.samples, size=side, colour=config.channels == 3, characters=text)
        if source.value == "photos":
            return photos.load(train=config.samples, test=4000, size=side, channels=config.channels or 1)
        if source.value == "digits":
            return digits.load(valid=200)
        raise DataError(
            f"{cls.slug} classifies pictures; {source.value!r} is not among glyphs, photos, digits or a folder"
        )

    def build(self, config: C, data: Data) -> None:
        channels, height, width = data.info["shape"]
        classes = data.info["classes"]
        if height != width:
            raise DataError(f"{self.slug} takes square pictures, not {height}x{width}; read them with a size")
        if len(classes) < 2:
            raise DataError(f"{data.name} has no labels to learn; sort its pictures into a folder for each class")
        self.side = min(config.size, height)
        train = data.split("train")
        mean, std = pixel_statistics(train)
        network = self.network(len(classes), channels, self.side, mean, std)
        self.model = network.to(self.device, memory_format=torch.channels_last)
        self.optim = self.optimiser(
            torch.optim.SGD,
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        for group in self.optim.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.extra = {"best": None, "stalled": 0, "drops": 0}
        if config.colour_noise:
            self.basis = augment.colour_basis(images.unit(_head(train)["image"])).to(self.device)

    # -- training -------------------------------------------------------------------------------------------------

    def objective(self, batch: Batch) -> tuple[Tensor, Scalars]:
        logits = self.model(self.augmented(batch["image"], batch["key"]))
        accuracy = (logits.detach().argmax(1) == batch["label"]).float().mean()
        return F.cross_entropy(logits, batch["label"]), {"accuracy": accuracy}

    def step(self, batch: Batch) -> Scalars:
        rate = self._set_rate()
        scalars = super().step(batch)
        if self.config.schedule == "plateau" and (self.iteration + 1) % self.config.look == 0:
            self._look()
        return {**scalars, "lr": rate}

    def augmented(self, image: Tensor, key: Tensor) -> Tensor:
        """Training views `[B, C, side, side]` in about [0, 1] of stored pictures, each a function of its own key."""
        config = self.config
        if image.shape[-1] > self.side:
            image = augment.window(image, key, (self.side, self.side))
        if config.crop:
            image = augment.crop(image, key, config.crop)
        if config.flip:
            image = augment.flip(image, key)
        x = images.unit(image)
        if config.zoom > 1.0:
            x = augment.zoom(x, key, config.zoom)
        if config.colour_noise:
            x = augment.colour_noise(x, key, self.basis, config.colour_noise)
        return x.contiguous(memory_format=torch.channels_last)

    def _set_rate(self) -> float:
        """Set the learning rate of this step, as a share of each group's first; returns the first group's."""
        share = 0.1 ** self.extra["drops"]
        if self.config.schedule == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * self.iteration / self.config.steps))
        for group in self.optim.param_groups:
            group["lr"] = share * group["initial_lr"]
        return float(self.optim.param_groups[0]["lr"])

    def _look(self) -> None:
        """Lower the rate after `patience` looks without a better validation loss, at most three times (section 3.1)."""
        self.model.eval()
        with torch.no_grad():
            loss = self._figures("valid")["loss"]
        self.model.train()
        if self.extra["best"] is None or loss < self.extra["best"]:
            self.extra.update(best=loss, stalled=0)
            return
        self.extra["stalled"] += 1
        if self.extra["stalled"] >= self.config.patience and self.extra["drops"] < 3:
            self.extra.update(stalled=0, drops=self.extra["drops"] + 1)

    # -- what it shows --------------------------------------------------------------------------------------------

    def views(self, image: Tensor) -> Tensor:
        """Test views: the centre window of stored pictures, in [0, 1]."""
        edge = (image.shape[-1] - self.side) // 2
        return images.unit(image[:, :, edge : edge + self.side, edge : edge + self.side])

    def _figures(self, split: str) -> dict[str, float]:
        right, among, loss, count = 0.0, 0.0, 0.0, 0
        for batch in self.batches(split, 500):
            logits, label = self.model(self.views(batch["image"])), batch["label"]
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
            right, among = right + float(best[:, 0].sum()), among + float(best.any(1).sum())
            loss += float(F.cross_entropy(logits, label, reduction="sum"))
            count += len(label)
        return {"accuracy": right / count, "accuracy_top5": among / count, "loss": loss / count}

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Accuracy (top 1 and top 5) and mean cross-entropy of the centre view."""
        return self._figures(split)

    def sample(self, n: int, generator: torch.Generator) -> Gallery:
        """Test pictures, and for each what the network takes it for."""
        split = self.data.split("test")
        index = torch.randint(len(split), (n,), generator=generator)
        batch = {name: column.to(self.device) for name, column in split[index].items()}
        x = self.views(batch["image"])
        chance, guess = self.model(x).softmax(1).max(1)
        names = self.data.info["classes"]
        rows = [
            [i, names[int(batch["label"][i])], names[int(guess[i])], f"{float(chance[i]):.2f}"] for i in range(len(x))
        ]
        return Gallery({"pictures": Images(x), "guesses": Table(["picture", "class", "guess", "probability"], rows)})

    def target(self) -> ModuleTarget:
        """The network with its normalisation inside, on pixels in [0, 1]."""
        channels = self.data.info["shape"][0]
        if self.data.info["shape"][1] != self.side:
            raise DataError("a target's pictures must have the network's size; train with rescale=none")
        space = Space.image((channels, self.side, self.side))
        return wrap(self.model, space=space, classes=self.data.info["classes"], data=self.data)


def _head(split: Split, n: int = 2000) -> Batch:
    return split[torch.arange(min(n, len(split)))]


def pixel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the first 2,000 samples, on the scale [0, 1]."""
    pixels = images.unit(_head(split)["image"]).transpose(0, 1).flatten(1).double()
    std = pixels.std(1).clamp_min(1e-3)
    return [round(float(v), 6) for v in pixels.mean(1)], [round(float(v), 6) for v in std]
