"""Read `.npz` files of ragged integer arrays without running what is in them.

numpy stores an array of arrays as a stream of instructions for a small stack machine that can call any function by
name; loading it the ordinary way executes whatever the file says. This reader interprets only the dozen instructions
that numpy writes for arrays of integer arrays, knows three names (`_reconstruct`, `ndarray`, `dtype`) as inert marks,
calls nothing, and refuses everything else with `DataError`. Zip members are bounded before they are read.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from cambrian.errors import DataError

MAX_BYTES = 1 << 30  # of all members together, unpacked
MAX_RATIO = 200  # unpacked : packed; strokes reach 3, long runs of one value 50
MAX_ITEMS = 1_000_000  # in the machine's memo or in one list
MAX_STACK = 20_000  # numpy appends a thousand items at a time, so a true stream stays near that
MAX_INSTRUCTIONS = 16 * MAX_ITEMS
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
    struct.error,
)

_MAGIC = (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00")
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[A-Za-z]\d{0,3})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,12}L?(?:, ?|(?=\))))*)\), \} *\n"
)

Records = np.ndarray | list[np.ndarray]


def read_npz(path: str | os.PathLike[str]) -> dict[str, Records]:
    """Arrays by name: an array as it is, an object array as the list of its integer arrays.

    Raises `DataError` for a file that is no npz, damaged, truncated, too large, or holds anything but numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            _check_sizes(members, os.path.getsize(path), path)
            return {m.filename.removesuffix(".npy"): _member(archive, m, f"{path}: {m.filename}") for m in members}
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{path} is not a readable npz file ({error or type(error).__name__}); fetch it again"
        ) from None


def _check_sizes(members: list[zipfile.ZipInfo], packed: int, path: object) -> None:
    total = sum(m.file_size for m in members)
    if total > min(MAX_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"{path} declares {total} bytes in a file of {packed}; not unpacked, more than {MAX_BYTES} or {MAX_RATIO}:1"
        )
    if len({m.filename for m in members}) != len(members):
        raise DataError(f"{path} holds two members of one name; keep one")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Records:
    if info.flag_bits & 1:
        raise DataError(f"{where} is encrypted; unpack it first")
    with archive.open(info) as stream:
        data = stream.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise DataError(f"{where} holds {len(data)} bytes and declares {info.file_size}; fetch the file again")
    return read_npy(data, where)


def read_npy(data: bytes, where: str) -> Records:
    """One array in numpy's own format; see `read_npz`."""
    shape, fortran, dtype, start = _header(data, where)
    count, body = math.prod(shape), data[start:]
    if dtype.hasobject:
        return decode(body, where, shape)
    if dtype.kind not in "iufb":
        raise DataError(f"{where} holds {dtype} values; numbers are needed")
    if count * dtype.itemsize != len(body):
        raise DataError(f"{where} declares shape {shape} of {dtype} and holds {len(body)} bytes; fetch the file again")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _header(data: bytes, where: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order, element type and where the body starts. Matched as text: numpy's own parser evaluates a literal."""
    size = 2 if data[6:7] == b"\x01" else 4
    length = int.from_bytes(data[8 : 8 + size], "little")
    found = _HEADER.fullmatch(data, 8 + size, 8 + size + length) if data[:8] in _MAGIC and length < 10_000 else None
    if found is None:
        raise DataError(f"{where} has no valid numpy header; write it with numpy.save")
    shape = tuple(int(n.rstrip(b"L")) for n in found["shape"].replace(b" ", b"").split(b",") if n)
    try:
        return shape, found["fortran"] == b"True", np.dtype(found["descr"].decode()), found.end()
    except TypeError:
        raise DataError(f"{where} has an unknown element type {found['descr'].decode()!r}") from None


def decode(stream: bytes, where: str = "stream", shape: tuple[int, ...] | None = None) -> list[np.ndarray]:
    """The integer arrays in the body of an object array of one dimension (and, when given, of `shape`)."""
    try:
        result = _Machine(stream).run()
    except _Refused as error:
        raise DataError(f"{where}: {error}; only arrays of integer arrays are read") from None
    except (IndexError, ValueError, TypeError, KeyError, struct.error, OverflowError) as error:
        raise DataError(f"{where} is truncated or damaged ({type(error).__name__}); fetch it again") from None
    if not isinstance(result, _Array) or not isinstance(result.value, list) or shape not in (None, result.shape):
        raise DataError(f"{where} does not hold a row of arrays; only arrays of integer arrays are read")
    values = [item.value for item in result.value if isinstance(item, _Array)]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) != len(result.value):
        raise DataError(f"{where} holds something that is not an integer array; only arrays of integer arrays are read")
    if sum(a.nbytes for a in arrays) > len(stream):
        raise DataError(f"{where} repeats one array to grow beyond its own size; refused")
    return arrays


class _Refused(Exception):
    """An instruction or a name that numpy does not write for integer arrays."""


_MARK, _RECONSTRUCT, _NDARRAY, _DTYPE = (object() for _ in range(4))
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
}
_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_ORDERS = {"<", ">", "|", "="}


class _Array:
    """An array under construction: `value` becomes an integer array, or the list of an object array's items."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.value: np.ndarray | list[Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 2:
            raise _Refused("an array with an unexpected type or shape")
        self.shape = tuple(shape)
        if kind.code == "O":
            if not isinstance(content, list) or len(shape) != 1 or len(content) != shape[0]:
                raise _Refused("an object array whose items do not fill its shape")
            self.value = content
            return
        content = content.encode("latin-1") if isinstance(content, str) else content
        if not isinstance(content, bytes):
            raise _Refused("an integer array without its bytes")
        flat = np.frombuffer(content, np.dtype(kind.order + kind.code))
        self.value = flat.reshape(self.shape, order="F" if fortran else "C")


class _Kind:
    """A type of elements: `code` is `O` or an integer type such as `i2`."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        version, order, *fields = state
        if version not in (3, 4) or order not in _ORDERS or any(f is not None for f in fields[:3]):
            raise _Refused("a structured element type")
        self.order = order


class _Machine:
    """Interprets the instructions of one stream (protocols 2 to 4). Nothing is looked up, imported or called."""

    def __init__(self, stream: bytes) -> None:
        self.data, self.at = stream, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            if len(self.stack) > MAX_STACK or len(self.memo) > MAX_ITEMS:
                break
            action = _ACTIONS.get(code)
            if action is None:
                raise _Refused(f"instruction 0x{code.hex()} at byte {self.at - 1} is not one of an integer array's")
            action(self)
        raise _Refused("more items or instructions than arrays need")

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise IndexError("the stream ends inside an instruction")
        self.at += size
        return piece

    def number(self, form: str) -> int:
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 100)
        text = self.data[self.at : end].decode("ascii")
        self.at = end + 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        last = len(self.stack) - 1
        while self.stack[last] is not _MARK:  # IndexError below the bottom
            last -= 1
            if last < 0:
                raise IndexError("no mark")
        items = self.stack[last + 1 :]
        del self.stack[last:]
        return items

    def name(self, module: Any, name: Any) -> None:
        found = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            raise _Refused(f"the stream asks for {str(module)[:40]}.{str(name)[:40]}")
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function is _RECONSTRUCT and len(arguments) == 3 and arguments[0] is _NDARRAY:
            self.push(_Array())
        elif function is _DTYPE and isinstance(arguments[0], str):
            code = "O" if arguments[0] in ("O", "O4", "O8") else arguments[0]
            if code != "O" and code not in _INTEGERS:
                raise _Refused(f"an array of {code[:20]!r} values")
            self.push(_Kind(code))
        else:
            raise _Refused("a call")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Array | _Kind):
            raise _Refused("an object with state")
        target.build(state)

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused("items for something that is not a list")
        self.stack[-1].extend(items)
        if len(self.stack[-1]) > MAX_ITEMS:
            raise _Refused(f"more than {MAX_ITEMS} items")

    def tuple_of(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) != size or _MARK in items:
            raise IndexError("too few items")
        del self.stack[-size:]
        self.push(items)

    def protocol(self) -> None:
        version = self.number("B")
        if version not in (2, 3, 4):
            raise _Refused(f"protocol {version}; 2 to 4 are read")


_ACTIONS = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.number("Q"),  # a frame's length: only a hint for readers
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _Machine.stack_global,
    b"q": lambda m: m.memo.__setitem__(m.number("B"), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number("I"), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": lambda m: m.push(m.memo[m.number("B")]),
    b"j": lambda m: m.push(m.memo[m.number("I")]),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("H")),
    b"J": lambda m: m.push(m.number("i")),
    b"U": lambda m: m.push(m.take(m.number("B")).decode("latin-1")),
    b"T": lambda m: m.push(m.take(max(m.number("i"), 0)).decode("latin-1")),
    b"C": lambda m: m.push(m.take(m.number("B"))),
    b"B": lambda m: m.push(m.take(m.number("I"))),
    b"X": lambda m: m.push(m.take(m.number("I")).decode("utf-8")),
    b"\x8c": lambda m: m.push(m.take(m.number("B")).decode("utf-8")),
    b"(": lambda m: m.push(_MARK),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
