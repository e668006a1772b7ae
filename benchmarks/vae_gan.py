"""VAE/GAN: the three gradients of a round from one shared pass, against a forward pass for each of the three losses.

The peer recomputes encoder, decoder and discriminator for every loss, as ports with three optimisers do, and lets the
backward pass fill the gradients of the net whose turn it is. Both give the same three gradients.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.systems.gans.vae_gan import VAEGAN, Terms

GAMMA = 1e-2
NETS = ("encoder", "generator", "discriminator")


def _loss(terms: Terms, net: str) -> Tensor:
    if net == "encoder":
        return terms.encoder()
    return terms.discriminator(0.5) if net == "discriminator" else terms.decoder(GAMMA, 1.0)


def main() -> None:
    torch.manual_seed(0)
    model = VAEGAN(shape=(3, 32, 32), latent=128, base=16)
    twin = copy.deepcopy(model)
    x, z_p = torch.rand(32, 3, 32, 32) * 2 - 1, torch.randn(32, 128)

    def terms(of: VAEGAN) -> Terms:
        return of.terms(x, z_p, torch.Generator().manual_seed(1))

    def shared() -> dict[str, tuple[Tensor, ...]]:
        found = terms(model)
        return {
            net: torch.autograd.grad(_loss(found, net), list(getattr(model, net).parameters()), retain_graph=True)
            for net in NETS
        }

    def three_passes() -> dict[str, list[Tensor | None]]:
        for net in NETS:
            parameters = list(getattr(twin, net).parameters())
            for parameter in parameters:
                parameter.grad = None
            _loss(terms(twin), net).backward(inputs=parameters)
        return {net: [p.grad for p in getattr(twin, net).parameters()] for net in NETS}

    ours, theirs = shared(), three_passes()
    for net in NETS:
        for a, b in zip(ours[net], theirs[net], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    print(compare({"one shared pass": shared, "three passes": three_passes}, repeats=20, threads=1))


if __name__ == "__main__":
    main()
