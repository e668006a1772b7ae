import math

import pytest
import torch

from cambrian.audio.pitch import f0
from cambrian.errors import ShapeError


@pytest.mark.parametrize("hz", [75, 123.4, 250, 390])
@pytest.mark.parametrize("rate", [4000, 16000])
def test_harmonic_tones(hz, rate):
    time = torch.arange(rate) / rate
    wave = sum(torch.sin(2 * math.pi * k * hz * time) / k for k in range(1, 5))[None] / 4
    found = f0(wave, rate, rate // 100)
    assert found.shape == (1, 100)
    assert (found[0, 5:-8] / hz - 1).abs().max() < 0.01


def test_noise_and_silence_are_unvoiced():
    noise = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    assert (f0(noise, 4000, 40) > 0).float().mean() < 0.05
    assert not f0(torch.zeros(1, 4000), 4000, 40).any()


def test_bad_input():
    with pytest.raises(ShapeError):
        f0(torch.zeros(100), 4000, 40)
    with pytest.raises(ShapeError):
        f0(torch.zeros(1, 100), 4000, 40, low=300, high=200)
