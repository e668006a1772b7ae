"""What the family trains on, by name: mixtures of points, digits, glyphs (single or stacked), faces, or a user's images."""

from __future__ import annotations

from cambrian.data import digits
from cambrian.data import images as pictures
from cambrian.data.source import Source
from cambrian.data.split import Data
from cambrian.errors import ConfigError
from cambrian.worlds import faces, glyphs, points


def load(source: Source, *, size: int | None = None) -> Data:
    """The splits that `source` names; images of a user's are brought to `size` where it is given. Raises `ConfigError`."""
    if source.kind != "world":
        return pictures.load(source, size=size)
    if source.value in points.MIXTURES:
        return points.load(source.value)
    if source.value == "faces":
        return faces.load(size=size or 32)
    if source.value == "glyphs":
        return glyphs.load(size=size or 28)
    if source.value == "stacked-glyphs":
        return glyphs.load(size=size or 28, mode="stacked", train=20_000)
    if source.value == "digits":
        return digits.load(valid=103)
    known = (*points.MIXTURES, "digits", "faces", "glyphs", "stacked-glyphs")
    raise ConfigError(f"these systems do not train on the world {source.value!r}; use one of {', '.join(known)}")
