"""Bach's chorales as sound: each voice a sum of decaying harmonics, with key and number of voices as tags.

Shapes: N clips, T samples, V voices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cambrian.data.random import integers, sample_keys
from cambrian.data.split import Data, TensorSplit
from cambrian.worlds import chorales

NOTE_SECONDS = 0.25  # an eighth
TIMBRES = ((1.0, 0.5, 0.3, 0.2), (1.0, 0.1, 0.4, 0.05), (1.0, 0.7, 0.1, 0.3), (1.0, 0.3, 0.2, 0.1))  # soprano .. bass
TAGS = 12 + 1 + 4  # the last chord's bass, minor, and how many voices sing


def chorale_clips(sizes: dict[str, int], *, rate: int, seconds: float) -> Data:
    """`sizes` clips a split, each from another place of some chorale: `audio`, `length`, `tags` float [N, 17].

    Raises `MissingExtraError` without music21's files.
    """
    scores = chorales.load("eighth")
    notes = math.ceil(seconds / NOTE_SECONDS)
    parts: dict[str, TensorSplit] = {}
    for number, (name, count) in enumerate(sizes.items()):
        split = scores.split(name)
        key = sample_keys(7, number, torch.arange(count))
        pieces = split[integers(key, 1, len(split), stream=1)[:, 0]]
        length = pieces["length"]
        begin = (integers(key, 1, 1 << 20, stream=2)[:, 0] % (length - notes).clamp(min=1)).long()
        at = (begin[:, None] + torch.arange(notes)).clamp(max=pieces["voices"].shape[1] - 1)
        voices = pieces["voices"].long().gather(1, at[..., None].expand(-1, -1, 4))
        singing = 1 + integers(key, 1, 4, stream=3)[:, 0]
        voices = voices * (torch.arange(4) < singing[:, None])[:, None]
        audio = render(voices, rate)[:, : round(seconds * rate)]
        tags = _tags(pieces["voices"].long(), length, singing)
        parts[name] = TensorSplit(audio=audio, length=torch.full((count,), audio.shape[1]), tags=tags)
    info = {"rate": rate, "hop": rate // 100, "seconds": seconds, "phones": [], "speakers": 0}
    return Data("chorales", "audio", parts["train"], parts["valid"], parts["test"], info)


def render(voices: Tensor, rate: int) -> Tensor:
    """MIDI pitches [N, notes, V], 0 = rest, as waveforms float32 [N, T]; a repeated pitch is held, not struck again."""
    hop = round(NOTE_SECONDS * rate)
    struck = torch.ones_like(voices, dtype=torch.bool)
    struck[:, 1:] = voices[:, 1:] != voices[:, :-1]
    index = torch.arange(voices.shape[1])[:, None].expand_as(voices)
    since = index - torch.where(struck, index, 0).cummax(1).values
    age = (since[:, :, None] * hop + torch.arange(hop)[:, None]).flatten(
        1, 2
    ) / rate  # seconds since the onset [N, T, V]
    hertz = (440 * 2 ** ((voices.double() - 69) / 12)).repeat_interleave(hop, 1)
    phase = 2 * math.pi * (hertz / rate).cumsum(1)
    envelope = (age / 0.01).clamp(max=1) * torch.exp(-age / 0.8) * (voices > 0).repeat_interleave(hop, 1)
    out = torch.zeros(age.shape[:2], dtype=torch.float64)
    for v, timbre in enumerate(TIMBRES):
        for k, weight in enumerate(timbre, 1):
            audible = hertz[..., v] * k < 0.45 * rate
            out += 0.07 * weight * torch.sin(k * phase[..., v]) * envelope[..., v] * audible
    return out.clamp(-1, 1).float()


def _tags(voices: Tensor, length: Tensor, singing: Tensor) -> Tensor:
    """[N, 17]: pitch class of the last bass note, whether a minor third stands over it, and the number of voices."""
    last = voices[torch.arange(len(voices)), length - 1]
    root = last[:, 3] % 12
    minor = ((last - last[:, 3:]) % 12 == 3).any(1)
    one_hot = torch.nn.functional.one_hot
    return torch.cat((one_hot(root, 12), minor[:, None], one_hot(singing - 1, 4)), 1).float()
