"""Eve against torch.optim.Adam(foreach=True): the feedback's share of a step."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Adam

from cambrian.inspect.bench import compare
from cambrian.systems.optim.eve import Eve


def network() -> nn.Sequential:
    """64 layers: 128 parameter tensors with gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(64)])
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def main() -> None:
    """Assert that without feedback both take the same steps, then time."""
    models = [network(), network()]
    eve = Eve(models[0].parameters(), 1e-4, c=1.0, foreach=True)
    adam = Adam(models[1].parameters(), 1e-4, foreach=True)
    for loss in (3.0, 2.0, 2.5):
        eve.step(loss=loss)
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    losses = torch.rand(10).add(1).tolist()
    result = compare(
        {"Eve": lambda: [eve.step(loss=f) for f in losses], "Adam": lambda: [adam.step() for _ in losses]},
        threads=1,
        repeats=25,
    )
    print(f"128 tensors, 10 steps: {result}")


if __name__ == "__main__":
    main()
