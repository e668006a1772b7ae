"""Classic image classifiers, each from 8x8 pixels up and at any width: plain modules with keyword-only arguments.

Every network takes float images `[B, C, H, W]` in [0, 1] (normalisation is its first layer) and gives logits `[B, K]`.
`build("vgg-a", classes=10, size=32)` makes one by name; `NAMES` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from cambrian.errors import ConfigError
from cambrian.nn.zoo.classic import AlexNet, LeNet, NiN
from cambrian.nn.zoo.parts import Normalise, initialise, make_activation
from cambrian.nn.zoo.residual import BasicBlock, ResNet
from cambrian.nn.zoo.small import MLP, SmallConv
from cambrian.nn.zoo.vgg import PLANS, VGG

__all__ = [
    "MLP",
    "NAMES",
    "PLANS",
    "VGG",
    "AlexNet",
    "BasicBlock",
    "LeNet",
    "NiN",
    "Normalise",
    "ResNet",
    "SmallConv",
    "build",
    "initialise",
    "make_activation",
]

_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": partial(MLP, hidden=(300, 100)),
    "lenet-5": LeNet,
    "lenet-1998": partial(LeNet, widths=(6, 16), hidden=(120, 84), activation="tanh"),
    "alexnet": AlexNet,
    "alexnet-64": partial(AlexNet, size=64, stem_stride=2, hidden=512, width=0.25),
    "nin": NiN,
    "nin-imagenet": partial(NiN, layout="imagenet", classes=1000),
    "resnet-18": ResNet,
    "resnet-18-imagenet": partial(ResNet, stem="imagenet", classes=1000),
    "vgg-small": SmallConv,
    "mlp": MLP,
    **{f"vgg-{plan.lower()}": partial(VGG, plan=plan) for plan in PLANS},
}
NAMES = tuple(_MAKERS)


def build(name: str, **arguments: Any) -> nn.Module:
    """A network by name; `arguments` override its defaults. Raises `ConfigError` for a name that is not there."""
    if name not in _MAKERS:
        raise ConfigError(f"no network {name!r} in the zoo; choose one of {', '.join(NAMES)}")
    return _MAKERS[name](**arguments)
