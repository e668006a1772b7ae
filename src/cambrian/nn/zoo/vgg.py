"""The VGG family: stages of 3x3 convolutions between poolings (Simonyan and Zisserman 2015, table 1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, scaled

WIDTHS = (64, 128, 256, 512, 512)
PLANS: dict[str, tuple[int, ...]] = {
    "A": (1, 1, 2, 2, 2),
    "A-LRN": (1, 1, 2, 2, 2),  # A with local response normalisation after the first layer
    "B": (2, 2, 2, 2, 2),
    "C": (2, 2, 3, 3, 3),  # the third of a stage is 1x1
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}
PAIRS = ("3x3", "5x5", "linear")


class VGG(Pretrained, nn.Module):
    """Images `[B, C, H, W]` in [0, 1] -> logits `[B, K]`.

    plan      A, A-LRN, B, C, D (16 layers) or E (19)
    pair      how the two convolutions of each stage of B are built: "3x3"; "5x5": one of the same receptive field
              (section 4.3); "linear": 3x3 twice without the ReLU between them
    bn        batch normalisation after each convolution (which then has no bias)
    width     multiplies all widths; `hidden` (the two FC layers) too
    head      "fc": three layers and dropout, only for `size`; "gap": global average and one layer, any size
    stages    use only the first so many stages (images under 32 pixels)
    init      "he", "glorot" or "normal" (the paper's N(0, 0.01^2), the deviation divided by sqrt(width))
    """

    def __init__(
        self,
        *,
        plan: str = "D",
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        bn: bool = False,
        width: float = 1.0,
        head: str = "fc",
        hidden: int = 4096,
        dropout: float = 0.5,
        pair: str = "3x3",
        stages: int = 5,
        init: str = "he",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        _check_arguments(plan, pair, head, stages, size)
        self.plan, self.channels, self.size, self.head = plan, channels, size, head
        self.normalise = Normalise(mean, std)
        widths = [scaled(number, width) for number in WIDTHS[:stages]]
        self.body = _body(plan, pair, widths, channels, bn)
        self.final_size = size // 2**stages
        if head == "gap":
            layers = [
                ("pool", nn.AdaptiveAvgPool2d(1)),
                ("flat", nn.Flatten()),
                ("fc8", nn.Linear(widths[-1], classes)),
            ]
        else:
            layers = _fc_layers(widths[-1] * self.final_size**2, scaled(hidden, width), classes, dropout)
        self.classifier = nn.Sequential(OrderedDict(layers))
        initialise(self, init, std=0.01 / width**0.5)  # narrow layers keep the gain that the paper's wide ones have

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, self.size if self.head == "fc" else None, f"VGG {self.plan}")
        return self.classifier(self.body(self.normalise(x)))

    def features(self, x: Tensor, layer: str = "relu4_1") -> Tensor:
        """The map `[B, C', H', W']` after `conv4_1`, `relu4_1`, `pool4` ...; images may have any size that survives."""
        names = [name for name, _ in self.body.named_children()]
        if layer not in names:
            raise ConfigError(f"VGG {self.plan} has no layer {layer!r}; choose one of {', '.join(names)}")
        check_images(x, self.channels, None, f"VGG {self.plan}")
        x = self.normalise(x)
        for name, module in self.body.named_children():
            x = module(x)
            if name == layer:
                break
        return x


def _check_arguments(plan: str, pair: str, head: str, stages: int, size: int) -> None:
    if plan not in PLANS:
        raise ConfigError(f"no VGG plan {plan!r}; choose one of {', '.join(PLANS)}")
    if pair not in PAIRS or (pair != "3x3" and plan != "B"):
        raise ConfigError(f"pair must be one of {', '.join(PAIRS)}, and other than 3x3 only for plan B, not {pair!r}")
    if head not in ("fc", "gap"):
        raise ConfigError(f"head must be fc or gap, not {head!r}")
    if not 1 <= stages <= len(WIDTHS):
        raise ConfigError(f"stages must lie in 1..{len(WIDTHS)}, not {stages}")
    if size < 2**stages:
        raise ConfigError(
            f"images of {size} pixels vanish after {stages} poolings (at least {2**stages} are needed); "
            "enlarge them or use fewer stages"
        )


def _body(plan: str, pair: str, widths: Sequence[int], channels: int, bn: bool) -> nn.Sequential:
    """Stages of convolution, [batch norm], ReLU, closed by 2x2 max pooling; named conv4_1, bn4_1, relu4_1, pool4."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, (width, count) in enumerate(zip(widths, PLANS[plan], strict=False), start=1):
        count = 1 if pair == "5x5" else count
        for number in range(1, count + 1):
            kernel = 5 if pair == "5x5" else 1 if plan == "C" and number == 3 else 3
            tag = f"{stage}_{number}"
            layers[f"conv{tag}"] = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not bn)
            if bn:
                layers[f"bn{tag}"] = nn.BatchNorm2d(width)
            if pair != "linear" or number == count:
                layers[f"relu{tag}"] = nn.ReLU()
            if plan == "A-LRN" and stage == 1:
                # Krizhevsky's alpha = 1e-4 multiplies a sum over 5 channels, torch's a mean
                layers["lrn1_1"] = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _fc_layers(inputs: int, hidden: int, classes: int, dropout: float) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = [("flat", nn.Flatten())]
    for name, wide in (("6", inputs), ("7", hidden)):
        layers.append((f"fc{name}", nn.Linear(wide, hidden)))
        layers.append((f"relu{name}", nn.ReLU()))
        layers.append((f"drop{name}", nn.Dropout(dropout)))
    return [*layers, ("fc8", nn.Linear(hidden, classes))]
