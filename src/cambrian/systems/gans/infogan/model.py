"""Codes and their reader, the paper's MNIST nets, and the model. Shapes as on the card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import REAL, SplitBatchNorm
from cambrian.systems.gans._nets import ARCHITECTURES, GenerativeModel, discriminator_for, generator_for

ARCHS = (*ARCHITECTURES, "infogan")
LEAK = 0.1  # slope of the paper's leaky ReLU


def cat(categories: int) -> str:
    """The name of a uniform categorical code."""
    return f"cat:{categories}"


def uniform(count: int) -> str:
    """The name of `count` continuous codes, U(-1, 1) each."""
    return f"uniform:{count}"


class Codes:
    """The laws of all codes: `W` columns, one-hot blocks first, then continuous ones; and what Q's outputs mean.

    Single codes are named `cat0`, `cat1`, ..., `cont0`, `cont1`, ... in order.
    """

    def __init__(self, names: Sequence[str], fix_std: bool = True) -> None:
        self.categories: tuple[int, ...] = ()
        self.continuous, self.fix_std = 0, fix_std
        for name in names:
            kind, _, count = name.partition(":")
            least = {"cat": 2, "uniform": 1}.get(kind)
            if least is None or not count.isdigit() or int(count) < least:
                raise ConfigError(f"a code is cat:K (K >= 2) or uniform:N (N >= 1), not {name!r}")
            if kind == "cat":
                self.categories += (int(count),)
            else:
                self.continuous += int(count)
        if not self.categories and not self.continuous:
            raise ConfigError("InfoGAN needs at least one code, such as cat:10")

    @property
    def width(self) -> int:
        """W."""
        return sum(self.categories) + self.continuous

    @property
    def outputs(self) -> int:
        """P: logits of every category, then means, then log standard deviations where they are learnt."""
        return sum(self.categories) + self.continuous * (1 if self.fix_std else 2)

    @property
    def names(self) -> list[str]:
        """Of all single codes."""
        return [f"cat{i}" for i in range(len(self.categories))] + [f"cont{i}" for i in range(self.continuous)]

    @property
    def entropy(self) -> dict[str, float]:
        """H(c) in nats: `cat` of all categorical codes together, `cont` of all continuous ones."""
        return {"cat": sum(map(math.log, self.categories)), "cont": self.continuous * math.log(2.0)}

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Codes `[count, W]`, drawn anew for every sample."""
        parts = [F.one_hot(torch.randint(k, (count,), generator=generator), k).float() for k in self.categories]
        parts.append(2.0 * torch.rand(count, self.continuous, generator=generator) - 1.0)
        return torch.cat(parts, dim=1)

    def place(self, name: str) -> slice:
        """The columns of one code; raises `ConfigError` for an unknown name."""
        if name not in self.names:
            raise ConfigError(f"no code {name!r}; codes: {', '.join(self.names)}")
        if name.startswith("cont"):
            start = sum(self.categories) + int(name[4:])
            return slice(start, start + 1)
        before = sum(self.categories[: int(name[3:])])
        return slice(before, before + self.categories[int(name[3:])])

    def put(self, c: Tensor, name: str, value: float) -> Tensor:
        """A copy of `c [..., W]` where code `name` is the category or the number `value`."""
        at, c = self.place(name), c.clone()
        if name.startswith("cat"):
            if value != int(value) or not 0 <= value < at.stop - at.start:
                raise ConfigError(f"{name} has the categories 0 to {at.stop - at.start - 1}, not {value}")
            c[..., at] = 0.0
            c[..., at.start + int(value)] = 1.0
        else:
            c[..., at] = value
        return c

    def information(self, params: Tensor, c: Tensor) -> dict[str, Tensor]:
        """`L_I` in nats from Q's outputs `[B, P]` on samples made with codes `[B, W]`: scalars `cat` and `cont`."""
        log_q = {"cat": params.new_zeros(()), "cont": params.new_zeros(())}
        for i in range(len(self.categories)):
            at = self.place(f"cat{i}")
            log_q["cat"] = log_q["cat"] + (c[:, at] * F.log_softmax(params[:, at], dim=1)).sum(1).mean()
        if self.continuous:
            start = sum(self.categories)
            mean, log_std = self._moments(params)
            far = (c[:, start:] - mean) * torch.exp(-log_std)
            log_q["cont"] = (-0.5 * far.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(1).mean()
        return {kind: value + self.entropy[kind] for kind, value in log_q.items()}

    def _moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        start = sum(self.categories)
        mean = params[:, start : start + self.continuous]
        # bounded below, or the density of a perfectly read code would grow without limit
        log_std = torch.zeros_like(mean) if self.fix_std else params[:, start + self.continuous :].clamp_min(-5.0)
        return mean, log_std

    def decode(self, params: Tensor) -> dict[str, Tensor]:
        """`cat`: probabilities of every category `[B, sum K]`; `cont`: means `[B, N]`."""
        blocks = [params[:, self.place(f"cat{i}")].softmax(1) for i in range(len(self.categories))]
        none = params.new_zeros(len(params), 0)
        return {"cat": torch.cat([none, *blocks], dim=1), "cont": self._moments(params)[0]}


class MnistTrunk(nn.Module):
    """Appendix C.1: two 4x4 convolutions of stride 2 and a hidden layer; `[B, C, S, S] -> [B, 16 base]`, then a logit."""

    def __init__(self, *, shape: Sequence[int], base: int) -> None:
        super().__init__()
        channels, edge = shape[0], _quarter(shape)
        self.first = nn.Conv2d(channels, base, 4, 2, 1)
        self.second = nn.Conv2d(base, 2 * base, 4, 2, 1)
        self.full = nn.Linear(2 * base * edge * edge, 16 * base)
        self.norms = nn.ModuleList([SplitBatchNorm(features=2 * base), SplitBatchNorm(features=16 * base)])
        self.head = nn.Linear(16 * base, 1)

    def features(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """What both heads read."""
        x = F.leaky_relu(self.first(x), LEAK)
        x = F.leaky_relu(self.norms[0](self.second(x), sources), LEAK)
        return F.leaky_relu(self.norms[1](self.full(x.flatten(1)), sources), LEAK)


class MnistGenerator(nn.Module):
    """Appendix C.1: two hidden layers and two 4x4 fractionally strided convolutions; `[B, Z] -> [B, C, S, S]`."""

    def __init__(self, *, shape: Sequence[int], latent: int, base: int) -> None:
        super().__init__()
        self.first = (2 * base, _quarter(shape), _quarter(shape))
        widths = (16 * base, math.prod(self.first), base)
        self.full = nn.ModuleList([nn.Linear(latent, widths[0]), nn.Linear(widths[0], widths[1])])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(2 * base, base, 4, 2, 1), nn.ConvTranspose2d(base, shape[0], 4, 2, 1)]
        )
        self.norms = nn.ModuleList(SplitBatchNorm(features=width) for width in widths)

    def forward(self, z: Tensor) -> Tensor:
        for layer, norm in zip(self.full, self.norms):
            z = F.relu(norm(layer(z)))
        x = F.relu(self.norms[2](self.up[0](z.unflatten(1, self.first))))
        return torch.tanh(self.up[1](x))


def _quarter(shape: Sequence[int]) -> int:
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 4:
        raise ShapeError(f"arch infogan takes square images whose edge is a multiple of 4, not {tuple(shape)}")
    return shape[1] // 4


class TwoHeads(nn.Module):
    """D and Q on one trunk: `[B, *shape] ->` logits `[B]` and Q's outputs `[B, P]`, in one pass."""

    def __init__(self, trunk: nn.Module, *, outputs: int, q_hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        head = trunk.head[0] if isinstance(trunk.head, nn.Sequential) else trunk.head
        self.q_hidden, self.q_norm = nn.Linear(head.in_features, q_hidden), SplitBatchNorm(features=q_hidden)
        self.q_out = nn.Linear(q_hidden, outputs)

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> tuple[Tensor, Tensor]:
        features = self.trunk.features(x, sources)
        hidden = F.leaky_relu(self.q_norm(self.q_hidden(features), sources), LEAK)
        return self.trunk.head(features).flatten(), self.q_out(hidden)


class InfoGAN(GenerativeModel):
    """Samples of `shape` from `noise` unregularised variables and `codes` that can be set and read.

    `InfoGAN(shape=(1, 28, 28), codes=[cat(10), uniform(2)], noise=62)`. A latent is `[noise | codes]`.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        codes: Sequence[str] = ("cat:10", "uniform:2"),
        noise: int = 62,
        arch: str = "connected",
        hidden: Sequence[int] = (256, 256),
        base: int = 64,
        q_hidden: int = 128,
        norm: str = "split",
        fix_std: bool = True,
    ) -> None:
        laws = Codes(codes, fix_std)
        super().__init__(shape=shape, latent=noise + laws.width, prior="uniform")
        self.codes, self.noise = laws, noise
        if arch == "infogan" and len(shape) == 3:
            self.generator: nn.Module = MnistGenerator(shape=shape, latent=self.latent, base=base)
            trunk: nn.Module = MnistTrunk(shape=shape, base=base)
        else:
            fitting = {"arch": "connected" if arch == "infogan" else arch, "hidden": hidden, "base": base}
            self.generator = generator_for(shape, latent=self.latent, **fitting)
            trunk = discriminator_for(shape, norm=norm, **fitting)
        self.discriminator = TwoHeads(trunk, outputs=laws.outputs, q_hidden=q_hidden)

    def prior(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents `[count, Z + W]`: noise U(-1, 1), then codes from their laws."""
        noise = 2.0 * torch.rand(count, self.noise, generator=generator) - 1.0
        z = torch.cat((noise, self.codes.draw(count, generator)), dim=1)
        return z.to(next(self.parameters()).device)

    def with_codes(self, z: Tensor, codes: Mapping[str, float]) -> Tensor:
        """Latents `z [..., Z + W]` with single codes set: `{"cat0": 3, "cont1": -1.5}`."""
        noise, c = z[..., : self.noise], z[..., self.noise :]
        for name, value in codes.items():
            c = self.codes.put(c, name, value)
        return torch.cat((noise, c), dim=-1)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0, codes: Mapping[str, float] | None = None) -> Tensor:
        """`n` samples `[n, *shape]` whose `codes` are as given, the others drawn; images in [0, 1]."""
        z = self.with_codes(self.prior(n, torch.Generator().manual_seed(seed)), codes or {})
        return self.show(torch.cat([self.generate(part) for part in z.split(256)]))

    @torch.no_grad()
    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """Codes read off real samples: `cat`, probabilities `[B, sum K]`, and `cont`, means `[B, N]`.

        Always in evaluation mode: with a batch's own statistics a sample's codes would depend on its neighbours.
        """
        training = self.training
        self.eval()
        try:
            read = [self.discriminator(part, (REAL,))[1] for part in self.check(x).split(256)]
        finally:
            self.train(training)
        return self.codes.decode(torch.cat(read))

    def turned(self, code: str, *, lo: float = -2.0, hi: float = 2.0, steps: int = 11, rows: int = 6, seed: int = 0) -> tuple[Tensor, int]:  # fmt: skip
        """Latents `[rows * columns, Z + W]` row by row, and the number of columns: along a row only `code` changes.

        A continuous code goes from `lo` to `hi` in `steps`; a categorical one through its categories.
        """
        at = self.codes.place(code)
        values = list(range(at.stop - at.start)) if code.startswith("cat") else torch.linspace(lo, hi, steps).tolist()
        z = self.prior(rows, torch.Generator().manual_seed(seed))
        return torch.stack([self.with_codes(z, {code: value}) for value in values], dim=1).flatten(0, 1), len(values)

    @torch.no_grad()
    def traverse(self, code: str, *, lo: float = -2.0, hi: float = 2.0, steps: int = 11, rows: int = 6, seed: int = 0) -> Tensor:  # fmt: skip
        """Samples `[rows, columns, *shape]` of `turned` latents."""
        z, columns = self.turned(code, lo=lo, hi=hi, steps=steps, rows=rows, seed=seed)
        return self.show(self.generate(z)).unflatten(0, (rows, columns))


def information_of(model: InfoGAN, z: Tensor, params: Tensor, shuffle: bool = False) -> dict[str, Tensor]:
    """`L_I` of samples made from latents `z [B, Z + W]` given Q's outputs `[B, P]` on them.

    `shuffle` asks Q for the codes of another sample, which breaks what it should learn.
    """
    c = z[:, model.noise :]
    return model.codes.information(params, c.roll(1, 0) if shuffle else c)
