"""VGG networks on any labelled pictures, and the claim about 3x3 pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cambrian.data import images
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import action, recipe
from cambrian.engine.samples import Table
from cambrian.errors import ConfigError
from cambrian.nn.zoo.vgg import PAIRS, PLANS, VGG
from cambrian.systems.perception._classifier import Classifier, TrainingConfig
from cambrian.systems.perception.vgg.model import dense_predict, multi_crop_predict


@config
class Config(TrainingConfig):
    """Options of one VGG network and its training."""

    plan: str = option("B", "which network of the family", choices=tuple(PLANS))
    pair: str = option("3x3", "how plan B builds the pair of convolutions of a stage", choices=PAIRS)
    bn: bool = option(True, "batch normalisation after each convolution")
    width: float = option(0.125, "multiplies all widths", low=0.01, high=4.0)
    head: str = option("gap", "fc: three layers with dropout; gap: global average and one", choices=("fc", "gap"))
    hidden: int = option(4096, "width of the two hidden FC layers, before the multiplier", low=1)
    dropout: float = option(0.5, "dropout between FC layers", low=0.0, high=0.95)
    stages: int = option(5, "stages used; each halves the picture", low=1, high=5)
    init: str = option("he", "initialisation; normal is the paper's N(0, 0.01^2)", choices=("he", "glorot", "normal"))

    def check(self) -> None:
        """Conditions across fields."""
        super().check()
        if self.size < 2**self.stages:
            raise ConfigError(f"size {self.size} vanishes after {self.stages} poolings; raise size or lower stages")


SMALL_TARGET: dict[str, object] = {"plan": "A", "stages": 3, "steps": 300}
"""A small, good classifier for studies of verbs: `targets.trained("vgg", data="glyphs", overrides=SMALL_TARGET)`.

Four convolutions of 8 to 32 maps (4x4 pixels at the end), 1/8 of VGG-A's widths, on 32x32 digits: 7 CPU-seconds.
`SMALL_COLOUR_TARGET` is the same network on 36 coloured characters: 23 CPU-seconds.
"""
SMALL_COLOUR_TARGET: dict[str, object] = {
    **SMALL_TARGET, "steps": 900, "samples": 12_000, "lr": 0.1, "characters": "alnum", "channels": 3,
}  # fmt: skip


CLAIM = Claim(
    name="stacked-3x3",
    statement="With batch normalisation, network B (pairs of 3x3 convolutions) tells 17 photographs apart by standardised "
    "32x32 crops at least 1 point better than the same network with one 5x5 convolution for each pair.",
    metric="accuracy",
    direction="higher",
    margin=0.01,
    paper="section 4.1: the shallow net with 5x5 layers for the pairs of B has a 7 points higher top-1 error (ILSVRC)",
    arms={"B": Arm(), "B5": Arm({"pair": "5x5"})},
    system="B",
    baselines=("B5",),
    sabotage=Arm({"pair": "5x5"}),
    seeds=(0, 1, 2, 3, 4),
)


@recipe("vgg", data="photos")
class VGGRecipe(Classifier[Config]):
    """SGD with momentum on cross-entropy over keyed augmentation."""

    presets = {
        "smoke": Config(steps=80, plan="A", samples=1000),
        "laptop": Config(),
        "paper": Config(
            steps=370_000, batch=256, plan="D", bn=False, width=1.0, head="fc", size=224, rescale=256, channels=3,
            lr=0.01, schedule="plateau", look=5000, flip=True, zoom=2.0, colour_noise=0.1,
        ),
    }  # fmt: skip
    claims = (CLAIM,)

    def network(self, classes: int, channels: int, size: int, mean: Sequence[float], std: Sequence[float]) -> VGG:
        c = self.config
        return VGG(
            plan=c.plan, pair=c.pair, classes=classes, channels=channels, size=size, bn=c.bn, width=c.width,
            head=c.head, hidden=c.hidden, dropout=c.dropout, stages=c.stages, init=c.init, mean=mean, std=std,
        )  # fmt: skip

    @action
    def dense(self, n: int = 500, larger: float = 1.25) -> Table:
        """Compare one centre view with dense and multi-crop evaluation at the trained size and `larger` times it."""
        scales = (self.side, round(self.side * larger))
        split = self.data.split("test")
        batch = split[torch.arange(min(n, len(split)))]
        x, label = images.unit(batch["image"]).to(self.device), batch["label"].to(self.device)
        with torch.no_grad():
            single = self.model(self.views(batch["image"].to(self.device))).softmax(1)
        flips = self.config.flip
        dense = dense_predict(self.model, x, scales=scales, flips=flips)
        crops = multi_crop_predict(self.model, x, scales=scales, grid=3, flips=flips)
        views = {"centre": single, "dense": dense, "multi-crop": crops, "dense + multi-crop": (dense + crops) / 2}
        rows = [[name, float((p.argmax(1) == label).float().mean())] for name, p in views.items()]
        return Table(["view", "accuracy"], rows)
