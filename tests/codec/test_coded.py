"""The entropy-coded and sparse kinds of the compressed file: bit-identical, exactly as long as said, hostile-proof."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cambrian.codec import coded, container
from cambrian.codec.container import Palette, Sparse
from cambrian.errors import CheckpointError


def sparse(shape: tuple[int, ...], density: float, values: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator)
    if values is not None:
        drawn = values[torch.randint(len(values), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < density, drawn, 0.0)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype and a.shape == b.shape and coded.to_bytes(a.contiguous()) == coded.to_bytes(b.contiguous())
    )


VALUES = torch.tensor([-1.5, -0.25, 0.5, 1.0, 2.0])


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("gap_bits", [0, 1, 4, 8])
@pytest.mark.parametrize("huffman", [True, False])
def test_sparse_tensors_decode_bit_identically(tmp_path: Path, density: float, gap_bits: int, huffman: bool):
    path, shape = tmp_path / "a.cmb", (60, 3, 11)
    shared, free = sparse(shape, density, VALUES), sparse(shape, density)
    free.view(-1)[5] = -0.0
    stored = {"shared": Sparse(shared, VALUES, gap_bits, huffman), "free": Sparse(free, None, gap_bits, huffman)}
    container.encode(path, {**stored, "half": Sparse(free.bfloat16(), None, gap_bits, huffman)})
    found = container.decode(path)
    assert same_bits(found["shared"], shared) and same_bits(found["free"], free)
    assert same_bits(found["half"], free.bfloat16())
    kinds = {entry["name"]: entry for entry in container.inspect(path)["tensors"]}
    assert kinds["shared"]["kind"] == "sparse" and kinds["free"]["kind"] == "scattered"
    if gap_bits:
        assert kinds["free"]["gap"] == gap_bits


def test_the_chosen_field_is_the_shortest_and_entropy_coding_never_lengthens():
    tensor = sparse((200, 50), 0.08, VALUES)
    lengths = [len(Sparse(tensor, VALUES, bits).encode()[1]) for bits in range(1, 9)]
    assert len(Sparse(tensor, VALUES).encode()[1]) == min(lengths)
    for bits in (0, 3, 5):
        assert len(Sparse(tensor, VALUES, bits).encode()[1]) <= len(Sparse(tensor, VALUES, bits, False).encode()[1])


def test_a_palette_may_be_huffman_coded_when_asked(tmp_path: Path):
    index = torch.from_numpy(np.minimum(np.random.default_rng(0).geometric(0.6, 5000) - 1, 15)).view(50, 100)
    values = torch.linspace(-1, 1, 16)
    plain, packed = Palette(index, values), Palette(index, values, ("fixed", "huffman"))
    assert plain.encode()[0]["kind"] == "fixed" and packed.encode()[0]["kind"] == "huffman"
    counts = torch.bincount(index.flatten()).double()
    entropy = -(counts / 5000 * (counts / 5000).log2()).sum().item()
    assert 5000 * entropy / 8 < len(packed.encode()[1]) - 64 < 5000 * (entropy + 0.1) / 8 + 40
    container.encode(tmp_path / "p.cmb", {"w": packed})
    assert same_bits(container.decode(tmp_path / "p.cmb")["w"], values[index])


def test_a_value_outside_of_the_palette_is_refused():
    for tensor in (torch.tensor([0.0, 0.3]), torch.tensor([-0.0])):
        with pytest.raises(ValueError, match="not in the palette"):
            Sparse(tensor, VALUES).encode()
    assert Sparse(torch.zeros(4), torch.empty(0)).encode()[0]["entries"] >= 0


def rewrite(path: Path, change) -> None:
    """The file again with its header changed and a valid checksum."""
    whole = path.read_bytes()
    length = struct.unpack_from("<4sHI", whole)[2]
    header = json.loads(whole[10 : 10 + length])
    for entry in header["tensors"]:
        change(entry)
    text = json.dumps(header).encode()
    body = struct.pack("<4sHI", b"CMBR", 1, len(text)) + text + whole[10 + length : -4]
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": [1 << 36]}, {"shape": [5000]}, {"shape": [60, 32]}, {"shape": []}, {"entries": 1 << 38}, {"entries": 0},
        {"entries": 3}, {"gap": 0}, {"gap": 9}, {"gap": 3}, {"split": 0}, {"split": 1 << 30}, {"split": 7}, {"symbols": 0},
        {"symbols": 1 << 30}, {"symbols": 4}, {"kind": "huffman"}, {"kind": "fixed"}, {"kind": "flagged"}, {"kind": "scattered"},
        {"kind": "raw"}, {"gap": True}, {"gap": "5"}, {"entries": None}, {"dtype": "float64"},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_headers_are_typed_errors_before_memory_is_taken(tmp_path: Path, lie: dict):
    path = tmp_path / "a.cmb"
    container.encode(path, {"a": Sparse(sparse((60, 33), 0.1, VALUES), VALUES, 5)})
    rewrite(path, lambda entry: entry.update(lie))
    with pytest.raises(CheckpointError):
        container.decode(path)


def test_no_header_makes_more_elements_than_the_bytes_allow(tmp_path: Path):
    path = tmp_path / "a.cmb"
    container.encode(path, {"a": Sparse(torch.zeros(1 << 20), torch.empty(0), 8)})
    assert path.stat().st_size > (1 << 20) / 2048 and same_bits(container.decode(path)["a"], torch.zeros(1 << 20))
    with pytest.raises(CheckpointError, match="in memory"):
        container.decode(path, limit=1 << 20)
    rewrite(path, lambda entry: entry.update(shape=[(1 << 20) + 256]))
    with pytest.raises(CheckpointError, match="reach"):
        container.decode(path)


def test_every_flipped_byte_with_a_mended_checksum_decodes_or_is_a_typed_error(tmp_path: Path):
    path = tmp_path / "a.cmb"
    container.encode(path, {"a": Sparse(sparse((40, 30), 0.1, VALUES), VALUES), "b": Sparse(sparse((40,), 0.2))})
    whole = path.read_bytes()
    start = 10 + struct.unpack_from("<4sHI", whole)[2]
    refused = 0
    for position in range(start, len(whole) - 4):
        changed = bytearray(whole[:-4])
        changed[position] ^= 0x21
        path.write_bytes(bytes(changed) + struct.pack("<I", zlib.crc32(bytes(changed))))
        try:
            assert container.decode(path)["a"].shape == (40, 30)
        except CheckpointError:
            refused += 1
    assert refused > 0
