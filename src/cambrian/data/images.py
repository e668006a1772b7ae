"""Pictures from a folder, parquet tables or the Hub, as uint8 tensors `[N, C, H, W]` with int64 labels.

Layouts that are read (a `Source`, a path, or `hub:owner/name`):

    root/cat/1.png  root/dog/2.jpg          a folder a class, split here
    root/train/cat/1.png  root/test/...     split already (train, valid|val, test)
    root/1.png                              unlabelled: every label is 0 and `info["classes"]` is empty
    train.parquet  test.parquet             columns image|img (encoded bytes) and label, as on the Hub

Every record is checked once; a bad one is named in the `DataError`. Decoded pixels stay in memory, nothing is written.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cambrian.data.image_files import Listing, Record, is_parquet, list_folder, list_hub, list_parquet
from cambrian.data.pixels import decode, stack
from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import DataError, ShapeError

HELD_OUT = 0.1  # share of the samples that a missing valid or test split takes from the rest
HELD_OUT_MOST = 5000


def load(
    source: Source | str | os.PathLike[str], size: int | None = None, channels: int | None = None, seed: int = 0
) -> Data:
    """Read pictures as `Data` of kind `images`: splits with `image` uint8 `[N, C, H, W]` and `label` int64 `[N]`.

    `size` scales the shorter side and cuts the centre square (needed where sizes differ); `channels` 1 or 3 converts.
    Splits that the source lacks are drawn from it by `seed`, class by class. `info` holds `shape` (C, H, W), `classes`
    (a list of names, empty for unlabelled pictures) and `scale` (255). Raises `DataError` naming the record, and
    `MissingExtraError` for tables without pyarrow or a Hub name without datasets.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1, 3 or None (as in the files), not {channels}")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel, not {size}")
    source = as_source(source)
    parts, classes = _tensors(source, size, channels)
    parts = _split(parts, classes, seed)
    _check_classes(parts, classes)
    splits = {name: TensorSplit(image=image, label=label) for name, (image, label) in parts.items()}
    info = {"shape": tuple(parts["train"][0].shape[1:]), "classes": list(classes), "scale": 255}
    name = Path(source.value).name if source.kind == "path" else source.value
    return Data(name, "images", splits["train"], splits["valid"], splits["test"], info, str(source))


def unit(image: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return _pixels(image) / 255.0


def signed(image: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return _pixels(image) / 127.5 - 1.0


def _pixels(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        raise ShapeError(f"pixels must be uint8, not {image.dtype}; they are converted once only")
    return image.to(torch.float32)


def as_source(source: Source | str | os.PathLike[str]) -> Source:
    """A path or `hub:owner/name` as a `Source`. Raises `DataError` where nothing is there, or for an embedded world."""
    if not isinstance(source, Source):
        text = str(source)
        source = Source("hub", text.removeprefix("hub:")) if text.startswith("hub:") else Source("path", text)
    if source.kind == "world":
        raise DataError(
            f"{source.value} is embedded, no folder or table of pictures; this recipe cannot make it itself"
        )
    if source.kind == "path" and not source.path.exists():
        raise DataError(f"no file or folder {source.value!r}; give a folder of pictures or a parquet file")
    return source


Part = tuple[Tensor, Tensor]


def _tensors(source: Source, size: int | None, channels: int | None) -> tuple[dict[str, Part], list[str]]:
    if source.kind == "hub":
        return _decode(list_hub(source.value), size, channels)
    if is_parquet(source.path):
        files = [source.path] if source.path.is_file() else sorted(source.path.rglob("*.parquet"))
        state = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        return _parquet(str(source.path), state, size, channels)
    if not source.path.is_dir():
        raise DataError(f"{source.value}: neither a folder of pictures nor a .parquet file")
    return _decode(list_folder(source.path), size, channels)


@lru_cache(maxsize=2)
def _parquet(
    path: str, state: tuple[tuple[str, int, int], ...], size: int | None, channels: int | None
) -> tuple[dict[str, Part], list[str]]:
    """Decoded tables, kept in memory for the next load; `state` makes a changed file a new entry."""
    return _decode(list_parquet(Path(path)), size, channels)


def _decode(listing: Listing, size: int | None, channels: int | None) -> tuple[dict[str, Part], list[str]]:
    """All pictures of all splits, decoded together so that one odd record anywhere is found."""
    records = [record for part in listing.splits.values() for record in part]
    classes = _classes(records, listing.classes)
    number = {name: position for position, name in enumerate(classes)}
    names = [record.name for record in records]
    arrays = [decode(record.read(), record.name, size, channels) for record in records]
    pixels = torch.from_numpy(stack(arrays, names))
    labels = torch.tensor([number[record.label] if record.label is not None else 0 for record in records])
    sizes = [len(part) for part in listing.splits.values()]
    chunks = zip(pixels.split(sizes), labels.split(sizes), strict=True)
    return dict(zip(listing.splits, chunks, strict=True)), classes


def _classes(records: list[Record], names: tuple[str, ...] | None) -> list[str]:
    """Class names in label order: the source's own order, numbers by value, words alphabetically."""
    present = {record.label for record in records if record.label is not None}
    unlabelled = [record.name for record in records if record.label is None]
    if present and unlabelled:
        raise DataError(f"{unlabelled[0]}: no label while other records have one; label all pictures or none")
    if names is not None and present <= set(names):
        return list(names)
    return sorted(present, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def _split(parts: dict[str, Part], classes: list[str], seed: int) -> dict[str, Part]:
    """Complete train, valid and test; a missing one is a seeded share of each class of what there is."""
    parts = dict(parts)
    if "all" in parts:
        parts["train"] = parts.pop("all")
    if "train" not in parts:
        raise DataError(f"no training pictures: only {', '.join(parts)} is there; add a folder or table named train")
    for offset, name in enumerate(("test", "valid")):
        if name not in parts:
            parts["train"], parts[name] = _hold_out(parts["train"], max(len(classes), 1), seed + offset, name)
    return parts


def _hold_out(part: Part, classes: int, seed: int, name: str) -> tuple[Part, Part]:
    image, label = part
    generator = torch.Generator().manual_seed(seed)
    share = min(HELD_OUT, HELD_OUT_MOST / len(label))
    out = torch.zeros(len(label), dtype=torch.bool)
    for number in range(classes):
        members = (label == number).nonzero().flatten()
        count = round(share * len(members))
        # a test split must know every class; a valid split may miss a rare one
        count = max(count, 1) if name == "test" and len(members) > 1 else count
        out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not out.any() and len(label) > 1:  # few pictures: take one of the largest class
        largest = (label == torch.bincount(label).argmax()).nonzero().flatten()
        out[largest[torch.randint(len(largest), (1,), generator=generator)]] = True
    if not out.any():
        raise DataError(
            f"one picture is too few: nothing is left to train on after taking a {name} split; add pictures"
        )
    return (image[~out], label[~out]), (image[out], label[out])


def _check_classes(parts: dict[str, Part], classes: list[str]) -> None:
    """Every class must have a sample to learn from and another one."""
    if not classes:
        return
    train = torch.bincount(parts["train"][1], minlength=len(classes))
    total = torch.stack([torch.bincount(label, minlength=len(classes)) for _, label in parts.values()]).sum(0)
    for number, name in enumerate(classes):
        if total[number] == 1:
            raise DataError(f"class {name!r} has one sample; add another or remove the class")
        if total[number] and not train[number]:
            raise DataError(f"class {name!r} has no sample in the training split; add some or remove the class")
