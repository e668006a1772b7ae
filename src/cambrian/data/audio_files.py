"""Sound from a folder, as `Data` of kind `audio`.

    folder/**/*.wav                            split here by file, one in ten valid and one in ten test
    folder/train|valid|test/**/*.wav           as given
    meta.csv beside them                       columns: file, and any of speaker, text, phones, f0

Without meta.csv, names such as `7_jackson_12.wav` are read by `pattern` ("{text}_{speaker}_{take}") where all fit it.
`phones` names a .lab file of lines `start end phone` (seconds), `f0` a CSV of `seconds,hertz` rows (0 = unvoiced); both
are turned into frames of 10 ms. Files of another rate are resampled unless told otherwise, channels are an error.

Shapes: N clips, T samples, F frames.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cambrian.audio.files import SUFFIXES, read
from cambrian.data.image_files import split_of
from cambrian.data.random import mix
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import DataError

PATTERN = "{text}_{speaker}_{take}"
COLUMNS = ("speaker", "text", "phones", "f0")


@dataclass
class Recording:
    """One file: its name in messages, its waveform [T], its split (None: to be drawn), and what is written about it."""

    name: str
    path: Path
    split: str | None
    about: dict[str, str] = field(default_factory=dict[str, str])
    wave: Tensor = field(default_factory=lambda: torch.zeros(0))


def load(
    path: Path | str,
    *,
    rate: int,
    seconds: float | None = 1.0,
    resample: bool = True,
    pattern: str = PATTERN,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Clips of `seconds` (a file is cut into as many as it holds, its last one padded with zeros), or with `seconds=None`
    whole files, padded to the longest. At most `limit` files.

    Splits give `audio` float32 [N, T], `length` int64 [N] (samples that are not padding), `file` int64 [N]; `speaker`
    int64 [N] and `text` int64 [N] (numbers of `info["speakers"]`, `info["texts"]`) where known; `phone` int64 and `f0`
    float32 [N, F] where every file has them. `info`: rate, hop (10 ms), speakers, texts, phones, files. Raises
    `DataError` naming the file: unreadable, several channels, fewer than three files, unknown columns.
    """
    root = Path(path)
    recordings = _list(root, pattern)[:limit]
    if len(recordings) < 3:
        raise DataError(f"{root}: {len(recordings)} sound files where three splits need at least three")
    for recording in recordings:
        recording.wave = read(recording.path, rate, resample=resample)[0]
    _assign(recordings, seed)
    hop = rate // 100
    info: dict[str, object] = {"rate": rate, "hop": hop, "files": len(recordings), "phones": [], "bands": 0}
    tracks = _tracks(recordings, rate, hop, info)
    length = max(len(r.wave) for r in recordings) if seconds is None else round(seconds * rate)
    splits = {}
    for name in ("train", "valid", "test"):
        members = [i for i, r in enumerate(recordings) if r.split == name]
        splits[name] = _split(recordings, members, length, hop, tracks) if members else None
        if not members:
            raise DataError(f"{root}: no file for the split {name}; add files or name the folders train, valid, test")
    return Data(root.name, "audio", splits["train"], splits["valid"], splits["test"], info, str(root))


def _list(root: Path, pattern: str) -> list[Recording]:
    if not root.is_dir():
        raise DataError(f"{root}: not a folder of sound files")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{root}: no sound file found; expected files ending in {', '.join(SUFFIXES)}")
    recordings = [
        Recording(str(p.relative_to(root)), p, split_of(p.relative_to(root).parts[0]) if p.parent != root else None)
        for p in files
    ]
    meta = root / "meta.csv"
    if meta.is_file():
        return _described(meta, recordings)
    fits = [_parse(p.stem, pattern) for p in files]
    if all(fit is not None for fit in fits):
        for recording, fit in zip(recordings, fits):
            recording.about = {k: v for k, v in (fit or {}).items() if k in ("text", "speaker")}
    return recordings


def _parse(stem: str, pattern: str) -> dict[str, str] | None:
    expression = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^_]+)", re.escape(pattern))
    match = re.fullmatch(expression, stem)
    return match.groupdict() if match else None


def _described(meta: Path, recordings: list[Recording]) -> list[Recording]:
    """The recordings that meta.csv lists, in its order."""
    known = {r.name: r for r in recordings} | {r.path.name: r for r in recordings}
    with meta.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or ())
        unknown = [n for n in names if n not in (*COLUMNS, "file", "split")]
        if "file" not in names or unknown:
            raise DataError(
                f"meta.csv: columns are file, split, {', '.join(COLUMNS)}; found {', '.join(names) or 'none'}"
            )
        listed = []
        for number, row in enumerate(rows, 2):
            recording = known.get(row["file"] or "")
            if recording is None:
                raise DataError(f"meta.csv line {number}: no sound file {row['file']!r} in the folder")
            recording.about = {k: row[k] for k in COLUMNS if row.get(k)}
            recording.split = split_of(row["split"]) if row.get("split") else recording.split
            listed.append(recording)
    return listed


def _assign(recordings: Sequence[Recording], seed: int) -> None:
    """Draw a split for files that have none: a tenth valid, a tenth test, at least one of each."""
    if any(r.split for r in recordings):
        for r in recordings:
            r.split = r.split or "train"
        return
    order = mix(torch.arange(len(recordings)) + (seed << 32)).argsort().tolist()
    held = max(1, len(recordings) // 10)
    for place, index in enumerate(order):
        recordings[index].split = "valid" if place < held else "test" if place < 2 * held else "train"


def _tracks(recordings: list[Recording], rate: int, hop: int, info: dict[str, object]) -> dict[str, list[Tensor]]:
    """Per file and field: a number (speaker, text) or frames (phone, f0), for the fields that every file has."""
    tracks: dict[str, list[Tensor]] = {}
    for column, plural in (("speaker", "speakers"), ("text", "texts")):
        names = sorted({r.about[column] for r in recordings if column in r.about})
        info[plural] = names
        if names and all(column in r.about for r in recordings):
            tracks[column] = [torch.tensor(names.index(r.about[column])) for r in recordings]
    if all("phones" in r.about for r in recordings):
        labels = [_segments(r, rate, hop) for r in recordings]
        names = sorted({name for track in labels for name in track})
        info["phones"] = names
        tracks["phone"] = [torch.tensor([names.index(name) for name in track]) for track in labels]
    if all("f0" in r.about for r in recordings):
        tracks["f0"] = [_contour(r, hop) for r in recordings]
    return tracks


def _segments(recording: Recording, rate: int, hop: int) -> list[str]:
    """The phone of every frame; "sil" where the .lab file names none."""
    frames = ["sil"] * (-(-len(recording.wave) // hop))
    path = recording.path.parent / recording.about["phones"]
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        try:
            start, end, name = float(words[0]), float(words[1]), words[2]
        except (IndexError, ValueError) as error:
            raise DataError(f"{path.name} line {number}: expected 'start end phone', found {line!r}") from error
        for f in range(max(0, round(start * rate / hop)), min(len(frames), round(end * rate / hop))):
            frames[f] = name
    return frames


def _contour(recording: Recording, hop: int) -> Tensor:
    """Hertz per frame of 10 ms, from the latest row at or before each frame."""
    path = recording.path.parent / recording.about["f0"]
    rows = []
    for number, line in enumerate(_lines(path), 1):
        try:
            time, hertz = (float(cell) for cell in line.split(","))
        except ValueError as error:
            raise DataError(f"{path.name} line {number}: expected 'seconds,hertz', found {line!r}") from error
        rows.append((time, hertz))
    if not rows or rows != sorted(rows, key=lambda row: row[0]):
        raise DataError(f"{path.name}: expected rows in order of time")
    times, hertz = torch.tensor(rows).T.contiguous()
    centres = (torch.arange(-(-len(recording.wave) // hop)) + 0.5) * 0.01
    return hertz[(torch.searchsorted(times, centres, right=True) - 1).clamp(min=0)]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read ({error}); meta.csv names it") from error


def _split(
    recordings: list[Recording], members: list[int], length: int, hop: int, tracks: dict[str, list[Tensor]]
) -> TensorSplit:
    """Clips of `length` samples of the member files; a tail shorter than a tenth of a clip is left out."""
    fields: dict[str, list[Tensor]] = {name: [] for name in ("audio", "length", "file", *tracks)}
    for i in members:
        wave = recordings[i].wave
        starts = [s for s in range(0, len(wave), length) if s == 0 or len(wave) - s >= length // 10]
        for start in starts:
            piece = wave[start : start + length]
            fields["audio"].append(_padded(piece, length))
            fields["length"].append(torch.tensor(len(piece)))
            fields["file"].append(torch.tensor(i))
            for name, track in tracks.items():
                values = track[i]
                if values.dim():
                    values = _padded(values[start // hop : (start + length) // hop], length // hop)
                fields[name].append(values)
    return TensorSplit(**{name: torch.stack(values) for name, values in fields.items()})


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.cat((values[:length], values.new_zeros(max(0, length - len(values)))))
