"""Where pictures lie: a folder of files, parquet tables, or the Hub. Each reader lists encoded records by split."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cambrian.data.pixels import SUFFIXES
from cambrian.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable

SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test", "testing")}
IMAGE_COLUMNS = ("image", "img", "picture", "png", "jpg")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class Record:
    """One encoded picture: its name in messages, a file or the bytes, and its class by name (None: unlabelled)."""

    name: str
    content: Path | bytes
    label: str | None

    def read(self) -> bytes:
        """The encoded bytes. Raises `DataError` where the file cannot be read."""
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.name}: the file cannot be read ({error.strerror}); check its permissions"
            ) from error


@dataclass(frozen=True)
class Listing:
    """What a source holds: records by split, and the class names where the source itself gives their order."""

    splits: dict[str, list[Record]]
    classes: tuple[str, ...] | None = None


def split_of(word: str) -> str | None:
    """Which split a folder or file stem such as `validation` or `train-00000-of-00002` stands for."""
    stem = re.split(r"[-_.]", word.lower(), maxsplit=1)[0]
    return next((split for split, words in SPLITS.items() if stem in words), None)


def is_parquet(path: Path) -> bool:
    """Whether the path is a parquet file or a folder that has some."""
    return path.suffix == ".parquet" or (path.is_dir() and next(path.rglob("*.parquet"), None) is not None)


def list_folder(root: Path) -> Listing:
    """Records of `root[/train|valid|test][/class]/*.png`; raises `DataError` for an empty or ambiguous folder."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = {path: split_of(path.name) for path in folders}
    if folders and all(named.values()):
        splits: dict[str, list[Record]] = {}
        for folder in folders:
            splits.setdefault(named[folder] or "", []).extend(_list_classes(folder, root))
    else:
        splits = {"all": _list_classes(root, root)}
    if not any(splits.values()):
        raise DataError(
            f"{root}: no picture found; expected files ending in {', '.join(SUFFIXES)}, in a folder a class"
        )
    return Listing({split: records for split, records in splits.items() if records})


def _list_classes(folder: Path, root: Path) -> list[Record]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    loose = _pictures(folder.iterdir())
    if loose and classes:
        raise DataError(f"{loose[0].relative_to(root)}: a picture beside class folders; move it into one of them")
    records = [Record(str(path.relative_to(root)), path, None) for path in loose]
    for path in classes:
        pictures = _pictures(path.rglob("*"))
        if not pictures:
            raise DataError(f"{path.relative_to(root)}: the class folder holds no picture; fill or remove it")
        records += [Record(str(picture.relative_to(root)), picture, path.name) for picture in pictures]
    return records


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def list_parquet(path: Path) -> Listing:
    """Records of one table, or of a folder of tables named by split; columns as on the Hub (image|img, label)."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    splits: dict[str, list[Record]] = {}
    classes: tuple[str, ...] | None = None
    for file in files:
        records, names = _read_table(file)
        splits.setdefault(split_of(file.stem) or split_of(file.parent.name) or "all", []).extend(records)
        classes = classes or names
    if "all" in splits and len(splits) > 1:
        raise DataError(
            f"{path}: tables named by split beside others; name each train, valid or test, or read one file"
        )
    if not any(splits.values()):
        raise DataError(f"{path}: the tables hold no rows")
    return Listing({split: records for split, records in splits.items() if records}, classes)


def _read_table(file: Path) -> tuple[list[Record], tuple[str, ...] | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
        image = _column(schema.names, IMAGE_COLUMNS)
        label = _column(schema.names, LABEL_COLUMNS)
        if image is None:
            raise DataError(f"{file.name}: no column of pictures among {schema.names}; name it image or img")
        table = pyarrow.parquet.read_table(file, columns=[image] if label is None else [image, label])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file.name}: not a parquet table that can be read ({error})") from error
    names = _class_names(schema.metadata or {}, label)
    cells = table.column(image).to_pylist()
    labels = [None] * len(cells) if label is None else table.column(label).to_pylist()
    rows = zip(cells, labels, strict=True)
    return [_record(f"{file.name} row {row}", cell, mark, label, names) for row, (cell, mark) in enumerate(rows)], names


def _column(present: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in set(present)), None)


def _record(name: str, cell: Any, mark: Any, column: str | None, names: tuple[str, ...] | None) -> Record:
    """One row. A cell is bytes or the Hub's struct {bytes, path}; a label is a number or a word."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{name}: no encoded bytes in the picture's column; only embedded pictures are read")
    if column is None:
        return Record(name, data, None)
    if mark is None or mark == -1:
        raise DataError(f"{name}: the label is missing ({mark}); remove the row or the column")
    if names is not None and isinstance(mark, int):
        if not 0 <= mark < len(names):
            raise DataError(f"{name}: label {mark} but the table names {len(names)} classes")
        mark = names[mark]
    return Record(name, data, str(mark))


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> tuple[str, ...] | None:
    """The names that Hugging Face writes into a table's schema, if they are there."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature.get("names") or feature.get("feature", {}).get("names")
        return tuple(str(name) for name in names) if names else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def list_hub(identifier: str) -> Listing:
    """Records of a Hub dataset (its Parquet files, through `datasets`, which caches them; no code of it is run)."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data") from error
    try:
        loaded = datasets.load_dataset(identifier)
    except Exception as error:  # the library raises its own, several libraries' and the network's errors
        raise DataError(f"{identifier}: not a data set of the Hub that can be read ({error})") from error
    splits: dict[str, list[Record]] = {}
    classes: tuple[str, ...] | None = None
    for key in loaded:
        part = loaded[key]
        image, label = _column(part.column_names, IMAGE_COLUMNS), _column(part.column_names, LABEL_COLUMNS)
        if image is None:
            raise DataError(f"{identifier}: no column of pictures among {part.column_names}; name it image or img")
        names = getattr(part.features[label], "names", None) if label else None
        classes = classes or (tuple(names) if names else None)
        part = part.cast_column(image, datasets.Image(decode=False))
        splits.setdefault(split_of(key) or "all", []).extend(
            _record(f"{identifier} {key} row {row}", item[image], item.get(label), label, classes)
            for row, item in enumerate(part)
        )
    return Listing(splits, classes)
