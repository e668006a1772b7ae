"""The cost model against arithmetic, its scale with the batch, and a quick calibration of this machine."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.counters import Graph, Operation, count_step, trace
from cambrian.inspect.device import Calibration, Device, Rate, calibrate_link
from cambrian.inspect.profile import profile, profile_step


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_seconds_are_fetch_plus_compute_plus_write_plus_overhead() -> None:
    device = Device(1e9, 1e8, ppp_comp=0.5, ppp_comm=0.25, overhead=1e-6)
    op = Operation("", "mm", "gemm", "forward", 4000, 300, 200, (1, 2, 10, 100))
    copy = Operation("", "copy", "elementwise", "forward", 0, 300, 200)
    expected = [1e-6 + 500 / 2.5e7 + 4000 / 5e8, 1e-6 + 500 / 2.5e7]
    np.testing.assert_allclose(device.seconds(Graph((op, copy))), expected, rtol=1e-12)


def test_the_nearest_class_of_the_same_kind_and_direction_gives_the_rate() -> None:
    rates = (
        Rate("gemm", "forward", (0.0, 3.0, 3.0, 3.0), 0.1),
        Rate("gemm", "forward", (0.0, 9.0, 9.0, 9.0), 0.8),
        Rate("gemm", "backward", (0.0, 9.0, 9.0, 9.0), 0.4),
        Rate("conv", "forward", (0.0, 3.0, 3.0, 3.0), 0.2),
    )
    device = Device(1.0, math.inf, ppp_comp=0.3, classes=rates)

    def ppp(kind: str, direction: str, size: int) -> float:
        op = Operation("", "", kind, direction, 100, 0, 0, (1, size, size, size))
        return 100 / float(device.seconds(Graph((op,)))[0])

    assert ppp("gemm", "forward", 8) == pytest.approx(0.1)
    assert ppp("gemm", "forward", 300) == pytest.approx(0.8)
    assert ppp("gemm", "backward", 8) == pytest.approx(0.4)
    assert ppp("conv", "data", 8) == pytest.approx(0.2)  # no such direction: the kind's own
    assert ppp("depthwise", "forward", 8) == pytest.approx(0.3)  # no such kind: the scalar


def test_all_batch_sizes_at_once_equal_one_at_a_time() -> None:
    graph = trace(net(), (3, 8, 8))
    rates = (Rate("gemm", "forward", (0.0, 3.0, 3.0, 8.0), 0.1), Rate("gemm", "forward", (0.0, 7.0, 3.0, 8.0), 0.4))
    device = Device(1e9, 1e9, overhead=1e-6, classes=rates)
    batches = [1, 4, 100]
    together = device.seconds(graph, batches)
    assert together.shape == (len(graph.operations), 3)
    for column, batch in enumerate(batches):
        np.testing.assert_allclose(together[:, column], device.seconds(graph.at(batch)), rtol=1e-12)
    with pytest.raises(CapabilityError):
        device.seconds(count_step(lambda: torch.ones(2) + 1), batches)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    measured = Calibration(quick=True, clock=time.process_time)
    for _ in range(3):
        measured.round()
    return measured


def test_calibration_describes_this_machine(calibration: Calibration) -> None:
    device = calibration.result()
    assert 1e8 < device.peak_flops < 1e13 and 1e8 < device.mem_bw < 1e12
    assert 0 < device.overhead < 1e-2
    assert {r.kind for r in device.classes} >= {"gemm", "conv3x3", "pool", "norm", "elementwise"}
    assert {r.direction for r in device.classes if r.kind == "conv3x3"} == {"forward", "data", "filter"}
    assert all(r.ppp > 0 for r in device.classes)
    assert {r.kind for r in device.products_only().classes}.isdisjoint({"pool", "norm", "elementwise"})


def test_the_flops_only_model_is_proportional_to_flops(calibration: Calibration) -> None:
    device, graph = calibration.flops_only(), trace(net(), (3, 8, 8))
    seconds, flops = device.seconds(graph), np.array([op.flops for op in graph.operations])
    np.testing.assert_allclose(seconds, flops / (device.peak_flops * device.ppp_comp), rtol=1e-9)


def test_profile_sets_predicted_beside_measured(calibration: Calibration) -> None:
    module = net()
    result = profile(module, [torch.randn(4, 3, 8, 8)], device=calibration.result(), repeats=2)
    graph = trace(module, (3, 8, 8)).at(4)
    assert [r.layer for r in result.rows][:4] == ["0", "1", "3", ""]
    assert sum(r.forward_flops for r in result.rows) == graph.flops("forward")
    assert sum(r.bytes for r in result.rows) == graph.bytes()
    assert all(r.measured_ms > 0 and r.predicted_ms > 0 for r in result.rows)
    assert result.predicted_ms == pytest.approx(sum(r.predicted_ms for r in result.rows))
    assert all(p.grad is None for p in module.parameters())
    columns, cells = result.table()
    assert cells[-1][0] == "total" and all(len(row) == len(columns) for row in cells)


def test_profile_of_a_step_moves_the_weights_and_sees_the_optimiser(calibration: Calibration) -> None:
    module = net()
    optim = torch.optim.SGD(module.parameters(), lr=0.1)

    def step() -> None:
        optim.zero_grad()
        module(torch.ones(2, 3, 8, 8)).sum().backward()
        optim.step()

    before = module[0].weight.clone()
    result = profile_step(step, {"net": module}, device=calibration.result(), repeats=1)
    assert {r.layer for r in result.rows} >= {"net.0", "net.3"}
    assert any(op.direction == "update" for op in result.graph.operations)
    assert not torch.equal(before, module[0].weight)


def test_the_link_is_measured_between_two_processes() -> None:
    device = calibrate_link(Device(1e9, 1e9), size=2**18, rounds=5)
    assert 1e-6 < device.latency < 0.1 and 1e6 < device.link_bw < 1e12


def test_bad_devices_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match="mem_bw"):
        Device(1e9, 0.0)
    with pytest.raises(ConfigError, match="at least one round"):
        Calibration(quick=True).result()
    with pytest.raises(ConfigError, match="repeat"):
        profile_step(lambda: None, repeats=0)
