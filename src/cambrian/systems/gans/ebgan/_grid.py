"""A grid of hyper-parameters as stacks of nets: all cells of equal shape train at once, for EBGAN or for the plain GAN.

Every cell draws its own batches, latents and initial weights from a seed of its own, so that a cell's run does not
depend on which others are in the grid, and the two games meet the same data cell by cell. Masks of dropout are the
exception: a stack draws them for all its cells at once, from the seed of its first.

Shapes: M members of a stack, B batch, Z latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap

from cambrian.errors import ConfigError
from cambrian.nn.adversarial import FAKE, REAL, discriminator_loss, generator_loss, margin_loss, pulling_away
from cambrian.studies.many import Stacked, StackedAdam, StackedSGD, alike, minimise
from cambrian.systems.gans._nets import generator_for
from cambrian.systems.gans.ebgan.model import AutoEncoder, Encoder

GAMES = ("ebgan", "gan")
WARM, FACTOR = 20, 1.5  # the rule of the margin, as in `Margin`


@dataclass(frozen=True)
class Cell:
    """One run of the grid; `layers` counts weight layers, of which the last one makes the output."""

    game: str
    layers_g: int
    layers_d: int
    width_g: int
    width_d: int
    dropout: float
    optim_g: str
    optim_d: str
    lr: float
    seed: int

    def nets(self, shape: Sequence[int], latent: int, norm: str) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator, initialised by the cell's seed."""
        hidden_d = (self.width_d,) * (self.layers_d - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            hidden_g = (self.width_g,) * (self.layers_g - 1)
            up = generator_for(shape, arch="connected", latent=latent, hidden=hidden_g, base=1, norm=norm)
            net = AutoEncoder if self.game == "ebgan" else Critic
            return up, net(shape=shape, hidden=hidden_d, norm=norm, dropout=self.dropout)

    @property
    def name(self) -> str:
        """What the cell is, without game and seed: cells of two games with the same name are compared."""
        return (
            f"G {self.layers_g}x{self.width_g}, D {self.layers_d}x{self.width_d}, dropout {self.dropout:g}, "
            f"{self.optim_g}/{self.optim_d} {self.lr:g}"
        )


class Critic(nn.Module):
    """The plain GAN's discriminator with the encoder of the auto-encoder: `[B, *shape] ->` logits `[B]`, codes."""

    def __init__(self, *, shape: Sequence[int], hidden: Sequence[int], norm: str, dropout: float) -> None:
        super().__init__()
        self.encoder = Encoder(shape=shape, hidden=hidden, norm=norm, dropout=dropout)
        self.head = nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor]:
        code = self.encoder(x, sources)
        return self.head(code).flatten(), code


def product(
    game: str,
    *,
    layers: Sequence[int],
    widths: Sequence[int],
    dropouts: Sequence[float],
    layers_d: Sequence[int] = (),
    widths_d: Sequence[int] = (),
    optimisers: Sequence[str] = ("adam",),
    rates: Sequence[float] = (1e-3,),
    replicates: int = 1,
    seed: int = 0,
) -> list[Cell]:
    """All cells. Without `layers_d` and `widths_d`, D is as deep and wide as G; with them all pairs are tried."""
    if game not in GAMES:
        raise ConfigError(f"game {game!r} is unknown; use one of {', '.join(GAMES)}")
    if min(*layers, *layers_d, 2) < 2:
        raise ConfigError(f"a net needs at least 2 layers, got {sorted({*layers, *layers_d})}")
    depths = list(itertools.product(layers, layers_d)) if layers_d else [(n, n) for n in layers]
    sizes = list(itertools.product(widths, widths_d)) if widths_d else [(n, n) for n in widths]
    axes = itertools.product(depths, sizes, dropouts, optimisers, optimisers, rates, range(replicates))
    return [
        Cell(game, *depth, *size, dropout, up, down, rate, _seed_of(seed, number))
        for number, (depth, size, dropout, up, down, rate, _) in enumerate(axes)
    ]


def _seed_of(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number * 7919 + 17) % 2**31


class Population:
    """Cells of equal shapes and optimisers, trained together; `margins` `[M]` is what the rule found."""

    def __init__(
        self,
        cells: Sequence[Cell],
        train: Tensor,
        *,
        batch: int,
        latent: int = 64,
        norm: str = "split",
        beta1: float = 0.5,
        pt_weight: float = 0.1,
        margin: float | None = None,
    ) -> None:
        self.cells, self.train = list(cells), train
        self.batch, self.latent, self.pt_weight = batch, latent, pt_weight
        nets = [cell.nets(tuple(train.shape[1:]), latent, norm) for cell in cells]
        self.up, self.down = Stacked([up for up, _ in nets]), Stacked([down for _, down in nets])
        rates = [cell.lr for cell in cells]
        self.g_optim = _optimiser(cells[0].optim_g, self.up, rates, beta1)
        self.d_optim = _optimiser(cells[0].optim_d, self.down, rates, beta1)
        self.draws = [torch.Generator().manual_seed(cell.seed + 1) for cell in cells]
        self.fixed = margin is not None
        self.margins = torch.full((len(cells),), margin if margin is not None else 0.0)
        self.done = 0

    def latents(self, count: int) -> Tensor:
        """`[M, count, Z]`, U(-1, 1), each member's from its own generator."""
        return torch.stack([2.0 * torch.rand(count, self.latent, generator=draw) - 1.0 for draw in self.draws])

    def step(self) -> dict[str, Tensor]:
        """One round of every member: D, then G on the same samples; losses `[M]`."""
        x = torch.stack([self.train[torch.randint(len(self.train), (self.batch,), generator=g)] for g in self.draws])
        fake = self.up(self.latents(self.batch))
        scores, _ = self.down(torch.cat((x, fake.detach()), dim=1), sources=(REAL, FAKE))
        real, made = scores.chunk(2, dim=1)
        self._watch(real)
        d_loss = self._d_loss(real, made)
        minimise(d_loss, self.d_optim)
        g_loss = self._g_loss(*self.down(fake, sources=(FAKE,)))
        minimise(g_loss, self.g_optim)
        self.done += 1
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach(), "real": real.detach().mean(1)}

    def _watch(self, energy: Tensor) -> None:
        if not self.fixed and self.done < WARM:
            self.margins = torch.lerp(self.margins, FACTOR * energy.detach().mean(1), 1.0 / (self.done + 1))

    def _d_loss(self, real: Tensor, made: Tensor) -> Tensor:
        if self.cells[0].game == "gan":
            return vmap(discriminator_loss)(real, made)
        return vmap(margin_loss)(real, made, self.margins)

    def _g_loss(self, scores: Tensor, codes: Tensor) -> Tensor:
        if self.cells[0].game == "gan":
            return vmap(generator_loss)(scores)
        energy = scores.mean(1)
        return energy + self.pt_weight * vmap(pulling_away)(codes) if self.pt_weight else energy

    @torch.no_grad()
    def samples(self, count: int) -> Tensor:
        """`[M, count, *shape]` in [0, 1], in evaluation mode."""
        self.up.eval()
        made = self.up(self.latents(count)).add(1.0).div(2.0)
        self.up.train()
        return made


def _optimiser(kind: str, stack: Stacked, rates: list[float], beta1: float) -> torch.optim.Optimizer:
    rate: float | list[float] = rates[0] if len(set(rates)) == 1 else rates
    if kind == "adam":
        return StackedAdam(stack.parameters(), lr=rate, betas=(beta1, 0.999))
    return StackedSGD(stack.parameters(), lr=rate, momentum=beta1)


def populations(cells: Sequence[Cell], shape: Sequence[int], latent: int, norm: str) -> list[list[int]]:
    """Positions of cells that train together: equal shapes and optimisers."""
    groups = alike([nn.ModuleList(cell.nets(shape, latent, norm)) for cell in cells])
    out: list[list[int]] = []
    for group in groups:
        kinds = {(cells[i].game, cells[i].optim_g, cells[i].optim_d) for i in group}
        out += [
            [i for i in group if (cells[i].game, cells[i].optim_g, cells[i].optim_d) == kind] for kind in sorted(kinds)
        ]
    return out


def run(
    cells: Sequence[Cell],
    train: Tensor,
    *,
    steps: int,
    samples: int,
    settings: dict[str, object],
    progress: Callable[[int, int], None] = lambda done, total: None,
    together: int = 16,
) -> list[Tensor]:
    """Train every cell for `steps` rounds on `train [N, *shape]` in [-1, 1]; samples `[count, *shape]` of each cell.

    At most `together` members stand in one stack, which bounds memory.
    """
    shape, norm = tuple(train.shape[1:]), str(settings.get("norm", "split"))
    groups = populations(cells, shape, int(settings.get("latent", 64)), norm)  # type: ignore[call-overload]
    parts = [group[i : i + together] for group in groups for i in range(0, len(group), together)]
    made: dict[int, Tensor] = {}
    for number, part in enumerate(parts):
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's global generator
            torch.manual_seed(cells[part[0]].seed + 2)
            population = Population([cells[i] for i in part], train, **settings)  # type: ignore[arg-type]
            for step in range(steps):
                population.step()
                if step % 20 == 19:
                    progress(number * steps + step + 1, len(parts) * steps)
        made |= dict(zip(part, population.samples(samples), strict=True))
    return [made[i] for i in range(len(cells))]
