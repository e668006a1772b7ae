"""scikit-learn's 1,797 handwritten digits of 8x8 pixels: real data that needs no file."""

from __future__ import annotations

import numpy as np
import torch

from cambrian.data.split import Data, TensorSplit
from cambrian.errors import ConfigError

TRAIN, TEST = 1400, 397


def load(seed: int = 0, valid: int = 0) -> Data:
    """The digits as `Data` of kind `images`: `image` uint8 `[N, 1, 8, 8]` (0..255) and `label` int64 `[N]`.

    1,400 train and 397 test by the permutation of `seed`. `valid` takes that many samples from the training split;
    with 0 there is no valid split. Raises `ConfigError` where too many are asked for.
    """
    from sklearn.datasets import load_digits

    if not 0 <= valid < TRAIN:
        raise ConfigError(f"valid must lie in 0..{TRAIN - 1}, not {valid}")
    bunch = load_digits()
    # 17 grey levels 0..16; rounding to 8 bits moves none by more than 1/510
    image = torch.from_numpy(np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8))[:, None]
    label = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    index = {"train": order[: TRAIN - valid], "valid": order[TRAIN - valid : TRAIN], "test": order[TRAIN:]}
    splits = {name: TensorSplit(image=image[at], label=label[at]) for name, at in index.items() if len(at)}
    info = {"shape": (1, 8, 8), "classes": [str(digit) for digit in range(10)], "scale": 255}
    return Data("digits", "images", splits["train"], splits.get("valid"), splits["test"], info)
