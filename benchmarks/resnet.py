"""One training step of ResNet-20 on 32 x 32 pictures: pixels kept with their channels together, as the recipe does, or apart."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from cambrian.inspect.bench import compare
from cambrian.nn import zoo


def main() -> None:
    """Equal losses and gradients first; then the ratio."""
    torch.manual_seed(0)
    first = zoo.build("resnet-20", classes=10).train()
    last = copy.deepcopy(first).to(memory_format=torch.channels_last)
    x, y = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    together = x.contiguous(memory_format=torch.channels_last)

    def step(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(images), y)
        loss.backward()
        return loss.detach()

    check = [copy.deepcopy(first).double() for _ in range(2)]
    check[1] = check[1].to(memory_format=torch.channels_last)
    torch.testing.assert_close(step(check[1], together.double()), step(check[0], x.double()))
    for a, b in zip(check[0].parameters(), check[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    print("batch of 64, forward and backward, one thread")
    print("  ", compare({"together": lambda: step(last, together), "apart": lambda: step(first, x)}, threads=1))


if __name__ == "__main__":
    main()
