"""A dataset as three splits that are indexed a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cambrian.errors import DataError

Batch = dict[str, Tensor]


class Split(Protocol):
    """What a recipe may ask of a split: its length, and the samples at the given positions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Batch: ...


class TensorSplit:
    """Samples held in memory: equally long tensors by field name.

    Raises `DataError` when the columns differ in length, are empty, or hold NaN or infinity.
    """

    def __init__(self, **fields: Tensor) -> None:
        lengths = {name: len(t) for name, t in fields.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns of a split must be equally long, not {lengths}")
        if not next(iter(lengths.values())):
            raise DataError("a split must hold at least one sample")
        for name, tensor in fields.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor.reshape(len(tensor), -1)).all(1)).nonzero()[0])
                raise DataError(f"record {bad} of {name!r} holds NaN or infinity; remove or repair it")
        self.fields = fields

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: Tensor) -> Batch:
        return {name: tensor[index] for name, tensor in self.fields.items()}


class WorldSplit:
    """Samples made on demand: `make(indices) -> dict of tensors` is a pure function; `size` is the length of an epoch."""

    def __init__(self, make: Callable[[Tensor], Batch], size: int) -> None:
        self.make = make
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Tensor) -> Batch:
        return self.make(index)


@dataclass(frozen=True)
class Data:
    """A named dataset. `info` carries what sizes derive from (`shape`, `classes`, `scale` ...); `source` says where it came from.

    `train` is None for recipes that make their own experience (environments).
    """

    name: str
    kind: str
    train: Split | None = None
    valid: Split | None = None
    test: Split | None = None
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    source: str = "embedded"

    def split(self, name: str) -> Split:
        """The split `train`, `valid` or `test`; `DataError` when the dataset lacks it."""
        found = {"train": self.train, "valid": self.valid, "test": self.test}.get(name)
        if found is None:
            raise DataError(f"{self.name} has no split {name!r}; use train, valid or test")
        return found

    def fingerprint(self) -> str:
        """A short hash of sizes, info and the first and last training samples: tells whether a run meets the same data again."""
        digest = hashlib.sha256(f"{self.name}|{self.kind}|{sorted(map(str, self.info.items()))}".encode())
        for split in (self.train, self.valid, self.test):
            if split is not None:
                digest.update(str(len(split)).encode())
                for tensor in split[torch.tensor([0, len(split) - 1])].values():
                    digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]
