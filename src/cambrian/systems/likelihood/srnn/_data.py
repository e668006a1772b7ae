"""What srnn reads, as frames x [B, T, X] with lengths: sound cut into frames, piano rolls, plain series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cambrian.data import audio_files, music_files
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.errors import ConfigError
from cambrian.worlds import chorales, phones, ssm

WORLDS = ("phones", "chorales", "ssm")


@dataclass(frozen=True)
class Reading:
    """How sound is read: `rate` Hz, clips of `seconds`, frames of `frame` samples, `clips` for training."""

    rate: int
    seconds: float
    frame: int
    clips: int


def load(source: Source, reading: Reading) -> Data:
    """Data of kind `audio`, `music` or `series`, with `features` and `scale` (of the training sound) in its info."""
    if reading.frame > reading.rate * reading.seconds:
        raise ConfigError(
            f"a clip of {reading.seconds} s holds no frame of {reading.frame} samples at {reading.rate} Hz"
        )
    if source.kind == "path" and _is_music(source.path):
        return _keys(chorales.load_folder(source.path))
    if source.kind == "path":
        return _standardised(audio_files.load(source.path, rate=reading.rate, seconds=reading.seconds), reading)
    held = max(20, reading.clips // 8)
    if source.value == "phones":
        data = phones.load(
            rate=reading.rate, seconds=reading.seconds, train=reading.clips, valid=held, test=2 * held, noise_db=-70.0
        )
        return _standardised(data, reading)
    if source.value == "ssm":
        return ssm.load(train=reading.clips, valid=held, test=2 * held)
    if source.value == "chorales":
        return _keys(chorales.load())
    raise ConfigError(f"srnn reads {', '.join(WORLDS)} or a folder of sound or scores, not {source.value!r}")


def _is_music(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() in music_files.SUFFIXES for p in path.rglob("*"))


def _keys(data: Data) -> Data:
    data.info["features"] = 88
    return data


def _standardised(data: Data, reading: Reading) -> Data:
    """The standard deviation of the training sound, in its info; the mean is zero by nature."""
    train = data.split("train")
    data.info["scale"] = float(train[torch.arange(min(len(train), 512))]["audio"].std().clamp(min=1e-6))
    data.info["features"] = reading.frame
    return data


def frames(data: Data, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """x [B, T, X] and lengths [B] (None: all full) of a batch."""
    if data.kind == "series":
        return batch["x"], None
    if data.kind == "music":
        return batch["roll"].float(), batch["length"]
    size = data.info["features"]
    audio = batch["audio"] / data.info["scale"]
    whole = audio.shape[1] // size
    return audio[:, : whole * size].unflatten(1, (whole, size)), (batch["length"] // size).clamp(max=whole)


def boundaries(batch: Batch, data: Data, steps: int) -> Tensor | None:
    """bool [B, T]: frames in which a phone begins, where phones are known and frames are theirs."""
    if "phone" not in batch or data.info["hop"] != data.info["features"]:
        return None
    phone = batch["phone"][:, :steps]
    changed = torch.zeros_like(phone, dtype=torch.bool)
    changed[:, 1:] = phone[:, 1:] != phone[:, :-1]
    return changed
