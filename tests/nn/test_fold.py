"""Folding batch norm is exact, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError
from cambrian.nn import zoo
from cambrian.nn.fold import fold_batchnorm


def lived_in(model: nn.Module) -> nn.Module:
    """The model in double precision with batch norms as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for value, low, high in (
                (layer.running_mean, -1, 1), (layer.running_var, 0.2, 3), (layer.weight.data, -1, 2), (layer.bias.data, -1, 1)
            ):  # fmt: skip
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return model.double().eval()


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("vgg-b", {"bn": True, "size": 32, "width": 0.1, "head": "gap", "channels": 1}, (1, 32, 32)),
        ("vgg-small", {}, (1, 20, 20)),
        ("mlp", {"bn": True}, (1, 28, 28)),
    ],
)
def test_folding_is_exact(name: str, arguments: dict[str, object], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = lived_in(zoo.build(name, classes=5, **arguments))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    x = torch.rand(4, *shape, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-11)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_residual_blocks_fold_where_they_can() -> None:
    torch.manual_seed(0)
    model = lived_in(zoo.ResNet(width=0.1))
    folded = fold_batchnorm(model)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-11)


def test_statistics_are_needed() -> None:
    with pytest.raises(CapabilityError, match="running statistics"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)))
