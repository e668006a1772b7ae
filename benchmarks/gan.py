"""GAN: one DCGAN iteration, ours against the usual loop; and minibatch discrimination, ours against the pairwise
tensor.

The usual loop runs the discriminator three times forward (real, fake, fake again) with two backward passes for its
own update. Ours normalises real and fake separately inside one pass over both. Both make the same update from the
same batch.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, REAL, MinibatchDiscrimination, discriminator_loss, generator_loss
from cambrian.systems.gans.gan.model import GAN

BATCH = 64


class Iteration:
    """A model with its two optimisers, and one D and one G update in either style."""

    def __init__(self, gan: GAN) -> None:
        self.gan = gan
        settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
        self.g = torch.optim.Adam(gan.generator.parameters(), **settings)
        self.d = torch.optim.Adam(gan.discriminator.parameters(), **settings)

    def fused(self, x: Tensor, z: Tensor) -> None:
        fake = self.gan.generate(z)
        logits = self.gan.discriminate(torch.cat((x, fake.detach())), (REAL, FAKE))
        self._step(self.d, discriminator_loss(*logits.chunk(2)))
        self._step(self.g, generator_loss(self.gan.discriminate(fake, (FAKE,))))

    def usual(self, x: Tensor, z: Tensor) -> None:
        fake = self.gan.generate(z)
        self.d.zero_grad(set_to_none=True)
        F.softplus(-self.gan.discriminate(x, (REAL,))).mean().backward()
        F.softplus(self.gan.discriminate(fake.detach(), (FAKE,))).mean().backward()
        self.d.step()
        self.g.zero_grad(set_to_none=True)
        generator_loss(self.gan.discriminate(fake, (FAKE,))).backward()
        self.g.step()

    @staticmethod
    def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
        optimiser.step()


def iterations() -> None:
    torch.manual_seed(0)
    gan = GAN(shape=(1, 28, 28), arch="dcgan", base=16)
    ours, usual = Iteration(gan), Iteration(copy.deepcopy(gan))
    x, z = 2 * torch.rand(BATCH, 1, 28, 28) - 1, 2 * torch.rand(BATCH, 100) - 1
    ours.fused(x, z)
    usual.usual(x, z)
    for a, b in zip(ours.gan.parameters(), usual.gan.parameters(), strict=True):
        # Adam's first step is lr * sign(gradient): where the gradient is rounding noise the sign may differ
        assert float((a - b).abs().gt(1e-5).float().mean()) < 0.01
    contenders = {"fused": lambda: ours.fused(x, z), "usual": lambda: usual.usual(x, z)}
    print("DCGAN 28x28 iteration:", compare(contenders, threads=1))


def pairwise(layer: MinibatchDiscrimination, x: Tensor) -> Tensor:
    """The layer by the `[N, N, B, C]` tensor of all differences."""
    norm = torch.linalg.vector_norm(layer.direction, dim=0)
    rows = (x @ (layer.direction * (layer.log_scale.exp() / norm)).flatten(1)).unflatten(1, (layer.kernels, layer.dims))
    distance = (rows[:, None] - rows[None]).abs().sum(3)
    return torch.cat((x, torch.exp(-distance).sum(1) - 1.0 + layer.bias), dim=1)


def minibatch() -> None:
    torch.manual_seed(0)
    layer, x = MinibatchDiscrimination(features=250, kernels=100), torch.randn(100, 250)
    torch.testing.assert_close(layer(x), pairwise(layer, x), atol=1e-4, rtol=1e-4)
    parameters = list(layer.parameters())

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x).square().sum(), parameters)

    def peer() -> tuple[Tensor, ...]:
        return torch.autograd.grad(pairwise(layer, x).square().sum(), parameters)

    print("minibatch discrimination N=100 B=100:", compare({"cdist": ours, "pairwise tensor": peer}, threads=1))


def main() -> None:
    iterations()
    minibatch()


if __name__ == "__main__":
    main()
