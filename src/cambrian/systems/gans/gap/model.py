"""`GAP`: a population of GANs as stacks of tensors, and the exchange of discriminators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import REAL
from cambrian.studies.many import Stacked, StackedAdam
from cambrian.systems.gans._nets import PRIORS, GenerativeModel, discriminator_for, generator_for
from cambrian.systems.gans.gap._gran import GRAN

KINDS = ("gan", "gran")


def read_member(text: str) -> tuple[str, str]:
    """A member's kind and prior: `"gran:uniform"` -> `("gran", "uniform")`; the prior may be left out (normal)."""
    kind, _, prior = text.partition(":")
    if kind not in KINDS or (prior or "normal") not in PRIORS:
        raise ConfigError(f"member {text!r} must be one of {', '.join(KINDS)}, maybe with :normal or :uniform")
    return kind, prior or "normal"


def draw_exchange(count: int, generator: torch.Generator) -> Tensor:
    """An order int64 `[count]` in which disjoint random pairs have changed places; with an odd count one stays."""
    shuffled = torch.randperm(count, generator=generator)
    first, second = shuffled[: count // 2], shuffled[count // 2 : count // 2 * 2]
    order = torch.arange(count)
    order[first], order[second] = second, first
    return order


@torch.no_grad()
def permute(stack: Stacked, optimiser: torch.optim.Optimizer, order: Tensor) -> None:
    """Put member `order[i]` at place i, with everything that is its own: parameters, statistics, moments."""
    for tensor in (*stack.parameters(), *stack.buffers()):
        tensor.copy_(tensor[order])
    for parameter, state in optimiser.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.copy_(value[order])


class ClippedAdam(StackedAdam):
    """Adam on stacks, each member's gradient first cut to Euclidean length `limit` (0: not at all).

    A parameter group is one stack: all its tensors have the same members.
    """

    def __init__(self, params: Any, limit: float = 0.0, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.limit = limit

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Clip, then update every member."""
        for _, _, gradients in self._active() if self.limit else ():
            squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
            scale = (self.limit / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        super().step(closure)


class GAP(GenerativeModel):
    """N GANs and a pool of further ones; `members` names each one's kind and prior (`gan`, `gran:uniform` ...).

    All discriminators have one architecture, or they could not be exchanged. `best` is the member that samples are
    taken from unless another is named.
    """

    best: Tensor
    uniform: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        members: Sequence[str] = ("gan",) * 4,
        pool: int = 0,
        arch: str = "connected",
        latent: int = 32,
        hidden: Sequence[int] = (128, 128),
        base: int = 16,
        norm: str = "split",
        norm_d: str = "none",
        strokes: int = 3,
    ) -> None:
        super().__init__(shape=shape, latent=latent)
        if not members:
            raise ConfigError("a population needs at least one member")
        self.count, self.pool = len(members), pool
        chosen = [read_member(members[i % len(members)]) for i in range(len(members) + pool)]
        down = {"arch": arch, "hidden": hidden, "base": base}
        places: dict[str, list[int]] = {}
        for i, (kind, _) in enumerate(chosen):
            places.setdefault(kind, []).append(i)
        stacks = {}
        for kind, at in places.items():
            if kind == "gran":
                stacks[kind] = Stacked([GRAN(shape=shape, **down, latent=latent, strokes=strokes) for _ in at])
            else:
                stacks[kind] = Stacked([generator_for(shape, **down, latent=latent, norm=norm) for _ in at])
        self.generators = nn.ModuleDict(stacks)
        self.discriminators = Stacked([discriminator_for(shape, **down, norm=norm_d) for _ in chosen])
        self.places = places
        self.register_buffer("uniform", torch.tensor([prior == "uniform" for _, prior in chosen]), persistent=False)
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))

    @property
    def members(self) -> int:
        """M: those that exchange, and the pool behind them."""
        return self.count + self.pool

    def generate_all(self, z: Tensor) -> Tensor:
        """Every member's samples `[M, B, *shape]` of its own latents `[M, B, Z]`, which are standard normal."""
        if z.ndim != 3 or z.shape[0] != self.members or z.shape[2] != self.latent:
            raise ShapeError(f"latents must be [{self.members}, batch, {self.latent}], got {tuple(z.shape)}")
        z = torch.where(self.uniform[:, None, None], to_uniform(z), z)
        if len(self.places) == 1:
            (stack,) = self.generators.values()
            return stack(z)
        made = torch.cat([self.generators[kind](z[at]) for kind, at in self.places.items()])
        order = torch.tensor([i for at in self.places.values() for i in at])
        return made[order.argsort()]

    def judge_all(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """Logits `[M, B]`: every member's discriminator on samples of its own `[M, B, *shape]`."""
        return self.discriminators(x, sources=sources)[..., 0]

    def judge_same(self, x: Tensor) -> Tensor:
        """Logits `[M, B]`: every member's discriminator on the same samples `[B, *shape]`, whatever their origin.

        With batch norm in evaluation mode, all are normalised as data is.
        """
        return self.discriminators(self.check(x), shared=(0,))[..., 0]

    def judge_each_other(self, x: Tensor) -> Tensor:
        """Logits `[G, D, B]` of all discriminators on the samples `[G, B, *shape]` of some generators."""
        return torch.stack([self.judge_same(samples) for samples in x])

    def member(self, index: int) -> tuple[nn.Module, nn.Module]:
        """The generator and the discriminator that now play together as member `index`, as nets of their own."""
        for kind, at in self.places.items():
            if index in at:
                return self.generators[kind].member(at.index(index)), self.discriminators.member(index)
        raise ConfigError(f"there is no member {index}; this population has 0 to {self.members - 1}")

    def generate(self, z: Tensor, member: int | None = None) -> Tensor:
        """One member's samples `[B, *shape]` of latents `[B, Z]`, the best one's unless another is named."""
        index = int(self.best) if member is None else member
        net, _ = self.member(index)
        return net(self.into_prior(z, index))

    def into_prior(self, z: Tensor, member: int) -> Tensor:
        """Standard normal latents as ones of a member's prior."""
        return to_uniform(z) if bool(self.uniform[member]) else z

    @torch.no_grad()
    def put(self, index: int, generator: nn.Module, discriminator: nn.Module) -> None:
        """Take two nets' values as those of member `index`; the inverse of `member`."""
        (kind,) = [kind for kind, at in self.places.items() if index in at]
        places = (self.generators[kind], self.places[kind].index(index)), (self.discriminators, index)
        for (stack, place), net in zip(places, (generator, discriminator), strict=True):
            mine = stack.state_dict()  # a stack's names are the net's with dashes
            for name, value in net.state_dict().items():
                mine[name.replace(".", "-")][place] = value

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, member: str | int = "best") -> Tensor:
        """`n` samples `[n, *shape]` of the best member or of the one named, or `[N, n, *shape]` of `all`."""
        draw = torch.Generator().manual_seed(seed)
        if member == "all":
            z = self.prior(self.members * n, draw).unflatten(0, (self.members, n))
            return self.show(self.generate_all(z)[: self.count])
        if isinstance(member, str) and member != "best":
            raise ConfigError(f"member must be best, all or a number, not {member!r}")
        index = int(self.best) if isinstance(member, str) else member
        return self.show(self.generate(self.prior(n, draw), index))


def to_uniform(z: Tensor) -> Tensor:
    """Standard normal latents as uniform ones in (-1, 1)."""
    return torch.erf(z * 0.5**0.5)
