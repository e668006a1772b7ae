"""Piano rolls as sound: a few sines a key, faded in and out. Shapes: T steps, S samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.data.music_files import LOWEST

HARMONICS = (1.0, 0.35, 0.15)
FADE = 0.02  # seconds


def render(roll: Tensor, *, rate: int = 8000, seconds: float = 0.4) -> Tensor:
    """Keys [T, 88] (0 or 1), each step `seconds` long -> waveform [S] in [-1, 1]; overtones above rate / 2 are left out."""
    samples = round(seconds * rate)
    held = roll.detach().float().cpu().repeat_interleave(samples, 0).t()
    width = 2 * round(FADE * rate / 2) + 1
    loud = F.avg_pool1d(F.pad(held[None], (width // 2, width // 2)), width, 1)[0]
    time = torch.arange(held.shape[1], dtype=torch.float64) / rate
    wave = torch.zeros_like(time)
    for key in held.any(1).nonzero()[:, 0].tolist():
        pitch = 440.0 * 2 ** ((LOWEST + key - 69) / 12)
        tones = ((i + 1, share) for i, share in enumerate(HARMONICS) if (i + 1) * pitch < rate / 2)
        wave += loud[key] * sum(share * torch.sin(2 * math.pi * n * pitch * time) for n, share in tones)
    return (wave / wave.abs().max().clamp(min=1e-9) * 0.8).float()
