"""A population of GANs: one update of all pairs as a stack under vmap against a Python loop over the pairs.

Both start from the same values and see the same data and latents; after one update of each the nets are equal.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss, generator_loss
from cambrian.systems.gans.gap import GAP
from cambrian.systems.gans.gap.model import ClippedAdam

BATCH, LR, BETAS = 64, 1e-3, (0.5, 0.999)


class Stack:
    """What the recipe does."""

    def __init__(self, model: GAP) -> None:
        self.model = model
        settings = {"lr": LR, "betas": BETAS}
        self.g = ClippedAdam([p for stack in model.generators.values() for p in stack.parameters()], **settings)
        self.d = ClippedAdam(model.discriminators.parameters(), **settings)

    def update(self, x: Tensor, z: Tensor) -> None:
        model, members = self.model, len(x)
        fake = model.generate_all(z)
        logits = model.judge_all(torch.cat((x, fake.detach()), dim=1), (REAL, FAKE))
        _step(discriminator_loss(*logits.chunk(2, dim=1)) * members, self.d)
        _step(generator_loss(model.judge_all(fake, (FAKE,))) * members, self.g)


class Loop:
    """The usual way: a list of models, one after the other."""

    def __init__(self, model: GAP) -> None:
        self.pairs = [model.member(i) for i in range(model.members)]
        self.optimisers = [[torch.optim.Adam(n.parameters(), lr=LR, betas=BETAS) for n in pair] for pair in self.pairs]

    def update(self, x: Tensor, z: Tensor) -> None:
        for (g, d), (g_optim, d_optim), xs, zs in zip(self.pairs, self.optimisers, x, z, strict=True):
            fake = g(zs)
            _step(discriminator_loss(*d(torch.cat((xs, fake.detach())), (REAL, FAKE)).chunk(2)), d_optim)
            _step(generator_loss(d(fake, (FAKE,))), g_optim)


def _step(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()


def same(stack: Stack, loop: Loop) -> None:
    """Raise unless all nets are equal."""
    for i, pair in enumerate(loop.pairs):
        for ours, theirs in zip(stack.model.member(i), pair, strict=True):
            assert isinstance(ours, nn.Module)
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def measured(title: str, shape: tuple[int, ...], members: int, **settings: object) -> None:
    """Assert that an update of both ends in the same nets, then print their times."""
    torch.manual_seed(0)
    model = GAP(shape=shape, members=("gan",) * members, norm="none", **settings)
    x, z = torch.rand(members, BATCH, *shape) * 2 - 1, torch.randn(members, BATCH, model.latent)
    stack, loop = Stack(copy.deepcopy(model)), Loop(model)
    for way in (stack, loop):
        way.update(x, z)
    same(stack, loop)
    print(title)
    print(compare({"stack": lambda: stack.update(x, z), "loop": lambda: loop.update(x, z)}, repeats=15, threads=1))


def main() -> None:
    measured("4 pairs, connected 128x2, 8x8", (1, 8, 8), 4)
    measured("16 pairs, connected 128x2, 8x8", (1, 8, 8), 16)
    measured("16 pairs, connected 32x2, 8x8", (1, 8, 8), 16, hidden=(32, 32))
    measured("4 pairs, DCGAN base 8, 28x28", (1, 28, 28), 4, arch="dcgan", base=8)


if __name__ == "__main__":
    main()
