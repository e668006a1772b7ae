"""Generative recurrent adversarial networks (Im et al. 2016, 1602.05110): a canvas drawn in T strokes.

Shapes: B batch, Z latent (and code), C H W an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cambrian.nn.adversarial import REAL, ConnectedNet, DCGANGenerator
from cambrian.systems.gans._nets import discriminator_for


class _Stroke(DCGANGenerator):
    """A DCGAN generator without the final tanh."""

    def resume(self, x: Tensor, block: int, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        for up in list(self.blocks)[block:]:
            x = up(x, sources)
        return x


class GRAN(nn.Module):
    """`[B, Z] -> [B, *shape]`: strokes `dC_t`, each drawn from the latent and from a code of the stroke before.

    Images end in `2 sigmoid(C) - 1 = tanh(C / 2)`, points in the sum itself.
    """

    def __init__(
        self, *, shape: Sequence[int], arch: str, latent: int, hidden: Sequence[int], base: int, strokes: int = 3
    ) -> None:
        super().__init__()
        self.shape, self.strokes = tuple(shape), strokes
        self.enter = nn.Linear(latent, latent)
        if arch == "dcgan" and len(self.shape) == 3:
            self.decoder: nn.Module = _Stroke(
                latent=2 * latent, channels=shape[0], size=shape[1], base=base, norm="none"
            )
        else:
            self.decoder = ConnectedNet(inputs=(2 * latent,), outputs=shape, hidden=hidden)
        self.encoder = None
        if strokes > 1:
            self.encoder = discriminator_for(shape, arch=arch, hidden=hidden, base=base, outputs=latent, norm="none")

    def canvas(self, z: Tensor) -> list[Tensor]:
        """The strokes `dC_1 ... dC_T`, each `[B, *shape]`."""
        entered = torch.tanh(self.enter(z))
        code, strokes = torch.zeros_like(entered), []
        for _ in range(self.strokes):
            if strokes and self.encoder is not None:
                code = self.encoder(strokes[-1])
            strokes.append(self.decoder(torch.cat((entered, code), dim=-1)))
        return strokes

    def forward(self, z: Tensor) -> Tensor:
        total = torch.stack(self.canvas(z)).sum(0)
        return torch.tanh(total / 2) if len(self.shape) == 3 else total
