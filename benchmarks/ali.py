"""ALI: a round's discriminator loss and gradients from one call on all pairs, against one call for each kind of pair.

Both give the same loss and the same gradients (dropout is off, since it would draw other units in each).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import JointPairs, joint_discriminator_loss
from cambrian.systems.gans.ali import ALI


def main() -> None:
    for name, settings in (
        ("8x8, connected 256", {"shape": (1, 8, 8)}),
        ("32x32, the table at base 8", {"shape": (3, 32, 32), "arch": "cifar", "base": 8}),
    ):
        torch.manual_seed(0)
        model = ALI(**settings, dropout_in=0.0, dropout=0.0)
        x, z = torch.rand(64, *settings["shape"]) * 2 - 1, torch.randn(64, 64)
        pairs = JointPairs(x, model.code(x).detach(), model.generate(z).detach(), z)
        parameters = list(model.discriminator.parameters())

        def once(model: ALI = model, pairs: JointPairs = pairs, parameters: list = parameters) -> tuple[Tensor, ...]:
            return torch.autograd.grad(joint_discriminator_loss(*pairs.logits(model.discriminator)), parameters)

        def twice(model: ALI = model, pairs: JointPairs = pairs, parameters: list = parameters) -> tuple[Tensor, ...]:
            on_encoder = model.discriminator(pairs.x, pairs.z_hat)
            on_decoder = model.discriminator(pairs.x_tilde, pairs.z)
            return torch.autograd.grad(joint_discriminator_loss(on_encoder, on_decoder), parameters)

        for a, b in zip(once(), twice(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
        print(name, compare({"one call": once, "two calls": twice}, repeats=25, threads=1))


if __name__ == "__main__":
    main()
