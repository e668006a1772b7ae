"""LeNet (1998), AlexNet (2012, 2014) and Network in Network (2013)."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, make_activation, scaled


class LeNet(Pretrained, nn.Module):
    """Two 5x5 convolutions with 2x2 pooling, then fully connected layers.

    The default is the 431,080-parameter form that compression papers use (20 and 50 maps, 500 units, 28x28 grey);
    `widths=(6, 16), hidden=(120, 84), size=32, activation="tanh"` has LeCun et al. 1998's sizes (all maps connected).
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        size: int = 28,
        widths: Sequence[int] = (20, 50),
        hidden: Sequence[int] = (500,),
        activation: str = "relu",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise ConfigError(f"images of {size} pixels are too small for LeNet; at least 16 are needed")
        self.channels, self.size = channels, size
        self.normalise = Normalise(mean, std)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (inputs, width) in enumerate(zip((channels, widths[0]), widths, strict=True), start=1):
            layers[f"conv{number}"] = nn.Conv2d(inputs, width, 5)
            layers[f"act{number}"] = make_activation(activation)
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        self.body = nn.Sequential(layers)
        self.classifier = _dense((widths[1] * side**2, *hidden, classes), activation, 0.0)
        initialise(self, "he" if activation == "relu" else "glorot")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, self.size, "LeNet")
        return self.classifier(self.body(self.normalise(x)))


class AlexNet(Pretrained, nn.Module):
    """The one-tower AlexNet (Krizhevsky 2014, arXiv 1404.5997): five convolutions, three fully connected layers.

    61,100,840 parameters at 224x224 and 1,000 classes. `size=64, stem_stride=2` is the form for small images;
    `lrn` adds the 2012 paper's local response normalisation, `widths=(96, 256, 384, 384, 256)` its widths.
    """

    def __init__(
        self,
        *,
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        widths: Sequence[int] = (64, 192, 384, 256, 256),
        width: float = 1.0,
        hidden: int = 4096,
        stem_stride: int = 4,
        lrn: bool = False,
        dropout: float = 0.5,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        side = (size + 4 - 11) // stem_stride + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        if side < 1:
            raise ConfigError(
                f"images of {size} pixels vanish in AlexNet; enlarge them or use stem_stride=2 (64 pixels)"
            )
        self.normalise = Normalise(mean, std)
        wide = [scaled(number, width) for number in widths]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (kernel, inputs, outputs) in enumerate(zip((11, 5, 3, 3, 3), (channels, *wide), wide), start=1):
            stride = stem_stride if number == 1 else 1
            padding = 2 if number == 1 else kernel // 2
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
            layers[f"relu{number}"] = nn.ReLU()
            if lrn and number <= 2:
                layers[f"lrn{number}"] = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
            if number in (1, 2, 5):
                layers[f"pool{number}"] = nn.MaxPool2d(3, 2)
        self.body = nn.Sequential(layers)
        units = scaled(hidden, width)
        self.classifier = _dense((wide[-1] * side**2, units, units, classes), "relu", dropout)
        initialise(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, self.size, "AlexNet")
        return self.classifier(self.body(self.normalise(x)))


# a block: kernel, stride, padding and the three widths (0: the number of classes), pooling after it
_NIN = {
    "cifar": (
        (5, 1, 2, (192, 160, 96), "max"),
        (5, 1, 2, (192, 192, 192), "average"),
        (3, 1, 1, (192, 192, 0), None),
    ),
    "imagenet": (
        (11, 4, 0, (96, 96, 96), "max"),
        (5, 1, 2, (256, 256, 256), "max"),
        (3, 1, 1, (384, 384, 384), "max"),
        (3, 1, 1, (1024, 1024, 0), None),
    ),
}


class NiN(Pretrained, nn.Module):
    """Network in Network (Lin, Chen, Yan 2013, arXiv 1312.4400): 1x1 convolutions after each, no FC layer.

    `layout` "cifar" (32x32, 966,986 parameters at 10 classes) or "imagenet" (224x224). Images may have any size that
    survives the pooling.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        layout: str = "cifar",
        width: float = 1.0,
        dropout: float = 0.5,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if layout not in _NIN:
            raise ConfigError(f"layout must be one of {', '.join(_NIN)}, not {layout!r}")
        self.channels = channels
        self.normalise = Normalise(mean, std)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block, (kernel, stride, padding, widths, pool) in enumerate(_NIN[layout], start=1):
            for number, wide in enumerate(widths, start=1):
                outputs = scaled(wide, width) if wide else classes
                shape = (kernel, stride, padding) if number == 1 else (1, 1, 0)
                layers[f"conv{block}_{number}"] = nn.Conv2d(channels, outputs, *shape)
                layers[f"relu{block}_{number}"] = nn.ReLU()
                channels = outputs
            if pool:
                kind = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
                layers[f"pool{block}"] = kind(3, 2, padding=1 if layout == "cifar" else 0)
                layers[f"drop{block}"] = nn.Dropout(dropout)
        self.body = nn.Sequential(layers)
        self.classifier = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
        initialise(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, None, "NiN")
        return self.classifier(self.body(self.normalise(x)))


def _dense(sizes: Sequence[int], name: str, dropout: float) -> nn.Sequential:
    """Flatten, then linear layers with activation and dropout between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        if number < len(sizes) - 1:
            layers[f"act{number}"] = make_activation(name)
            if dropout:
                layers[f"drop{number}"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
