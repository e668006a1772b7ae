"""Short-time spectra: magnitudes, mel bands, cepstra. Frame f is centred on sample f * hop + hop / 2.

Shapes: N waveforms, T samples, F = T / hop frames (rounded down).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


def stft_magnitude(wave: Tensor, *, window: int, hop: int, size: int | None = None) -> Tensor:
    """Magnitudes float32 [N, F, size/2 + 1] of Hann-windowed frames of `window` samples, zero-padded to `size` (default:
    the next power of two). `wave` [N, T]; it is padded by reflection so that every hop has a frame. Raises `ShapeError`.
    """
    if wave.dim() != 2 or wave.shape[1] < max(hop, window // 2 + 1) or hop < 1 or window < 2:
        raise ShapeError(f"frames of {window} samples every {hop} need waveforms [N, T], not {tuple(wave.shape)}")
    size = size or 1 << (window - 1).bit_length()
    if size < window:
        raise ShapeError(f"a transform of {size} points does not hold a window of {window}")
    frames = wave.shape[1] // hop
    before = (window - hop) // 2
    after = (frames - 1) * hop + window - before - wave.shape[1]
    padded = F.pad(wave[:, None], (max(before, 0), max(after, 0)), mode="reflect")[:, 0][:, max(-before, 0) :]
    pieces = padded.unfold(1, window, hop)[:, :frames] * torch.hann_window(window, device=wave.device)
    return torch.fft.rfft(pieces, size).abs()


def hz_to_mel(hz: float) -> float:
    """The mel scale of HTK: 2595 log10(1 + f / 700)."""
    return 2595 * math.log10(1 + hz / 700)


@lru_cache(maxsize=16)
def mel_filters(bands: int, size: int, rate: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Triangles of unit height, evenly spaced in mel from `low` to `high` Hz (default: rate / 2): [size/2 + 1, bands]."""
    top = hz_to_mel(high or rate / 2)
    edges = torch.linspace(hz_to_mel(low), top, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


def log_mel(
    wave: Tensor, rate: int, *, bands: int = 40, window: int | None = None, hop: int | None = None, floor: float = 1e-5
) -> Tensor:
    """Natural logarithms of mel-band magnitudes, at least log `floor`: float32 [N, F, bands] of `wave` [N, T].

    Windows of 25 ms every 10 ms unless given, in samples. The transform has at least four points a band, so that narrow
    bands at the bottom are not empty.
    """
    window, hop = window or rate // 40, hop or rate // 100
    size = 1 << (max(window, 8 * bands) - 1).bit_length()
    magnitude = stft_magnitude(wave, window=window, hop=hop, size=size)
    return (magnitude @ mel_filters(bands, size, rate).to(wave.device)).clamp(min=floor).log()


def mfcc(wave: Tensor, rate: int, *, coefficients: int = 13, bands: int = 40, deltas: bool = True) -> Tensor:
    """Cepstra 1..`coefficients` and log energy, with first differences when `deltas`: [N, F, (13 + 1) * 2].

    Orthonormal DCT-II of `log_mel`; energy is the log mean square of each 10 ms hop.
    """
    mel = log_mel(wave, rate, bands=bands)
    k = torch.arange(1, coefficients + 1, dtype=torch.float64)[:, None]
    basis = math.sqrt(2 / bands) * torch.cos(math.pi / bands * (torch.arange(bands) + 0.5) * k)
    cepstra = mel @ basis.T.float().to(mel.device)
    hop = rate // 100
    power = wave[:, : mel.shape[1] * hop].unflatten(1, (-1, hop)).square().mean(2)
    features = torch.cat((cepstra, power.clamp(min=1e-10).log()[:, :, None]), 2)
    if not deltas:
        return features
    around = F.pad(features.transpose(1, 2), (2, 2), mode="replicate")
    slope = sum(
        n * (around[:, :, 2 + n :][:, :, : mel.shape[1]] - around[:, :, 2 - n :][:, :, : mel.shape[1]]) for n in (1, 2)
    )
    return torch.cat((features, slope.transpose(1, 2) / 10), 2)
