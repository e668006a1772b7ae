"""Denoising feature matching: gradients of D and r from one pass over real and fake, ours against a pass per use.

The peer computes the features of the real batch for D, those of the fake batch for D, and those of the real batch
once more for the denoiser. Both give the same gradients, for batch norm keeps its statistics per source.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss
from cambrian.systems.gans.dfm import DFM, denoising_loss

BATCH = 64


def main() -> None:
    torch.manual_seed(0)
    model = DFM(shape=(1, 28, 28), base=16, r_depth=2, r_width=256)
    d, r = model.discriminator, model.denoiser
    x, fake = torch.rand(2, BATCH, 1, 28, 28).mul(2).sub(1)
    noise = torch.randn(BATCH, model.width)
    d_parameters, r_parameters = list(d.parameters()), list(r.parameters())

    def ours() -> tuple[Tensor, ...]:
        h = d.features(torch.cat((x, fake)), (REAL, FAKE))
        first = torch.autograd.grad(discriminator_loss(*d.head(h).chunk(2)), d_parameters)
        return first + torch.autograd.grad(denoising_loss(r, h[:BATCH], noise), r_parameters)

    def pass_per_use() -> tuple[Tensor, ...]:
        first = torch.autograd.grad(discriminator_loss(d(x, (REAL,)), d(fake, (FAKE,))), d_parameters)
        with torch.no_grad():
            h = d.features(x, (REAL,))
        return first + torch.autograd.grad(denoising_loss(r, h, noise), r_parameters)

    for a, b in zip(ours(), pass_per_use(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    print(compare({"one pass": ours, "a pass per use": pass_per_use}, repeats=25, threads=1))


if __name__ == "__main__":
    main()
