"""The network. Shapes: B pictures, C channels, H x W pixels, F filters, P outputs a pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.causal.shifted import (
    DownRightShifted,
    DownRightShiftedUp,
    DownShifted,
    DownShiftedUp,
    shift_down,
    shift_right,
)
from cambrian.nn.causal.weight_norm import WNConv2d, initialising
from cambrian.nn.hub import Pretrained
from cambrian.nn.likelihood.dmol import DMOL
from cambrian.systems.likelihood.pixelcnn_pp._heads import SubPixelSoftmax

HEADS = ("dmol", "softmax")


def concat_elu(x: Tensor) -> Tensor:
    """elu([x, -x]) over channels: [B, F, H, W] -> [B, 2 F, H, W]."""
    return F.elu(torch.cat((x, -x), 1))


class GatedBlock(nn.Module):
    """x + p sigmoid(q): two shifted convolutions with a gate; `extra` channels of a short-cut enter between them."""

    def __init__(
        self, conv: type[WNConv2d], filters: int, *, extra: int = 0, cond_dim: int = 0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.first = conv(2 * filters, filters)  # type: ignore[reportCallIssue]
        self.aside = WNConv2d(2 * extra, filters, (1, 1)) if extra else None
        self.second = conv(2 * filters, 2 * filters, scale=0.1)  # type: ignore[reportCallIssue]
        self.condition = nn.Linear(cond_dim, 2 * filters, bias=False) if cond_dim else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, a: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        """x [B, F, H, W], short-cut a [B, extra, H, W], condition h [B, cond_dim]."""
        c = self.first(concat_elu(x))
        if self.aside is not None and a is not None:
            c = c + self.aside(concat_elu(a))
        c = self.second(self.dropout(concat_elu(c)))
        if self.condition is not None and h is not None:
            c = c + self.condition(h)[:, :, None, None]
        p, q = c.chunk(2, 1)
        return x + p * torch.sigmoid(q)


class PixelCNNpp(nn.Module, Pretrained):
    """Pictures x [B, C, H, W] in [-1, 1] -> outputs [B, P, H, W], those of a pixel from the pixels before it alone.

    `stages` resolutions, each with `blocks` pairs of gated blocks on the way up and one more on the way down below the top;
    H and W are multiples of 2^(stages - 1). `shortcuts=False` cuts the connections from the way up. `shuffled` permutes the
    grey levels, by one fixed permutation, before the network and the likelihood see them (a check of the claim).
    """

    def __init__(
        self, *, channels: int = 3, filters: int = 32, blocks: int = 4, stages: int = 1, mixtures: int = 5, head: str = "dmol",
        cond_dim: int = 0, dropout: float = 0.5, shortcuts: bool = True, shuffled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if head not in HEADS or channels not in (1, 3):
            raise ConfigError(f"the head is one of {', '.join(HEADS)} and channels 1 or 3, not {head!r} and {channels}")
        self.channels, self.stages, self.blocks, self.cond_dim = channels, stages, blocks, cond_dim
        self.filters, self.shortcuts = filters, shortcuts
        self.head = DMOL(mixtures, channels) if head == "dmol" else SubPixelSoftmax(channels)
        f, c = filters, channels + 1
        self.u_first, self.l_above, self.l_left = (
            DownShifted(c, f),
            DownShifted(c, f, (1, 3)),
            DownRightShifted(c, f, (2, 1)),
        )
        block = {"cond_dim": cond_dim, "dropout": dropout}
        pairs, below = range(stages * blocks), range(stages * blocks + stages - 1)
        self.u_up = nn.ModuleList(GatedBlock(DownShifted, f, **block) for _ in pairs)
        self.l_up = nn.ModuleList(GatedBlock(DownRightShifted, f, extra=f, **block) for _ in pairs)
        self.u_half = nn.ModuleList(DownShifted(f, f, stride=2) for _ in range(stages - 1))
        self.l_half = nn.ModuleList(DownRightShifted(f, f, stride=2) for _ in range(stages - 1))
        self.u_down = nn.ModuleList(GatedBlock(DownShifted, f, extra=f, **block) for _ in below)
        self.l_down = nn.ModuleList(GatedBlock(DownRightShifted, f, extra=2 * f, **block) for _ in below)
        self.u_double = nn.ModuleList(DownShiftedUp(f, f) for _ in range(stages - 1))
        self.l_double = nn.ModuleList(DownRightShiftedUp(f, f) for _ in range(stages - 1))
        self.out = WNConv2d(f, self.head.n_params, (1, 1))
        levels = torch.randperm(256, generator=torch.Generator().manual_seed(1701)) if shuffled else torch.arange(256)
        self.register_buffer("order", levels, persistent=False)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def check(self, x: Tensor, h: Tensor | None = None) -> None:
        """Raises `ShapeError` unless x [B, C, H, W] is on the 8-bit grid in [-1, 1], of a size that halves, and h fits."""
        if x.dim() != 4 or x.shape[1] != self.channels or not x.is_floating_point() or 0 in x.shape:
            raise ShapeError(
                f"pictures are float [B, {self.channels}, H, W] in [-1, 1], not {x.dtype} {tuple(x.shape)}"
            )
        self.check_size(*x.shape[2:])
        level = (x + 1) * 127.5
        if not bool(((level - level.round()).abs() < 1e-2).all() and (x.abs() <= 1 + 1e-4).all()):
            raise ShapeError(
                "pictures must lie on the 8-bit grid of [-1, 1]; give uint8 to log_prob, or scale by 2 / 255 and - 1"
            )
        if (h is None) != (self.cond_dim == 0) or (h is not None and h.shape != (len(x), self.cond_dim)):
            raise ShapeError(f"this network takes {self.cond_dim or 'no'} conditioning numbers a picture")

    def check_size(self, height: int, width: int) -> None:
        """Raises `ShapeError` unless both are multiples of 2^(stages - 1)."""
        step = 1 << (self.stages - 1)
        if height % step or width % step:
            raise ShapeError(f"with {self.stages} stages H and W are multiples of {step}, not {height} x {width}")

    def scaled(self, image: Tensor) -> Tensor:
        """uint8 pictures -> [-1, 1]. Raises `ShapeError` for other types."""
        if image.dtype != torch.uint8:
            raise ShapeError(f"pictures of grey levels are uint8, not {image.dtype}")
        return self.head_grid(self.order[image.long()])

    def unscaled(self, x: Tensor) -> Tensor:
        """[-1, 1] -> uint8."""
        return self.order.argsort()[((x + 1) * 127.5).round().long().clamp(0, 255)].to(torch.uint8)

    def head_grid(self, level: Tensor) -> Tensor:
        """Level numbers as values, in the network's own precision."""
        return level.to(self.out.b.dtype) * (2.0 / 255.0) - 1

    def head_level(self, x: Tensor) -> Tensor:
        """Values as level numbers int64, in the network's order."""
        return ((x + 1) * 127.5).round().long()

    def encode(self, image: Tensor, tile: int = 32) -> bytes:
        """A uint8 picture [C, H, W] of any size as the bytes of a lossless file (see `_codec`), in tiles of `tile` pixels."""
        from cambrian.systems.likelihood.pixelcnn_pp import _codec

        return _codec.encode(self, image, tile).data

    def decode(self, data: bytes) -> Tensor:
        """The picture uint8 [C, H, W] of `encode`'s bytes. Raises `DataError` or `CheckpointError`."""
        from cambrian.systems.likelihood.pixelcnn_pp import _codec

        return _codec.decode(self, data)

    # -- the pass -----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Outputs [B, P, H, W] of x in [-1, 1]; raises `ShapeError`."""
        self.check(x, h)
        return self.network(x, h)

    def network(self, x: Tensor, h: Tensor | None) -> Tensor:
        """`forward` without its checks."""
        padded = torch.cat((x, torch.ones_like(x[:, :1])), 1)
        u_list = [shift_down(self.u_first(padded))]
        l_list = [shift_down(self.l_above(padded)) + shift_right(self.l_left(padded))]
        for stage in range(self.stages):
            for i in range(stage * self.blocks, (stage + 1) * self.blocks):
                u_list.append(self.u_up[i](u_list[-1], None, h))
                l_list.append(self.l_up[i](l_list[-1], u_list[-1], h))
            if stage < self.stages - 1:
                u_list.append(self.u_half[stage](u_list[-1]))
                l_list.append(self.l_half[stage](l_list[-1]))
        u, l, i = u_list.pop(), l_list.pop(), 0
        for stage in range(self.stages):
            for _ in range(self.blocks + (stage > 0)):
                from_u, from_l = self._cut(u_list.pop()), self._cut(l_list.pop())
                u = self.u_down[i](u, from_u, h)
                l = self.l_down[i](l, torch.cat((u, from_l), 1), h)
                i += 1
            if stage < self.stages - 1:
                u, l = self.u_double[stage](u), self.l_double[stage](l)
        assert not u_list and not l_list
        return self.out(F.elu(l))

    def _cut(self, skip: Tensor) -> Tensor:
        return skip if self.shortcuts else torch.zeros_like(skip)

    def initialise(self, image: Tensor, h: Tensor | None = None) -> None:
        """Set all layers' scales and biases from uint8 pictures [B, C, H, W] (about a hundred)."""
        with initialising(self):
            self(self.scaled(image), h)

    def log_prob(self, image: Tensor, h: Tensor | None = None) -> Tensor:
        """Exact log-probability [B] in nats of uint8 pictures [B, C, H, W]."""
        x = self.scaled(image)
        return self.head.log_prob(self(x, h).movedim(1, -1), x.movedim(1, -1)).flatten(1).sum(1)

    # -- drawing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, n: int, size: tuple[int, int], cond: Tensor | None = None, *, generator: torch.Generator | None = None, seed: int = 0,
        temperature: float = 1.0, cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """n new uint8 pictures [n, C, H, W], pixel by pixel. `cached=False` runs the whole network for every pixel, and gives the
        same pictures for the same noise."""
        blank = torch.zeros(n, self.channels, *size, dtype=torch.uint8, device=self.out.b.device)
        known = torch.zeros(n, *size, dtype=torch.bool, device=blank.device)
        return self.complete(blank, known, cond, generator=generator, seed=seed, temperature=temperature, cached=cached)

    @torch.no_grad()
    def complete(
        self, image: Tensor, mask: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None, seed: int = 0,
        temperature: float = 1.0, cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """Fill in the pixels of uint8 pictures [B, C, H, W] where mask [B, H, W] is False, each from those before it."""
        from cambrian.systems.likelihood.pixelcnn_pp._cached import PixelCache

        x = self.scaled(image)
        self.check(x, cond)
        if mask.shape != (len(x), *x.shape[2:]) or mask.dtype != torch.bool:
            raise ShapeError(f"the mask is bool {(len(x), *x.shape[2:])}, not {mask.dtype} {tuple(mask.shape)}")
        generator = generator or torch.Generator().manual_seed(seed)
        x = torch.where(mask[:, None], x, -torch.ones_like(x))
        training = self.training
        self.eval()
        cache = PixelCache(self, len(x), *x.shape[2:], cond) if cached else None
        for i in range(x.shape[2]):
            choice, uniform = self.noise(len(x), x.shape[3], generator)
            for j in range(x.shape[3]):
                params = cache.outputs(i, j) if cache is not None else self._outputs(x, cond, i, j)
                drawn = self.head.draw(params, choice[:, j], uniform[:, j], temperature)
                x[:, :, i, j] = torch.where(mask[:, i, j, None], x[:, :, i, j], drawn)
                if cache is not None:
                    cache.put(i, j, x[:, :, i, j])
        self.train(training)
        return self.unscaled(x)

    def _outputs(self, x: Tensor, h: Tensor | None, i: int, j: int) -> Tensor:
        """Outputs [B, P] of one pixel by a pass over the whole picture."""
        return self.network(x, h)[:, :, i, j]

    def noise(self, n: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform numbers of a row: [n, width, K] to choose components, [n, width, C] to draw values."""
        components = self.head.components if isinstance(self.head, DMOL) else 1
        both = torch.rand(n, width, components + self.channels, generator=generator, device=generator.device)
        return both.to(self.out.b).split((components, self.channels), -1)
