"""The `.cmb` file of a compressed network: what it weighs is `os.path.getsize`, what it decodes to is
bit-identical.

    b"CMBR"  version u16  header length u32  header (JSON)  payload  CRC32 u32         (little-endian)

The header lists the tensors (`name, dtype, shape, kind, bytes`, and `symbols` for coded ones) in the order of their
payloads:

- `raw`: the tensor's own bytes;
- `fixed`, `flagged`, `huffman`, `sparse`, `scattered`: see `cambrian.codec.coded`; `symbols` is the palette's size,
  `gap` the bits of a position, `entries` the length of the sparse streams, `split` the bytes of the first of them.

A coded tensor takes the shortest of the kinds that it allows. In memory a file needs at most 2,048 elements for each of
its bytes, and never more than `limit` bytes in all.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.codec import coded
from cambrian.codec.coded import Palette, Sparse, to_bytes
from cambrian.codec.files import parse_json, replace_bytes
from cambrian.errors import CheckpointError

__all__ = ["Palette", "Sparse", "Stored", "decode", "encode", "inspect", "load"]

MAGIC, VERSION = b"CMBR", 1
MEMORY = 4 << 30
Stored = Tensor | Palette | Sparse
_PREFIX = struct.Struct("<4sHI")
_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(path: Path, tensors: Mapping[str, Stored], meta: Mapping[str, Any] | None = None) -> int:
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


def _encode_one(tensor: Stored) -> tuple[dict[str, Any], bytes]:
    if isinstance(tensor, Tensor):
        owned = tensor.detach().cpu().contiguous()
        return {"dtype": _NAMES[owned.dtype], "shape": list(owned.shape), "kind": "raw"}, to_bytes(owned)
    entry, payload = tensor.encode()
    kind = tensor.values.dtype if isinstance(tensor, Palette) else tensor.tensor.dtype
    return {"dtype": _NAMES[kind], **entry}, payload


def decode(path: Path, limit: int = MEMORY) -> dict[str, Tensor]:
    """The tensors of a `.cmb` file. Raises `CheckpointError` for a truncated, altered, hostile or foreign file, and for
    one whose tensors take more than `limit` bytes.
    """
    header, payload = _open(path)
    parts = list(_split(path, header, payload))
    total = sum(prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize for entry, _ in parts)
    if total > limit:
        raise CheckpointError(f"{path} would take {total} bytes in memory, more than {limit}; pass a larger limit")
    found: dict[str, Tensor] = {}
    for entry, part in parts:
        try:
            if len(part) != entry["bytes"]:
                raise CheckpointError("the payload is truncated")
            found[entry["name"]] = coded.read(entry, _DTYPES[entry["dtype"]], part)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: tensor {entry['name']!r}: {error}") from None
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
        numbers = [*shape, size, *(entry[field] for field in coded.FIELDS[entry["kind"]])]
        good = isinstance(name, str) and entry["dtype"] in _DTYPES
        good = good and len(shape) <= 16 and all(type(n) is int and 0 <= n < 1 << 40 for n in numbers)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise CheckpointError(f"{path}: an entry of the header is malformed: {str(entry)[:100]}")
