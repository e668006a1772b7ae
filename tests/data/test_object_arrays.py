from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.data import object_arrays
from cambrian.data.object_arrays import decode, read_npz
from cambrian.errors import DataError

HEAD = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def item(rows: int, data: bytes, kind: bytes = b"i2", order: bytes = b"<") -> bytes:
    """One [rows, 3] array as old numpy writes it."""
    head = b"h\x01h\x02K\x00\x85U\x01b\x87R(K\x01" + bytes([75, rows, 75, 3]) + b"\x86"
    return head + DTYPE % (kind, order) + b"\x89" + b"U" + bytes([len(data)]) + data + b"tb"


def outer(items: list[bytes]) -> bytes:
    return (
        HEAD
        + b"(K\x01"
        + bytes([75, len(items)])
        + b"\x85"
        + DTYPE % (b"O8", b"|")
        + b"\x89]("
        + b"".join(items)
        + b"etb."
    )


def ragged(rng: np.random.Generator, n: int, dtype: str = "<i2") -> np.ndarray:
    out = np.empty(n, object)
    for i in range(n):
        out[i] = rng.integers(-99, 99, (rng.integers(1, 30), 3)).astype(dtype)
    return out


@pytest.mark.parametrize("dtype", ["<i2", ">i4", "<i8", "<u2"])
def test_reads_what_numpy_writes(tmp_path: Path, dtype: str) -> None:
    train, plain = ragged(np.random.default_rng(0), 1500, dtype), np.arange(6.0).reshape(2, 3)
    np.savez_compressed(tmp_path / "a.npz", train=train, plain=plain)
    read = read_npz(tmp_path / "a.npz")
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read["train"], train, strict=True))
    assert np.array_equal(read["plain"], plain)


def test_reads_the_old_protocol() -> None:
    rows = np.array([[1, -2, 0], [300, 4, 1]], ">i2")
    (read,) = decode(outer([item(2, rows.tobytes(), order=b">")]))
    assert np.array_equal(read, rows)


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    column = np.asfortranarray(np.arange(12).reshape(4, 3))
    out = np.empty(1, object)
    out[0] = column
    np.savez(tmp_path / "a.npz", a=out, b=column)
    read = read_npz(tmp_path / "a.npz")
    assert np.array_equal(read["a"][0], column)
    assert np.array_equal(read["b"], column)


HOSTILE = {
    "system call": b"cos\nsystem\n(U\x04true\x85R.",
    "posix by protocol 4": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "builtins": b"\x80\x02cbuiltins\neval\n(U\x031+1tR.",
    "numpy name that is not needed": b"\x80\x02cnumpy\nload\nU\x01a\x85R.",
    "reconstruct of another class": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
    "instance": b"(ios\nsystem\n.",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"P1\n.",
    "dictionary": b"\x80\x02}.",
    "long integer": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "text integer": b"I" + b"9" * 100000 + b"\n.",
    "bytes beyond the end": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "negative length": b"\x80\x02T\xff\xff\xff\xffabc.",
    "empty": b"",
    "only a stop": b".",
    "no mark": b"\x80\x02t.",
    "apply without arguments": b"\x80\x02R.",
    "memo that is not there": b"\x80\x02h\x07.",
    "future protocol": b"\x80\x05].",
    "a bare list": b"\x80\x02].",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "deep tuples": b"\x80\x02)" + b"\x85" * 50000 + b".",
    "a million lists": b"\x80\x02" + b"]" * 1100000 + b".",
    "name without end": b"c" + b"a" * 1000000,
    "text as numbers": outer([item(2, b"x" * 12, kind=b"S6")]),
    "floats as integers": outer([item(2, b"x" * 12, kind=b"f2")]),
    "too few bytes": outer([item(2, b"x" * 10)]),
    "odd bytes": outer([item(2, b"x" * 11)]),
    "an item that is no array": outer([b"K\x01"]),
    "array in its own items": outer([]).replace(b"](etb.", b"]h\x01atb."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_are_refused(name: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError):
        decode(HOSTILE[name])
    assert time.process_time() - start < 1.0


def test_one_array_many_times_is_refused() -> None:
    shared = item(10, b"\x01" * 60) + b"q\x09"
    with pytest.raises(DataError, match="grow"):
        decode(outer([shared] + [b"h\x09"] * 100))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_gives_arrays_or_a_typed_error(data: st.DataObject) -> None:
    stream = bytearray(outer([item(2, bytes(range(12))), item(1, b"abcdef")]))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stream)))
    with contextlib.suppress(DataError):
        assert all(isinstance(a, np.ndarray) for a in decode(bytes(stream[:cut])))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_noise_gives_a_typed_error(noise: bytes) -> None:
    with pytest.raises(DataError):
        decode(b"\x80\x02" + noise)


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(DataError, match="not unpacked"):
        read_npz(npz(tmp_path / "a.npz", train=npy(np.zeros((1 << 22,), np.int8))))
    assert time.process_time() - start < 1.0


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(npz(tmp_path / "a.npz", train=npy(np.arange(3000) % 251)).read_bytes())
    entry = data.index(b"PK\x01\x02")
    size = struct.unpack("<I", data[entry + 24 : entry + 28])[0]
    for wrong in (size - 100, size + 100, 0):
        data[entry + 24 : entry + 28] = struct.pack("<I", wrong)
        (tmp_path / "b.npz").write_bytes(data)
        with pytest.raises(DataError):
            read_npz(tmp_path / "b.npz")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_at_once(tmp_path: Path, keep: float) -> None:
    np.savez_compressed(tmp_path / "a.npz", train=ragged(np.random.default_rng(1), 300))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    start = time.process_time()
    with pytest.raises(DataError, match=r"b\.npz"):
        read_npz(tmp_path / "b.npz")
    assert time.process_time() - start < 1.0


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    good = npy(np.zeros((2, 3), "<i2"))
    for bad in (
        b"",
        good[:20],
        good[:-1],
        good.replace(b"(2, 3)", b"(9, 9)"),
        good.replace(b"(2, 3)", b"(-2,3)"),
        good.replace(b"<i2", b"<U2"),
        good.replace(b"<i2", b"|O2"),
        good.replace(b"NUMPY\x01", b"NUMPY\x09"),
        good.replace(b"{'descr'", b"[[[[[[[["),
    ):
        with pytest.raises(DataError):
            read_npz(npz(tmp_path / "a.npz", train=bad))


def test_two_members_of_one_name_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable"):
        read_npz(tmp_path / "none.npz")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(np.arange(3)))
        archive.writestr("a.npy", npy(np.arange(4)))
    with pytest.raises(DataError, match="one name"):
        read_npz(tmp_path / "a.npz")


def test_the_reader_imports_no_interpreter_of_code() -> None:
    text = Path(object_arrays.__file__).read_text()
    for word in ("import pickle", "pickle.", "allow_pickle", "importlib", "getattr(", "eval(", "exec("):
        assert word not in text


@pytest.mark.skipif("CAMBRIAN_DATA" not in os.environ, reason="CAMBRIAN_DATA is unset: no published strokes to read")
def test_published_strokes() -> None:
    read = read_npz(Path(os.environ["CAMBRIAN_DATA"]) / "strokes" / "aaron_sheep.npz")
    assert {name: len(records) for name, records in read.items()} == {"train": 7400, "valid": 300, "test": 300}
    assert all(a.dtype == np.int16 and a.shape[1] == 3 and a[-1, 2] == 1 for a in read["train"])
