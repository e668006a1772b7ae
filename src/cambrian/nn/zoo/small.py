"""Small networks that train in seconds on one core: a batch-norm convnet and multi-layer perceptrons."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, make_activation


class SmallConv(Pretrained, nn.Module):
    """Convolution, batch norm, activation, one block for each entry of `widths`; 2x2 pooling after the blocks in `pools`.

    Ends in the global average and one linear layer; images may have any size that survives the pooling.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 1,
        widths: Sequence[int] = (12, 12, 24, 24, 48),
        pools: Sequence[int] = (1, 3),
        bn: bool = True,
        kernel: int = 3,
        activation: str = "relu",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if not widths or any(not 0 <= place < len(widths) for place in pools):
            raise ConfigError(f"pools must be positions of widths {tuple(widths)}, not {tuple(pools)}")
        self.channels = channels
        self.normalise = Normalise(mean, std)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False)):
            layers[f"conv{number + 1}"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not bn)
            if bn:
                layers[f"bn{number + 1}"] = nn.BatchNorm2d(outputs)
            layers[f"{activation}{number + 1}"] = make_activation(activation)
            if number in pools:
                layers[f"pool{number + 1}"] = nn.MaxPool2d(2)
        self.body = nn.Sequential(layers)
        head = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(widths[-1], classes))
        self.classifier = nn.Sequential(head)
        initialise(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, None, "SmallConv")
        return self.classifier(self.body(self.normalise(x)))


class MLP(Pretrained, nn.Module):
    """Fully connected layers over the flattened input `[B, ...]` of `inputs` values -> logits `[B, K]`.

    `hidden=(300, 100)` on 784 inputs is LeNet-300-100 with 266,610 parameters. There is no normalisation unless `mean`
    and `std` (single values) say so.
    """

    def __init__(
        self,
        *,
        inputs: int = 784,
        hidden: Sequence[int] = (300, 100),
        classes: int = 10,
        activation: str = "relu",
        bn: bool = False,
        dropout: float = 0.0,
        init: str = "he",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.mean, self.std = mean, std
        layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
        for number, (fan_in, units) in enumerate(zip((inputs, *hidden), hidden, strict=False), start=1):
            layers[f"fc{number}"] = nn.Linear(fan_in, units, bias=not bn)
            if bn:
                layers[f"bn{number}"] = nn.BatchNorm1d(units)
            layers[f"act{number}"] = make_activation(activation)
            if dropout:
                layers[f"drop{number}"] = nn.Dropout(dropout)
        layers[f"fc{len(hidden) + 1}"] = nn.Linear(hidden[-1] if hidden else inputs, classes)
        self.classifier = nn.Sequential(layers)
        initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        if x.flatten(1).shape[1] != self.inputs or not x.is_floating_point():
            raise ShapeError(
                f"this MLP takes {self.inputs} floating point values a sample, not {x.dtype} {list(x.shape)}"
            )
        return self.classifier((x - self.mean) / self.std)
