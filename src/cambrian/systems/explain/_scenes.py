"""Scenes whose answer is known: one bright character, small and anywhere, on a photographed texture with clutter.

The class is that of the bright character; `mask` in the batch's meta tells where it is. Clutter is smaller, darker and
of other classes. A batch-norm network is trained on them once for each seed and cached.

Shapes: B batch, H = W = 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.data.images import unit
from cambrian.data.random import sample_keys
from cambrian.data.split import Data, TensorSplit
from cambrian.engine.targets import kept
from cambrian.errors import DataError
from cambrian.inspect.maps import boxes
from cambrian.inspect.target import SPLITS, ModuleTarget, Space, Target, wrap
from cambrian.nn import zoo
from cambrian.worlds import glyphs
from cambrian.worlds.textures import texture

SCENE: dict[str, Any] = {
    "size": 32,
    "ground": "texture",
    "distractors": 2,
    "mask": True,
    "ranges": {"scale": (0.36, 0.5), "shift_x": (-0.33, 0.33), "shift_y": (-0.33, 0.33)},
}
"""The character's box covers 6 % of the picture on average and never 15 %, its strokes 3 %."""


def scenes(seed: int, *, samples: int = 5000, test: int = 1000, relief: float = 0.0, **style: Any) -> Data:
    """Pictures `[B,1,32,32]` (3 channels with `colour=True`) of ten digits with masks; `style` replaces entries of `SCENE`.

    With `relief` the ground is a lit texture of mean 0.4 and standard deviation 0.12 `relief`, so that it is no less a
    sight than the object, which stays the brightest.
    """
    data = glyphs.load(train=samples, valid=500, test=test, seed=seed, **{**SCENE, **style})
    return data if relief == 0.0 else replace(data, **{name: _relieved(data, name, seed, relief) for name in SPLITS})


def _relieved(data: Data, name: str, seed: int, relief: float) -> TensorSplit:
    """A split on a second photographed texture, laid under ink and clutter: `x + (1 - x) t`."""
    fields = data.split(name)[torch.arange(len(data.split(name)))]
    keys = sample_keys(seed, 100 + SPLITS.index(name), torch.arange(len(fields["image"])))
    under = (0.4 + relief * texture(keys, fields["image"].shape[-1])).clamp(0.0, 0.75)
    x = unit(fields["image"])
    return TensorSplit(**{**fields, "image": ((x + (1.0 - x) * under) * 255.0).round().to(torch.uint8)})


def scene_target(
    slug: str, seed: int, *, samples: int = 5000, steps: int = 200, net: str = "vgg-small", **style: Any
) -> ModuleTarget:
    """A network of the zoo, trained on `scenes` of that style by system `slug`'s study; from the cache when it was before."""
    data = scenes(seed, samples=samples, **style)
    channels = data.info["shape"][0]
    pixels = unit(data.train[torch.arange(min(2000, samples))]["image"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"mean": [float(pixels.mean())], "std": [float(pixels.std())]}
        module = zoo.fitted(net, classes=10, channels=channels, size=32, **settings)
    target = wrap(module, space=Space.image((channels, 32, 32)), classes=data.info["classes"], data=data)
    facts: Mapping[str, Any] = {"net": net, "samples": samples, "steps": steps, "seed": seed, "style": style}

    def train(fresh: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        target.finetune(fresh, steps=steps, lr=0.1, lr_scale=1.0, generator=generator)

    kept(slug, facts, module, train)
    return target


def understood(target: Target, n: int, seed: int, split: str = "test") -> tuple[Tensor, Tensor, Tensor]:
    """`n` pictures `[n,C,H,W]` that the target classifies correctly, their labels `[n]` and their object's box
    `[n,1,H,W]` (bool), drawn by `seed`. Raises `DataError` when there are fewer, or no masks.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    count = 0
    for x, y, meta in target.batches(split, target.size(split), seed):
        if "mask" not in meta:
            raise DataError(f"the target's {split} data has no field 'mask'; load glyphs with mask=True")
        with torch.no_grad():
            right = target.logits(x).argmax(1) == y
        found.append((x[right], y[right], boxes(meta["mask"].to(x.device))[right]))
        count += int(right.sum())
        if count >= n:
            break
    if count < n:
        raise DataError(f"only {count} of the {split} pictures are classified correctly, {n} are needed")
    x, y, mask = (torch.cat(parts)[:n] for parts in zip(*found, strict=True))
    return x, y, mask
