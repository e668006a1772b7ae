"""Counters against torch's own FLOP counter, closed forms, and a module left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cambrian.errors import CapabilityError, ShapeError
from cambrian.inspect.counters import Graph, Recorder, count_step, own_parameters, run_pass, tensor_bytes, trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 5, stride=2, padding=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.out(torch.tanh(self.up(self.second(x))).mean((2, 3)))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))
    return {"convolutions": (Block(), (3, 12, 12)), "attention": (attention, (7, 16)), "mlp": (mlp, (3, 2, 2))}


def reference(module: nn.Module, x: Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        out = module(x)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("name", list(networks()))
@pytest.mark.parametrize("batch", [2, 5])
def test_flops_equal_torchs_counter(name: str, batch: int) -> None:
    module, shape = networks()[name]
    with sdpa_kernel(SDPBackend.MATH):  # torch's counter does not know the fused attention of the CPU
        graph = trace(module, shape).at(batch)
        forward, backward = reference(module, torch.randn(batch, *shape))
    assert graph.flops("forward") == forward
    assert graph.flops("backward") == backward
    assert graph.flops() == forward + backward


def test_fused_attention_counts_the_products_of_the_plain_one() -> None:
    query = torch.randn(2, 3, 7, 4, requires_grad=True)

    def attend() -> None:
        nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):
        plain = count_step(attend)
    fused = count_step(attend)
    assert any(op.kind == "attention" for op in fused.operations)
    assert fused.flops("forward") == plain.flops("forward") == 2 * 2 * (2 * 3 * 7 * 7 * 4)
    assert fused.flops("backward") == plain.flops("backward") * 5 // 4  # the scores are computed again


def test_step_counts_equal_the_trace() -> None:
    module, x = Block(), torch.randn(4, 3, 12, 12)
    buffers = dict(module.named_buffers())
    step = count_step(lambda: run_pass(module, [x], True, buffers), {"": module})
    graph = trace(module, (3, 12, 12)).at(4)
    assert (step.flops(), step.bytes(), step.parameters()) == (graph.flops(), graph.bytes(), graph.parameters())


def test_convolution_by_hand_and_first_layer_without_data_gradient() -> None:
    graph = trace(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 6)).at(4)
    once = 2 * 4 * 10 * 6 * 3 * 9 * 8
    assert [(op.kind, op.direction, op.flops) for op in graph.operations if op.flops] == [
        ("conv-first", "forward", once), ("conv-first", "filter", once)]  # fmt: skip
    forward = graph.operations[0]
    assert forward.read == 4 * (4 * 3 * 60 + 8 * 27)
    assert forward.written == 4 * 4 * 8 * 60


def test_grouped_and_transposed_convolutions_count_both_gradients() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2))
    graph = trace(module, (8, 9, 9)).at(3)
    depthwise, transposed = 2 * 3 * 81 * 8 * 9, 2 * 3 * 81 * 8 * 3 * 16
    assert graph.flops("forward") == depthwise + transposed
    assert graph.flops("backward") == depthwise + 2 * transposed
    assert [op.kind for op in graph.operations if op.flops] == ["depthwise", *["conv"] * 3, "depthwise"]


def test_every_operation_is_named_after_its_layer_in_both_directions() -> None:
    graph = trace(Block(), (3, 12, 12))
    layers = {(op.layer, op.direction) for op in graph.operations if op.flops}
    assert ("second", "forward") in layers and {("second", "data"), ("second", "filter")} <= layers
    assert {("out", "forward"), ("out", "backward")} <= layers
    relu = [op.layer for op in graph.operations if op.name in ("relu", "threshold_backward")]
    assert relu == ["", ""]  # functional work belongs to the parent, not to the layer before or after it


def test_tracing_leaves_the_module_alone() -> None:
    module = Block()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    trace(module, (3, 12, 12))
    run_pass(module, [torch.randn(2, 3, 12, 12)], True)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in module.parameters())
    assert not module.first._forward_hooks


def test_hooks_are_removed_even_after_an_error() -> None:
    def fail() -> None:
        nn.Linear(2, 2)(torch.zeros(1, 3))

    with pytest.raises(RuntimeError):
        count_step(fail)
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_step_with_two_players_and_an_optimiser() -> None:
    players = {"g": nn.Linear(3, 4), "d": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))}
    optim = torch.optim.Adam(players["g"].parameters(), foreach=True)

    def step() -> None:
        optim.zero_grad()
        players["d"](players["g"](torch.ones(6, 3))).sum().backward()
        optim.step()

    graph = count_step(step, players)
    products = [op for op in graph.operations if op.flops and op.layer == "d.0"]
    assert sum(op.flops for op in products) == 3 * 2 * 6 * 4 * 5
    assert graph.params == {"g": 16, "d.0": 25, "d.2": 6}
    update = [op for op in graph.operations if op.direction == "update"]
    assert update and all(op.flops == 0 for op in update) and sum(op.written for op in update) >= 4 * 16 * 3


def test_recurrent_layer_counts_every_time_step() -> None:
    lstm = nn.LSTM(4, 5, batch_first=True)
    products = 2 * 3 * 6 * (4 * 20 + 5 * 20)
    assert trace(lstm, (6, 4), backward=False).at(3).flops() == products
    with torch.no_grad():
        assert count_step(lambda: lstm(torch.randn(3, 6, 4))).flops() == products


def test_composite_operations_are_decomposed_under_inference_mode() -> None:
    layer = nn.Linear(3, 4)
    with torch.inference_mode():
        assert count_step(lambda: layer(torch.ones(2, 3)), {"l": layer}).flops() == 2 * 2 * 3 * 4


def test_bytes_of_views_expansions_and_in_place_work() -> None:
    assert tensor_bytes(torch.zeros(4, 1).expand(4, 100)) == 16
    x = torch.zeros(8)
    with Recorder() as recorder:
        x.view(2, 4).t()
        x.add_(1.0)
        x.fill_(2.0)
        torch.empty(5)
    assert [(op.name, op.read, op.written) for op in recorder.operations] == [("add_", 32, 32), ("fill_", 0, 32)]


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(3, 3, bias=False)
    twin = nn.Linear(3, 3)
    twin.weight = shared.weight
    assert own_parameters(nn.Sequential(shared, twin)) == {"0": 9, "1": 3}


def test_bad_requests_are_typed_errors() -> None:
    class Peek(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum())

    with pytest.raises(CapabilityError, match="count_step"):
        trace(Peek(), (3,))
    with pytest.raises(ShapeError, match="at least 2"):
        trace(nn.Linear(3, 3), (3,), batch=1)
    with pytest.raises(ShapeError, match="shape of one sample"):
        trace(nn.Linear(3, 3), ())
    with pytest.raises(CapabilityError, match="rescaled"):
        Graph(()).at(3)
