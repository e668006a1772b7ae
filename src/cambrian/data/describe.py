"""A dry run over data: what a reader would find, without training on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cambrian.data import images, strokes, text_files
from cambrian.data.source import EMBEDDED, Source, resolve
from cambrian.data.split import Data
from cambrian.errors import DataError

LAYOUTS = "images in folders by class, parquet with image and label columns, npz or ndjson strokes, txt"


def describe(spec: str | os.PathLike[str], *, size: int | None = None) -> dict[str, Any]:
    """Read everything under `spec` once and summarise it: modality, splits, classes, shapes.

    Raises `DataError` naming the first bad record, or when no reader knows the layout.
    """
    source = resolve(spec, default="")
    if source.kind == "world":
        return {"data": source.value, "kind": "embedded", "holds": EMBEDDED[source.value]}
    data = _read(source, size)
    found: dict[str, Any] = {"data": data.name, "kind": data.kind, "source": data.source}
    for name in ("train", "valid", "test"):
        split = getattr(data, name)
        if split is not None:
            found[name] = f"{len(split)} records"
    found.update({k: _short(v) for k, v in data.info.items()})
    assert data.train is not None
    for name, tensor in data.train[torch.arange(1)].items():
        found[f"field {name}"] = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}"
    return found


def _read(source: Source, size: int | None) -> Data:
    if source.kind == "hub":
        return images.load(source, size=size)
    path = Path(source.value)
    inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    kinds = {p.suffix.lower() for p in inside}
    if not kinds:
        raise DataError(f"{path} is an empty folder; Cambrian reads {LAYOUTS}")
    if kinds & {".npz", ".ndjson"}:
        return strokes.load(source)
    if kinds & {".parquet", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}:
        return images.load(source, size=size)
    if kinds == {".txt"}:
        return text_files.load(source)
    raise DataError(f"{path} holds {', '.join(sorted(kinds)[:8])}, which no reader knows; Cambrian reads {LAYOUTS}")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) < 120 else text[:117] + "..."
