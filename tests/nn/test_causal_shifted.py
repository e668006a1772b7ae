import pytest
import torch
from torch.nn import functional as F

from cambrian.nn.causal.shifted import (
    DownRightShifted,
    DownRightShiftedUp,
    DownShifted,
    DownShiftedUp,
    shift_down,
    shift_right,
)
from cambrian.nn.causal.weight_norm import WNConv2d, initialising


def reach(module, size=6, out=None):
    """bool [H', W', H, W]: which inputs each output depends on."""
    x = torch.randn(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    y = module.double()(x)
    seen = torch.zeros(*y.shape[2:], size, size, dtype=torch.bool)
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            (g,) = torch.autograd.grad(y[0, :, i, j].square().sum(), x, retain_graph=True)
            seen[i, j] = g[0].abs().sum(0) > 0
    return seen


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_above_or_pixels_before(stride):
    down, right = DownShifted(2, 3, stride=stride), DownRightShifted(2, 3, stride=stride)
    for name, layer in (("down", down), ("right", right)):
        seen = reach(layer)
        assert seen.shape[0] == 6 // stride
        for i in range(seen.shape[0]):
            for j in range(seen.shape[1]):
                assert not seen[i, j, stride * i + 1 :].any()
                if name == "right":
                    assert not seen[i, j, :, stride * j + 1 :].any()
                assert seen[i, j, stride * i, stride * j]


def test_spreading_back_stays_causal():
    for layer in (DownShiftedUp(2, 3), DownRightShiftedUp(2, 3)):
        seen = reach(layer, 3)
        assert seen.shape[:2] == (6, 6)
        for i in range(6):
            for j in range(6):
                rows, columns = seen[i, j].nonzero().unbind(1)
                assert (rows == i // 2).all()
                if isinstance(layer, DownRightShiftedUp):
                    assert (columns == j // 2).all()


def test_shifts():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert shift_down(x)[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [3, 4, 5]]
    assert shift_right(x)[0, 0].tolist() == [[0, 0, 1], [0, 3, 4], [0, 6, 7]]


@pytest.mark.parametrize("transposed", [False, True])
def test_data_sets_the_scale_of_every_layer(transposed):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        WNConv2d(3, 8, (2, 2), transposed=transposed), torch.nn.Dropout(0.5), WNConv2d(8, 5, (2, 2), scale=0.1)
    )
    x = 4 * torch.randn(64, 3, 8, 8) + 3
    with initialising(net):
        net(x)
    assert net.training and not net[0].measuring
    with torch.no_grad():
        first = net.eval()[0](x)
        second = net(x)
    assert torch.allclose(first.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(first.std((0, 2, 3)), torch.ones(8), atol=1e-3)
    assert torch.allclose(second.std((0, 2, 3)), torch.full((5,), 0.1), atol=1e-3)


def test_weight_norm_is_torchs():
    layer = WNConv2d(3, 4, (2, 3))
    with torch.no_grad():
        layer.g.uniform_(0.5, 2)
    peer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 4, (2, 3)))
    with torch.no_grad():
        peer.parametrizations.weight.original1.copy_(layer.v)
        peer.parametrizations.weight.original0.copy_(layer.g.view(4, 1, 1, 1))
        peer.bias.copy_(layer.b)
    x = torch.randn(2, 3, 5, 6)
    assert torch.allclose(layer(x), peer(x), atol=1e-5)
    assert layer(x).shape == F.conv2d(x, layer.weight()).shape
