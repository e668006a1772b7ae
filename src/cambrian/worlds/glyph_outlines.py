"""Outlines of characters as signed distance fields, from the font files inside matplotlib's wheel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import DataError

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
)
TILE = 96  # pixels along a tile
EM = 60  # of them are one em
HALF_TILE = TILE / EM / 2  # em between a tile's centre and its border
REACH = 14  # pixels up to which distances are exact; beyond, they saturate


@lru_cache(maxsize=8)
def outlines(characters: str, fonts: tuple[str, ...]) -> Tensor:
    """Signed distance to each outline in em (negative inside): `[characters, fonts, TILE, TILE]`.

    Letters stand as in a line of text (centred sideways, on a common baseline), so that o and O differ in size.
    Raises `DataError` for a font that matplotlib does not ship or a character that the font lacks.
    """
    inside = torch.from_numpy(np.stack([[_raster(char, font) for font in fonts] for char in characters]))
    flat = inside.view(-1, TILE, TILE)
    signed = _distance(flat) - _distance(~flat)
    # pixel centres on both sides of an edge are half a pixel from it
    signed = signed - 0.5 * signed.sign()
    return (signed / EM).view(len(characters), len(fonts), TILE, TILE)


def font_path(name: str) -> Path:
    """The file of a font that matplotlib ships."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise DataError(f"matplotlib ships no font {name!r}; choose among {', '.join(FONTS)}")
    return path


@lru_cache(maxsize=32)
def _cap_height(font: str) -> int:
    from PIL import ImageFont

    _, top, _, bottom = ImageFont.truetype(font_path(font), EM).getbbox("H", anchor="ls")
    return round(bottom - top)


def _raster(char: str, font: str) -> np.ndarray:
    """The character as a boolean tile, its capital height centred."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(font_path(font), EM)
    tile = Image.new("L", (TILE, TILE), 0)
    baseline = (TILE + _cap_height(font)) // 2
    left, _, right, _ = face.getbbox(char, anchor="ls")
    ImageDraw.Draw(tile).text(((TILE - right - left) / 2, baseline), char, fill=255, font=face, anchor="ls")
    pixels = np.asarray(tile) >= 128
    if not pixels.any():
        raise DataError(f"the font {font} draws nothing for {char!r}; leave out the one or the other")
    return pixels


def _distance(inside: Tensor) -> Tensor:
    """Euclidean distance in pixels of each pixel `[T, H, W]` to the nearest True, saturating at `REACH`.

    Separable: squared distance down the columns, then along the rows (Felzenszwalb and Huttenlocher 2012), as minima
    over shifted copies.
    """
    squared = torch.where(inside, 0.0, float(REACH**2))
    for dim in (1, 2):
        best = squared.clone()
        length = squared.shape[dim]
        for step in range(1, REACH):
            head, tail = squared.narrow(dim, 0, length - step), squared.narrow(dim, step, length - step)
            torch.minimum(
                best.narrow(dim, step, length - step), head + step**2, out=best.narrow(dim, step, length - step)
            )
            torch.minimum(best.narrow(dim, 0, length - step), tail + step**2, out=best.narrow(dim, 0, length - step))
        squared = best
    return squared.sqrt()
