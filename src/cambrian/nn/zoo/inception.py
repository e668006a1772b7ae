"""A small network of Inception modules (Szegedy et al. 2014, arXiv 1409.4842, figure 2b) for pictures of 32 or 64 pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, scaled


class Inception(nn.Module):
    """Four branches side by side, `[B, C, H, W]` -> `[B, sum of the widths, H, W]`; a ReLU after every convolution.

    `widths`: maps of the 1x1 branch, of the 3x3 reduction and the 3x3, of the 5x5 reduction and the 5x5, and of the
    1x1 that follows a 3x3 max-pooling.
    """

    def __init__(self, *, inputs: int, widths: Sequence[int], bn: bool = True) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        self.one = conv(inputs, one, 1, bn)
        self.three = nn.Sequential(conv(inputs, reduce3, 1, bn), conv(reduce3, three, 3, bn))
        self.five = nn.Sequential(conv(inputs, reduce5, 1, bn), conv(reduce5, five, 5, bn))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, pooled, 1, bn))
        self.outputs = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


class InceptionNet(Pretrained, nn.Module):
    """A stem with local response normalisation, three Inception modules with pooling between, global average, linear.

    Module widths are those of GoogLeNet's 3a, 3b and 4a (table 1) times `width`. Batch norm in the modules (not in the
    paper, which trains for a week) is on by default.
    """

    MODULES = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64))

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        width: float = 0.125,
        bn: bool = True,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.normalise = Normalise(mean, std)
        stem = scaled(192, width)
        self.stem = nn.Sequential(conv(channels, stem, 3, bn), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, 1))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = stem
        for number, widths in enumerate(self.MODULES, start=1):
            module = Inception(inputs=inputs, widths=[scaled(size, width) for size in widths], bn=bn)
            layers[f"inception{number}"] = module
            inputs = module.outputs
            if number < len(self.MODULES):
                layers[f"pool{number}"] = nn.MaxPool2d(3, 2, 1)
        self.body = nn.Sequential(layers)
        head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(inputs, classes))
        self.classifier = nn.Sequential(head)
        initialise(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, None, "InceptionNet")
        return self.classifier(self.body(self.stem(self.normalise(x))))


def conv(inputs: int, outputs: int, kernel: int, bn: bool) -> nn.Sequential:
    """A convolution that keeps the size, batch norm if wanted, and ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not bn)
    if bn:
        layers["bn"] = nn.BatchNorm2d(outputs)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)
