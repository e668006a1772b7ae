"""Recurrent cells over 100 steps, forward and backward: the scan against torch's fused layers and against Python loops.

Run with `python benchmarks/recurrent.py`. Goals: the scan's own LSTM within 1.5 times nn.LSTM's time, a cell that a
user wrote in ten lines (below) within 2.5 times. `loop of nn.LSTMCell` is what one writes without an engine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cambrian.inspect.bench import compare
from cambrian.nn.cells import GRUCell, LSTMCell, TanhCell, compiled, make_cell
from cambrian.nn.scan import scan

STEPS, BATCH = 100, 32


class MyCell(nn.Module):
    """An LSTM as a user would write it: ten lines."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.x, self.h = hidden, nn.Linear(inputs, 4 * hidden), nn.Linear(hidden, 4 * hidden, bias=False)

    def initial(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        return like.new_zeros(batch, self.hidden), like.new_zeros(batch, self.hidden)

    def project(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.x(x)

    def step(self, projected: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        i, f, g, o = (projected + self.h(state[0])).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


def cell_loop(cell: nn.LSTMCell, x: Tensor) -> Tensor:
    """torch's own cell, a step at a time."""
    state, outputs = None, []
    for x_t in x:
        state = cell(x_t, state)
        outputs.append(state[0])
    return torch.stack(outputs)


def models(hidden: int) -> dict[str, nn.Module]:
    """Every contender of one width, the LSTMs with the same weights."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "nn.LSTM": nn.LSTM(hidden, hidden),
        "LSTM": LSTMCell(inputs=hidden, hidden=hidden),
        "ten lines": MyCell(hidden, hidden),
        "nn.LSTMCell": nn.LSTMCell(hidden, hidden),
        "nn.GRU": nn.GRU(hidden, hidden),
        "GRU": GRUCell(inputs=hidden, hidden=hidden, reset="after"),
        "GRU, reset first": GRUCell(inputs=hidden, hidden=hidden),
        "nn.RNN": nn.RNN(hidden, hidden),
        "tanh": TanhCell(inputs=hidden, hidden=hidden),
        "equations": make_cell(
            "z = sigmoid(Wz @ x + Uz @ h + bz); r = sigmoid(Wr @ x + Ur @ h + br); "
            "h' = (1 - z) * h + z * tanh(W @ x + U @ (r * h) + b)",
            inputs=hidden,
            hidden=hidden,
        ),
    }
    peer = made["nn.LSTM"]
    ours, mine, single = made["LSTM"], made["ten lines"], made["nn.LSTMCell"]
    with torch.no_grad():
        peer.bias_hh_l0.zero_()
        single.bias_hh.zero_()
        for target, value in (
            (ours.input.weight, peer.weight_ih_l0),
            (ours.recurrent, peer.weight_hh_l0),
            (ours.input.bias, peer.bias_ih_l0),
        ):
            i, f, g, o = value.chunk(4)
            target.copy_(torch.cat((g, i, f, o)))
        for target, value in (
            (mine.x.weight, peer.weight_ih_l0),
            (mine.h.weight, peer.weight_hh_l0),
            (mine.x.bias, peer.bias_ih_l0),
        ):
            target.copy_(value)
        for target, value in (
            (single.weight_ih, peer.weight_ih_l0),
            (single.weight_hh, peer.weight_hh_l0),
            (single.bias_ih, peer.bias_ih_l0),
        ):
            target.copy_(value)
    return made


def main() -> None:
    """Check that all LSTMs compute the same, then time each kind at two widths."""
    for hidden in (128, 32):
        made, x = models(hidden), torch.randn(STEPS, BATCH, hidden)

        def outputs(name: str, made: dict[str, nn.Module] = made, x: Tensor = x) -> Tensor:
            if name == "nn.LSTMCell":
                return cell_loop(made[name], x)
            return made[name](x)[0] if name.startswith("nn.") else scan(made[name], x)[0]

        def both(name: str, run: Callable[[str], Tensor] = outputs, made: dict[str, nn.Module] = made) -> list[Tensor]:
            return list(torch.autograd.grad(run(name).square().mean(), list(made[name].parameters())))

        expected = outputs("nn.LSTM")
        for name in ("LSTM", "ten lines", "nn.LSTMCell"):
            torch.testing.assert_close(outputs(name), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both("ten lines")[0], both("nn.LSTM")[0], rtol=1e-3, atol=1e-6)
        print(f"{hidden} cells, forward and backward, {STEPS} steps, batch {BATCH}")
        for group in (
            ("LSTM", "nn.LSTM"),
            ("LSTM", "nn.LSTMCell"),
            ("ten lines", "nn.LSTM"),
            ("GRU", "nn.GRU", "GRU, reset first", "equations"),
            ("tanh", "nn.RNN"),
        ):
            print("  ", compare({name: lambda name=name: both(name) for name in group}, threads=1, repeats=9))
    fast = compiled(made["ten lines"], 20)
    made["compiled"] = fast
    torch.testing.assert_close(outputs("compiled"), expected, rtol=1e-4, atol=1e-5)
    print(
        "  ", compare({name: lambda name=name: both(name) for name in ("compiled", "ten lines")}, threads=1, repeats=9)
    )


if __name__ == "__main__":
    main()
