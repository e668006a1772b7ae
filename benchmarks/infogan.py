"""InfoGAN: one discriminator update with both heads on one trunk pass, against a pass per source and head.

The peer runs the trunk three times, as ports with separate D and Q modules do: D on real images, D on samples, Q on
samples. Both give the same losses and the same gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss
from cambrian.systems.gans.infogan.model import InfoGAN, information_of

BATCH = 128


def main() -> None:
    torch.manual_seed(0)
    model = InfoGAN(shape=(1, 28, 28), arch="infogan", base=16)
    d = model.discriminator
    parameters = list(d.parameters())
    z = model.prior(BATCH, torch.Generator().manual_seed(0))
    x, fake = torch.rand(BATCH, 1, 28, 28) * 2 - 1, model.generate(z).detach()

    def gradient(on_real: Tensor, on_fake: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        loss = discriminator_loss(on_real, on_fake) - information_of(model, z, params)["cat"]
        return torch.autograd.grad(loss, parameters)

    def together() -> tuple[Tensor, ...]:
        logits, params = d(torch.cat((x, fake)), (REAL, FAKE))
        return gradient(*logits.chunk(2), params.chunk(2)[1])

    def apart() -> tuple[Tensor, ...]:
        return gradient(d(x, (REAL,))[0], d(fake, (FAKE,))[0], d(fake, (FAKE,))[1])

    for a, b in zip(together(), apart(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    print(compare({"one pass": together, "three passes": apart}, repeats=25, threads=1))


if __name__ == "__main__":
    main()
