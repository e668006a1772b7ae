"""ResNets of basic blocks (He et al. 2015, arXiv 1512.03385)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut: `[B, C, H, W]` -> `[B, C', H / stride, W / stride]`.

    The shortcut is the identity, or a 1x1 convolution where the shape changes (option B of the paper); without it the
    block is a plain stack of two layers.
    """

    def __init__(self, *, inputs: int, outputs: int, stride: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = None if plain else nn.Identity()
        if not plain and (stride != 1 or inputs != outputs):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y if self.shortcut is None else y + self.shortcut(x))


class ResNet(Pretrained, nn.Module):
    """Stages of basic blocks, global average, one linear layer; the default is ResNet-18 for 32x32 images.

    `stem` "small" (3x3, no pooling) or "imagenet" (7x7 of stride 2 and pooling; 11,689,512 parameters at 1,000
    classes). `blocks=(3, 3, 3), widths=(16, 32, 64)` is the paper's 20-layer net for CIFAR with projections.
    `zero_gamma` starts each block as the identity (Goyal et al. 2017, section 5.1); `plain` leaves all shortcuts out.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        blocks: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        width: float = 1.0,
        stem: str = "small",
        zero_gamma: bool = False,
        plain: bool = False,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if stem not in ("small", "imagenet"):
            raise ConfigError(f"stem must be small or imagenet, not {stem!r}")
        if len(blocks) != len(widths):
            raise ConfigError(f"blocks and widths must be equally long, not {tuple(blocks)} and {tuple(widths)}")
        self.channels = channels
        self.normalise = Normalise(mean, std)
        wide = [scaled(number, width) for number in widths]
        self.stem = _stem(channels, wide[0], stem)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = wide[0]
        for stage, (count, outputs) in enumerate(zip(blocks, wide, strict=True), start=1):
            for number in range(1, count + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                block = BasicBlock(inputs=inputs, outputs=outputs, stride=stride, plain=plain)
                stages[f"block{stage}_{number}"] = block
                inputs = outputs
        self.body = nn.Sequential(stages)
        head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(inputs, classes))
        self.classifier = nn.Sequential(head)
        initialise(self, "he")
        if zero_gamma:
            with torch.no_grad():
                for block in self.body.children():
                    nn.init.zeros_(block.bn2.weight)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, None, "ResNet")
        return self.classifier(self.body(self.stem(self.normalise(x))))


def _stem(channels: int, width: int, kind: str) -> nn.Sequential:
    kernel, stride = (3, 1) if kind == "small" else (7, 2)
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(width), relu=nn.ReLU())
    if kind == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers)
