"""Relevance of channels: by hand on a linear read-out, by removal where the network is linear in a map, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError, DataError
from cambrian.inspect import Space, wrap
from cambrian.inspect.channels import channel_relevance
from cambrian.inspect.surgery import remove_maps
from cambrian.nn import zoo


def target_of(module: nn.Module, size: int = 8) -> object:
    return wrap(module, space=Space.image((1, size, size)), classes=["a", "b", "c"])


def batch(size: int = 8, n: int = 6) -> tuple[torch.Tensor, torch.Tensor, dict]:
    torch.manual_seed(1)
    return torch.rand(n, 1, size, size), torch.arange(n) % 3, {}


def test_it_is_the_part_of_the_logit_that_goes_with_the_map() -> None:
    """The read-out is linear in the last maps, so removing one changes the logit by exactly its relevance."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).eval()  # fmt: skip
    x, y, meta = batch()
    found = channel_relevance(target_of(net), [(x, y, meta)])
    assert {name: len(values) for name, values in found.items()} == {"0": 4, "3": 5}
    whole = net(x).gather(1, y[:, None])[:, 0]
    for channel in range(5):
        less = remove_maps(net, {"3": [channel]}, x[:1])(x).gather(1, y[:, None])[:, 0]
        torch.testing.assert_close(found["3"][channel], (whole - less).abs().mean(), rtol=1e-4, atol=1e-6)


def test_batches_are_averaged_and_nothing_is_touched() -> None:
    torch.manual_seed(0)
    net = zoo.build("resnet-mini", classes=3, channels=1).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y, meta = batch(16)
    target = target_of(net, 16)
    whole = channel_relevance(target, [(x, y, meta)])
    parts = channel_relevance(target, [(x[:2], y[:2], meta), (x[2:], y[2:], meta)])
    assert whole.keys() == parts.keys() and "body.block2_1.conv1" in whole
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())


def test_what_has_no_maps_or_no_samples() -> None:
    with pytest.raises(CapabilityError, match="no feature maps"):
        channel_relevance(target_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))), [batch()])
    with pytest.raises(DataError, match="at least one batch"):
        channel_relevance(target_of(zoo.build("vgg-small", classes=3)), [])
