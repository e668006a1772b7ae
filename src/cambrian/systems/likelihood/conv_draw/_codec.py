"""Pictures to bytes and back with a trained conv-draw.

    b"CMBI"  version u8  mode u8  weights 4 bytes  torch major u8, minor u8  channels u8
    CRC32 u32 of the decoded pixels and of the next line
    N, height, width, kept blocks, tiles with one block more, seed (variable-length numbers), then the coded symbols

Pictures of any size are padded by repeating their edges and cut into tiles of the model's own size. Both modes run the
float64 twin (`ConvDRAW.exact`), so the decoder meets the encoder's numbers whatever its threads; the weights' hash and
torch's version must agree, and the checksum says afterwards that the pixels do.

Shapes: N pictures, M tiles, L latents of a slot.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.codec import relative_entropy as rec
from cambrian.codec.bits_back import Buckets, Cdf, pop_cdf, push_cdf
from cambrian.codec.rans import Stack
from cambrian.errors import CheckpointError, ConfigError, DataError, ShapeError
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.likelihood.conv_draw.model import PIXELS

if TYPE_CHECKING:
    from cambrian.systems.likelihood.conv_draw.model import ConvDRAW

MAGIC, VERSION = b"CMBI", 1
FIXED = struct.Struct("<4sBB4sBBBI")
MODES = ("lossless", "lossy", "lossy-sample")  # the rest of a lossy stream: prior means, or draws
TARGET = 10.0  # bits of a block
PIXEL_PRECISION = 20
TOGETHER = 256  # tiles of a lossy stream that the network draws at once
MOST_PIXELS = 1 << 28
BUCKETS = Buckets(12, 24)


@dataclass(frozen=True)
class Header:
    """What a stream says about itself."""

    mode: str
    weights: bytes
    torch: tuple[int, int]
    channels: int
    checksum: int
    count: int
    height: int
    width: int
    blocks: int
    extra: int
    seed: int

    def check(self, picture: Tensor) -> int:
        """The checksum of these pixels under this header."""
        rest = f"{self.mode} {self.count} {self.height} {self.width} {self.blocks} {self.extra} {self.seed}"
        return zlib.crc32(rest.encode(), zlib.crc32(picture.contiguous().numpy().tobytes()))

    def to_bytes(self) -> bytes:
        fixed = FIXED.pack(
            MAGIC, VERSION, MODES.index(self.mode), self.weights, *self.torch, self.channels, self.checksum
        )
        return fixed + b"".join(map(_varint, (self.count, self.height, self.width, self.blocks, self.extra, self.seed)))


@dataclass(frozen=True)
class Encoded:
    """A coded stream: `payload` bytes of it are coded symbols, the rest is header; `picture` [N, C, H, W] is what it
    decodes to; `blocks` of `all_blocks` were kept, and one more of the first `extra` tiles; `initial` random bits are
    inside the payload of a lossless stream.
    """

    data: bytes
    payload: int
    picture: Tensor
    blocks: int = 0
    all_blocks: int = 0
    extra: int = 0
    initial: int = 0

    @property
    def bits_per_dim(self) -> float:
        """Of the payload."""
        return 8 * self.payload / self.picture.numel()


def encode(
    model: ConvDRAW,
    image: Tensor,
    *,
    mode: str = "lossy",
    steps: int | None = None,
    bits_per_dim: float | None = None,
    seed: int = 0,
) -> Encoded:
    """Code uint8 pictures [N, C, H, W] or [C, H, W].

    `lossless`: bits-back coding. `lossy`: relative-entropy coding of the latents of the first `steps` steps, or of as
    many blocks as fit `bits_per_dim` (of the payload), or of all; what is not sent is the prior's mean, or a draw
    from it (`lossy-sample`). Raises `ShapeError` for other pictures and `ConfigError` for other modes and ranges.
    """
    image = image[None] if image.dim() == 3 else image
    _check(model, image, mode, steps, bits_per_dim)
    twin, tiles = model.exact(), to_tiles(image, model.size)
    with torch.no_grad():
        if mode == "lossless":
            stack, initial = _push_tiles(twin, tiles, seed)
            picture, kept, extra, every = image, 0, 0, 0
        else:
            sent = _send_tiles(twin, tiles, mode, steps, bits_per_dim, seed)
            kept, extra, every, initial = sent.kept, sent.extra, len(plan(model)), 0
            picture = from_tiles(twin.picture(sent.canvas), image.shape)
            stack = rec.push_all(sent.symbols)
    major, minor = map(int, torch.__version__.split(".")[:2])
    header = Header(mode, fingerprint(model), (major, minor), model.channels, 0, *_frame(image), kept, extra, seed)
    data = replace(header, checksum=header.check(picture)).to_bytes()
    body = stack.to_bytes()
    return Encoded(data + body, len(body), picture, kept, every, extra, initial)


def decode(model: ConvDRAW, data: bytes) -> Tensor:
    """The pictures uint8 [N, C, H, W] of a stream. Raises `DataError` for damaged data and `CheckpointError` for
    another model's, or one that another version of torch wrote.
    """
    header, body = read_header(data)
    major, minor = map(int, torch.__version__.split(".")[:2])
    if header.weights != fingerprint(model) or header.channels != model.channels:
        raise CheckpointError(
            f"the stream was coded with the weights {header.weights.hex()}, this model has {fingerprint(model).hex()}; "
            "decode with the run that encoded it"
        )
    if header.torch != (major, minor):
        raise CheckpointError(
            f"the stream was coded with torch {header.torch[0]}.{header.torch[1]}, this is {major}.{minor}; arithmetic "
            "may differ in the last bit: decode with that version"
        )
    shape = torch.Size((header.count, header.channels, header.height, header.width))
    twin, stack = model.exact(), Stack.from_bytes(body)
    count = header.count * -(-header.height // model.size) * -(-header.width // model.size)
    with torch.no_grad():
        tiles = _pop_tiles(twin, stack, count) if header.mode == "lossless" else _receive(twin, stack, count, header)
    picture = from_tiles(tiles, shape)
    if header.check(picture) != header.checksum:
        raise DataError("the decoded pixels do not match the stream's checksum; the data is damaged")
    return picture


def read_header(data: bytes) -> tuple[Header, bytes]:
    """The header and the coded symbols. Raises `DataError`."""
    if len(data) < FIXED.size or data[:4] != MAGIC:
        raise DataError(f"not a coded picture of conv-draw, or truncated ({len(data)} bytes)")
    _, version, mode, weights, major, minor, channels, checksum = FIXED.unpack_from(data)
    if version != VERSION or mode >= len(MODES):
        raise DataError(f"a coded picture of version {version}, mode {mode}; this program reads version {VERSION}")
    at, numbers = FIXED.size, []
    for _ in range(6):
        value, size = _read_varint(data[at : at + 6])
        numbers.append(value)
        at += size
    count, height, width = numbers[:3]
    if not (count and height and width and channels) or count * channels * height * width > MOST_PIXELS:
        raise DataError(f"a coded picture of {count} x {channels} x {height} x {width} values; the data is damaged")
    header = Header(MODES[mode], weights, (major, minor), channels, checksum, *numbers)
    return header, data[at:]


def fingerprint(model: ConvDRAW) -> bytes:
    """Four bytes that name the weights, the constructor's arguments and the format."""
    digest = hashlib.sha256(json.dumps([VERSION, model._arguments], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()[:4]


def to_tiles(image: Tensor, side: int) -> Tensor:
    """[N, C, H, W] -> [M, C, side, side], row by row; edges are repeated to fill the last tiles."""
    n, c, h, w = image.shape
    down, right = -h % side, -w % side
    padded = F.pad(image.float(), (0, right, 0, down), mode="replicate").to(torch.uint8) if down or right else image
    rows, columns = (h + down) // side, (w + right) // side
    cut = padded.reshape(n, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, c, side, side).contiguous()


def from_tiles(tiles: Tensor, shape: torch.Size) -> Tensor:
    """Undo `to_tiles`."""
    (n, c, h, w), side = shape, tiles.shape[-1]
    rows, columns = -(-h // side), -(-w // side)
    whole = tiles.reshape(n, rows, columns, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(n, c, rows * side, columns * side)[:, :, :h, :w].contiguous()


# -- lossless --------------------------------------------------------------------------------------------------------


def lossless_chunk(count: int) -> tuple[int, int]:
    """Tiles that are coded at once, and lanes: more are faster, and need more initial bits and prefix."""
    together = min(max(1, count // 64), 64)
    return together, min(8 * together, 64)


def _push_tiles(twin: ConvDRAW, tiles: Tensor, seed: int) -> tuple[Stack, int]:
    together, lanes = lossless_chunk(len(tiles))
    latents = together * sum(int(np.prod(twin.slot_shape(s, twin.size, twin.size))) for s in range(twin.slots))
    words = np.random.default_rng(seed).integers(0, 1 << 32, lanes + latents, dtype=np.uint32)
    stack = Stack(lanes, seed_words=words)
    for part in tiles.split(together):
        _push_chunk(twin, stack, part)
    initial = 32 * (latents - stack.trim()) + 31 * lanes
    return stack, initial


def _push_chunk(twin: ConvDRAW, stack: Stack, part: Tensor) -> None:
    chosen: list[np.ndarray] = []

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        assert posterior is not None
        chosen.append(BUCKETS.pop_posterior(stack, _flat(posterior), _flat(prior)))
        return _latents(twin, prior, BUCKETS.standard(chosen[-1]))

    canvas = twin.unfold(choose, twin.scaled(part))
    cdf, levels = _pixel_cdf(twin, canvas)
    values = part.numpy().astype(np.int64).ravel()
    push_cdf(stack, values if levels == 256 else values // 255, cdf, levels, PIXEL_PRECISION)
    for bucket in reversed(chosen):
        BUCKETS.push_prior(stack, bucket)


def _pop_tiles(twin: ConvDRAW, stack: Stack, count: int) -> Tensor:
    together, _ = lossless_chunk(count)
    sizes = [together] * (count // together) + ([count % together] if count % together else [])
    return torch.cat([_pop_chunk(twin, stack, size) for size in reversed(sizes)][::-1])


def _pop_chunk(twin: ConvDRAW, stack: Stack, size: int) -> Tensor:
    chosen: list[np.ndarray] = []
    sides: list[tuple[rec.Normal, rec.Normal]] = []

    def draw(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        chosen.append(BUCKETS.pop_prior(stack, prior.mean.numel()))
        return _latents(twin, prior, BUCKETS.standard(chosen[-1]))

    cdf, levels = _pixel_cdf(twin, twin.unfold(draw, batch=size))
    shape = (size, twin.channels, twin.size, twin.size)
    values = pop_cdf(stack, int(np.prod(shape)), cdf, levels, PIXEL_PRECISION) * (1 if levels == 256 else 255)
    part = torch.from_numpy(values.astype(np.uint8)).view(shape)

    def again(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        assert posterior is not None
        sides.append((_flat(posterior), _flat(prior)))
        return _latents(twin, prior, BUCKETS.standard(chosen[slot]))

    twin.unfold(again, twin.scaled(part))
    for bucket, (posterior, prior) in zip(reversed(chosen), reversed(sides), strict=True):
        BUCKETS.push_posterior(stack, bucket, posterior, prior)
    return part


def _pixel_cdf(twin: ConvDRAW, canvas: Tensor) -> tuple[Cdf, int]:
    """The distribution function of every value of the pictures, and how many levels it has."""
    if twin.likelihood == "bernoulli":
        black = torch.sigmoid(-canvas).flatten().numpy()
        return lambda symbol, part: np.where(symbol <= 0, 0.0, np.where(symbol >= 2, 1.0, black[part])), 2
    params = twin.pixel_params(canvas).flatten(0, 3)
    return lambda symbol, part: PIXELS.cdf(params[part], torch.from_numpy(symbol)).numpy(), 256


# -- lossy -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Latents `where` of a slot that are sent together; they cost `expected` bits on average."""

    slot: int
    where: np.ndarray
    expected: float


@lru_cache(maxsize=8)
def _plan(cost: bytes, slots: int, sizes: tuple[int, ...]) -> tuple[Block, ...]:
    table = np.frombuffer(cost, np.float64).reshape(slots, -1)
    found = []
    for slot, size in enumerate(sizes):
        row = table[slot, :size]
        found += [Block(slot, where, float(row[where].sum())) for where in rec.blocks(row, TARGET)]
    return tuple(found)


def plan(model: ConvDRAW) -> tuple[Block, ...]:
    """The fixed partition of a tile's latents, in the order in which they are sent."""
    sizes = tuple(int(np.prod(model.slot_shape(slot, model.size, model.size))) for slot in range(model.slots))
    return _plan(model.cost.detach().double().cpu().numpy().tobytes(), model.slots, sizes)


Symbols = list[tuple[int, int, int]]
Numbers = list[list[np.ndarray]]
"""The draws that were chosen: `[block][tile]`."""


@dataclass(frozen=True)
class Sent:
    """What a lossy stream says, in the order of decoding, and the canvas that it decodes to."""

    symbols: Symbols
    kept: int
    extra: int
    canvas: Tensor


def _send_tiles(
    twin: ConvDRAW, tiles: Tensor, mode: str, steps: int | None, bits_per_dim: float | None, seed: int
) -> Sent:
    blocks, chunks = plan(twin), tiles.split(TOGETHER)
    if steps is not None:
        blocks = tuple(block for block in blocks if block.slot < steps * twin.layers)
    # the stack's own eight bytes and a rounding are part of the payload
    budget = math.inf if bits_per_dim is None else bits_per_dim * tiles.numel() - 72
    sender, symbols, numbers = rec.Sender(np.random.default_rng(seed)), [], []
    for number, part in enumerate(chunks):
        limit = 1.3 * budget * len(part) / len(tiles)
        said, drawn = _send_chunk(twin, sender, part, number * TOGETHER, blocks, seed, limit)
        symbols.append(said)
        numbers.append(drawn)
    kept, extra = _fit([[[rec.cost(one) for one in row] for row in said] for said in symbols], budget)
    chosen: Symbols = []
    canvases = []
    for number, (part, said, drawn) in enumerate(zip(chunks, symbols, numbers, strict=True)):
        at = number * TOGETHER
        rows = [*said[:kept], *(row[: max(0, extra - at)] for row in said[kept : kept + 1])]
        chosen += [symbol for row in rows for one in row for symbol in one]
        canvases.append(
            _draw(twin, len(part), at, mode, seed, kept, extra, lambda n, tile, drawn=drawn: drawn[n][tile])
        )
    return Sent(chosen, kept, extra, torch.cat(canvases))


def _fit(costs: list[list[list[float]]], budget: float) -> tuple[int, int]:
    """How many blocks of every tile, and of how many tiles one block more, cost at most `budget` bits: the costs are of
    [chunk][block][tile], and a chunk may have stopped early.
    """
    spent, kept = 0.0, 0
    for number in range(min(len(chunk) for chunk in costs)):
        row = [cost for chunk in costs for cost in chunk[number]]
        if spent + sum(row) > budget:
            return kept, int((spent + np.cumsum(row) <= budget).sum())
        spent, kept = spent + sum(row), kept + 1
    return kept, 0


def _send_chunk(
    twin: ConvDRAW, sender: rec.Sender, part: Tensor, at: int, blocks: tuple[Block, ...], seed: int, limit: float
) -> tuple[list[list[Symbols]], Numbers]:
    """The symbols [block][tile] and the draws; blocks beyond `limit` bits in all are not tried."""
    said: list[list[Symbols]] = []
    numbers: Numbers = []
    spent = 0.0

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        nonlocal spent
        assert posterior is not None
        sides = [side.reshape(len(part), -1) for side in (*_flat(posterior), *_flat(prior))]
        draw = np.zeros(sides[0].shape)
        for number, block in enumerate(blocks):
            if block.slot != slot or spent > limit:
                continue
            said.append([])
            numbers.append([])
            for tile in range(len(part)):
                mean, std, prior_mean, prior_std = (side[tile, block.where] for side in sides)
                key, begin = rec.block_key(seed, at + tile, number), len(sender.symbols)
                found = sender.send((mean, std), (prior_mean, prior_std), key, number, block.expected)
                draw[tile, block.where] = found
                numbers[-1].append(found)
                said[-1].append(sender.symbols[begin:])
                spent += rec.cost(said[-1][-1])
        return _latents(twin, prior, draw.ravel())

    twin.unfold(choose, twin.scaled(part))
    return said, numbers


def _draw(
    twin: ConvDRAW, size: int, at: int, mode: str, seed: int, kept: int, extra: int,
    number_of: Callable[[int, int], np.ndarray],
) -> Tensor:  # fmt: skip
    """The canvas of `size` tiles (`at` is the first one's number) from the draws of the first `kept` blocks, one more
    for tiles below `extra`; `number_of(block, tile)` is called in the order of the stream.
    """
    blocks = plan(twin)

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        length = prior.mean[0].numel()
        draw = np.zeros((size, length))
        if mode == "lossy-sample":
            for tile in range(size):
                draw[tile] = rec.candidates(rec.block_key(seed, at + tile, (1 << 31) + slot), 0, 1, length)[0]
        for number, block in enumerate(blocks[: kept + 1]):
            if block.slot == slot:
                for tile in range(size if number < kept else min(max(0, extra - at), size)):
                    draw[tile, block.where] = number_of(number, tile)
        return _latents(twin, prior, draw.ravel())

    return twin.unfold(choose, batch=size)


def _receive(twin: ConvDRAW, stack: Stack, count: int, header: Header) -> Tensor:
    blocks, receiver = plan(twin), rec.Receiver(stack)
    if header.blocks > len(blocks) or header.extra > (count if header.blocks < len(blocks) else 0):
        raise DataError(f"the stream claims {header.blocks} blocks, the model has {len(blocks)}; the data is damaged")
    pictures = []
    for at in range(0, count, TOGETHER):

        def number_of(number: int, tile: int, at: int = at) -> np.ndarray:
            block, key = blocks[number], rec.block_key(header.seed, at + tile, number)
            return receiver.receive(len(block.where), key, number, block.expected)

        size = min(TOGETHER, count - at)
        canvas = _draw(twin, size, at, header.mode, header.seed, header.blocks, header.extra, number_of)
        pictures.append(twin.picture(canvas))
    if not stack.is_empty():
        raise DataError("coded symbols are left over; the data is damaged")
    return torch.cat(pictures)


# -- numbers ---------------------------------------------------------------------------------------------------------


def _flat(normal: DiagGaussian) -> rec.Normal:
    """(mean, std), float64 [B L]; std on a fine grid of its own, so that exp's last bit does not matter."""
    std = torch.round(normal.std * 2.0**30) / 2.0**30
    return normal.mean.flatten().numpy(), std.flatten().numpy()


def _latents(twin: ConvDRAW, prior: DiagGaussian, standard: np.ndarray) -> Tensor:
    """Latents on the grid from standard normal numbers [B L]."""
    mean, std = _flat(prior)
    return twin._snap(torch.from_numpy(mean + std * standard)).view(prior.mean.shape)


def _frame(image: Tensor) -> tuple[int, int, int]:
    return image.shape[0], image.shape[2], image.shape[3]


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


def _read_varint(data: bytes) -> tuple[int, int]:
    number = 0
    for i, octet in enumerate(data):
        number |= (octet & 127) << (7 * i)
        if octet < 128:
            return number, i + 1
    raise DataError("the header of a coded picture is truncated or damaged")


def _check(model: ConvDRAW, image: Tensor, mode: str, steps: int | None, bits_per_dim: float | None) -> None:
    if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[1] != model.channels or not image.numel():
        raise ShapeError(f"pictures must be uint8 [N, {model.channels}, H, W], not {image.dtype} {tuple(image.shape)}")
    if mode not in MODES:
        raise ConfigError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    if mode == "lossless" and (steps is not None or bits_per_dim is not None):
        raise ConfigError("a lossless stream keeps everything; leave steps and bits_per_dim out")
    if steps is not None and not 0 <= steps <= model.steps:
        raise ConfigError(f"steps must be 0 to {model.steps}, not {steps}")
    if bits_per_dim is not None and not bits_per_dim > 0:
        raise ConfigError(f"bits_per_dim must be above 0, not {bits_per_dim}")
    if model.likelihood == "bernoulli" and mode == "lossless" and not bool(((image == 0) | (image == 255)).all()):
        raise ShapeError("a Bernoulli model codes pictures of 0 and 255 only; other values would be lost")
