"""Classic image classifiers, each from 8x8 pixels up and at any width: plain modules with keyword-only arguments.

Every network takes float images `[B, C, H, W]` in [0, 1] (normalisation is its first layer) and gives logits `[B, K]`.
`build("vgg-a", classes=10, size=32)` makes one by name; `NAMES` lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from cambrian.errors import ConfigError
from cambrian.nn.zoo.classic import AlexNet, LeNet, NiN
from cambrian.nn.zoo.inception import InceptionNet
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
    "InceptionNet",
    "LeNet",
    "NiN",
    "Normalise",
    "ResNet",
    "SmallConv",
    "build",
    "fitted",
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
    "inception-mini": InceptionNet,
    "resnet-mini": partial(ResNet, blocks=(1, 1, 1, 1), widths=(8, 16, 32, 64)),
    "resnet-20": partial(ResNet, blocks=(3, 3, 3), widths=(16, 32, 64)),
    "resnet-56": partial(ResNet, blocks=(9, 9, 9), widths=(16, 32, 64)),
    "resnet-18": ResNet,
    "resnet-18-imagenet": partial(ResNet, stem="imagenet", classes=1000),
    "vgg-small": SmallConv,
    "wide-elu": partial(SmallConv, widths=(16, 32, 64), pools=(0, 1, 2), kernel=5, activation="elu"),
    "mlp": MLP,
    **{f"vgg-{plan.lower()}": partial(VGG, plan=plan) for plan in PLANS},
}
NAMES = tuple(_MAKERS)


def build(name: str, **arguments: Any) -> nn.Module:
    """A network by name; `arguments` override its defaults. Raises `ConfigError` for a name that is not there."""
    if name not in _MAKERS:
        raise ConfigError(f"no network {name!r} in the zoo; choose one of {', '.join(NAMES)}")
    return _MAKERS[name](**arguments)


def fitted(
    name: str, *, classes: int, channels: int, size: int, mean: Sequence[float], std: Sequence[float], **arguments: Any
) -> nn.Module:
    """A network by name for pictures `[B, channels, size, size]`: each constructor gets what it takes of the picture's
    facts. Raises `ConfigError` for a name that is not there or an argument that the network does not take.
    """
    if name not in _MAKERS:
        return build(name)
    maker = _MAKERS[name]
    known = inspect.signature(maker.func if isinstance(maker, partial) else maker).parameters
    facts: dict[str, Any] = {"classes": classes, "channels": channels, "size": size, "mean": mean, "std": std}
    if "inputs" in known:  # fully connected: one mean and deviation for all pixels
        facts.update(inputs=channels * size * size, mean=sum(mean) / len(mean), std=sum(std) / len(std))
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ConfigError(f"{name} takes no {unknown[0]}; it takes {', '.join(known)}")
    return build(name, **{fact: value for fact, value in facts.items() if fact in known}, **arguments)
