"""Tensors that several processes on one host see at once: files in memory, mapped, without a copy and without pickling.

`Arena` makes them. The files are unlinked as soon as every process has mapped them (`seal`), so the memory is freed
when the last process ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from cambrian.errors import RunError


@dataclass(frozen=True)
class Region:
    """Where a shared tensor lies: what another process needs to map it. Dtypes travel by name."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    def map(self) -> Tensor:
        """The tensor, shared with every other process that maps it. Raises `RunError` after the arena was sealed."""
        if not os.path.exists(self.path):
            raise RunError(f"shared memory {self.path} is gone: the process that owns it has ended or sealed it")
        size = 1
        for n in self.shape:
            size *= n
        return torch.from_file(self.path, shared=True, size=size, dtype=getattr(torch, self.dtype)).view(self.shape)


class Arena:
    """Makes shared tensors; use as a context manager.

    `zeros` and `put` give the tensor and its `Region`. Nothing is left on the file system after `seal` or the end of the `with`.
    """

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        home = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="cambrian-", dir=home))

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seal()

    def zeros(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Region]:
        """A shared tensor of zeros under a name of its own."""
        region = Region(str(self.directory / name), shape, str(dtype).removeprefix("torch."))
        size = max(1, torch.Size(shape).numel() * dtype.itemsize)
        with open(region.path, "xb") as file:
            file.truncate(size)
        return region.map(), region

    def put(self, name: str, value: Tensor) -> Region:
        """Copy a tensor into shared memory."""
        tensor, region = self.zeros(name, *value.shape, dtype=value.dtype)
        tensor.copy_(value)
        return region

    def seal(self) -> None:
        """Unlink the files: whoever has mapped them keeps them, nobody else can. Call it again at no cost."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Published:
    """A vector that one process writes and others read whole: a sequence lock over shared memory.

    A reader that meets a write tries again, so it never sees half of one version and half of another.
    """

    def __init__(self, vector: Tensor, lock: Tensor) -> None:
        self.vector = vector
        self.lock = lock.numpy()  # [2] int64: sequence (odd while being written), version

    def write(self, value: Tensor, version: int) -> None:
        """Make `value` the current version."""
        self.lock[0] += 1
        self.vector.copy_(value)
        self.lock[1] = version
        self.lock[0] += 1

    def read(self, out: Tensor, pause: Callable[[], object] = os.sched_yield) -> int:
        """Copy the current version into `out`; returns its number."""
        while True:
            before = int(self.lock[0])
            if before % 2 == 0:
                out.copy_(self.vector)
                version = int(self.lock[1])
                if int(self.lock[0]) == before:
                    return version
            pause()
