"""The decoder of sketch-rnn over 60 points, forward and backward: the fused scan against a cell called point by point.

Run with `python benchmarks/sketch_rnn.py`. The peer is what one writes first: at every point [S; z] is concatenated
and goes through one linear layer with h. torch's own LSTM, which has no recurrent dropout, is printed as the ceiling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.inspect.bench import compare
from cambrian.nn.convlstm import LSTMCell
from cambrian.nn.scan import scan

STEPS, BATCH, LATENT, HIDDEN = 60, 32, 64, 192


def naive(cell: LSTMCell, x: Tensor, z: Tensor, keep: Tensor) -> Tensor:
    """The same LSTM, one point at a time, from the same weights."""
    weight = torch.cat((cell.input.weight, cell.context.weight, cell.recurrent), 1)
    h, c = cell.initial(BATCH, x)
    outputs = []
    for t in range(STEPS):
        gates = torch.cat((x[t], z, h), 1) @ weight.t() + cell.input.bias
        g, i, f, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) * keep[t]
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def main() -> None:
    """Check equality of outputs and gradients, then time."""
    torch.manual_seed(0)
    cell = LSTMCell(inputs=5, hidden=HIDDEN, context=LATENT).train()
    peer = nn.LSTM(5 + LATENT, HIDDEN)
    x, z = torch.randn(STEPS, BATCH, 5), torch.randn(BATCH, LATENT)
    ones = torch.ones(STEPS, BATCH, HIDDEN)

    def gradient(outputs: Tensor, module: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(outputs.square().mean(), list(module.parameters())))

    fused, plain = scan(cell, x, context=z)[0], naive(cell, x, z, ones)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradient(fused, cell), gradient(plain, cell), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)

    cell.dropout = 0.1  # the timed version drops candidates, each contender with masks of its own
    timed = {
        "fused scan": lambda: gradient(scan(cell, x, context=z)[0], cell),
        "point by point": lambda: gradient(naive(cell, x, z, torch.empty_like(ones).bernoulli_(0.9).div_(0.9)), cell),
        "nn.LSTM, no dropout": lambda: gradient(peer(torch.cat((x, z.expand(STEPS, -1, -1)), 2))[0], peer),
        "same cell, loop of steps": lambda: gradient(scan(cell, x, context=z, fused=False)[0], cell),
    }
    print(compare(timed, threads=1))


if __name__ == "__main__":
    main()
