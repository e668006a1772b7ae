"""Principled GAN: gradients of the generator for their mean and variance, one vectorised pass against a loop.

Batches (10 of 64 latents, what a probe of the study takes) and single samples (64 of them): both give the same rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import ConnectedNet, generator_loss
from cambrian.systems.gans.principled_gan import generator_gradients


def main() -> None:
    torch.manual_seed(0)
    generator = ConnectedNet(inputs=(100,), outputs=(1, 8, 8), hidden=(256, 256), out="tanh").eval()
    critic = ConnectedNet(inputs=(1, 8, 8), outputs=(1,), hidden=(256, 256), act="lrelu").eval()
    parameters = list(generator.parameters())

    def loop(z: Tensor) -> Tensor:
        rows = []
        for some in z:
            found = torch.autograd.grad(generator_loss(critic(generator(some)), "ns"), parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    for title, z in (("10 batches of 64", torch.randn(10, 64, 100)), ("64 single samples", torch.randn(64, 1, 100))):
        torch.testing.assert_close(generator_gradients(generator, critic, z, "ns"), loop(z), atol=1e-6, rtol=1e-3)
        contenders = {"vmap": lambda z=z: generator_gradients(generator, critic, z, "ns"), "loop": lambda z=z: loop(z)}
        print(f"{title}: {compare(contenders, repeats=25, threads=1)}")


if __name__ == "__main__":
    main()
