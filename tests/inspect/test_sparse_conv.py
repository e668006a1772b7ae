"""The sparse kernel equals the dense convolution for every geometry, reads nothing past its buffer, and says no clearly."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.inspect import sparse_conv
from cambrian.inspect.sparse_conv import Csr, Geometry, SparseConv2d, arrange

BACKENDS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="numba")),
]
GEOMETRIES = [  # C, O, H, W, kernel, stride, padding, dilation, groups
    (3, 5, 7, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (4, 6, 8, 8, (3, 3), (2, 2), (1, 1), (1, 1), 2),
    (2, 3, 11, 6, (5, 2), (3, 2), (2, 0), (1, 1), 1),
    (4, 4, 9, 9, (3, 3), (1, 1), (2, 2), (2, 2), 4),
    (3, 2, 9, 12, (3, 3), (2, 3), (0, 2), (2, 1), 1),
    (3, 4, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (2, 3, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 2, 5, 5, (5, 5), (1, 1), (0, 0), (1, 1), 1),
    (1, 2, 40, 37, (3, 3), (1, 1), (1, 1), (1, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_equals_the_dense_convolution(backend: str, case: tuple):
    channels, outputs, height, width, kernel, stride, padding, dilation, groups = case
    generator = torch.Generator().manual_seed(outputs)
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(conv.weight.shape, generator=generator) < 0.4)
        conv.weight[0] = 0  # an empty row
        conv.weight[-1] = torch.randn(conv.weight[-1].shape, generator=generator)  # a full one
        x = torch.randn(3, channels, height, width, generator=generator)
        for relu in (False, True):
            wanted = conv(x).relu() if relu else conv(x)
            made = SparseConv2d.from_dense(conv, relu=relu, backend=backend)
            assert torch.allclose(made(x), wanted, atol=1e-4), case
        conv.bias = None
        assert torch.allclose(SparseConv2d.from_dense(conv, backend=backend)(x), conv(x), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_starts_at_its_bias_and_nan_is_not_hidden(backend: str):
    conv = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[1, 0, 1, 1] = 1.0
        x = torch.full((1, 1, 4, 4), float("nan"))
        out = SparseConv2d.from_dense(conv, backend=backend)(x)
    assert torch.equal(out[0, 0], conv.bias[0].expand(4, 4)) and bool(out[0, 1].isnan().all())


def test_the_last_read_stays_inside_the_buffer():
    pytest.importorskip("numba")
    lanes = sparse_conv.vector_lanes()
    for height, width, stride, padding in [(13, 13, 1, 1), (9, 5, 2, 1), (1, 1, 1, 1), (6, 40, 3, 0), (27, 27, 1, 2)]:
        kernel = (min(3, height + 2 * padding),) * 2
        geometry = Geometry(2, height, width, kernel, (stride, stride), (padding, padding))
        csr = Csr.of(torch.ones(1, 2, *kernel), geometry)
        size, blocks = sparse_conv._block(geometry.flat, lanes)
        span = blocks * size * lanes
        length = arrange(torch.ones(1, 2, height, width), geometry, span - geometry.flat + lanes).shape[1]
        assert int(csr.offsets.max()) + span <= length and span >= geometry.flat


def test_blocks_cover_the_plane_with_little_waste():
    for lanes in (8, 16):
        for flat in range(1, 900, 7):
            size, blocks = sparse_conv._block(flat, lanes)
            assert size * blocks * lanes >= flat and size <= 13
            assert (size * blocks - 1) * lanes < flat * 1.15 + lanes


def test_threads_give_the_same_bits():
    pytest.importorskip("numba")
    conv = nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(4, 5, 13, 13)
    made = SparseConv2d.from_dense(conv, backend="numba")
    before = torch.get_num_threads()
    alone = made(x)
    try:
        torch.set_num_threads(2)
        assert torch.equal(made(x), alone)
    finally:
        torch.set_num_threads(before)


def test_offsets_follow_the_papers_layout():
    weight = torch.zeros(2, 3, 3, 3)
    weight[1, 2, 1, 0], weight[0, 1, 2, 2] = 5.0, 4.0
    csr = Csr.of(weight, Geometry(3, 6, 4, (3, 3), padding=(1, 1)))
    assert csr.values.tolist() == [4.0, 5.0] and csr.rows.tolist() == [0, 1, 2]
    assert csr.offsets.tolist() == [(1 * 8 + 2) * 6 + 2, (2 * 8 + 1) * 6 + 0] and csr.density == 2 / 54


def test_a_plan_is_made_once_for_each_size_and_channels_last_is_taken():
    conv = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
    made = SparseConv2d.from_dense(conv, backend="torch")
    for side in (6, 9, 6):
        x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
        assert torch.allclose(made(x), conv(x), atol=1e-5)
    assert len(made._plans) == 2


def test_bad_requests_are_typed_errors(monkeypatch):
    conv = nn.Conv2d(3, 4, 3)
    made = SparseConv2d.from_dense(conv, backend="torch")
    for x in (torch.rand(1, 2, 6, 6), torch.rand(3, 6, 6), torch.rand(1, 3, 2, 2)):
        with pytest.raises(ShapeError):
            made(x)
    with pytest.raises(CapabilityError, match="float32"):
        made(torch.rand(1, 3, 6, 6, dtype=torch.float64))
    with pytest.raises(CapabilityError, match="zeros"):
        SparseConv2d.from_dense(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"))
    with pytest.raises(CapabilityError, match="Linear"):
        SparseConv2d.from_dense(nn.Linear(3, 4))
    with pytest.raises(CapabilityError, match="unevenly"):
        SparseConv2d.from_dense(nn.Conv2d(3, 4, 2, padding="same"))
    with pytest.raises(ConfigError, match="backend"):
        SparseConv2d.from_dense(conv, backend="cuda")
    with pytest.raises(ShapeError, match="does not fit"):
        Csr.of(conv.weight, Geometry(4, 6, 6, (3, 3)))
    monkeypatch.setattr(sparse_conv, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"cambrian\[fast\]"):
        SparseConv2d.from_dense(conv, backend="numba")
    with pytest.warns(UserWarning, match=r"cambrian\[fast\]"):
        slow = SparseConv2d.from_dense(conv)
    assert slow.backend == "torch"
    x = torch.rand(1, 3, 5, 5)
    assert np.allclose(slow(x).numpy(), F.conv2d(x, conv.weight, conv.bias).detach().numpy(), atol=1e-5)
