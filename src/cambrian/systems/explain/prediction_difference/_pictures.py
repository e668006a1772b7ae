"""Coloured scenes for the study: one small character of any colour on a photographed texture of any colour.

Other pictures differ in colour from place to place, so what a patch may be depends much on its surroundings. Distractors
(smaller characters of other classes) come at test time only; the same index gives the same scene with and without them,
so that their pixels are known by subtraction.

Shapes: B scenes, 3 x 32 x 32 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.data.images import unit
from cambrian.data.split import Data
from cambrian.engine.targets import kept
from cambrian.inspect.target import ModuleTarget, Space, wrap
from cambrian.nn import zoo
from cambrian.worlds import glyphs

SIZE = 32
RANGES = {
    "scale": (0.45, 0.65), "rotation": (-20.0, 20.0), "shift_x": (-0.27, 0.27), "shift_y": (-0.27, 0.27),
    "stroke": (0.0, 0.03),
}  # fmt: skip
VISIBLE = 0.1  # least change of a channel where a distractor counts as seen


def scenes(*, train: int = 10, test: int, seed: int, **style: object) -> Data:
    """Scenes as `Data`: uint8 `image [N, 3, 32, 32]`, `label`, `mask [N, 1, 32, 32]` and the world's factors.
    `style` adds distractors, or draws on demand (`stream`).
    """
    look = {"size": SIZE, "colour": True, "ground": "texture", "mask": True, "ranges": RANGES, **style}
    return glyphs.load(train=train, valid=10, test=test, seed=seed, **look)


def scene_reader(slug: str, seed: int, *, steps: int, samples: int, test: int = 1000) -> ModuleTarget:
    """A batch-norm network of five convolutions (12 to 48 maps), trained on scenes without distractors for system
    `slug`; from the cache when it was before.
    """
    data = scenes(train=samples, test=test, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = zoo.build("vgg-small", widths=(12, 16, 24, 32, 48), pools=(0, 2), classes=10, channels=3, std=(0.28,))
    target = wrap(net, space=Space.image((3, SIZE, SIZE)), classes=data.info["classes"], data=data)
    generator = torch.Generator().manual_seed(seed)
    facts = {"seed": seed, "steps": steps, "samples": samples}
    kept(slug, facts, net, lambda fresh: target.finetune(fresh, steps=steps, lr=0.1, lr_scale=1.0, generator=generator))
    return target


def crowded(seed: int, index: Tensor, test: int) -> tuple[Tensor, Tensor]:
    """The scenes `index` of the test split with one distractor each, in [0, 1] `[B, 3, 32, 32]`, and where it shows
    `[B, 1, 32, 32]` (bool).
    """
    both = (scenes(test=test, seed=seed, distractors=n, stream=True).split("test") for n in (0, 1))
    plain, full = (unit(split[index]["image"]) for split in both)
    return full, (plain - full).abs().amax(1, keepdim=True) > VISIBLE
