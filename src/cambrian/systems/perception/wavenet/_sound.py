"""What wavenet trains on, and what it is told: speakers, tags, phones and pitch as features.

Shapes: B clips, T samples, F frames, G features of a clip, C features of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.audio import mulaw
from cambrian.data import audio_files
from cambrian.data.random import uniform
from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.errors import ConfigError, DataError
from cambrian.systems.perception.wavenet._chorales import chorale_clips
from cambrian.systems.perception.wavenet._config import Config
from cambrian.worlds import phones

PITCH = 150.0  # Hz that count as 0 octaves


def load(config: Config, source: Source) -> Data:
    """The world of phones, sung chorales, or a folder of sound files. Raises `ConfigError` for another world."""
    if source.kind == "path":
        return audio_files.load(source.path, rate=config.rate, seconds=config.seconds)
    sizes: dict[str, Any] = {"train": config.clips, "valid": config.held, "test": config.held}
    if source.kind == "world" and source.value == "phones":
        return phones.load(**sizes, rate=config.rate, seconds=config.seconds, noise_db=config.noise_db)
    if source.kind == "world" and source.value == "chorales":
        return chorale_clips(sizes, rate=config.rate, seconds=config.seconds)
    raise ConfigError(f"wavenet trains on phones, chorales or a folder of sound files, not on {source}")


@dataclass(frozen=True)
class Layout:
    """Which features the data offers and the configuration asks for: `speakers` or `tags` (G of them), `phones`, `pitch`."""

    speakers: int
    tags: int
    phones: int
    pitch: bool
    hop: int

    @classmethod
    def of(cls, condition: str, data: Data) -> Layout:
        """What of `data` a model with this `condition` is told."""
        fields = data.split("train")[torch.tensor([0])]
        clip, frame = condition != "none", condition == "all"
        named = data.info.get("speakers", 0)
        return cls(
            speakers=(named if isinstance(named, int) else len(named)) if clip and "speaker" in fields else 0,
            tags=fields["tags"].shape[1] if clip and "tags" in fields else 0,
            phones=len(data.info["phones"]) if frame and "phone" in fields else 0,
            pitch=frame and "f0" in fields,
            hop=int(data.info["hop"]),
        )

    @property
    def clip_dim(self) -> int:
        """G, 0 for none."""
        return self.speakers + self.tags

    @property
    def frame_dim(self) -> int:
        """C, 0 for none."""
        return self.phones + 2 * self.pitch

    def features(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """g [B, G] and y [B, F, C] of a batch, None where there is nothing to tell."""
        clip = [F.one_hot(batch["speaker"], self.speakers).float()] if self.speakers else []
        clip += [batch["tags"].float()] if self.tags else []
        frame = [F.one_hot(batch["phone"], self.phones).float()] if self.phones else []
        if self.pitch:
            voiced = batch["f0"] > 0
            octaves = torch.where(voiced, (batch["f0"].clamp(min=1) / PITCH).log2(), 0.0)
            frame += [octaves[..., None], voiced.float()[..., None]]
        return torch.cat(clip, 1) if clip else None, torch.cat(frame, 2) if frame else None


@dataclass(frozen=True)
class Crop:
    """Samples idx [B, W] from time `start` [B] on; `scored` [B, N] tells which of the last N lie within their clips."""

    idx: Tensor
    start: Tensor
    scored: Tensor


def crops(batch: Batch, *, lead: int, count: int, step: int, classes: int) -> Crop:
    """A crop of each clip with `count` scored samples after lead + 1 others, placed by the batch's keys at multiples of
    `step`. Clips that are shorter begin at 0, and what is padding is not scored.
    """
    audio, length = batch["audio"], batch["length"]
    count = min(count, audio.shape[1] - lead - 1)
    width = lead + 1 + count
    room = (length - width).clamp(min=0)
    start = (uniform(batch["key"], 1)[:, 0] * (room + 1)).long().clamp(max=room) // step * step
    at = start[:, None] + torch.arange(width, device=audio.device)
    idx = mulaw.encode(audio.gather(1, at), classes)
    return Crop(idx, start, at[:, lead + 1 :] < length[:, None])


def shortest(data: Data) -> int:
    """Samples of the shortest clip of the training split."""
    split = data.split("train")
    return int(split[torch.arange(len(split))]["length"].min())


def check_lengths(data: Data, field: int) -> None:
    """Raise `DataError` unless every training clip has a sample to score after its first `field`."""
    least = shortest(data)
    if least <= field:
        rate = data.info["rate"]
        raise DataError(
            f"{data.name}: the shortest clip has {least} samples ({least / rate:.2f} s), and the model's receptive field is "
            f"{field}; give longer clips or fewer layers"
        )


def marginal(data: Data, classes: int) -> Tensor:
    """-log2 of the share of each mu-law bin in the training split, each counted once more than it occurs: [K]."""
    split = data.split("train")
    counts = torch.ones(classes, dtype=torch.float64)
    for index in torch.arange(len(split)).split(64):
        batch = split[index]
        within = torch.arange(batch["audio"].shape[1]) < batch["length"][:, None]
        counts += torch.bincount(mulaw.encode(batch["audio"][within], classes), minlength=classes)
    return -(counts / counts.sum()).log() / math.log(2)
