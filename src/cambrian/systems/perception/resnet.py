"""Deep Residual Learning for Image Recognition.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun. CVPR 2016. arXiv 1512.03385.

Layers that learn what to add to their input instead of what to make of it. A stack of plain layers that is made deeper
gets worse even on its training set; with an identity path around every two layers the gradient has a way through, and
depth pays. Every other network of the zoo trains by the same recipe (`--set net=...`), for comparison and as something to
compress, explain and attack.

Claim: on 17 kinds of photographs, a 56-layer network with shortcuts is at least 5 points more accurate than the same
layers without them, trained alike.

    y = relu( F(x) + x ),   F = conv3x3, BN, relu, conv3x3, BN              (eq. 1)
    y = relu( F(x) + W x )  where the shape changes, W a 1x1 convolution     (eq. 2, option B)
    6n + 2 layers: conv, 3 stages of 2n layers with 16, 32, 64 maps on 32, 16, 8 pixels, global average, FC

Differs from the paper:
- projections (option B) where the CIFAR networks of the paper pad with zeros (option A)
- the claim is trained for minutes, not for 64,000 steps; the rate falls along a cosine
- bottleneck blocks (50 layers and more on ImageNet) are not built

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.recipe import recipe
from cambrian.errors import ConfigError
from cambrian.nn import zoo
from cambrian.systems.perception._classifier import Classifier, TrainingConfig


@config
class Config(TrainingConfig):
    """Options of one network of the zoo and its training."""

    net: str = option("resnet-20", "which network of the zoo", choices=zoo.NAMES)
    width: float | None = option(None, "multiplies the widths; None: the network's own", low=0.01, high=4.0)
    plain: bool = option(False, "leave the shortcuts of a resnet out")

    def check(self) -> None:
        """Conditions across fields."""
        super().check()
        if self.plain and not self.net.startswith("resnet"):
            raise ConfigError(f"plain takes the shortcuts out of a resnet; {self.net} has none")


_GLYPHS: dict[str, object] = {"characters": "alnum", "channels": 3, "samples": 8000}
GLYPH_TARGETS: dict[str, dict[str, object]] = {
    "lenet-5": {**_GLYPHS, "net": "lenet-5", "lr": 0.01, "steps": 400},
    "vgg-small": {**_GLYPHS, "net": "vgg-small", "lr": 0.1, "steps": 800},
    "resnet-mini": {**_GLYPHS, "net": "resnet-mini", "lr": 0.05, "steps": 600},
    "inception-mini": {**_GLYPHS, "net": "inception-mini", "lr": 0.1, "steps": 500},
    "wide-elu": {**_GLYPHS, "net": "wide-elu", "lr": 0.05, "steps": 1000},
}
"""Five unlike networks on 36 coloured characters for studies of verbs, each in about a CPU-minute or less, most of them above
90 % (seed 101: 93 to 97; resnet-mini with seed 0 stops at 81):
`targets.trained("resnet", data="glyphs", overrides=GLYPH_TARGETS["lenet-5"])`.
"""

DEEP: dict[str, object] = {"net": "resnet-56", "width": 0.5, "size": 16, "steps": 600}
CLAIM = Claim(
    name="shortcuts",
    statement="A 56-layer network with shortcuts tells 17 photographs apart by standardised crops at least 5 points "
    "better than the same layers without shortcuts.",
    metric="accuracy",
    direction="higher",
    margin=0.05,
    paper="figure 6 (CIFAR-10): the 56-layer plain net is worse than the 20-layer one; ResNet-56 has 6.97 % errors",
    arms={"residual": Arm(DEEP), "plain": Arm({**DEEP, "plain": True})},
    system="residual",
    baselines=("plain",),
    sabotage=Arm({**DEEP, "plain": True}),
    seeds=(0, 1, 2),
)


@recipe("resnet", data="photos")
class ResNetRecipe(Classifier[Config]):
    """Any network of the zoo under one training."""

    presets = {
        "smoke": Config(steps=60, net="resnet-mini", samples=1000, lr=0.1),
        "laptop": Config(steps=600, lr=0.1),
        "paper": Config(
            steps=64_000, batch=128, net="resnet-56", lr=0.1, weight_decay=1e-4, schedule="plateau", flip=True, crop=4,
            channels=3,
        ),
    }  # fmt: skip
    claims = (CLAIM,)

    def network(self, classes: int, channels: int, size: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        c = self.config
        chosen: dict[str, Any] = {}
        if c.width is not None:
            chosen["width"] = c.width
        if c.plain:
            chosen["plain"] = True
        return zoo.fitted(c.net, classes=classes, channels=channels, size=size, mean=mean, std=std, **chosen)
