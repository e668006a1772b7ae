"""Fundamental frequency by normalised autocorrelation, frame by frame.

Shapes: N waveforms, T samples, F = T / hop frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ShapeError


def f0(
    wave: Tensor,
    rate: int,
    hop: int,
    *,
    low: float = 60.0,
    high: float = 400.0,
    voiced: float = 0.6,
    quiet: float = 0.01,
) -> Tensor:
    """Fundamental frequency in Hz, float32 [N, F]; 0 where a frame is unvoiced. `wave` is [N, T] in [-1, 1].

    A frame spans three of the longest periods, is compared with itself shifted by every lag between 1/high and 1/low
    seconds, and its correlation is divided by the energies of both parts, which makes 1 the value of a periodic signal.
    The shortest lag whose peak comes within 10 % of the best is taken (the best alone may be a multiple of the period),
    and refined by a parabola. A frame is voiced when that peak exceeds `voiced` and its root mean square `quiet`.
    """
    if wave.dim() != 2 or not 0 < low < high <= rate / 2:
        raise ShapeError(f"pitch needs waveforms [N, T] and 0 < low < high <= rate / 2, not {tuple(wave.shape)}")
    first, last = int(rate / high), int(rate / low) + 1
    span = 3 * last
    frames = wave.shape[1] // hop
    before = (span - hop) // 2
    padded = F.pad(wave, (max(before, 0), span))
    pieces = padded.unfold(1, span, hop)[:, :frames]
    pieces = pieces - pieces.mean(2, keepdim=True)
    correlation = _normalised(pieces, last + 2)
    score, lag = _shortest_peak(correlation, max(first, 2), last)
    loud = pieces.square().mean(2).sqrt() > quiet
    return torch.where((score > voiced) & loud, rate / lag, torch.zeros_like(lag))


def _normalised(pieces: Tensor, lags: int) -> Tensor:
    """Correlation of x[:-l] with x[l:] over the root of their energies, for l < lags: [N, F, lags]."""
    span = pieces.shape[2]
    spectrum = torch.fft.rfft(pieces, 2 * span)
    product = torch.fft.irfft(spectrum.abs().square(), 2 * span)[:, :, :lags]
    energy = F.pad(pieces.square().cumsum(2), (1, 0))
    at = torch.arange(lags, device=pieces.device)
    head, tail = energy[:, :, span - at], energy[:, :, -1:] - energy[:, :, at]
    return product / (head * tail).clamp(min=1e-16).sqrt()


def _shortest_peak(correlation: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """The shortest lag in first..last with a local maximum of at least 0.9 of the best: (its value, the refined lag)."""
    before, here, after = (correlation[:, :, first + k : last + 1 + k] for k in (-1, 0, 1))
    peak = (here >= before) & (here > after)
    heights = torch.where(peak, here, here.new_full((), -1.0))
    best = heights.amax(2, keepdim=True)
    index = ((heights >= 0.9 * best) & peak).to(torch.uint8).argmax(2, keepdim=True)
    left, top, right = (part.gather(2, index)[:, :, 0] for part in (before, here, after))
    bend = (left - 2 * top + right).clamp(max=-1e-9)
    shift = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    return top, index[:, :, 0] + first + shift
