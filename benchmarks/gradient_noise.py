"""Gradient noise: one draw for all tensors against one draw per tensor, and its share of a training step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from cambrian.inspect.bench import compare
from cambrian.systems.optim.gradient_noise import DeepMLP, GradientNoise, Scratches, add_gradient_noise_, noise_std


def parameters(tensors: int, size: int) -> list[nn.Parameter]:
    """Weights [size, size] and biases [size] in turn, with zero gradients."""
    params = [nn.Parameter(torch.zeros((size, size) if i % 2 == 0 else (size,))) for i in range(tensors)]
    for p in params:
        p.grad = torch.zeros_like(p)
    return params


def per_tensor(params: list[nn.Parameter], t: int, eta: float) -> None:
    """The plain way."""
    sigma = noise_std(t, eta)
    for p in params:
        assert p.grad is not None
        p.grad += sigma * torch.randn_like(p)


def train_step(optim: torch.optim.Optimizer, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Forward, backward, update."""
    loss = F.cross_entropy(model(x), y)
    optim.zero_grad()
    loss.backward()
    optim.step()


def main() -> None:
    """Assert equal variance, then time."""
    params, generator, scratch = parameters(200, 16), torch.Generator().manual_seed(0), Scratches()
    add_gradient_noise_(params, 3, 0.5, generator=generator)
    ours = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    for p in params:
        p.grad = torch.zeros_like(p)
    per_tensor(params, 3, 0.5)
    plain = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    assert abs(float(ours.std() / plain.std()) - 1) < 0.03
    result = compare(
        {
            "one draw": lambda: [
                add_gradient_noise_(params, 3, 0.5, generator=generator, scratch=scratch) for _ in range(20)
            ],
            "randn_like per tensor": lambda: [per_tensor(params, 3, 0.5) for _ in range(20)],
        },
        threads=1,
    )
    print(f"200 tensors of 16x16 and 16, 20 calls: {result}")

    x, y = torch.rand(50, 64), torch.randint(10, (50,))
    models = [DeepMLP(inputs=64, classes=10, layers=20, width=50, init="he") for _ in range(2)]
    noisy = GradientNoise(torch.optim.SGD(models[0].parameters(), 1e-9), 1e-9)
    plain_sgd = torch.optim.SGD(models[1].parameters(), 1e-9)
    result = compare(
        {
            "SGD": lambda: [train_step(plain_sgd, models[1], x, y) for _ in range(10)],
            "SGD with noise": lambda: [train_step(noisy, models[0], x, y) for _ in range(10)],
        },
        threads=1,
        repeats=25,
    )
    print(f"20 x 50 MLP, 10 training steps: {result}")


if __name__ == "__main__":
    main()
