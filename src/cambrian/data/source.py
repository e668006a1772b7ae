"""Where data comes from: `--data`, then `$CAMBRIAN_DATA/<name>`, then what is embedded. Nothing is downloaded silently."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cambrian.errors import DataError

WORLDS = "cambrian.worlds"


@dataclass(frozen=True)
class Source:
    """`kind` is `world` (an embedded name), `path` (a file or folder) or `hub` (a Hub dataset id that the user named)."""

    kind: str
    value: str

    @property
    def path(self) -> Path:
        """The file or folder of a `path` source."""
        return Path(self.value)

    def __str__(self) -> str:
        return self.value if self.kind != "world" else f"embedded {self.value}"


def resolve(spec: str | os.PathLike[str] | None, default: str) -> Source:
    """Find the data that `spec` (or, without one, the recipe's `default`) names.

    Raises `DataError` when `spec` is neither a path, a name under `$CAMBRIAN_DATA`, an embedded name nor `owner/name` of the Hub.
    """
    name = str(spec) if spec is not None else default
    if spec is not None and Path(name).expanduser().exists():
        return Source("path", str(Path(name).expanduser()))
    home = os.environ.get("CAMBRIAN_DATA")
    if home and name and (Path(home) / name).exists():
        return Source("path", str(Path(home) / name))
    if spec is None or name == default or name in embedded():
        return Source("world", name)
    if name.startswith("hub:"):
        return Source("hub", name.removeprefix("hub:"))
    tried = f"no file or folder {name!r}" + (f", nothing under $CAMBRIAN_DATA ({home})" if home else "")
    raise DataError(
        f"{tried}, and no embedded dataset of that name ({', '.join(sorted(embedded()))}); "
        "give a path, set CAMBRIAN_DATA, or name a Hub dataset as hub:owner/name"
    )


def embedded() -> set[str]:
    """Names of the embedded datasets; each world or reader module registers its own in `EMBEDDED`."""
    return set(EMBEDDED)


EMBEDDED: dict[str, str] = {
    "ring8": "eight Gaussians on a circle",
    "grid25": "twenty-five Gaussians on a grid",
    "faces": "cartoon faces with attributes, 32x32 RGB",
    "glyphs": "characters in several fonts, with factors as labels",
    "stacked-glyphs": "three digits in the channels of one picture: 1,000 modes",
    "photos": "crops of the photographs that scikit-image and scikit-learn ship",
    "digits": "scikit-learn's 8x8 digits",
    "sketches": "procedural pen drawings",
    "figures": "one coloured figure on a shaded ground, with sensor noise, 16x16 RGB",
    "sort-of-clevr": "scenes of six objects with questions and answers",
    "babi": "short stories with questions",
    "phones": "speech-like sound with known phones, pitch and speaker",
    "ssm": "linear-Gaussian series with an exact likelihood",
    "point-sets": "points in the unit square, for hulls, triangulations and tours",
    "addition": "sums of two numbers, read and written a digit at a time",
    "springs": "balls joined by hidden springs",
    "latch": "a marked symbol to be recalled after distractors",
    "copy": "symbols to be repeated after a pause",
    "adding": "two marked numbers among many, to be added",
    "arithmetic": "sums of numbers among distractors, as characters",
    "xml": "nested tags of random names, as characters",
    "chorales": "Bach's chorales from music21's corpus, as piano rolls and voices",
    "stdlib": "the Python standard library's source, as characters",
}
