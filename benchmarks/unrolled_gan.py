"""Unrolled GAN: one generator gradient through K = 5 discriminator steps, ours against a deep copy per step.

The peer is the way most ports do it: copy the module, write each inner Adam step into the copy's parameter
dictionaries so that the graph survives, parameter by parameter. Both give the same gradient; ours keeps the
discriminator's parameters in one vector and never touches the module.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import InnerAdam, discriminator_loss
from cambrian.systems.gans.unrolled_gan import PointNet, look_ahead

STEPS, LR, BETAS, EPS = 5, 1e-3, (0.5, 0.999), 1e-8


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter of a copied module by a tensor with a graph."""
    *path, leaf = name.split(".")
    for part in path:
        module = getattr(module, part)
    module._parameters.pop(leaf, None)
    setattr(module, leaf, value)


def by_deep_copy(discriminator: nn.Module, x: Tensor, fake: Tensor) -> Tensor:
    """`f_K` by a copied module whose parameters are overwritten after every inner step."""
    ahead = copy.deepcopy(discriminator)
    values = dict(ahead.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in values.items()}
    second = {name: torch.zeros_like(p) for name, p in values.items()}
    for step in range(1, STEPS + 1):
        loss = discriminator_loss(ahead(x), ahead(fake))
        gradients = torch.autograd.grad(loss, list(values.values()), create_graph=True)
        for (name, value), gradient in zip(list(values.items()), gradients, strict=True):
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
            scaled = second[name] / (1 - BETAS[1] ** step)
            values[name] = value - LR / (1 - BETAS[0] ** step) * first[name] / (scaled + EPS**2).sqrt()
            _set(ahead, name, values[name])
    return -discriminator_loss(ahead(x), ahead(fake))


def main() -> None:
    torch.manual_seed(0)
    d = PointNet(inputs=2, outputs=1, hidden=128, depth=2, gain=0.8, scale=0.25)
    g = PointNet(inputs=256, outputs=2, hidden=128, depth=2, gain=0.8)
    x, z = torch.randn(256, 2), torch.randn(256, 256)
    parameters = list(g.parameters())

    def ours() -> tuple[Tensor, ...]:
        value, _ = look_ahead(d, x, g(z), steps=STEPS, inner=InnerAdam(LR, BETAS, EPS))
        return torch.autograd.grad(value, parameters)

    def deep_copy() -> tuple[Tensor, ...]:
        return torch.autograd.grad(by_deep_copy(d, x, g(z)), parameters)

    for a, b in zip(ours(), deep_copy(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    print(compare({"one functional vector": ours, "deep copy": deep_copy}, repeats=25, threads=1))


if __name__ == "__main__":
    main()
