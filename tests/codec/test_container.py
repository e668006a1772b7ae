"""The compressed file: bit-identical round trips, exact sizes, and no trust in what a file says about itself."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cambrian.codec import bits, container
from cambrian.errors import CheckpointError


@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), max_size=70))
@settings(max_examples=60, deadline=None)
def test_bit_packing_round_trips_at_the_exact_length(size: int, numbers: list[int]):
    values = np.array([n % 2**size for n in numbers], dtype=np.int64)
    packed = bits.pack(values, size)
    assert len(packed) == (len(values) * size + 7) // 8
    assert np.array_equal(bits.unpack(packed, len(values), size), values)


def test_bit_packing_is_most_significant_first_and_refuses_what_does_not_fit():
    assert bits.pack(np.array([1, 2, 3]), 2) == bytes([0b01101100])
    with pytest.raises(ValueError, match="do not fit"):
        bits.pack(np.array([4]), 2)
    with pytest.raises(CheckpointError, match="padding"):
        bits.unpack(bytes([0b01101101]), 3, 2)
    with pytest.raises(CheckpointError, match="bytes"):
        bits.unpack(b"\0\0", 3, 2)
    assert [bits.width(k) for k in (1, 2, 3, 17, 256, 257)] == [1, 1, 2, 5, 8, 9]


def tensors() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    dense = torch.randint(4, (7, 3, 3), generator=generator)
    sparse = torch.where(
        torch.rand(40, 5, generator=generator) < 0.9, 2, torch.randint(5, (40, 5), generator=generator)
    )
    return {
        "dense": container.Palette(dense, values[values != 0]),
        "sparse": container.Palette(sparse, values),
        "one value": container.Palette(torch.zeros(9, dtype=torch.int64), torch.tensor([3.0])),
        "bias": torch.tensor([float("nan"), -0.0, 1e-40]),
        "count": torch.tensor(5),
        "half": torch.randn(3, 2, generator=generator).bfloat16(),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
    }


def test_every_kind_decodes_bit_identically(tmp_path: Path):
    path = tmp_path / "net.cmb"
    stored = tensors()
    size = container.encode(path, stored, {"chain": ["prune"]})
    assert size == path.stat().st_size
    found = container.decode(path)
    for name, tensor in stored.items():
        dense = tensor.dense() if isinstance(tensor, container.Palette) else tensor
        assert found[name].dtype == dense.dtype and found[name].shape == dense.shape
        assert found[name].flatten().view(torch.uint8).tolist() == dense.flatten().view(torch.uint8).tolist()
    header = container.inspect(path)
    kinds = {entry["name"]: (entry["kind"], entry["bytes"]) for entry in header["tensors"]}
    assert header["meta"] == {"chain": ["prune"]}
    assert kinds["dense"] == ("fixed", 4 * 4 + (63 * 2 + 7) // 8)
    nonzero = int((stored["sparse"].index != 2).sum())
    assert kinds["sparse"] == ("flagged", 5 * 4 + 25 + (nonzero * 2 + 7) // 8)


def test_palette_of_a_tensor_with_other_values_is_refused():
    with pytest.raises(ValueError, match="not in the palette"):
        container.Palette.of(torch.tensor([0.5, 0.7]), torch.tensor([0.5, 1.0]))


def test_load_fills_a_module_and_refuses_another(tmp_path: Path):
    net, path = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "net.cmb"
    container.encode(path, net.state_dict())
    other = container.load(path, nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match="another model"):
        container.load(path, nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="the model has"):
        container.load(path, nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))


def test_every_truncation_and_every_flipped_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "net.cmb"
    container.encode(path, tensors())
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            container.decode(path)
    for position in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError):
            container.decode(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        container.decode(tmp_path / "none.cmb")


def forged(path: Path, entries: object, payload: bytes = b"") -> Path:
    header = json.dumps({"tensors": entries}).encode()
    body = struct.pack("<4sHI", b"CMBR", 1, len(header)) + header + payload
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    return path


RAW = {"name": "a", "dtype": "float32", "shape": [2], "kind": "raw", "bytes": 8}
FIXED = {"name": "a", "dtype": "float32", "shape": [4], "kind": "fixed", "symbols": 3, "bytes": 13}


@pytest.mark.parametrize(
    ("entries", "payload"),
    [
        ({"a": 1}, b""),
        ([7], b""),
        ([{**RAW, "dtype": "object"}], bytes(8)),
        ([{**RAW, "kind": "pickle"}], bytes(8)),
        ([{**RAW, "shape": [-2]}], bytes(8)),
        ([{**RAW, "shape": [True, 2]}], bytes(8)),
        ([{**RAW, "shape": [1 << 39] * 9}], bytes(8)),
        ([{**RAW, "bytes": 1 << 39}], bytes(8)),
        ([RAW, RAW], bytes(16)),
        ([RAW], bytes(9)),
        ([{**FIXED, "symbols": 1 << 30}], bytes(13)),
        ([{**FIXED, "shape": [1 << 35]}], bytes(13)),
        ([FIXED], bytes(12) + b"\xff"),
        ([{**FIXED, "kind": "flagged"}], struct.pack("<3f", 1, 2, 3) + b"\0"),
        ([{**FIXED, "kind": "flagged", "bytes": 12}], struct.pack("<3f", 0, 1, 2)),
    ],
)
def test_hostile_headers_with_a_valid_checksum_are_typed_errors(tmp_path: Path, entries: object, payload: bytes):
    with pytest.raises(CheckpointError):
        container.decode(forged(tmp_path / "bad.cmb", entries, payload))
