from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.causal.check import assert_causal, dependence
from cambrian.nn.causal.dilated import DilatedConv, doubling, receptive_field


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (2, 4), (3, 2)])
def test_equals_torchs_convolution_and_its_own_steps(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = DilatedConv(inputs=3, outputs=5, kernel=kernel, dilation=dilation).double()
    x = torch.randn(2, 20, 3).double()
    expected = F.conv1d(x.transpose(1, 2), layer.weight.permute(0, 2, 1), layer.bias, dilation=dilation).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)
    known = x[:, : layer.span + 2]
    queue = layer.resume(known)
    for t in range(layer.span + 2, 20):
        torch.testing.assert_close(layer.step(x[:, t], queue), expected[:, t - layer.span])
        if layer.span:
            assert torch.equal(queue.past(), x[:, t - layer.span + 1 : t + 1])
    queue = layer.start(2)
    padded = layer(F.pad(x, (0, 0, layer.span, 0)))
    for t in range(20):
        torch.testing.assert_close(layer.step(x[:, t], queue, torch.ones(2, 5)), padded[:, t] + 1)


def test_receptive_field_is_what_disturbing_inputs_shows() -> None:
    torch.manual_seed(0)
    dilations = doubling(3, 2)
    assert dilations == [1, 2, 4, 1, 2, 4]
    layers = [DilatedConv(inputs=2, outputs=2, dilation=d).double() for d in dilations]

    def run(x: torch.Tensor) -> torch.Tensor:
        h = F.pad(x, (receptive_field(dilations) - 1, 0)).transpose(1, 2)
        for layer in layers:
            h = layer(h)
        return h.transpose(1, 2)

    found = dependence(run, torch.randn(1, 2, 30).double())
    reach = [int(row.nonzero().min()) for row in found[receptive_field(dilations) :]]
    assert [o - i for o, i in enumerate(reach, receptive_field(dilations))] == [receptive_field(dilations) - 1] * len(
        reach
    )
    assert_causal(run, torch.randn(1, 2, 30).double())


def test_the_check_finds_what_is_not_causal() -> None:
    x = torch.randn(2, 3, 8)
    with pytest.raises(AssertionError, match="output 0 of 8 depends on input 1"):
        assert_causal(lambda v: v.roll(-1, -1), x)
    with pytest.raises(AssertionError, match="depends on input 0"):
        assert_causal(lambda v: v, x, strict=True)
    assert_causal(lambda v: v.cumsum(-1), x)
    picture = torch.randint(0, 9, (1, 1, 3, 4))
    raster = lambda v: v.flatten(-2).cumsum(-1).reshape(v.shape)  # noqa: E731
    assert_causal(raster, picture, order="raster")
    with pytest.raises(AssertionError):
        assert_causal(lambda v: v.cumsum(-2), picture, order=torch.arange(12).flip(0).reshape(3, 4))
    assert dependence(raster, picture, order="raster").tril().sum() == 12 * 13 / 2


def test_bad_inputs_are_typed_errors() -> None:
    layer = DilatedConv(inputs=3, outputs=5, dilation=4)
    for bad in (torch.zeros(2, 4, 3), torch.zeros(2, 9, 2), torch.zeros(9, 3)):
        with pytest.raises(ShapeError):
            layer(bad)
    with pytest.raises(ShapeError):
        layer.resume(torch.zeros(1, 3, 3))
    with pytest.raises(ConfigError):
        DilatedConv(inputs=0, outputs=1)
    with pytest.raises(ShapeError):
        dependence(lambda v: v, torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ShapeError):
        dependence(lambda v: v, torch.zeros(1, 4), order=torch.tensor([0, 1, 1, 2]))
    with pytest.raises(ShapeError):
        dependence(lambda v: v[..., :2], torch.zeros(1, 4))
