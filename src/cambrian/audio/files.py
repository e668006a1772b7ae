"""Sound files: WAV through SciPy; FLAC, Ogg and others through soundfile (`cambrian[audio]`).

Integers are divided by 2^(bits-1), so that -32768 is exactly -1 and nothing exceeds 1.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import DataError, MissingExtraError

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff", ".aif")


def read(
    path: Path | str, rate: int | None = None, *, resample: bool = False, mixdown: bool = False
) -> tuple[Tensor, int]:
    """One mono waveform float32 [T] in [-1, 1], and its rate in Hz.

    With `rate`, a file of another rate is an error that names both, unless `resample`. Several channels are an error
    unless `mixdown` (their mean). Raises `DataError` naming the file; `MissingExtraError` for other formats than WAV.
    """
    path = Path(path)
    samples, found = _read_wav(path) if path.suffix.lower() == ".wav" else _read_other(path)
    if samples.ndim == 2 and samples.shape[1] > 1 and not mixdown:
        raise DataError(f"{path.name}: {samples.shape[1]} channels; give mono files, or ask for their mean (mixdown)")
    wave = torch.from_numpy(np.ascontiguousarray(samples if samples.ndim == 1 else samples.mean(1, dtype=np.float32)))
    if not len(wave):
        raise DataError(f"{path.name}: the file holds no samples; remove it")
    if not bool(torch.isfinite(wave).all()):
        raise DataError(f"{path.name}: the file holds NaN or infinity; repair or remove it")
    if rate is None or rate == found:
        return wave.clamp(-1, 1), found
    if not resample:
        raise DataError(f"{path.name}: recorded at {found} Hz where {rate} Hz is asked for; resample it")
    return resampled(wave, found, rate).clamp(-1, 1), rate


def resampled(wave: Tensor, old: int, new: int) -> Tensor:
    """Waveform [..., T] at `old` Hz as [..., T'] at `new` Hz, by a polyphase filter (`scipy.signal.resample_poly`)."""
    from scipy.signal import resample_poly

    divisor = math.gcd(old, new)
    return torch.from_numpy(
        np.ascontiguousarray(resample_poly(wave.numpy(), new // divisor, old // divisor, axis=-1), dtype=np.float32)
    )


def encode_wav(wave: Tensor, rate: int) -> bytes:
    """A waveform [T] in [-1, 1] as the bytes of a 16-bit WAV file; what lies beyond is clipped."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    samples = (wave.detach().cpu().to(torch.float32).clamp(-1, 1) * 32768).round().clamp(max=32767)
    wavfile.write(buffer, rate, samples.to(torch.int16).numpy())
    return buffer.getvalue()


def write(path: Path | str, wave: Tensor, rate: int) -> Path:
    """Write `encode_wav` to a file; returns its path."""
    path = Path(path)
    path.write_bytes(encode_wav(wave, rate))
    return path


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks such as LIST are harmless
            rate, samples = wavfile.read(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, OSError, EOFError, struct.error, UnboundLocalError) as error:
        raise DataError(f"{path.name}: not a WAV file that can be read ({error})") from error
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, int(rate)
    if np.issubdtype(samples.dtype, np.integer):
        return (samples / float(1 << (8 * samples.dtype.itemsize - 1))).astype(np.float32), int(rate)
    return samples.astype(np.float32), int(rate)


def _read_other(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("soundfile", "audio") from error
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path.name}: not a sound file that can be read ({error})") from error
    return samples, int(rate)
