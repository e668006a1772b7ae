"""What attacks on generative models act on: an encoder and a decoder with the space of their inputs.

`GenTarget` is the structural type; `wrap_generative` makes one of two functions. A recipe that trains such a model
offers its own as `gen_target()`. `rec` decodes the mean of q(z|x), so it draws nothing; a bound that needs noise takes the same at every call.

Shapes: B batch, Z latent features, `space.shape` one input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from cambrian.errors import CapabilityError, ShapeError
from cambrian.inspect.hooks import quiet
from cambrian.inspect.target import Space

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@runtime_checkable
class GenTarget(Protocol):
    """A VAE, a VAE-GAN or an autoencoder, as attacks on reconstructions take it."""

    module: nn.Module
    space: Space
    latent_shape: tuple[int, ...]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def rec(self, x: Tensor) -> Tensor: ...
    def neg_elbo(self, x: Tensor) -> Tensor: ...


class ModuleGenTarget:
    """A `GenTarget` around a plain module; see `wrap_generative` for the arguments."""

    def __init__(
        self,
        module: nn.Module,
        *,
        space: Space,
        latent_shape: tuple[int, ...],
        encode: Encode,
        decode: Callable[[Tensor], Tensor],
        neg_elbo: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.module, self.space, self.latent_shape = module, space, latent_shape
        self._encode, self._decode, self._neg_elbo = encode, decode, neg_elbo

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `[B,Z]` of q(z|x), differentiable in `x [B,...]`."""
        self.space.check(x)
        with quiet(self.module):
            mean, logvar = self._encode(x)
        if mean.shape != (len(x), *self.latent_shape) or logvar.shape != mean.shape:
            raise ShapeError(f"the encoder must give [{len(x)}, {self.latent_shape}] twice, got {list(mean.shape)}")
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Inputs `[B,...]` of codes `[B,Z]`, differentiable."""
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"codes must be [B, {self.latent_shape}], got {list(z.shape)}")
        with quiet(self.module):
            return self._decode(z)

    def rec(self, x: Tensor) -> Tensor:
        """The reconstruction `[B,...]`: the decoded mean."""
        return self.decode(self.encode(x)[0])

    def neg_elbo(self, x: Tensor) -> Tensor:
        """Minus the evidence bound `[B]` in nats, with fixed noise. Raises `CapabilityError` where there is no likelihood."""
        if self._neg_elbo is None:
            raise CapabilityError("this model has no likelihood, so no evidence bound")
        self.space.check(x)
        with quiet(self.module):
            return self._neg_elbo(x)


def wrap_generative(
    module: nn.Module,
    *,
    space: Space,
    latent_shape: tuple[int, ...],
    encode: Encode,
    decode: Callable[[Tensor], Tensor],
    neg_elbo: Callable[[Tensor], Tensor] | None = None,
) -> ModuleGenTarget:
    """Make a `GenTarget`: `encode(x) -> (mean, logvar)` and `decode(z) -> x` use `module`, in the units of `space`."""
    return ModuleGenTarget(
        module, space=space, latent_shape=latent_shape, encode=encode, decode=decode, neg_elbo=neg_elbo
    )
