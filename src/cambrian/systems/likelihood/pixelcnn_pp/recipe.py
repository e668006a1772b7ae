"""Training, evaluation and actions of pixelcnn-pp. Shapes: B pictures, C channels, H x W pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from cambrian.data import images
from cambrian.data.pixels import decode as decode_picture
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, action, recipe
from cambrian.engine.samples import Gallery, Images, Plot, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.systems.likelihood.pixelcnn_pp import _codec
from cambrian.systems.likelihood.pixelcnn_pp._figures import field_figure, histogram_figure
from cambrian.systems.likelihood.pixelcnn_pp.model import HEADS, PixelCNNpp
from cambrian.worlds import glyphs, photos

WORLDS = ("photos", "glyphs")
INITIAL = 100  # pictures that set the first scales and biases


@config
class Config:
    """Options of pixelcnn-pp."""

    steps: int = option(300, "training steps", low=1)
    batch: int = option(16, "pictures per step", low=1)
    size: int = option(8, "pixels of a side of the crops that are trained on", low=4)
    filters: int = option(32, "F, filters of every layer", low=1)
    blocks: int = option(4, "pairs of gated blocks per stage", low=1)
    stages: int = option(1, "resolutions; 1 has no down-sampling", low=1, high=4)
    mixtures: int = option(5, "K, logistics of a pixel", low=1)
    head: str = option("dmol", "mixture of logistics, or a 256-way softmax", choices=HEADS)
    shortcuts: bool = option(True, "connect the way up with the way down")
    conditional: bool = option(False, "condition on the class")
    shuffled: bool = option(False, "permute the grey levels by one fixed permutation (a check of the claim)")
    dropout: float = option(0.5, "dropout in the gated blocks", low=0.0, high=0.9)
    lr: float = option(1e-3, "Adam's step size", low=0.0)
    lr_decay: float = option(0.999995, "factor of the step size per step", low=0.0, high=1.0)
    average: float = option(0.9995, "decay of the average of the weights, once it is warm", low=0.0, high=1.0)
    crops: int = option(8000, "training crops of the embedded world", low=100)
    tested: int = option(500, "test crops of the embedded world", low=10)


CLAIM = Claim(
    name="mixture",
    statement="After 100 steps the discretized mixture of logistics has at least 0.3 bits a sub-pixel less than a 256-way softmax on "
    "the same network, on test crops of photographs.",
    metric="bits_per_dim",
    direction="lower",
    margin=0.3,
    paper="section 3.3 and figure 3: the softmax trains more slowly per step and per epoch (curves, no table)",
    arms={"dmol": Arm({"steps": 100}), "softmax": Arm({"steps": 100, "head": "softmax"})},
    system="dmol",
    baselines=("softmax",),
    sabotage=Arm({"steps": 100, "shuffled": True}),
)

LATE = Claim(
    name="mixture-late",
    statement="After 300 steps the discretized mixture of logistics still has no more bits a sub-pixel than the 256-way softmax.",
    metric="bits_per_dim",
    direction="lower",
    margin=0.0,
    paper="section 3.3 and figure 3: the softmax trains more slowly per step and per epoch (curves, no table)",
    arms={"dmol": Arm(), "softmax": Arm({"head": "softmax"})},
    system="dmol",
    baselines=("softmax",),
    sabotage=Arm({"shuffled": True}),
)


@recipe("pixelcnn-pp", data="photos")
class PixelCNNppRecipe(Recipe[Config]):
    """Maximum likelihood, evaluated with the average of the weights."""

    presets = {
        "smoke": Config(steps=30, filters=12, blocks=1, crops=400, tested=60, lr=4e-3),
        "laptop": Config(),
        "paper": Config(
            steps=300_000, size=32, filters=192, blocks=5, stages=3, mixtures=10, crops=50_000, tested=5000
        ),
    }
    claims = (CLAIM, LATE)
    headline = ("bits_per_dim", "lower")
    without_gradient = ("averaged",)

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """Colour crops of photographs, glyphs, or the pictures of a folder or table, resized to `size`."""
        if source.kind != "world":
            return images.load(source, size=config.size)
        held = max(20, config.tested // 2)
        sizes = {"train": config.crops, "valid": held, "test": config.tested}
        if source.value == "photos":
            return photos.load(size=config.size, channels=3, standardise=False, **sizes)
        if source.value == "glyphs":
            return glyphs.load(size=max(8, config.size), **sizes)
        raise ConfigError(f"pixelcnn-pp reads {', '.join(WORLDS)} or pictures, not {source.value!r}")

    def build(self, config: Config, data: Data) -> None:
        channels, height, width = data.info["shape"]
        self.model = PixelCNNpp(
            channels=channels, filters=config.filters, blocks=config.blocks, stages=config.stages, mixtures=config.mixtures,
            head=config.head, cond_dim=len(data.info["classes"]) if config.conditional else 0, dropout=config.dropout,
            shortcuts=config.shortcuts, shuffled=config.shuffled,
        )  # fmt: skip
        self.model.check_size(height, width)
        train = data.split("train")
        first = train[torch.arange(min(INITIAL, len(train)))]
        self.model.initialise(first["image"], self._condition(first))
        self.averaged = AveragedModel(self.model, avg_fn=self._average)
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=config.lr, betas=(0.95, 0.9995))

    def _average(self, old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        decay = min(self.config.average, (1 + float(count)) / (10 + float(count)))
        return old + (1 - decay) * (new - old)

    def _condition(self, batch: Batch) -> Tensor | None:
        if not self.config.conditional:
            return None
        return F.one_hot(batch["label"], len(self.data.info["classes"])).float()

    @property
    def final(self) -> PixelCNNpp:
        """The network with averaged weights: the one that is measured, sampled and coded with."""
        return self.averaged.module

    # -- training -----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        image = batch["image"]
        loss = -self.model.log_prob(image, self._condition(batch)).mean() / (image[0].numel() * math.log(2))
        for group in self.optim.param_groups:
            group["lr"] = self.config.lr * self.config.lr_decay**self.iteration
        self.minimise(loss, self.optim)
        self.averaged.update_parameters(self.model)
        return {"bits_per_dim": loss.detach()}

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Bits a sub-pixel of the averaged network, and of the training split's histogram of grey levels."""
        total, count, surprise = 0.0, 0, 0.0
        levels = self._histogram()
        for batch in self.batches(split, 64):
            total -= float(self.final.log_prob(batch["image"], self._condition(batch)).sum())
            for c in range(batch["image"].shape[1]):
                surprise -= float(levels[c][batch["image"][:, c].long().cpu()].log().sum())
            count += batch["image"].numel()
        bits = count * math.log(2)
        return {"bits_per_dim": total / bits, "histogram_bits": surprise / bits}

    def _histogram(self) -> Tensor:
        """Share of each grey level by channel in the training split [C, 256], one count added to each."""
        train = self.data.split("train")
        image = train[torch.arange(min(len(train), 4000))]["image"]
        counts = torch.stack(
            [torch.bincount(image[:, c].flatten().long(), minlength=256) for c in range(image.shape[1])]
        )
        return (counts + 1) / (counts + 1).sum(1, keepdim=True)

    # -- what it makes ------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Images:
        """n new pictures; of the classes in turn where the network is conditional."""
        _, height, width = self.data.info["shape"]
        return Images(self.final.sample(n, (height, width), self._classes(n), generator=generator).float() / 255)

    def _classes(self, n: int) -> Tensor | None:
        if not self.config.conditional:
            return None
        classes = len(self.data.info["classes"])
        return F.one_hot(torch.arange(n) % classes, classes).float().to(self.device)

    @action
    def complete(self, n: int = 6, keep: float = 0.5, times: int = 3, seed: int = 0) -> Images:
        """n test pictures (first column), their first rows, and `times` completions of these."""
        split = self.data.split("test")
        batch = split[torch.arange(min(n, len(split)))]
        image, condition = batch["image"].to(self.device), self._condition(batch)
        rows = round(keep * image.shape[2])
        mask = torch.zeros(len(image), *image.shape[2:], dtype=torch.bool, device=self.device)
        mask[:, :rows] = True
        generator = torch.Generator().manual_seed(seed)
        made = [self.final.complete(image, mask, condition, generator=generator) for _ in range(times)]
        shown = torch.stack((image, image * mask[:, None], *made), 1).flatten(0, 1)
        return Images(shown.float() / 255, columns=times + 2)

    @action
    def histogram(self, n: int = 64, seed: int = 0) -> Plot:
        """How often each grey level occurs in the test split and in n samples: the spikes at 0 and 255 show in both."""
        _, height, width = self.data.info["shape"]
        made = self.final.sample(n, (height, width), self._classes(n), seed=seed)
        split = self.data.split("test")
        return Plot(histogram_figure(split[torch.arange(min(len(split), 1000))]["image"], made))

    @action
    def field(self) -> Plot:
        """Which pixels the middle pixel's outputs depend on, and how strongly (gradients on a test picture)."""
        batch = self.data.split("test")[torch.tensor([0])]
        with torch.enable_grad():
            x = self.final.scaled(batch["image"].to(self.device)).requires_grad_()
            out = self.final.network(x, self._condition(batch))
            row, column = x.shape[2] // 2, x.shape[3] // 2
            (gradient,) = torch.autograd.grad(out[0, :, row, column].square().sum(), x)
        return Plot(field_figure(gradient[0].abs().sum(0).cpu(), row, column))

    # -- files --------------------------------------------------------------------------------------------------------

    @action
    def encode(self, input: str, output: str = "") -> Table:
        """Write a picture as a lossless file (default: its name with .cmbp), decode it again, and compare sizes with PNG."""
        image = self._read(Path(input))
        coded = _codec.encode(self.final, image, self._tile())
        place = Path(output) if output else Path(input).with_suffix(".cmbp")
        place.write_bytes(coded.data)
        same = torch.equal(_codec.decode(self.final, coded.data), image)
        rows: dict[str, Any] = {
            "file": str(place), "bytes": len(coded.data), "payload": coded.payload, "network's bytes": coded.bits / 8,
            "payload / network": 8 * coded.payload / coded.bits, "bits a sub-pixel": 8 * coded.payload / image.numel(),
            "bytes of the input": Path(input).stat().st_size, "decodes exactly": same,
        }  # fmt: skip
        return Table(["what", "value"], [[name, value] for name, value in rows.items()])

    @action
    def decode(self, input: str) -> Gallery:
        """The picture of a file that `encode` wrote, as PNG."""
        try:
            data = Path(input).read_bytes()
        except OSError as error:
            raise DataError(f"{input}: cannot be read ({error.strerror})") from error
        image = _codec.decode(self.final, data)
        return Gallery(
            {
                "picture": Images(image[None].float() / 255, columns=1, scale=1),
                "size": Table(["H", "W"], [list(image.shape[1:])]),
            }
        )

    def _tile(self) -> int:
        if self.config.conditional:
            raise CapabilityError("a conditional network needs the class to decode; train one with conditional=false")
        return min(self.data.info["shape"][1:])

    def _read(self, path: Path) -> Tensor:
        try:
            return torch.from_numpy(decode_picture(path.read_bytes(), str(path), channels=self.model.channels))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
