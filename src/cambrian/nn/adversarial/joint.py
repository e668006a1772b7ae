"""The joint-pair game: a discriminator of pairs (x, z), and what it, the encoder and the generator minimise.

    encoder pairs   (x, z_hat)     x from the data, z_hat = E(x) or a draw from q(z|x)      logit rho_q
    decoder pairs   (x_tilde, z)   z from the prior, x_tilde = G(z)                         logit rho_p
    D               E sp(-rho_q) + E sp(rho_p)           Dumoulin et al. 2016 (1606.00704), eq. 3
    E and G         E sp(rho_q) + E sp(-rho_p)           labels swapped, so that a sure D still gives a gradient

The best D has the logit log q(x, z) - log p(x, z); against it E and G can do no better than make both joint laws one
(Donahue et al. 2016, 1605.09782, theorem 1), and deterministic E and G are then each other's inverse (theorem 2).

Shapes: B pairs, Z latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.adversarial.layers import FAKE, REAL
from cambrian.nn.adversarial.losses import discriminator_loss, generator_loss


class Tower(nn.Sequential):
    """A sequence that is called with the sources of its batch as other players are, and does not need them."""

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        return super().forward(x)


class Flat(nn.Module):
    """The tower that only flattens, `[B, ...] -> [B, N]`, and multiplies by `scale`."""

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        return x.flatten(1) * self.scale


class JointDiscriminator(nn.Module):
    """`(x [B, ...], z [B, Z]) -> [B, outputs]`: a tower over x, a tower over z, and `joint` over both side by side.

    All three are called as `net(input, sources)`. On a GPU the towers run in streams of their own.
    """

    def __init__(self, *, x_tower: nn.Module, z_tower: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.x_tower, self.z_tower, self.joint = x_tower, z_tower, joint

    def towers(self, x: Tensor, z: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """What `joint` reads: both towers' outputs `[B, F + G]`."""
        if len(x) != len(z):
            raise ShapeError(f"a pair is one x and one z, got {len(x)} and {len(z)} of them")
        if not x.is_cuda:
            return torch.cat((self.x_tower(x, sources).flatten(1), self.z_tower(z, sources).flatten(1)), dim=1)
        here, aside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            of_z = self.z_tower(z, sources).flatten(1)
        of_x = self.x_tower(x, sources).flatten(1)
        here.wait_stream(aside)
        of_z.record_stream(here)  # or the allocator could hand its memory to the side stream while it is read here
        return torch.cat((of_x, of_z), dim=1)

    def forward(self, x: Tensor, z: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        return self.joint(self.towers(x, z, sources), sources)


@dataclass(frozen=True)
class JointPairs:
    """The pairs of one round: `(x, z_hat)` of the encoder and `(x_tilde, z)` of the decoder, B of each."""

    x: Tensor
    z_hat: Tensor
    x_tilde: Tensor
    z: Tensor

    def detached(self) -> JointPairs:
        """The same pairs for the discriminator's own step, without the graph to E and G."""
        return JointPairs(self.x, self.z_hat.detach(), self.x_tilde.detach(), self.z)

    def blind(self) -> JointPairs:
        """Pairs with z all zero: a discriminator of them is an ordinary one, of x alone."""
        return JointPairs(self.x, torch.zeros_like(self.z_hat), self.x_tilde, torch.zeros_like(self.z))

    def permuted(self, generator: torch.Generator) -> JointPairs:
        """Each x with the code of another row: both marginals as they were, the pairing lost."""
        order = torch.randperm(len(self.z_hat), generator=generator).to(self.z_hat.device)
        return JointPairs(self.x, self.z_hat[order], self.x_tilde, self.z)

    def logits(self, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
        """`(rho_q, rho_p)`, `[B, outputs]` each, from one call on all 2B pairs."""
        x, z = torch.cat((self.x, self.x_tilde)), torch.cat((self.z_hat, self.z))
        on_encoder, on_decoder = discriminator(x, z, (REAL, FAKE)).chunk(2)
        return on_encoder, on_decoder


def joint_discriminator_loss(on_encoder: Tensor, on_decoder: Tensor) -> Tensor:
    """`E sp(-rho_q) + E sp(rho_p)`: encoder pairs are the real ones."""
    return discriminator_loss(on_encoder, on_decoder)


def joint_opponents_loss(on_encoder: Tensor, on_decoder: Tensor) -> Tensor:
    """`E sp(rho_q) + E sp(-rho_p)`, minimised by encoder and generator together."""
    return generator_loss(-on_encoder) + generator_loss(on_decoder)
