"""JPEG, JPEG 2000, WebP and PNG by Pillow, with what is header told from what is picture, and the distortion measures.

`Coded.payload` counts the entropy-coded bytes alone: the scans of a JPEG file (no tables, no frame header), the packets
of a JPEG 2000 codestream (no main and tile headers), the partitions of a VP8 frame, the IDAT chunks of a PNG. Small
pictures are dominated by headers (a JPEG's tables take some 600 bytes), so a comparison must count them on both sides
or on neither.

Shapes: pictures are uint8 [H, W, C], C = 1 or 3; `montage` makes one of many [N, C, H, W].
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cambrian.errors import ConfigError, ShapeError

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003
WINDOW, WINDOW_SIGMA = 11, 1.5


@dataclass(frozen=True)
class Coded:
    """A coded picture: size of the whole file, of its payload alone (both in bytes), and what it decodes to."""

    codec: str
    setting: str
    file: int
    payload: int
    picture: np.ndarray


def jpeg(picture: np.ndarray, quality: int, *, subsample: bool = True) -> Coded:
    """Baseline JPEG with optimised Huffman tables; `subsample` is 4:2:0 against 4:4:4."""
    data = _save(picture, "JPEG", quality=quality, subsampling=2 if subsample else 0, optimize=True)
    setting = f"quality {quality}, {'4:2:0' if subsample else '4:4:4'}"
    return Coded("jpeg", setting, len(data), _jpeg_payload(data), _load(data, picture.shape[2]))


def jpeg2000(picture: np.ndarray, rate: float) -> Coded:
    """JPEG 2000 (9/7 wavelet, one quality layer) at about `rate` times fewer bytes than raw; a raw codestream."""
    data = _save(picture, "JPEG2000", quality_mode="rates", quality_layers=[rate], irreversible=True, no_jp2=True)
    return Coded("jpeg2000", f"rate {rate:.4g}", len(data), _j2k_payload(data), _load(data, picture.shape[2]))


def webp(picture: np.ndarray, quality: int) -> Coded:
    """Lossy WebP (VP8), slowest method."""
    data = _save(picture, "WEBP", quality=quality, method=6)
    return Coded("webp", f"quality {quality}", len(data), _webp_payload(data), _load(data, picture.shape[2]))


def png(picture: np.ndarray) -> Coded:
    """PNG, optimised; lossless."""
    data = _save(picture, "PNG", optimize=True)
    return Coded("png", "lossless", len(data), _png_payload(data), _load(data, picture.shape[2]))


def webp_lossless(picture: np.ndarray) -> Coded:
    """Lossless WebP, slowest method."""
    data = _save(picture, "WEBP", lossless=True, quality=100, method=6)
    return Coded("webp-lossless", "lossless", len(data), _webp_payload(data), _load(data, picture.shape[2]))


def sweep(codec: str, picture: np.ndarray) -> list[Coded]:
    """The picture at every setting of a lossy codec that a comparison tries: `jpeg`, `jpeg2000` or `webp`."""
    if codec == "jpeg":
        return [jpeg(picture, q, subsample=s) for s in (True, False) for q in range(1, 96)]
    if codec == "jpeg2000":
        return [jpeg2000(picture, float(rate)) for rate in np.geomspace(1000, 2, 160)]
    if codec == "webp":
        return [webp(picture, q) for q in range(101)]
    raise ConfigError(f"no lossy codec {codec!r}; known: jpeg, jpeg2000, webp")


def at_budget(swept: Sequence[Coded], picture: np.ndarray, budget: float, *, headers: bool = False) -> Coded | None:
    """The best that a codec can do for about `budget` bytes, in its favour: of `swept` (from `sweep`), the best PSNR
    below the budget or, of JPEG's two samplings each, one setting over it. None when nothing comes near: its smallest
    file is more than twice the budget.
    """

    def size(coded: Coded) -> int:
        return coded.file if headers else coded.payload

    allowed = [c for c in swept if size(c) < budget]
    for family in {c.setting.rpartition(", ")[2] if c.codec == "jpeg" else "" for c in swept}:
        over = [c for c in swept if size(c) >= budget and (not family or c.setting.endswith(family))]
        allowed += sorted(over, key=size)[:1]
    allowed = [c for c in allowed if size(c) <= 2 * budget]
    return max(allowed, key=lambda c: psnr(picture, c.picture)) if allowed else None


def montage(pictures: np.ndarray, columns: int | None = None) -> np.ndarray:
    """[N, C, H, W] as one picture [rows H, columns W, C]; missing places repeat the last picture."""
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or not len(pictures):
        raise ShapeError(f"a montage takes uint8 [N, C, H, W], not {pictures.dtype} {pictures.shape}")
    n, c, h, w = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    filled = np.concatenate((pictures, np.repeat(pictures[-1:], rows * columns - n, 0)))
    return filled.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


def unmontage(sheet: np.ndarray, n: int, height: int, width: int) -> np.ndarray:
    """The first n pictures [N, C, H, W] of a montage."""
    rows, columns, c = sheet.shape[0] // height, sheet.shape[1] // width, sheet.shape[2]
    tiles = sheet.reshape(rows, height, columns, width, c).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(rows * columns, c, height, width)[:n]


# -- distortion ------------------------------------------------------------------------------------------------------


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of all values together; infinite when equal."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def mean_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over pictures [N, ...] of each one's PSNR in dB."""
    return float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True)]))


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale structural similarity of two pictures [H, W, C], mean over channels: as many of the five scales as
    fit an 11-pixel window, their weights made to sum to 1. Raises `ShapeError` below 11 pixels.
    """
    if a.shape != b.shape or a.ndim != 3 or min(a.shape[:2]) < WINDOW:
        raise ShapeError(f"two equal pictures of at least {WINDOW} pixels are needed, not {a.shape} and {b.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    scales = min(len(MS_SSIM_WEIGHTS), int(math.log2(min(a.shape[:2]) / WINDOW)) + 1)
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    value = 1.0
    for i, weight in enumerate(weights / weights.sum()):
        luminance, contrast = _ssim(x, y)
        part = luminance * contrast if i == scales - 1 else contrast
        value *= max(float(part.mean()), 0.0) ** weight
        x, y = _halve(x), _halve(y)
    return value


def _ssim(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The luminance and the contrast-structure term at every place of the window."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, vxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return (2 * mx * my + c1) / (mx * mx + my * my + c1), (2 * vxy + c2) / (vx + vy + c2)


def _blur(x: np.ndarray) -> np.ndarray:
    at = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-0.5 * (at / WINDOW_SIGMA) ** 2)
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis) @ (kernel / kernel.sum())
    return x


def _halve(x: np.ndarray) -> np.ndarray:
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    return x[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).mean((1, 3))


# -- files -----------------------------------------------------------------------------------------------------------


def _save(picture: np.ndarray, kind: str, **options: object) -> bytes:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ShapeError(f"pictures are uint8 [H, W, 1 or 3], not {picture.dtype} {picture.shape}")
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def _load(data: bytes, channels: int) -> np.ndarray:
    array = np.array(Image.open(io.BytesIO(data)))
    return array.reshape(*array.shape[:2], -1)[..., :channels]  # WebP knows no grey


def _jpeg_payload(data: bytes) -> int:
    """Bytes of the scans: after each start-of-scan header up to the next marker that is no restart or stuffing."""
    at, total = 2, 0
    while at < len(data) - 1:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xD9:
            break
        at += 2 + length
        if marker == 0xDA:
            begin = at
            while data[at] != 0xFF or data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
                at += 1
            total += at - begin
    return total


def _j2k_payload(data: bytes) -> int:
    """Bytes between each start-of-data marker and the end of its tile-part."""
    at, total = 2, 0
    while data[at : at + 2] != b"\xff\xd9" and at < len(data) - 1:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at : at + 2] == b"\xff\x90":  # a tile-part: its length counts from here, data follows FF93
            size = int.from_bytes(data[at + 6 : at + 10], "big") or len(data) - 2 - at
            total += size - (data.index(b"\xff\x93", at) + 2 - at)
            at += size
        else:
            at += 2 + length
    return total


def _webp_payload(data: bytes) -> int:
    """The VP8 frame without its 10 bytes of header, or the VP8L stream without its 5."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return size - (10 if kind == b"VP8 " else 5)
        at += 8 + size + size % 2
    return len(data)


def _png_payload(data: bytes) -> int:
    """What the IDAT chunks hold."""
    at, total = 8, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        total += size if data[at + 4 : at + 8] == b"IDAT" else 0
        at += 12 + size
    return total
