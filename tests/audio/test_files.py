import math

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from cambrian.audio import files
from cambrian.errors import DataError


def test_round_trip_is_exact_on_the_16_bit_grid(tmp_path):
    wave = torch.arange(-32768, 32768, 7) / 32768
    path = files.write(tmp_path / "a.wav", wave, 8000)
    back, rate = files.read(path)
    assert rate == 8000 and torch.equal(back, wave)


@pytest.mark.parametrize("kind, scale", [(np.uint8, None), (np.int32, 2**31), (np.float32, 1)])
def test_sample_formats(tmp_path, kind, scale):
    values = np.array([-0.5, 0.0, 0.5])
    stored = (values * 128 + 128).astype(np.uint8) if scale is None else (values * scale).astype(kind)
    wavfile.write(tmp_path / "a.wav", 8000, stored)
    assert files.read(tmp_path / "a.wav")[0].tolist() == values.tolist()


def test_flac_through_soundfile(tmp_path):
    import soundfile

    wave = torch.sin(torch.arange(800) / 10) / 2
    soundfile.write(tmp_path / "a.flac", wave.numpy(), 8000)
    assert (files.read(tmp_path / "a.flac")[0] - wave).abs().max() < 1e-4


def test_rates_are_named_and_resampling_keeps_a_tone(tmp_path):
    tone = torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000) / 2
    files.write(tmp_path / "a.wav", tone, 16000)
    with pytest.raises(DataError, match="16000 Hz where 8000"):
        files.read(tmp_path / "a.wav", 8000)
    half, rate = files.read(tmp_path / "a.wav", 8000, resample=True)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(8000) / 8000) / 2
    assert rate == 8000 and (half - expected)[100:-100].abs().max() < 5e-3


def test_channels(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, np.array([[16384, 0]] * 10, dtype=np.int16))
    with pytest.raises(DataError, match=r"a\.wav: 2 channels"):
        files.read(tmp_path / "a.wav")
    assert files.read(tmp_path / "a.wav", mixdown=True)[0].tolist() == [0.25] * 10


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"not sound at all" * 20])
def test_corrupt_files(tmp_path, content):
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.wav"):
        files.read(tmp_path / "bad.wav")


def test_missing_empty_and_nan(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        files.read(tmp_path / "none.wav")
    wavfile.write(tmp_path / "empty.wav", 8000, np.zeros(0, dtype=np.int16))
    with pytest.raises(DataError, match="no samples"):
        files.read(tmp_path / "empty.wav")
    wavfile.write(tmp_path / "nan.wav", 8000, np.array([np.nan], dtype=np.float32))
    with pytest.raises(DataError, match="NaN"):
        files.read(tmp_path / "nan.wav")
