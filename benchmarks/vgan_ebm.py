"""VGAN: the energy of 100 experts and its gradient, from logits against through sigmoids and logarithms.

The peer is the formula as printed, `-p log p - (1 - p) log(1 - p)` of `p = sigmoid(a)`, with `p` kept off 0 and 1 as ports
do. Both agree where the peer is exact; ours also gives the right, tiny energies where every expert is sure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.systems.gans.vgan_ebm import product_energy

EPS = 1e-7


def by_sigmoid(logits: Tensor) -> Tensor:
    """The energy as printed."""
    p = torch.sigmoid(logits).clamp(EPS, 1.0 - EPS)
    return -(p * p.log() + (1.0 - p) * (1.0 - p).log()).sum(1)


def main() -> None:
    torch.manual_seed(0)
    logits = (3.0 * torch.randn(4096, 100)).requires_grad_()

    def ours() -> Tensor:
        return torch.autograd.grad(product_energy(logits).sum(), logits)[0]

    def printed() -> Tensor:
        return torch.autograd.grad(by_sigmoid(logits).sum(), logits)[0]

    torch.testing.assert_close(product_energy(logits), by_sigmoid(logits), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(ours(), printed(), atol=1e-5, rtol=1e-3)
    print(compare({"from logits": ours, "through sigmoid and log": printed}, repeats=40, threads=1))


if __name__ == "__main__":
    main()
