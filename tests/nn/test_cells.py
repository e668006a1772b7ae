from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.cells import CELLS, GRUCell, LSTMCell, TanhCell, build
from cambrian.nn.scan import scan

T, B, I, H = 7, 4, 3, 5
LENGTHS = torch.tensor([7, 3, 0, 5])
SWEPT = ["tanh", "lstm", "gru", "gru-after"]


def make(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    cell = build(name, inputs=I, hidden=H, **options).double()
    for parameter in cell.parameters():  # away from the special starting values
        parameter.data += 0.2 * torch.randn_like(parameter)
    return cell


def inputs() -> Tensor:
    return torch.randn(T, B, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def with_gradients(outputs: Tensor, state: tuple[Tensor, ...], wrt: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    loss = (outputs * weights).sum() + sum((i + 1) * s.square().sum() for i, s in enumerate(state))
    return [outputs, *state, *torch.autograd.grad(loss, wrt)]


def peer_of(cell: nn.Module) -> nn.Module:
    """torch's layer with the same weights."""
    order, kind = {
        LSTMCell: ((1, 2, 0, 3), nn.LSTM),
        GRUCell: ((0, 1, 2), nn.GRU),
        TanhCell: ((0,), nn.RNN),
    }[type(cell)]
    sign = torch.tensor([1.0, -1.0, 1.0] if kind is nn.GRU else [1.0] * len(order)).double()  # torch's z is 1 - z
    peer = kind(I, H).double()

    def copy(w: Tensor) -> Tensor:
        gates = [w.detach().chunk(len(order))[i] * s for i, s in zip(order, sign, strict=True)]
        return torch.cat(gates)

    peer.weight_ih_l0.data = copy(cell.input.weight)
    peer.weight_hh_l0.data = copy(cell.recurrent)
    peer.bias_ih_l0.data = copy(cell.input.bias)
    peer.bias_hh_l0.data.zero_()
    if kind is nn.GRU:
        peer.bias_hh_l0.data[2 * H :] = cell.inner_bias.detach()
    return peer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["tanh", "lstm", "gru-after"])
def test_cells_equal_torch(name: str, fused: bool) -> None:
    cell, x = make(name), inputs()
    peer = peer_of(cell)
    ours, state = scan(cell, x, fused=fused)
    theirs, last = peer(x)
    last = [s[0] for s in (last if isinstance(last, tuple) else (last,))]
    mine = with_gradients(ours, state, [x, cell.recurrent, cell.input.bias])
    others = with_gradients(theirs, last, [x, peer.weight_hh_l0, peer.bias_ih_l0])
    for a, b in zip(mine[:-2], others[:-2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(mine[-2:], others[-2:], strict=True):  # gates stand in another order, z with the other sign
        torch.testing.assert_close(a.abs().sum(), b.abs().sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("name", SWEPT)
def test_sweeps_equal_the_loop_of_steps(name: str, reverse: bool, lengths: Tensor | None) -> None:
    cell, x = make(name), inputs()
    start = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in cell.initial(B, x))
    results = []
    for fused in (True, False):
        outputs, state = scan(cell, x, start, lengths=lengths, reverse=reverse, fused=fused)
        results.append(with_gradients(outputs, state, [x, *start, *cell.parameters()]))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_match_differences(name: str, fused: bool) -> None:
    cell = make(name)
    x = inputs()[:3, :2].detach().requires_grad_()
    names = [n for n, _ in cell.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(_Scanned(cell, fused), {f"cell.{n}": w for n, w in zip(names, weights)}, x)

    weights = [p.detach().requires_grad_() for p in cell.parameters()]
    assert torch.autograd.gradcheck(run, (x, *weights))


class _Scanned(nn.Module):
    def __init__(self, cell: nn.Module, fused: bool) -> None:
        super().__init__()
        self.cell, self.fused = cell, fused

    def forward(self, x: Tensor) -> Tensor:
        return scan(self.cell, x, lengths=torch.tensor([3, 2]), fused=self.fused)[0]


def test_orders_of_the_reset_differ_and_agree_without_reset() -> None:
    before, after = make("gru"), make("gru-after")
    after.load_state_dict({**before.state_dict(), "inner_bias": torch.zeros(H)})
    x = inputs()
    assert not torch.allclose(scan(before, x)[0], scan(after, x)[0])
    for cell in (before, after):
        cell.input.bias.data[:H] = 50.0  # r = 1
    torch.testing.assert_close(scan(before, x)[0], scan(after, x)[0], rtol=1e-9, atol=1e-9)


def test_biases_start_where_they_are_set() -> None:
    cell = build("lstm", inputs=I, hidden=H, forget_bias=3.0)
    assert cell.input.bias.tolist() == [0.0] * (2 * H) + [3.0] * H + [0.0] * H
    assert build("gru", inputs=I, hidden=H, update_bias=-2.0).input.bias[H : 2 * H].tolist() == [-2.0] * H


def test_uniform_start_is_torchs_range() -> None:
    cell = build("lstm", inputs=40, hidden=100, init="uniform")
    for weight in (cell.input.weight, cell.recurrent):
        assert 0.095 < float(weight.detach().abs().max()) <= 0.1


def test_bad_requests_are_refused() -> None:
    for name, options in (
        ("lsmt", {}),
        ("lstm", {"reset": "after"}),
        ("gru", {"reset": "never"}),
        ("tanh", {"init": "?"}),
    ):
        with pytest.raises(ConfigError):
            build(name, inputs=I, hidden=H, **options)
    with pytest.raises(ConfigError, match="at least 1"):
        build("gru", inputs=I, hidden=0)
