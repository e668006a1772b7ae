import math

import pytest
import torch

from cambrian.audio.spectra import log_mel, mel_filters, mfcc, stft_magnitude
from cambrian.errors import ShapeError


def tone(hz, rate=8000, seconds=0.5):
    return torch.sin(2 * math.pi * hz * torch.arange(int(rate * seconds)) / rate)[None]


def test_magnitudes_equal_a_plain_fourier_sum():
    wave = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    found = stft_magnitude(wave, window=64, hop=32)
    start = 5 * 32 - 16  # frame 5 is centred on its hop
    piece = wave[0, start : start + 64].double() * torch.hann_window(64).double()
    for k in (0, 3, 32):
        angle = 2 * math.pi * k * torch.arange(64) / 64
        expected = math.hypot(float((piece * angle.cos()).sum()), float((piece * angle.sin()).sum()))
        assert float(found[0, 5, k]) == pytest.approx(expected, abs=1e-4)


def test_a_tone_lights_its_band():
    filters = mel_filters(40, 512, 8000)
    assert filters.shape == (257, 40) and (filters.sum(0) > 0).all()
    bands = log_mel(tone(1000), 8000)
    assert bands.shape == (1, 50, 40)
    expected = int(filters[64].argmax())  # 1,000 Hz is point 64 of 512 at 8 kHz
    assert (bands[0, 5:-5].argmax(1) == expected).all()


def test_cepstra_ignore_loudness_but_energy_does_not():
    loud, quiet = mfcc(tone(700), 8000), mfcc(tone(700) / 10, 8000)
    assert loud.shape == (1, 50, 28)
    assert torch.allclose(loud[:, 5:-5, :13], quiet[:, 5:-5, :13], atol=0.6)
    assert torch.allclose(loud[0, 10, 13] - quiet[0, 10, 13], torch.tensor(2 * math.log(10)), atol=1e-3)


def test_deltas_are_slopes():
    features = mfcc(tone(700) * torch.linspace(0.1, 1, 4000), 8000)
    assert torch.allclose(features[0, 20, 14 + 13], (features[0, 21, 13] - features[0, 19, 13]) / 2, atol=0.01)


def test_bad_input():
    for wave in (torch.zeros(100), torch.zeros(1, 10)):
        with pytest.raises(ShapeError):
            stft_magnitude(wave, window=64, hop=32)
    with pytest.raises(ShapeError, match="32 points"):
        stft_magnitude(torch.zeros(1, 100), window=64, hop=32, size=32)
