"""Pictures to files and back without loss, at the network's own number of bits.

    b"CMBP"  CRC32 of what follows u32                                                                      (little-endian)
    version u8  channels u8  weights 4 bytes  height u16  width u16  tile u16  CRC32 of the pixels u32
    coded symbols

A picture is padded by repeating its edges and cut into tiles of the size that the network was trained on; all tiles go through the
pixel cache together, in double precision, and so does the decoder: both form each pixel's distribution by the same operations on
the same numbers. The coder is a stack, so the encoder pushes the symbols in reverse. Another network's file, another torch's
rounding or a damaged file is found by the checksum of the file, the hash of the weights, or the checksum of the pixels.

Shapes: N tiles, C channels, T x T pixels of a tile.
"""

from __future__ import annotations

import copy
import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.codec.frequencies import start_of
from cambrian.codec.rans import Stack
from cambrian.errors import CheckpointError, DataError, ShapeError
from cambrian.systems.likelihood.pixelcnn_pp._cached import PixelCache

if TYPE_CHECKING:
    from cambrian.systems.likelihood.pixelcnn_pp.model import PixelCNNpp

MAGIC, VERSION = b"CMBP", 1
OUTER, HEADER = struct.Struct("<4sI"), struct.Struct("<BB4sHHHI")
MOST_TILE, MOST_PIXELS = 512, 1 << 26  # a hostile header cannot ask for more memory
PRECISION = 24
LEVELS = 256
BYTES_A_LANE = 2000  # a lane of the coder costs up to 8 bytes: so many coded ones pay for it


@dataclass(frozen=True)
class Encoded:
    """`data`, of which `payload` bytes are coded symbols, and the network's own `bits` for the padded tiles."""

    data: bytes
    payload: int
    bits: float


def weights_hash(model: PixelCNNpp) -> bytes:
    """Four bytes that differ between networks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.digest()[:4]


@torch.no_grad()
def encode(model: PixelCNNpp, image: Tensor, tile: int) -> Encoded:
    """Code a uint8 picture [C, H, W] of any size up to 65,535. Raises `ShapeError`."""
    _check(model, image, tile)
    twin = _exact(model)
    tiles = _cut(image, tile)
    x = twin.scaled(tiles)
    intervals, bits = [], 0.0
    cache = PixelCache(twin, len(x), tile, tile)
    rows = np.arange(len(x))
    for i in range(tile):
        for j in range(tile):
            params, value = cache.outputs(i, j), x[:, :, i, j]
            for c in range(model.channels):
                starts = _starts(twin, params, value[:, :c])
                level = twin.head_level(value[:, c]).numpy()
                start = starts[rows, level]
                intervals.append((start, starts[rows, level + 1] - start))
            bits -= float(twin.head.log_prob(params, value).sum()) / np.log(2)
            cache.put(i, j, value)
    stack = Stack(max(1, min(len(x), int(bits / 8 / BYTES_A_LANE))), PRECISION)
    for start, freq in reversed(intervals):
        for at in range(0, len(start), stack.lanes):
            stack.push(start[at : at + stack.lanes], freq[at : at + stack.lanes])
    payload = stack.to_bytes()
    height, width = image.shape[1:]
    checksum = zlib.crc32(image.contiguous().numpy().tobytes())
    inner = HEADER.pack(VERSION, model.channels, weights_hash(model), height, width, tile, checksum) + payload
    return Encoded(OUTER.pack(MAGIC, zlib.crc32(inner)) + inner, len(payload), bits)


@torch.no_grad()
def decode(model: PixelCNNpp, data: bytes) -> Tensor:
    """The uint8 picture [C, H, W]. Raises `DataError` for damaged data and `CheckpointError` for another network's."""
    height, width, tile, checksum = _read_header(model, data)
    twin, stack = _exact(model), Stack.from_bytes(data[OUTER.size + HEADER.size :])
    down, across = -(-height // tile), -(-width // tile)
    count = down * across
    if stack.precision != PRECISION or stack.lanes > count:
        raise DataError("the coded symbols do not fit the header; the file is damaged")
    x = torch.zeros(count, model.channels, tile, tile, dtype=torch.float64)
    cache = PixelCache(twin, count, tile, tile)
    for i in range(tile):
        for j in range(tile):
            params = cache.outputs(i, j)
            for c in range(model.channels):
                starts = _starts(twin, params, x[:, :c, i, j])
                level = stack.pop_symbols(count, starts)
                x[:, c, i, j] = twin.head_grid(torch.from_numpy(level))
            cache.put(i, j, x[:, :, i, j])
    tiles = twin.unscaled(x).view(down, across, model.channels, tile, tile)
    image = tiles.permute(2, 0, 3, 1, 4).reshape(model.channels, down * tile, across * tile)[:, :height, :width]
    if not stack.is_empty() or zlib.crc32(image.contiguous().numpy().tobytes()) != checksum:
        raise DataError("the checksum of the decoded picture is another one; the file is damaged")
    return image.contiguous()


def _starts(twin: PixelCNNpp, params: Tensor, before: Tensor) -> np.ndarray:
    """Where the levels' intervals begin: int64 [N, 257]."""
    return start_of(twin.head.cdf(params, before).numpy(), np.arange(LEVELS + 1), LEVELS, PRECISION)


def _exact(model: PixelCNNpp) -> PixelCNNpp:
    return copy.deepcopy(model).cpu().double().eval()


def _cut(image: Tensor, tile: int) -> Tensor:
    """uint8 [C, H, W] as tiles [N, C, T, T], row by row, padded by repeating the edges."""
    height, width = image.shape[1:]
    padded = F.pad(image[None].float(), (0, -width % tile, 0, -height % tile), mode="replicate")[0].to(torch.uint8)
    pieces = padded.unfold(1, tile, tile).unfold(2, tile, tile)  # [C, down, across, T, T]
    return pieces.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()


def _check(model: PixelCNNpp, image: Tensor, tile: int) -> None:
    model.check_size(tile, tile)
    if model.cond_dim:
        raise ShapeError("a conditional network needs the condition to decode; train one without")
    if image.dim() != 3 or image.dtype != torch.uint8 or image.shape[0] != model.channels or 0 in image.shape:
        raise ShapeError(f"a picture is uint8 [{model.channels}, H, W], not {image.dtype} {tuple(image.shape)}")
    if max(image.shape) > 65535 or image[0].numel() > MOST_PIXELS or tile > MOST_TILE:
        raise ShapeError(f"pictures of up to {MOST_PIXELS} pixels are coded, in tiles of up to {MOST_TILE}")


def _read_header(model: PixelCNNpp, data: bytes) -> tuple[int, int, int, int]:
    inner = data[OUTER.size :]
    if len(inner) <= HEADER.size or data[:4] != MAGIC:
        raise DataError("not a file of this codec, or a truncated one")
    if OUTER.unpack(data[: OUTER.size])[1] != zlib.crc32(inner):
        raise DataError("the file's checksum is another one; it is damaged")
    version, channels, weights, height, width, tile, checksum = HEADER.unpack(inner[: HEADER.size])
    if version != VERSION:
        raise DataError(f"the file has version {version}; this code reads {VERSION}")
    if weights != weights_hash(model) or channels != model.channels:
        raise CheckpointError(
            "the file was written with another network's weights; decode it with the run that wrote it"
        )
    sane = 0 < tile <= MOST_TILE and 0 < height * width <= MOST_PIXELS
    if not sane or tile % (1 << (model.stages - 1)):
        raise DataError(f"the header claims a picture of {height} x {width} in tiles of {tile}; the file is damaged")
    return height, width, tile, checksum
