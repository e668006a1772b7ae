"""Mode-regularised GAN: a generator's step, samples and reconstructions in one pass of G and one of D against two of each.

Batch norm keeps the two kinds of latents and of fakes apart, so both ways give the same loss and the same gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, generator_loss
from cambrian.systems.gans.mode_gan import ModeGAN
from cambrian.systems.gans.mode_gan.model import ENCODED, distance, mode_regulariser

L1, L2, BATCH = 0.2, 0.4, 64


def one_pass(model: ModeGAN, x: Tensor, z: Tensor) -> Tensor:
    """What the recipe does."""
    fake, again = model.generate_both(z, x)
    on_fake, on_again = model.discriminator(torch.cat((fake, again)), (FAKE, FAKE)).chunk(2)
    return generator_loss(on_fake) + mode_regulariser(distance(x, again), on_again, l1=L1, l2=L2)


def two_passes(model: ModeGAN, x: Tensor, z: Tensor) -> Tensor:
    """Samples and reconstructions one after the other."""
    fake, again = model.generator(z), model.generator(model.encoder(x), sources=(ENCODED,))
    on_fake, on_again = model.discriminator(fake, (FAKE,)), model.discriminator(again, (FAKE,))
    return generator_loss(on_fake) + mode_regulariser(distance(x, again), on_again, l1=L1, l2=L2)


def measured(title: str, model: ModeGAN) -> None:
    """Assert that both ways agree, then print their times."""
    x, z = torch.rand(BATCH, *model.shape) * 2 - 1, torch.randn(BATCH, model.latent)
    parameters = [*model.generator.parameters(), *model.encoder.parameters()]

    def fused() -> tuple[Tensor, ...]:
        return torch.autograd.grad(one_pass(model, x, z), parameters)

    def apart() -> tuple[Tensor, ...]:
        return torch.autograd.grad(two_passes(model, x, z), parameters)

    for a, b in zip(fused(), apart(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    print(title)
    print(compare({"one pass": fused, "two passes": apart}, repeats=25, threads=1))


def main() -> None:
    torch.manual_seed(0)
    measured("DCGAN 28x28x3, base 16", ModeGAN(shape=(3, 28, 28)))
    measured("connected 128x3, points", ModeGAN(shape=(2,)))


if __name__ == "__main__":
    main()
