"""Prepared networks answer as before, give the same gradients, and are left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cambrian.inspect.folding import _order, folded, prepared
from cambrian.nn import zoo


def noisy(net: nn.Module, channels: int = 3) -> nn.Module:
    """Batch norms with scales, shifts and statistics of their own."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_mean):
                    if tensor is not None:
                        tensor.normal_().add_(0.3)
                part.running_var.uniform_(0.5, 2)
    return net.eval()


def slopes(net: nn.Module, x: Tensor) -> Tensor:
    moved = x.clone().requires_grad_(True)
    return torch.autograd.grad(net(moved).square().sum(), moved)[0]


@pytest.mark.parametrize("name", ["vgg-small", "resnet-mini", "inception-mini", "lenet-5", "wide-elu"])
def test_answers_and_gradients_are_the_same_to_rounding(name: str):
    torch.manual_seed(0)
    net = noisy(zoo.fitted(name, classes=10, channels=3, size=32, mean=[0.4], std=[0.3]))
    x = torch.rand(4, 3, 32, 32)
    before, answer, slope = copy.deepcopy(net.state_dict()), net(x).detach(), slopes(net, x)
    with prepared(net, x[:2]) as ready:
        assert ready is net
        assert torch.allclose(net(x), answer, rtol=1e-4, atol=1e-5 * float(answer.abs().max()))
        assert torch.allclose(slopes(net, x), slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()))
        changed = [part for part in net.modules() if "forward" in vars(part)]
        assert any(isinstance(part, nn.Conv2d) for part in changed)
    assert torch.equal(net(x), answer)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any("forward" in vars(part) or part._forward_hooks for part in net.modules())


@pytest.mark.parametrize(("bias", "affine"), [(True, True), (False, True), (True, False), (False, False)])
def test_one_convolution_does_both(bias: bool, affine: bool):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, groups=2, bias=bias).double(), nn.BatchNorm2d(6, affine=affine).double()
    noisy(nn.Sequential(conv, norm))
    weight, shift = folded(conv, norm)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    both = nn.functional.conv2d(x, weight, shift, groups=2)
    assert torch.allclose(both, norm(conv(x)), atol=1e-12)


def test_a_second_reader_or_a_shared_layer_is_not_folded_wrongly():
    class Reader(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.conv, self.norm, self.shared = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), shared

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return (self.norm(self.conv(self.norm(h))) if self.shared else self.norm(h) + h).mean((2, 3))

    x = torch.rand(3, 3, 8, 8)
    for shared in (False, True):
        net = noisy(Reader(shared))
        answer = net(x).detach()
        with prepared(net, x[:2]):
            assert torch.allclose(net(x), answer, rtol=1e-4, atol=1e-5)
        assert _order(net, x)[1] == ({} if shared else {net.conv: net.norm})


def test_an_error_inside_leaves_the_network_alone():
    net = noisy(zoo.build("vgg-small", channels=3))
    with pytest.raises(KeyError), prepared(net, torch.rand(2, 3, 32, 32)):
        raise KeyError("stop")
    assert not any("forward" in vars(part) for part in net.modules())
