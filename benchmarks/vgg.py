"""VGG's two hot paths against plain eager NCHW: the training step (channels last) and evaluation (batch norm folded).

Run: python benchmarks/vgg.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.inspect.bench import Comparison, compare
from cambrian.nn.fold import fold_batchnorm
from cambrian.nn.zoo import VGG

BATCH = 64


def trainer(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """A training step on a fixed batch; gives the loss before the update."""
    optim = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()
        return loss.detach()

    return step


def assert_same_step(ours: nn.Module, plain: nn.Module, x: Tensor, y: Tensor) -> None:
    """The same loss and gradients, in double precision: in single, rounding flips ReLUs and gradients drift apart."""
    first = trainer(ours, x.contiguous(memory_format=torch.channels_last), y)()
    torch.testing.assert_close(first, trainer(plain, x, y)(), rtol=1e-10, atol=1e-10)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)


def training(x: Tensor, y: Tensor) -> Comparison:
    """Channels last against NCHW."""
    plain = VGG(plan="B", classes=17, channels=1, size=32, bn=True, width=0.125, head="gap")
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert_same_step(copy.deepcopy(ours).double(), copy.deepcopy(plain).double(), x.double(), y)
    first = trainer(ours, x.contiguous(memory_format=torch.channels_last), y)
    second = trainer(plain, x, y)
    return compare({"channels last": first, "NCHW": second}, repeats=15, threads=1)


@torch.no_grad()
def evaluation(x: Tensor) -> Comparison:
    """Batch norm folded and channels last against the trained network as it is."""
    plain = VGG(plan="B", classes=17, channels=1, size=32, bn=True, width=0.125, head="gap").train()
    for _ in range(5):
        plain(x)  # running statistics of these inputs
    plain.eval()
    ours = fold_batchnorm(plain).to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(last), plain(x), rtol=1e-4, atol=1e-4)
    return compare({"folded": lambda: ours(last), "plain": lambda: plain(x)}, repeats=15, threads=1)


def main() -> None:
    """Check equality, then print both ratios."""
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 32, 32), torch.randint(0, 17, (BATCH,))
    print("training step:", training(x, y))
    print("evaluation:   ", evaluation(x))


if __name__ == "__main__":
    main()
