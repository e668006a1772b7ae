"""The photographs inside the wheels of scikit-image and scikit-learn; nothing is ever downloaded."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import DataError

FILES = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "cell": "skimage/data/cell.png",
    "chelsea": "skimage/data/chelsea.png",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "moon": "skimage/data/moon.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}


@lru_cache(maxsize=len(FILES))
def photograph(name: str) -> Tensor:
    """One photograph as uint8 `[3, H, W]` (grey ones three times the same). Raises `DataError` for an unknown name."""
    from PIL import Image

    if name not in FILES:
        raise DataError(f"no photograph {name!r}; choose one of {', '.join(FILES)}")
    package, _, inner = FILES[name].partition("/")
    found = find_spec(package)
    path = Path((found.origin if found else None) or "").parent / inner
    if not path.is_file():
        raise DataError(f"this installation of {package} has no file {inner}; install its wheel from PyPI")
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()
