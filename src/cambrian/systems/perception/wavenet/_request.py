"""From a user's words to features, and from pitch tracks to rows of a table. Shapes: B clips, F frames of 10 ms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cambrian.data.split import Batch, Data
from cambrian.errors import CapabilityError, ConfigError, DataError

if TYPE_CHECKING:
    from cambrian.systems.perception.wavenet._sound import Layout


def utterance(
    data: Data, layout: Layout, *, seconds: float, speaker: str, phones: str, contour: str, pitch: float, n: int
) -> Batch:
    """A batch of n equal requests with the fields that `layout` reads (and `audio` of no samples). Raises `ConfigError` for
    unknown names, `DataError` for a bad contour, `CapabilityError` for what the model cannot be told.
    """
    if seconds <= 0 or n < 1:
        raise ConfigError(f"seconds must be above 0 and n at least 1, not {seconds} and {n}")
    for asked, known, what in ((phones, layout.phones, "phones"), (contour or pitch, layout.pitch, "pitch")):
        if asked and not known:
            raise CapabilityError(f"this run is not told {what}; train with condition=all on data that has them")
    frames = -(-round(seconds * int(data.info["rate"])) // layout.hop)
    example = data.split("train")[torch.arange(len(data.split("train")))]
    batch: Batch = {"audio": torch.zeros(1, 0)}
    if layout.speakers:
        batch["speaker"] = torch.tensor([_speaker(speaker, data, layout.speakers)])
    if layout.tags:
        batch["tags"] = example["tags"][:1]
    if layout.phones:
        batch["phone"] = (
            _spread(phones, data.info["phones"], frames) if phones else _tiled(example["phone"][:1], frames)
        )
    if layout.pitch:
        heard = _contour(Path(contour), frames) if contour else torch.full((1, frames), pitch or _usual(example, batch))
        voiced = _voiced(example, batch["phone"]) if layout.phones else torch.ones_like(heard, dtype=torch.bool)
        batch["f0"] = heard * voiced
    return {name: t.expand(n, *t.shape[1:]) for name, t in batch.items()}


def _speaker(name: str, data: Data, count: int) -> int:
    named = data.info.get("speakers", 0)
    names = [str(i) for i in range(count)] if isinstance(named, int) else [str(s) for s in named]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < count:
        return int(name)
    raise ConfigError(f"no speaker {name!r}; speakers: {', '.join(names)}")


def _spread(phones: str, names: list[str], frames: int) -> Tensor:
    """The phones of the words in `phones`, equally long: [1, F]."""
    words = phones.split()
    unknown = [w for w in words if w not in names]
    if unknown:
        raise ConfigError(f"no phone {unknown[0]!r}; phones: {', '.join(names)}")
    numbers = torch.tensor([names.index(w) for w in words])
    return numbers[torch.arange(frames) * len(words) // frames][None]


def _tiled(track: Tensor, frames: int) -> Tensor:
    return track[:, torch.arange(frames) % track.shape[1]]


def _contour(path: Path, frames: int) -> Tensor:
    """Hertz a frame [1, F], linear between the rows `seconds,hertz` of a CSV file."""
    import numpy as np

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [[float(cell) for cell in line.split(",")] for line in lines if not line[0].isalpha()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: not rows of seconds,hertz ({error})") from None
    if not rows or any(len(row) != 2 or not 0 <= row[1] < 1e4 for row in rows) or rows != sorted(rows):
        raise DataError(f"{path}: needs rows of seconds,hertz in order of time")
    times, hertz = zip(*rows)
    return torch.tensor(np.interp((np.arange(frames) + 0.5) * 0.01, times, hertz), dtype=torch.float32)[None]


def _usual(example: Batch, batch: Batch) -> float:
    """The median pitch of the training clips, of the requested speaker where there is one."""
    f0 = example["f0"]
    if "speaker" in batch and bool((example["speaker"] == batch["speaker"][0]).any()):
        f0 = f0[example["speaker"] == batch["speaker"][0]]
    return float(f0[f0 > 0].median()) if bool((f0 > 0).any()) else 0.0


def _voiced(example: Batch, phone: Tensor) -> Tensor:
    """Which frames are of phones that training mostly heard voiced: bool, like `phone`."""
    count = max(int(example["phone"].max()), int(phone.max())) + 1
    flat = example["phone"].flatten()
    share = torch.zeros(count).index_add(0, flat, (example["f0"] > 0).float().flatten())
    return (share / torch.bincount(flat, minlength=count).clamp(min=1) > 0.5)[phone]


def median_pitch(data: Data) -> Tensor:
    """Median of the voiced frames' pitch of every speaker in training: [speakers]; nan for one who is never voiced."""
    split = data.split("train")
    clips = split[torch.arange(len(split))]
    named = data.info["speakers"]
    found = []
    for s in range(named if isinstance(named, int) else len(named)):
        f0 = clips["f0"][clips["speaker"] == s]
        found.append(f0[f0 > 0].median() if bool((f0 > 0).any()) else torch.tensor(float("nan")))
    return torch.stack(found)


def pitch_rows(name: str, asked: Batch, made: Tensor, medians: Tensor) -> list[list[object]]:
    """For `control`: one row a clip, and one over all clips' frames together."""
    rows: list[list[object]] = []
    pairs: list[Tensor] = []
    nothing = float("nan")
    for want, got, speaker in zip(asked["f0"].cpu(), made, asked["speaker"].cpu(), strict=True):
        frames = min(len(want), len(got))
        both = (want[:frames] > 0) & (got[:frames] > 0)
        pair = torch.stack((want[:frames][both], got[:frames][both]))
        median = float(pair[1].median()) if pair.shape[1] else nothing
        rows.append([name, int(speaker), float(medians[speaker]), median, _correlation(pair), pair.shape[1]])
        pairs.append(pair)
    together = torch.cat(pairs, 1)
    return [*rows, [name, "all", nothing, nothing, _correlation(together), together.shape[1]]]


def _correlation(pair: Tensor) -> float:
    return float(torch.corrcoef(pair)[0, 1]) if pair.shape[1] > 2 else float("nan")


def runs(labels: list[int], names: list[str], seconds: float) -> list[list[object]]:
    """Equal neighbours joined: rows of start, end (in seconds) and name."""
    rows: list[list[object]] = []
    for i, label in enumerate(labels):
        if rows and rows[-1][2] == names[label]:
            rows[-1][1] = (i + 1) * seconds
        else:
            rows.append([i * seconds, (i + 1) * seconds, names[label]])
    return rows
