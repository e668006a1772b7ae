"""The `.cmb` file of a compressed network: what it weighs is `os.path.getsize`, what it decodes to is
bit-identical.

    b"CMBR"  version u16  header length u32  header (JSON)  payload  CRC32 u32         (little-endian)

The header lists the tensors (`name, dtype, shape, kind, bytes`, and `symbols` for coded ones) in the order of their
payloads:

- `raw`: the tensor's own bytes;
- `fixed`: a palette of `k` values, then every weight as an index of ceil(log2 k) bits;
- `flagged`: a palette, one bit per weight (non-zero), then the non-zero weights as ceil(log2 (k-1)) bits each.

A coded tensor takes the shorter of the last two. Every weight takes at least a bit, so a hostile header cannot ask
for more than 64 times the file's size in memory.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.codec import bits
from cambrian.codec.files import parse_json, replace_bytes
from cambrian.errors import CheckpointError

MAGIC, VERSION = b"CMBR", 1
_PREFIX = struct.Struct("<4sHI")
_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Palette:
    """A tensor whose entries are few different values: `index` (int64, the tensor's shape) into `values [k]`."""

    index: Tensor
    values: Tensor

    @classmethod
    def of(cls, dense: Tensor, values: Tensor) -> Palette:
        """Find every entry of `dense` in the ascending `values`; `ValueError` when one is not there."""
        values = values.to(dense.dtype)
        index = torch.searchsorted(values, dense.detach().contiguous()).clamp_max(len(values) - 1)
        if not torch.equal(values[index], dense.detach()):
            raise ValueError("the tensor holds values that are not in the palette")
        return cls(index, values)

    def dense(self) -> Tensor:
        return self.values[self.index]


def encode(path: Path, tensors: Mapping[str, Tensor | Palette], meta: Mapping[str, Any] | None = None) -> int:
    """Write `path` atomically and return its size in bytes. `meta` are JSON values that `inspect` gives back."""
    entries, payloads = [], []
    for name, tensor in tensors.items():
        entry, payload = _encode_one(tensor)
        entries.append({"name": name, **entry, "bytes": len(payload)})
        payloads.append(payload)
    header = json.dumps({"meta": dict(meta or {}), "tensors": entries}, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join([_PREFIX.pack(MAGIC, VERSION, len(header)), header, *payloads])
    replace_bytes(path, body + struct.pack("<I", zlib.crc32(body)))
    return path.stat().st_size


def _encode_one(tensor: Tensor | Palette) -> tuple[dict[str, Any], bytes]:
    if isinstance(tensor, Tensor):
        owned = tensor.detach().cpu().contiguous()
        return {"dtype": _NAMES[owned.dtype], "shape": list(owned.shape), "kind": "raw"}, _to_bytes(owned)
    values, index = tensor.values.detach().cpu().contiguous(), tensor.index.cpu().numpy().ravel()
    zero = int((values == 0).nonzero()[0]) if bool((values == 0).any()) else None
    best, stream = "fixed", bits.pack(index, bits.width(len(values)))
    if zero is not None and len(values) > 1:
        present = index != zero
        kept = index[present]
        rest = bits.pack(kept - (kept > zero), bits.width(len(values) - 1))
        flagged = np.packbits(present).tobytes() + rest
        if len(flagged) < len(stream):
            best, stream = "flagged", flagged
    entry = {"dtype": _NAMES[values.dtype], "shape": list(tensor.index.shape), "kind": best, "symbols": len(values)}
    return entry, _to_bytes(values) + stream


def decode(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.cmb` file. Raises `CheckpointError` for a truncated, altered, hostile or foreign file."""
    header, payload = _open(path)
    found: dict[str, Tensor] = {}
    for entry, part in _split(path, header, payload):
        found[entry["name"]] = _decode_one(path, entry, part)
    return found


def load(path: Path, module: nn.Module) -> nn.Module:
    """Put the file's tensors into `module` (same architecture). Raises `CheckpointError` when names or shapes
    differ.
    """
    tensors, own = decode(path), module.state_dict()
    if tensors.keys() != own.keys():
        odd = sorted(tensors.keys() ^ own.keys())[0]
        raise CheckpointError(f"{path} is of another model: tensor {odd!r} is only on one side")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {list(tensor.shape)}, the model has {list(own[name].shape)}"
            )
    module.load_state_dict(tensors)
    return module


def inspect(path: Path) -> dict[str, Any]:
    """The checked header: `meta`, and one entry per tensor with its kind and bytes."""
    header, payload = _open(path)
    list(_split(path, header, payload))
    return header


def _open(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(whole) < _PREFIX.size + 4 or whole[:4] != MAGIC:
        raise CheckpointError(f"{path} is not a .cmb file, or is truncated ({len(whole)} bytes)")
    _, version, length = _PREFIX.unpack_from(whole)
    if version != VERSION:
        raise CheckpointError(f"{path} has version {version}; this program reads version {VERSION}")
    if zlib.crc32(whole[:-4]) != struct.unpack("<I", whole[-4:])[0]:
        raise CheckpointError(f"{path} is damaged: the checksum does not match")
    if length > len(whole) - _PREFIX.size - 4:
        raise CheckpointError(f"{path} is damaged: the header claims {length} bytes")
    try:
        header = parse_json(whole[_PREFIX.size : _PREFIX.size + length])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("tensors"), list):
        raise CheckpointError(f"{path} has a damaged header: no list of tensors")
    return header, whole[_PREFIX.size + length : -4]


def _split(path: Path, header: dict[str, Any], payload: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    position, names = 0, set()
    for entry in header["tensors"]:
        _check_entry(path, entry)
        if entry["name"] in names:
            raise CheckpointError(f"{path}: tensor {entry['name']!r} stands twice in the header")
        names.add(entry["name"])
        yield entry, payload[position : position + entry["bytes"]]
        position += entry["bytes"]
    if position != len(payload):
        raise CheckpointError(f"{path} is damaged: tensors of {position} bytes, payload of {len(payload)}")


def _check_entry(path: Path, entry: Any) -> None:
    try:
        name, shape, size = entry["name"], entry["shape"], entry["bytes"]
        coded = entry["kind"] in ("fixed", "flagged")
        numbers = [*shape, size] + ([entry["symbols"]] if coded else [])
        good = isinstance(name, str) and entry["dtype"] in _DTYPES and (coded or entry["kind"] == "raw")
        good = good and len(shape) <= 16 and all(type(n) is int and 0 <= n < 1 << 40 for n in numbers)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise CheckpointError(f"{path}: an entry of the header is malformed: {str(entry)[:100]}")


def _decode_one(path: Path, entry: dict[str, Any], part: bytes) -> Tensor:
    name, dtype, shape = entry["name"], _DTYPES[entry["dtype"]], entry["shape"]
    count, item = prod(shape), dtype.itemsize
    if len(part) != entry["bytes"]:
        raise CheckpointError(f"{path} is truncated inside tensor {name!r}")
    if entry["kind"] == "raw":
        if count * item != len(part):
            raise CheckpointError(f"{path}: tensor {name!r} declares shape {shape} but {len(part)} bytes")
        return _from_bytes(part, dtype).reshape(shape)
    symbols = entry["symbols"]
    if not 1 <= symbols * item <= len(part):
        raise CheckpointError(f"{path}: tensor {name!r} declares a palette of {symbols} values in {len(part)} bytes")
    values, stream = _from_bytes(part[: symbols * item], dtype), part[symbols * item :]
    index = _flagged(path, name, values, stream, count) if entry["kind"] == "flagged" else None
    if index is None:
        index = bits.unpack(stream, count, bits.width(symbols))
    if count and int(index.max()) >= symbols:
        raise CheckpointError(f"{path}: tensor {name!r} holds index {int(index.max())} of a palette of {symbols}")
    return values[torch.from_numpy(index)].reshape(shape)


def _flagged(path: Path, name: str, values: Tensor, stream: bytes, count: int) -> np.ndarray:
    zeros = (values == 0).nonzero()
    flags = bits.packed_bytes(count, 1)
    if not len(zeros) or len(values) < 2 or len(stream) < flags:
        raise CheckpointError(f"{path}: tensor {name!r} is flagged for zeros but has none in its palette, or is short")
    zero = int(zeros[0])
    present = bits.unpack(stream[:flags], count, 1).astype(bool)
    kept = bits.unpack(stream[flags:], int(present.sum()), bits.width(len(values) - 1))
    index = np.full(count, zero, np.int64)
    index[present] = kept + (kept >= zero)
    return index


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _from_bytes(payload: bytes, dtype: torch.dtype) -> Tensor:
    if not payload:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(dtype)
