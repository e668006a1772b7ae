"""One process per member: at an exchange the ranks agree on who plays whom, and no weight ever moves.

Rank r keeps its generator and its discriminator for good. `pairing[r]` is the rank whose discriminator judges
generator r; an exchange permutes these ids, which rank 0 draws and broadcasts. In each update a rank sends its samples
to its opponent and gets back the gradient with respect to them: two messages of a batch's size, whatever the nets' size.

Every rank draws the random numbers of the whole population and keeps its own rows, so the result is that of the stack.
Batch norm, noise and clipping are a member's own, as in the stack. Shapes: M members, B batch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as group
from torch import Tensor, nn

from cambrian.data.source import Source
from cambrian.dist.launch import run_group
from cambrian.errors import ConfigError
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss, generator_loss, parameters_of
from cambrian.systems.gans.gap._config import Config
from cambrian.systems.gans.gap.model import draw_exchange
from cambrian.systems.gans.gap.recipe import GAPRecipe


def distribute(config: Config, *, world: str, steps: int, seed: int, folder: Path, timeout: float = 600.0) -> GAPRecipe:
    """Train for `steps` updates in one process per member, on an embedded `world`; the population, put together.

    `folder` receives what each rank ends with. Pools are not trained here (`pool=0`). Raises `ConfigError`.
    """
    if config.pool:
        raise ConfigError(f"only members that exchange are trained in processes; set pool=0, not {config.pool}")
    arguments = (dataclasses.asdict(config), world, steps, seed, str(folder))
    pairing = run_group(train_member, len(config.members), *arguments, timeout=timeout)[0]
    recipe = _fresh(dataclasses.asdict(config), world, seed)
    with torch.no_grad():
        for i, opponent in enumerate(pairing):
            g, d = recipe.model.member(i)
            g.load_state_dict(safetensors.torch.load_file(folder / f"g{i}.safetensors"))
            d.load_state_dict(safetensors.torch.load_file(folder / f"d{opponent}.safetensors"))
            recipe.model.put(i, g, d)
    recipe.iteration = steps
    return recipe


def _fresh(settings: dict[str, Any], world: str, seed: int) -> GAPRecipe:
    config = Config(**settings)
    return GAPRecipe(config, data=GAPRecipe.load_data(config, Source("world", world)), seed=seed)


def train_member(
    rank: int, world: int, settings: dict[str, Any], name: str, steps: int, seed: int, folder: str
) -> list[int]:
    """What rank `rank` does: `steps` updates of its two nets; returns who judges whom at the end."""
    recipe = _fresh(settings, name, seed)
    g, d = (net.train() for net in recipe.model.member(rank))
    optimisers = [torch.optim.Adam(n.parameters(), lr=lr, betas=(recipe.config.beta1, 0.999)) for n, lr in _rates(recipe, g, d)]  # fmt: skip
    pairing = torch.arange(world)
    for recipe.iteration in range(steps):
        x, z, noise = own_numbers(recipe)
        fake = g(recipe.model.into_prior(z[rank], rank))
        judged = int(pairing.argsort()[rank])  # whose samples this rank's discriminator sees
        theirs = trade(fake.detach(), to=int(pairing[rank]), source=judged).requires_grad_()
        both = torch.cat((x[judged], theirs.detach())) + noise[0][judged]
        update(discriminator_loss(*d(both, (REAL, FAKE)).chunk(2)), optimisers[1], recipe.config.clip)
        loss = generator_loss(d(theirs + noise[1][judged], (FAKE,)))
        slope = trade(torch.autograd.grad(loss, theirs)[0], to=judged, source=int(pairing[rank]))
        update((fake * slope).sum(), optimisers[0], recipe.config.clip)
        if recipe.config.swap_every and (recipe.iteration + 1) % recipe.config.swap_every == 0:
            order = draw_exchange(world, recipe.swaps)
            group.broadcast(order, 0)
            pairing = pairing[order]
    for kind, net in (("g", g), ("d", d)):
        safetensors.torch.save_file(net.state_dict(), Path(folder) / f"{kind}{rank}.safetensors")
    return pairing.tolist()


def _rates(recipe: GAPRecipe, g: nn.Module, d: nn.Module) -> list[tuple[nn.Module, float]]:
    return [(g, recipe.config.lr), (d, recipe.config.lr_d or recipe.config.lr)]


def own_numbers(recipe: GAPRecipe) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """All members' data `[M, B, ...]`, latents `[M, B, Z]` and input noise of an update, drawn as the stack draws."""
    x = recipe.own_batches()
    z = recipe.latent(x.shape[0] * x.shape[1]).unflatten(0, x.shape[:2])
    sigma, shape = recipe.sigma(), x.shape[2:]
    if not sigma:
        return x, z, (torch.zeros(len(x), 1, *shape), torch.zeros(len(x), 1, *shape))
    sizes = (2 * x.shape[1], x.shape[1])
    first, second = (sigma * torch.randn(len(x), n, *shape, generator=recipe.rng) for n in sizes)
    return x, z, (first, second)


def trade(mine: Tensor, *, to: int, source: int) -> Tensor:
    """Send a tensor to one rank and receive its like from another (or keep it, where both are this one)."""
    if to == group.get_rank():
        return mine.clone()
    received = torch.empty_like(mine)
    sent = group.isend(mine.contiguous(), to)
    group.recv(received, source)
    sent.wait()
    return received


def update(loss: Tensor, optimiser: torch.optim.Optimizer, limit: float) -> None:
    """One step on this player's parameters alone, its gradient cut to length `limit` (0: not at all)."""
    parameters = parameters_of(optimiser)
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    if limit:
        nn.utils.clip_grad_norm_(parameters, limit)
    optimiser.step()
