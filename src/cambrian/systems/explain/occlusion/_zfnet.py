"""The network that the visualisations led to, and the rule that keeps its first filters alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError
from cambrian.nn.hub import Pretrained
from cambrian.nn.zoo.parts import Normalise, check_images, initialise, scaled

WIDTHS = (96, 256, 384, 384, 256)


class ZFNet(Pretrained, nn.Module):
    """Images `[B, C, size, size]` in [0, 1] -> logits `[B, K]` (figure 3): AlexNet with a first layer of 7x7 filters and
    stride 2 in place of 11x11 and stride 4, whose filters had died or showed aliasing.

    `width` multiplies all widths; `stem` is (kernel, stride) of the first layer, so that both can be compared.
    """

    def __init__(
        self,
        *,
        classes: int = 1000,
        channels: int = 3,
        size: int = 224,
        width: float = 1.0,
        hidden: int = 4096,
        stem: Sequence[int] = (7, 2),
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.normalise = Normalise(mean, std)
        w, fc = [scaled(number, width) for number in WIDTHS], scaled(hidden, width)
        kernel, stride = stem
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, w[0], kernel, stride, 1 if kernel == 7 else 2), relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(3, 2, 1), lrn1=nn.LocalResponseNorm(5),
                conv2=nn.Conv2d(w[0], w[1], 5, 2), relu2=nn.ReLU(), pool2=nn.MaxPool2d(3, 2, 1), lrn2=nn.LocalResponseNorm(5),
                conv3=nn.Conv2d(w[1], w[2], 3, 1, 1), relu3=nn.ReLU(), conv4=nn.Conv2d(w[2], w[3], 3, 1, 1), relu4=nn.ReLU(),
                conv5=nn.Conv2d(w[3], w[4], 3, 1, 1), relu5=nn.ReLU(), pool5=nn.MaxPool2d(3, 2),
            )
        )  # fmt: skip
        try:
            with torch.no_grad():
                numbers = self.body(torch.zeros(1, channels, size, size)).numel()
        except RuntimeError:
            raise ConfigError(f"pictures of {size} pixels vanish in ZFNet's poolings; use 64 or more") from None
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(numbers, fc), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(fc, fc), nn.ReLU(), nn.Dropout(0.5), nn.Linear(fc, classes),
        )  # fmt: skip
        initialise(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B,K]`."""
        check_images(x, self.channels, self.size, "ZFNet")
        return self.classifier(self.body(self.normalise(x)))


@torch.no_grad()
def renormalise(conv: nn.Module, limit: float = 0.1) -> int:
    """Scale every filter of a convolution whose root mean square is above `limit` back to it; returns how many were.

    Raises `CapabilityError` for a layer without filters `[out, in, k, k]`, `ConfigError` for a limit that is not above 0.
    """
    weight = getattr(conv, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        raise CapabilityError(f"filters are renormalised in convolutions, not in {type(conv).__name__}")
    if not limit > 0:
        raise ConfigError(f"the limit must be above 0, not {limit}")
    rms = weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    weight.mul_((limit / rms.clamp_min(1e-30)).clamp_max(1.0))
    return int((rms > limit).sum())
