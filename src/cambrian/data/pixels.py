"""Encoded picture -> uint8 array; every way in which a file can be bad becomes a `DataError` naming the record."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from cambrian.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none that runs an interpreter, as EPS does
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_PIXELS = 64_000_000  # a larger picture is refused before a pixel of it is decoded
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "F")
_BAD_FILE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode(data: bytes, name: str, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """Decode one encoded picture to uint8 `[C, H, W]`; the first frame of an animation, turned as its EXIF tag says.

    `size` scales the shorter side to that many pixels and cuts the centre square; `channels` 1 or 3 converts
    (None keeps grey files grey). Transparent pixels are laid on white. Raises `DataError` naming the record.
    """
    if not data:
        raise DataError(f"{name}: the record holds no bytes; remove it or write it again")
    picture = _open(data, name)
    try:
        picture = ImageOps.exif_transpose(picture)
        grey = picture.mode in GREY_MODES if channels is None else channels == 1
        picture = _flatten(picture, grey)
        if size is not None:
            shrinks = min(picture.size) >= size  # the box filter would enlarge to blocks
            method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
            picture = ImageOps.fit(picture, (size, size), method, centering=(0.5, 0.5))
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: {error}; pictures of up to {MAX_PIXELS} pixels are read") from error
    except _BAD_FILE as error:
        raise DataError(
            f"{name}: the picture is truncated or damaged ({error}); remove it or write it again"
        ) from error
    array = np.array(picture, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _open(data: bytes, name: str) -> Image.Image:
    """The opened, not yet decoded picture; its header says how large it claims to be."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error}; pictures of up to {MAX_PIXELS} pixels are read") from error
    except _BAD_FILE as error:
        raise DataError(f"{name}: not a picture that can be read; expected one of {', '.join(FORMATS)}") from error
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{name}: {picture.width}x{picture.height} pixels (a decompression bomb?); up to {MAX_PIXELS} are read"
        )
    return picture


def _flatten(picture: Image.Image, grey: bool) -> Image.Image:
    """The picture in mode L or RGB without transparency."""
    if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    if picture.mode in ("I", "I;16", "I;16L", "I;16B", "F"):  # Pillow clips these to 255, so scale them first
        values = np.asarray(picture, dtype=np.float64)
        scale = 255.0 if values.max(initial=0.0) <= 1.0 and picture.mode == "F" else 1.0
        values = values / 257.0 if values.max(initial=0.0) > 255.0 else values * scale
        picture = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return picture.convert("L" if grey else "RGB")


def stack(arrays: list[np.ndarray], names: list[str]) -> np.ndarray:
    """Equal pictures as one `[N, C, H, W]`; grey ones are repeated where any is coloured, other mixtures raise."""
    channels = max(array.shape[0] for array in arrays)
    first = arrays[0].shape[1:]
    for array, name in zip(arrays, names, strict=True):
        if array.shape[1:] != first:
            raise DataError(
                f"{name}: {array.shape[1]}x{array.shape[2]} pixels but {names[0]} has {first[0]}x{first[1]}; "
                "pass size= to bring all pictures to one size"
            )
    return np.stack([np.broadcast_to(array, (channels, *first)) for array in arrays])
