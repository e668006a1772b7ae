"""Bach's four-part chorales from music21's corpus, as piano rolls and as voices.

The 363 distinct scores of exactly four parts, read by `cambrian.data.music_files` and sampled at every quarter or eighth
note. A quarter of sung time is one row of the set that Boulanger-Lewandowski et al. (2012) call JSB Chorales; theirs
are 382 pieces from another edition, so figures compare in kind, not to the second decimal.

Fields: `roll` uint8 [N, L, 88] (which piano keys sound), `voices` int16 [N, L, 4] (MIDI pitch of soprano, alto, tenor,
bass; 0 = rest), `onset` uint8 [N, L, 4] (the note begins here), `length` int64 [N]; all zero beyond it.
`info`: `step`, `lowest` (MIDI pitch of key 0), `titles` (per split).

Needs the files of music21 (`cambrian[music]`); music21 itself is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.data import music_files
from cambrian.data.split import Data, TensorSplit
from cambrian.errors import ConfigError, DataError, MissingExtraError

STEPS = {"quarter": music_files.TICKS, "eighth": music_files.TICKS // 2, "sixteenth": music_files.TICKS // 4}
SHARES = (0.6, 0.8)  # where train ends, where valid ends: about the 229 / 76 / 77 of the published set
PARTS = 4


def load(step: str = "quarter", *, max_length: int = 0, seed: int = 0) -> Data:
    """The chorales as `Data` of kind `music`; `max_length` > 0 cuts longer ones. The split is by piece, drawn by `seed`.

    Raises `MissingExtraError` without music21's files.
    """
    pieces = scores()
    titles = sorted(pieces)
    order = np.random.default_rng(seed).permutation(len(titles))
    marks = [0, *(round(share * len(order)) for share in SHARES), len(order)]
    names = {
        split: [titles[i] for i in order[a:b]]
        for split, a, b in zip(("train", "valid", "test"), marks, marks[1:], strict=False)
    }
    splits = {split: pack([pieces[t] for t in chosen], step, max_length=max_length) for split, chosen in names.items()}
    return _data("chorales", splits, names, step, "music21's corpus")


def load_folder(path: Path, step: str = "quarter", *, max_length: int = 0, seed: int = 0) -> Data:
    """A folder of MusicXML and MIDI files as the same kind of `Data`, without `voices` and `onset`.

    Raises `DataError` naming a file that cannot be read, or when there are fewer than 5.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in music_files.SUFFIXES)
    if len(files) < 5:
        raise DataError(f"{path} holds {len(files)} scores ({', '.join(music_files.SUFFIXES)}); at least 5 are needed")
    order = np.random.default_rng(seed).permutation(len(files))
    held = max(1, round(0.2 * len(files)))
    names = {"test": order[:held], "valid": order[held : 2 * held], "train": order[2 * held :]}
    splits = {
        split: pack([music_files.read(files[i]) for i in chosen], step, max_length=max_length, parts=0)
        for split, chosen in names.items()
    }
    titles = {split: [files[i].stem for i in chosen] for split, chosen in names.items()}
    return _data(path.name, splits, titles, step, str(path))


@functools.cache
def scores() -> dict[str, np.ndarray]:
    """Notes (part, onset, duration, pitch) of every distinct chorale in four parts, by title; about 1.5 seconds."""
    found = importlib.util.find_spec("music21")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("music21, whose corpus holds the chorales,", "music")
    folder = Path(next(iter(found.submodule_search_locations))) / "corpus" / "bach"
    kept: dict[str, np.ndarray] = {}
    seen: set[bytes] = set()
    for file in sorted(folder.glob("bwv*")):
        if file.suffix in (".mxl", ".xml"):
            notes = music_files.read(file)
            if len(np.unique(notes[:, 0])) == PARTS and notes.tobytes() not in seen:
                seen.add(notes.tobytes())
                kept[file.stem] = notes
    if not kept:
        raise DataError(f"{folder} holds no chorale; install music21 again")
    return kept


def pack(pieces: list[np.ndarray], step: str, *, max_length: int = 0, parts: int = PARTS) -> TensorSplit:
    """Scores as one split, padded to the longest."""
    if step not in STEPS:
        raise ConfigError(f"step must be one of {', '.join(STEPS)}, not {step!r}")
    ticks, cut = STEPS[step], max_length or None
    fields: dict[str, list[np.ndarray]] = {"roll": [music_files.roll(notes, ticks)[:cut] for notes in pieces]}
    if parts:
        sung = [music_files.voices(notes, ticks, parts) for notes in pieces]
        fields["voices"] = [pitch[:cut] for pitch, _ in sung]
        fields["onset"] = [begins[:cut].astype(np.uint8) for _, begins in sung]
    length = torch.tensor([len(r) for r in fields["roll"]])
    return TensorSplit(**{name: _padded(rows, int(length.max())) for name, rows in fields.items()}, length=length)


def _padded(rows: list[np.ndarray], longest: int) -> Tensor:
    out = np.zeros((len(rows), longest, rows[0].shape[1]), rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def _data(name: str, splits: dict[str, TensorSplit], titles: dict[str, list[str]], step: str, source: str) -> Data:
    info = {"step": step, "lowest": music_files.LOWEST, "titles": titles, "shape": (music_files.KEYS,)}
    return Data(name, "music", splits["train"], splits["valid"], splits["test"], info, source)
