"""The cost model: FLOPs against torch's counter, communication against the paper's formulas, scaling against arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cambrian.dist.collectives import SCHEMES
from cambrian.engine.config import override
from cambrian.errors import ConfigError
from cambrian.inspect.counters import Graph, trace
from cambrian.inspect.device import Device, Rate
from cambrian.systems.parallel.paleo import (
    NETS,
    PaleoStudy,
    critical_path,
    errors,
    measure_data_parallel,
    permuted,
    predict,
    scaling,
    step_time,
)

FAST = Device(1e9, math.inf, link_bw=1e6, latency=0.0)


class Branches(nn.Module):
    """Two towers of unequal depth that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        self.short = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.long(x) + self.short(x)


@pytest.fixture(scope="module")
def lenet() -> Graph:
    return trace(NETS["lenet"][0](), NETS["lenet"][1])


@pytest.mark.parametrize("name", list(NETS))
def test_flops_of_every_network_equal_torchs_counter(name: str) -> None:
    make, shape = NETS[name]
    net, graph = make(), trace(make(), shape).at(5)
    state = {
        k: torch.empty_like(v, device="meta", requires_grad=v.requires_grad)
        for k, v in (*net.named_parameters(), *net.named_buffers())
    }
    with FlopCounterMode(display=False) as counter:
        out = torch.func.functional_call(net, state, (torch.empty(5, *shape, device="meta"),))
        forward = counter.get_total_flops()
        torch.autograd.grad(out.sum(), [v for v in state.values() if v.requires_grad])
    assert graph.flops("forward") == forward
    assert graph.flops("backward") == counter.get_total_flops() - forward
    assert graph.parameters() == sum(p.numel() for p in net.parameters())


def test_a_step_is_its_passes_and_one_worker_communicates_nothing(lenet: Graph) -> None:
    for scheme in SCHEMES:
        step = step_time(lenet, FAST, 1, batch=4, scheme=scheme)
        assert step.communication == 0.0
        assert step.forward == pytest.approx(predict(lenet, FAST, 4, "forward"))
        assert step.forward + step.backward == pytest.approx(predict(lenet, FAST, 4))
    assert predict(lenet, FAST, 4) == pytest.approx(lenet.at(4).flops() / 1e9)


def test_communication_is_that_of_all_parameters(lenet: Graph) -> None:
    size = 4 * 431_080
    assert step_time(lenet, FAST, 4, batch=4, scheme="one-to-all").communication == pytest.approx(2 * size * 3 / 1e6)
    assert step_time(lenet, FAST, 4, batch=4, scheme="tree").communication == pytest.approx(2 * 2 * size / 1e6)
    update = step_time(lenet, replace(FAST, mem_bw=1e6), 4, batch=4).update
    assert update == pytest.approx(3 * size / 1e6)


def test_overlap_hides_what_is_ready_early_and_no_more(lenet: Graph) -> None:
    for link in (1e5, 1e7, 1e9):
        device = replace(FAST, link_bw=link)
        plain, hidden = (step_time(lenet, device, 4, batch=32, overlap=o) for o in (False, True))
        assert hidden.communication == pytest.approx(plain.communication)
        assert max(plain.backward, plain.communication) < hidden.total - hidden.forward - hidden.update
        assert hidden.total < plain.total
    free = replace(FAST, link_bw=math.inf)
    assert step_time(lenet, free, 4, batch=32, overlap=True).total == pytest.approx(
        step_time(lenet, free, 4, batch=32).total
    )


def test_hybrid_layout_sends_activations_for_the_split_layers(lenet: Graph) -> None:
    data, hybrid = (step_time(lenet, FAST, 4, batch=8, scheme="ring", layout=x) for x in ("data", "hybrid"))
    convolutions, features = 4 * (520 + 25_050), 4 * 8 * (800 + 500)
    expected = 2 * 3 / 4 * convolutions / 1e6 + 2 * 3 * features / 1e6
    assert hybrid.communication == pytest.approx(expected)
    assert hybrid.communication < data.communication
    assert hybrid.forward == data.forward


def test_scaling_without_communication_is_perfect(lenet: Graph) -> None:
    device = replace(FAST, link_bw=math.inf)
    for mode in ("weak", "strong"):
        table = scaling(lenet, device, (1, 2, 8), batch=64, mode=mode)
        np.testing.assert_allclose(table.speedup, [1, 2, 8], rtol=1e-6)
    slow = scaling(lenet, FAST, (1, 2, 8), batch=64, mode="strong", scheme="one-to-all")
    assert slow.speedup[2] < slow.speedup[1] < 1 == slow.speedup[0]
    assert slow.price(3600, 2.0) == pytest.approx([t * k * 2.0 for k, t in zip((1, 2, 8), slow.seconds)])


def test_branches_run_side_by_side_on_the_critical_path() -> None:
    graph = trace(Branches(), (8,), backward=False)
    device = Device(1.0, math.inf)
    one = 2 * 2 * 8 * 8
    assert predict(graph, device) == 4 * one
    assert critical_path(graph, device) == 3 * one
    chain = trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (8,), backward=False)
    assert critical_path(chain, device) == predict(chain, device) == 2 * one
    both = trace(Branches(), (8,))
    assert 3 * one < critical_path(both, device) < predict(both, device)


def test_the_sabotage_moves_rates_between_products_only() -> None:
    rates = tuple(Rate("gemm" if i < 9 else "conv", "forward", (float(i),) * 4, 0.1 * (i + 1)) for i in range(18))
    device = Device(1e9, 1e9, classes=(*rates, Rate("pool", "forward", (3.0,), 7.0)))
    shuffled = permuted(device, 3)
    assert sorted(r.ppp for r in shuffled.classes) == sorted(r.ppp for r in device.classes)
    assert {r.kind: r.ppp for r in shuffled.classes}["pool"] == 7.0
    assert [r.ppp for r in shuffled.classes if r.kind != "pool"] != [r.ppp for r in rates]
    assert permuted(device, 3) == shuffled


def test_errors_of_a_known_prediction() -> None:
    measured = {("a", 1): 1.0, ("a", 2): 2.0, ("b", 1): 4.0}
    found = errors(measured, {("a", 1): 2.0, ("a", 2): 2.0, ("b", 1): 1.0})
    assert found["median_log_error"] == pytest.approx(math.log(2))
    assert found["median_relative_error"] == pytest.approx(0.75)
    assert errors(measured, {p: 3 * t for p, t in measured.items()})["spearman"] == pytest.approx(1.0)
    assert errors(measured, {p: 1 / t for p, t in measured.items()})["spearman"] == pytest.approx(-1.0)


def test_smoke_preset_measures_and_reports(tmp_path: Path) -> None:
    config = override(PaleoStudy.presets["smoke"], {"repeats": 1, "nets": ("mlp",)})
    found = PaleoStudy(config).measure(0, tmp_path, lambda done, total: None)
    assert 0 <= found.metrics["median_log_error"] < 5 and "data_parallel_ms" not in found.metrics
    assert found.sample is not None and len(found.sample.save(tmp_path, "s")) == 3
    flops = PaleoStudy(override(config, {"model": "flops"})).measure(0, tmp_path, lambda done, total: None)
    assert flops.metrics["median_log_error"] > found.metrics["median_log_error"]


def test_a_real_data_parallel_step_is_timed() -> None:
    assert 1e-5 < measure_data_parallel("mlp", 4, 2, steps=1) < 30


def test_bad_requests_are_typed_errors(lenet: Graph) -> None:
    with pytest.raises(ConfigError, match="nets takes"):
        override(PaleoStudy.presets["smoke"], {"nets": ("overfeat",)})
    with pytest.raises(ConfigError, match="layout"):
        step_time(lenet, FAST, 2, batch=4, layout="model")
    with pytest.raises(ConfigError, match="scheme"):
        step_time(lenet, FAST, 2, batch=4, scheme="star")
    with pytest.raises(ConfigError, match="mode"):
        scaling(lenet, FAST, (1, 2), batch=4, mode="medium")
    with pytest.raises(ConfigError, match="evenly"):
        scaling(lenet, FAST, (1, 3), batch=4, mode="strong")
