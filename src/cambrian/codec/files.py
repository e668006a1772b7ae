"""Writing files so that a crash at any moment leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from cambrian.errors import CheckpointError


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, payload: bytes) -> None:
    """Write and fsync a file (not atomic by itself: for files inside a directory that is renamed as a whole)."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def replace_bytes(path: Path, payload: bytes) -> None:
    """Atomically replace `path`: written beside, fsynced, renamed, and the folder fsynced."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_bytes(beside, payload)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    fsync_directory(path.parent)


def dump_json(value: Any) -> bytes:
    """Strict JSON: NaN and infinity are refused with `ValueError`."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def replace_json(path: Path, value: Any) -> None:
    """Atomically replace a JSON file."""
    replace_bytes(path, dump_json(value))


def load_json(path: Path, *, limit: int = 64 << 20) -> Any:
    """Read strict JSON of at most `limit` bytes. Raises `CheckpointError` for NaN, repeated keys, deep nesting or damage."""
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} is larger than {limit >> 20} MiB; not a file that Cambrian wrote")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None


def parse_json(payload: bytes) -> Any:
    """Parse strict JSON; `ValueError` for NaN, infinity, huge numbers and repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is repeated")
        return found

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a JSON number")

    def number(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text} is out of range")
        return value

    return json.loads(payload, object_pairs_hook=unique, parse_constant=refuse, parse_float=number)
