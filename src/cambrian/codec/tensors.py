"""Reading and writing safetensors files, with every claim of the header checked before a byte is believed.

Layout (safetensors specification): 8 bytes little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`,
then the bytes of all tensors without gaps or overlaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cambrian.codec.files import parse_json
from cambrian.errors import CheckpointError

MAX_HEADER = 32 << 20
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file; every tensor is stored as its own contiguous CPU copy."""
    owned = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    return safetensors.torch.save(owned)


def load(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file after checking it. Raises `CheckpointError`; a hostile file costs neither time nor memory."""
    inspect(path)
    try:
        return safetensors.torch.load_file(str(path))
    except Exception as error:  # the library's own error type is not part of its documented interface
        raise CheckpointError(f"{path} is damaged: {error}") from None


def inspect(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check the header against the file: `{name: (dtype, shape)}`. Raises `CheckpointError` naming what is wrong."""
    try:
        size = os.stat(path).st_size
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file")
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER) or length < 2:
                raise CheckpointError(
                    f"{path} is not a safetensors file, or is truncated ({size} bytes, header of {length})"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file: the header is not a JSON object")
    try:
        header: dict[str, Any] = parse_json(raw.rstrip(b" "))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from None
    return _check_entries(path, header, size - 8 - length)


def _check_entries(path: Path, header: dict[str, Any], payload: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if len(name) > 1024 or "\x00" in name or ".." in name or name.startswith(("/", "\\")):
            raise CheckpointError(f"{path} holds a tensor with an unsafe name {name[:80]!r}")
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = [*shape, begin, end]
            if set(entry) != {"dtype", "shape", "data_offsets"} or not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: the entry of tensor {name!r} is malformed") from None
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise CheckpointError(f"{path}: tensor {name!r} has the unknown type {dtype!r}")
        if len(shape) > 16 or math.prod(shape) * _SIZES[dtype] != end - begin:
            raise CheckpointError(f"{path}: tensor {name!r} declares shape {shape} but {end - begin} bytes")
        spans.append((begin, end, name))
        found[name] = (dtype, shape)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise CheckpointError(f"{path}: the bytes of tensor {name!r} overlap another's or leave a gap")
        position = end
    if position != payload:
        raise CheckpointError(f"{path} is truncated or has trailing bytes: {payload} of {position} bytes of data")
    return found


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
