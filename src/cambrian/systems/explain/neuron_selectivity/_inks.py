"""Nine characters in four inks on grey: the same pictures under labels that need the colour, or do not.

All inks are equally bright (their channels sum to the same) and brighter than any ground, so that the achromatic copy of a
picture shows its character as clearly as the picture does, and only the ink is gone.

Shapes: N pictures `[N, 3, 32, 32]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.data.random import integers, sample_keys, uniform
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.targets import kept
from cambrian.errors import ConfigError
from cambrian.inspect.target import ModuleTarget, Space, wrap
from cambrian.nn import zoo
from cambrian.worlds.glyphs import Style, alpha, factors_of

TASKS = ("colour", "shape", "shuffled")
STYLE = Style(characters="123456789", size=32)
NAMES = ("red", "green", "blue", "yellow")
INKS = ((1.0, 0.1, 0.1), (0.1, 1.0, 0.1), (0.1, 0.1, 1.0), (0.6, 0.6, 0.0))  # each sums to 1.2
GROUND = (0.02, 0.15)


def labels(task: str, shape: Tensor, ink: Tensor, key: Tensor) -> Tensor:
    """Class of each picture: `shape` alone, shape and ink ("colour"), or shape and an ink drawn anew ("shuffled")."""
    if task not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    if task == "shape":
        return shape
    drawn = integers(key, 1, len(INKS), stream=43)[:, 0]
    return shape * len(INKS) + (ink if task == "colour" else drawn)


def names(task: str) -> list[str]:
    """Class names in label order."""
    if task == "shape":
        return list(STYLE.characters)
    return [f"{ink} {character}" for character in STYLE.characters for ink in NAMES]


def _split(task: str, number: int, size: int, seed: int) -> TensorSplit:
    parts = []
    for index in torch.arange(size).split(1024):
        key = sample_keys(seed, number, index)
        factors = factors_of(STYLE, key)
        ink = integers(key, 1, len(INKS), stream=41)[:, 0]
        ground = GROUND[0] + (GROUND[1] - GROUND[0]) * uniform(key, 1, stream=42)
        cover = alpha(STYLE, factors)
        picture = ground[:, :, None, None] * (1 - cover) + torch.tensor(INKS)[ink][:, :, None, None] * cover
        shown = (picture * 255).round().to(torch.uint8)
        parts.append((shown, labels(task, factors["label"], ink, key), factors["label"], ink))
    image, label, shape, ink = (torch.cat(column) for column in zip(*parts, strict=True))
    return TensorSplit(image=image, label=label, shape=shape, ink=ink)


def load(task: str, *, train: int, test: int, seed: int) -> Data:
    """The pictures of a seed with the labels of a task; fields `image`, `label`, `shape`, `ink`."""
    splits = [_split(task, number, size, seed) for number, size in enumerate((train, 10, test))]
    return Data("inks", "images", *splits, {"shape": (3, 32, 32), "classes": names(task), "scale": 255})


def reader(slug: str, task: str, seed: int, *, steps: int, train: int, test: int) -> ModuleTarget:
    """A batch-norm network of five convolutions (12 to 48 maps) trained on a task for system `slug`; from the cache when
    it was before.
    """
    data = load(task, train=train, test=test, seed=seed)
    shape = {"widths": (12, 16, 24, 32, 48), "pools": (0, 2), "channels": 3, "std": (0.28,)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = zoo.build("vgg-small", classes=len(data.info["classes"]), **shape)
    target = wrap(net, space=Space.image((3, 32, 32)), classes=data.info["classes"], data=data)
    generator = torch.Generator().manual_seed(seed)
    facts = {"task": task, "seed": seed, "steps": steps, "train": train}
    kept(slug, facts, net, lambda fresh: target.finetune(fresh, steps=steps, lr=0.1, lr_scale=1.0, generator=generator))
    return target
