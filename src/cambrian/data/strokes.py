"""Pen drawings from files, as `Data` of kind `strokes`.

Layouts that are read (a `Source`, or a path):

    sheep.npz               train, valid, test: object arrays of [n, 3] integers (as published; read without running them)
    sheep.npz               as plain arrays: `train` int16 [total, 3] and `train_offsets` [records + 1], and so on
    sheep.npz               plain `strokes` and `offsets` only: split here
    sheep.ndjson            QuickDraw, simplified or raw: one {"word": ..., "drawing": [[[x ...], [y ...]], ...]} a line
    folder of these         one class a file (npz) or a word (ndjson)

Rows are stroke-3: (dx, dy, pen lifted after this point). Splits hold `strokes` int16 [N, L, 3], zero beyond `length`
int64 [N], and `label` int64 [N]. `info`: `classes`, `scale` (standard deviation of the training offsets, dx and dy
pooled, mean not removed), `max_length` (of what was kept), `dropped` (drawings longer than asked).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from cambrian.data.object_arrays import read_npz
from cambrian.data.source import Source
from cambrian.data.split import Data, TensorSplit
from cambrian.data.stroke_formats import Polylines, polylines_to_stroke3, rdp
from cambrian.errors import DataError

CLAMP = 1000  # of single offsets, as the paper's code does
HUGE = 300.0  # standard deviation of offsets that no drawing in pixels reaches (QuickDraw: 30 to 45, Omniglot: 53)
SPLITS = ("train", "valid", "test")
HELD_OUT = 0.05
HELD_OUT_MOST = 2500
EXTENT = 255  # raw QuickDraw is scaled to this size before it is simplified

Records = list[np.ndarray]


def load(
    source: Source | str | os.PathLike[str],
    *,
    max_length: int = 250,
    epsilon: float = 2.0,
    limit: int = 75_000,
    seed: int = 0,
) -> Data:
    """Read drawings of at most `max_length` points; ndjson is simplified by `rdp` with `epsilon` pixels and read up to
    `limit` a file.

    Raises `DataError` naming the file and record: wrong column count, absolute coordinates, every pen up, nothing
    left.
    """
    path = source.path if isinstance(source, Source) else Path(source)
    if isinstance(source, Source) and source.kind != "path":
        raise DataError(f"{source} is no file; give an npz or ndjson file, or a folder of these")
    parts: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in SPLITS}
    for file in _files(path):
        found = _from_npz(file, seed) if file.suffix == ".npz" else _from_ndjson(file, epsilon, limit, seed)
        for (word, split), records in found.items():
            parts[split] += [(word, record) for record in records]
    return assemble(path.name, parts, max_length=max_length, source=str(path))


def assemble(
    name: str, parts: dict[str, list[tuple[str, np.ndarray]]], *, max_length: int, source: str = "embedded"
) -> Data:
    """`Data` of (class, stroke-3) records by split, without those that are longer than `max_length`."""
    kept = {split: [r for r in records if len(r[1]) <= max_length] for split, records in parts.items()}
    empty = [split for split, records in kept.items() if not records]
    if empty:
        raise DataError(f"{name}: no drawing of at most {max_length} points in {', '.join(empty)}; raise max_length")
    classes = sorted({word for records in kept.values() for word, _ in records})
    longest = max(len(r) for records in kept.values() for _, r in records)
    splits = {split: _pack(records, classes, longest) for split, records in kept.items()}
    offsets = np.concatenate([r[:, :2] for _, r in kept["train"]]).clip(-CLAMP, CLAMP)
    info = {
        "classes": classes,
        "scale": float(np.float64(offsets.std())),
        "max_length": longest,
        "dropped": sum(map(len, parts.values())) - sum(map(len, kept.values())),
        "shape": (longest, 3),
    }
    return Data(name, "strokes", splits["train"], splits["valid"], splits["test"], info, source)


def check(where: str, records: Records) -> None:
    """What can only be seen over all drawings: offsets rather than coordinates, and a pen that touches the paper."""
    rows = np.concatenate(records)
    offsets = rows[:, :2].astype(np.float64)
    std, mean = float(offsets.std()), float(np.abs(offsets.mean(0)).max())
    if std == 0:
        raise DataError(f"{where}: every offset is the same; these are not drawings")
    if std > HUGE or mean > 0.5 * std:
        raise DataError(
            f"{where}: offsets have mean {mean:.0f} and standard deviation {std:.0f}, so these look like absolute "
            "coordinates; store differences between neighbouring points (numpy.diff)"
        )
    if (rows[:, 2] == 1).all():
        raise DataError(
            f"{where}: the pen is up after every point, so nothing is drawn; 1 marks only the last point of a stroke"
        )


def check_record(where: str, record: np.ndarray) -> np.ndarray:
    """One stroke-3 drawing, clamped to int16; `DataError` for another shape, pen marks other than 0 and 1, or non-
    finite numbers.
    """
    if record.ndim != 2 or record.shape[1] != 3:
        raise DataError(f"{where} has shape {record.shape}; stroke-3 rows are (dx, dy, pen lifted): three columns")
    if not len(record):
        raise DataError(f"{where} holds no point; remove it")
    if record.dtype.kind == "f" and not np.isfinite(record).all():
        raise DataError(f"{where} holds NaN or infinity; repair or remove it")
    odd = record[(record[:, 2] != 0) & (record[:, 2] != 1), 2]
    if len(odd):
        raise DataError(f"{where} has pen state {odd[0]}; only 0 (down) and 1 (lifted after this point) are known")
    if record.dtype.kind == "f":
        record = np.round(record)
    return record.clip(-32000, 32000).astype(np.int16)


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".npz", ".ndjson"))
    if not files or any(p.suffix not in (".npz", ".ndjson") for p in files):
        raise DataError(f"{path} is neither an npz or ndjson file nor a folder of these")
    return files


def _from_npz(file: Path, seed: int) -> dict[tuple[str, str], Records]:
    arrays = read_npz(file)
    word = file.stem.removesuffix(".full")
    found: dict[str, Records] = {}
    for name, key in [*zip(SPLITS, SPLITS), ("all", "strokes")]:
        if key not in arrays:
            continue
        held, marks = arrays[key], arrays.get("offsets" if key == "strokes" else f"{key}_offsets")
        records = held if isinstance(held, list) else _cut(f"{file}: {key}", held, marks)
        found[name] = [check_record(f"{file}: record {i} of {key}", r) for i, r in enumerate(records)]
    if not found:
        raise DataError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; train, valid and test, or strokes and offsets, are needed"
        )
    check(str(file), [record for records in found.values() for record in records])
    return {(word, split): records for split, records in _complete(str(file), found, seed).items()}


def _cut(where: str, flat: np.ndarray, offsets: object) -> Iterable[np.ndarray]:
    """Records of a flat [total, 3] or [3 total] array by their `offsets` [records + 1]."""
    if not isinstance(offsets, np.ndarray) or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise DataError(f"{where} is one array without its offsets [records + 1]; store them beside it")
    rows = flat.reshape(-1, 3) if flat.ndim == 1 and flat.size % 3 == 0 else flat
    marks = offsets.astype(np.int64)
    if marks[0] != 0 or marks[-1] != len(rows) or (np.diff(marks) < 0).any():
        raise DataError(
            f"{where}: offsets must rise from 0 to the {len(rows)} rows, not from {marks[0]} to {marks[-1]}"
        )
    return np.split(rows, marks[1:-1])


def _complete(where: str, found: dict[str, Records], seed: int) -> dict[str, Records]:
    """Draw the splits that are missing from `train` (or from `all`)."""
    pool = found.pop("all", None) or found.pop("train", [])
    missing = [name for name in SPLITS[1:] if name not in found]
    order = np.random.default_rng(seed).permutation(len(pool)) if missing else np.arange(len(pool))
    size = min(HELD_OUT_MOST, max(1, round(HELD_OUT * len(pool))))
    if len(pool) <= size * len(missing):
        raise DataError(
            f"{where} holds {len(pool)} drawings for training; at least {size * len(missing) + 1} are needed"
        )
    for name in missing:
        found[name], order = [pool[i] for i in order[:size]], order[size:]
    return {**found, "train": [pool[i] for i in order]}


def _from_ndjson(file: Path, epsilon: float, limit: int, seed: int) -> dict[tuple[str, str], Records]:
    words: dict[str, Records] = {}
    count = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if count == limit:
                break
            if not line.strip():
                continue
            word, polylines = _quickdraw(f"{file}, line {number}", line, file.stem)
            if polylines:
                record = polylines_to_stroke3([rdp(p, epsilon) for p in polylines], whole=True)
                words.setdefault(word, []).append(check_record(f"{file}, line {number}", record))
                count += 1
    if not words:
        raise DataError(f"{file} holds no recognised drawing")
    return {
        (word, split): part
        for word, records in words.items()
        for split, part in _complete(f"{file}, {word}", {"all": records}, seed).items()
    }


def _quickdraw(where: str, line: str, default: str) -> tuple[str, Polylines]:
    """Class and strokes of one QuickDraw record; no strokes when the game did not recognise the drawing."""
    try:
        record = json.loads(line)
        if record.get("recognized") is False:
            return default, []
        strokes = [np.array(stroke[:2], np.float64).T for stroke in record["drawing"]]
        raw = any(len(stroke) > 2 for stroke in record["drawing"])
        word = str(record.get("word", default))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is no QuickDraw record ({type(error).__name__}: {error})") from None
    if not strokes or any(
        s.ndim != 2 or s.shape[1:] != (2,) or not len(s) or not np.isfinite(s).all() for s in strokes
    ):
        raise DataError(f"{where}: every stroke must be two equally long, non-empty lists of numbers, x and y")
    points = np.concatenate(strokes)
    extent = float((points.max(0) - points.min(0)).max())
    if raw or extent > EXTENT + 1:
        strokes = [(s - points.min(0)) * (EXTENT / max(extent, 1e-9)) for s in strokes]
    return word, strokes


def _pack(records: list[tuple[str, np.ndarray]], classes: list[str], longest: int) -> TensorSplit:
    strokes = np.zeros((len(records), longest, 3), np.int16)
    for i, (_, record) in enumerate(records):
        strokes[i, : len(record), :2] = record[:, :2].clip(-CLAMP, CLAMP)
        strokes[i, : len(record), 2] = record[:, 2]
    number = {word: i for i, word in enumerate(classes)}
    return TensorSplit(
        strokes=torch.from_numpy(strokes),
        length=torch.tensor([len(record) for _, record in records]),
        label=torch.tensor([number[word] for word, _ in records]),
    )
