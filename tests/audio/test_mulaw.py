import pytest
import torch

from cambrian.audio import mulaw
from cambrian.errors import ShapeError


def test_every_bin_is_its_own_code():
    bins = torch.arange(256)
    assert torch.equal(mulaw.encode(mulaw.decode(bins)), bins)


def test_error_is_small_where_the_wave_is():
    x = torch.linspace(-1, 1, 20001)
    error = (mulaw.decode(mulaw.encode(x)) - x).abs()
    assert error.max() < 0.023 and error[x.abs() < 0.01].max() < 3e-4
    assert (mulaw.encode(x).diff() >= 0).all() and mulaw.encode(torch.tensor([-1.0, 1.0])).tolist() == [0, 255]


def test_bad_input():
    for bad in (torch.tensor([1.01]), torch.tensor([float("nan")])):
        with pytest.raises(ShapeError, match=r"\[-1, 1\]"):
            mulaw.encode(bad)
    for bad in (torch.tensor([256]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ShapeError):
            mulaw.decode(bad)
