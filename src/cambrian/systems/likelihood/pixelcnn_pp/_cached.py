"""Pixel by pixel without computing anything twice (Ramachandran et al. 2017, arXiv 1704.06001).

The u-stream depends on the rows above alone, so it is computed a row at a time; the l-stream a pixel at a time. Every convolution
keeps its input in a buffer padded as the whole pass pads it, and its output at one place is one product of the patch before it
with the weights, flattened once. Layers at half the resolution run at every second row and pixel, and so on. What the u-stream
gives the l-stream is multiplied for whole rows.

Shapes: B pictures, F filters; buffers are [B, rows, columns, channels]; level k has H / 2^k rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.nn.causal.weight_norm import WNConv2d

if TYPE_CHECKING:
    from cambrian.systems.likelihood.pixelcnn_pp.model import GatedBlock, PixelCNNpp


def both_signs(x: Tensor) -> Tensor:
    """concat_elu over the last axis."""
    return F.elu(torch.cat((x, -x), -1))


class Patches:
    """The input of one convolution, [B, rows + k - 1, columns + padding, I], and its weights as a matrix."""

    def __init__(self, conv: WNConv2d, batch: int, rows: int, columns: int, *, around: bool) -> None:
        (self.k, self.l), inputs = conv.kernel, conv.v.shape[1]
        self.left = (self.l - 1) // 2 if around else self.l - 1
        self.right = self.left if around else 0
        self.buffer = conv.v.new_zeros(batch, rows + self.k - 1, columns + self.left + self.right, inputs)
        self.weight = conv.weight().permute(2, 3, 1, 0).reshape(-1, conv.v.shape[0]).contiguous()
        self.bias, self.columns = conv.b.detach(), columns

    def put_row(self, i: int, values: Tensor) -> None:
        """Row i [B, columns, I]."""
        self.buffer[:, i + self.k - 1, self.left : self.left + self.columns] = values

    def put(self, i: int, j: int, values: Tensor) -> None:
        """Pixel (i, j) [B, I]."""
        self.buffer[:, i + self.k - 1, j + self.left] = values

    def row(self, i: int, stride: int = 1) -> Tensor:
        """Outputs [B, columns / stride, O] of the row whose last input row is i."""
        rows = self.buffer[:, i : i + self.k]
        windows = rows.unfold(2, self.l, stride)[:, :, : self.columns // stride]  # [B, k, columns, I, l]
        flat = windows.permute(0, 2, 1, 4, 3).flatten(2)
        return flat @ self.weight + self.bias

    def at(self, i: int, j: int) -> Tensor:
        """Outputs [B, O] of the pixel whose last input is (i, j)."""
        patch = self.buffer[:, i : i + self.k, j : j + self.l].reshape(len(self.buffer), -1)
        return torch.addmm(self.bias, patch, self.weight)


class Block:
    """One gated block at one level, for rows (u-stream) or pixels (l-stream)."""

    def __init__(
        self, block: GatedBlock, batch: int, rows: int, columns: int, h: Tensor | None, *, around: bool
    ) -> None:
        self.first = Patches(block.first, batch, rows, columns, around=around)
        self.second = Patches(block.second, batch, rows, columns, around=around)
        self.shift = None if block.condition is None or h is None else block.condition(h)
        self.aside = None if block.aside is None else block.aside.weight()[:, :, 0, 0].t().contiguous()
        self.aside_bias = None if block.aside is None else block.aside.b.detach()

    def row(self, i: int, x: Tensor, aside: Tensor | None) -> Tensor:
        """[B, columns, F] from x [B, columns, F] and the short-cut's product [B, columns, F]."""
        self.first.put_row(i, both_signs(x))
        c = self.first.row(i)
        self.second.put_row(i, both_signs(c if aside is None else c + aside))
        c = self.second.row(i)
        return self._gate(x, c if self.shift is None else c + self.shift[:, None])

    def at(self, i: int, j: int, x: Tensor, aside: Tensor) -> Tensor:
        """[B, F] from x [B, F] and the short-cut's product [B, F]."""
        self.first.put(i, j, both_signs(x))
        c = self.first.at(i, j).add_(aside)
        self.second.put(i, j, both_signs(c))
        c = self.second.at(i, j)
        return self._gate(x, c if self.shift is None else c + self.shift)

    def _gate(self, x: Tensor, c: Tensor) -> Tensor:
        p, q = c.chunk(2, -1)
        return torch.addcmul(x, p, torch.sigmoid(q))

    def product(self, a: Tensor) -> Tensor:
        """W f(a) of a short-cut [..., extra]."""
        assert self.aside is not None
        return both_signs(a) @ self.aside + self.aside_bias


class PixelCache:
    """Outputs of one pixel after another, in raster order: `outputs(i, j)`, then `put(i, j, value)`."""

    def __init__(self, model: PixelCNNpp, batch: int, height: int, width: int, h: Tensor | None = None) -> None:
        self.model, self.height, self.width = model, height, width
        f = model.filters
        self.zero = model.out.v.new_zeros(batch, f)
        self.input = Patches(model.u_first, batch, height, width, around=True)
        self.above, self.beside = (
            Patches(model.l_above, batch, height, width, around=True), Patches(model.l_left, batch, height, width, around=False)
        )  # fmt: skip
        self.out_weight = model.out.weight()[:, :, 0, 0].t().contiguous()

        def level(stage: int) -> tuple[int, int]:
            return height >> stage, width >> stage

        def block(part: Any, stage: int, around: bool) -> Block:
            return Block(part, batch, *level(stage), h, around=around)

        stages, blocks = range(model.stages), model.blocks
        self.up = [
            [
                (block(model.u_up[s * blocks + b], s, True), block(model.l_up[s * blocks + b], s, False))
                for b in range(blocks)
            ]
            for s in stages
        ]
        self.down: list[list[tuple[Block, Block]]] = []
        number = 0
        for s in stages:
            pairs = range(number, number + blocks + (s > 0))
            where = model.stages - 1 - s
            self.down.append(
                [(block(model.u_down[n], where, True), block(model.l_down[n], where, False)) for n in pairs]
            )
            number = pairs.stop
        self.half = [
            (
                Patches(model.u_half[s], batch, *level(s), around=True),
                Patches(model.l_half[s], batch, *level(s), around=False),
            )
            for s in range(model.stages - 1)
        ]
        self.double = [
            (self._spread(model.u_double[s]), self._spread(model.l_double[s])) for s in range(model.stages - 1)
        ]
        self.down_rows: dict[int, list[Tensor]] = {}  # per level: what the u-stream gives each block of the l-stream
        self.coarse: dict[int, Tensor] = {}  # per level: the latest row of the u-stream on its way down
        self.coarse_l = [self.zero.new_zeros(batch, *level(k), f) for k in stages]
        self._split_asides(f)

    def _spread(self, conv: Any) -> tuple[Tensor, Tensor]:
        """A transposed convolution's weights [k, l, I, O] and bias."""
        return conv.weight().permute(2, 3, 1, 0).contiguous(), conv.b.detach()

    def _split_asides(self, f: int) -> None:
        """The l-stream's short-cuts on the way down are [u, l]: the products' weights for each, flattened once."""
        self.from_u, self.from_l = {}, {}
        for pairs in self.down:
            for _, l in pairs:
                assert l.aside is not None
                half = len(l.aside) // 2
                self.from_u[l] = torch.cat((l.aside[:f], l.aside[half : half + f]))
                self.from_l[l] = torch.cat((l.aside[f:half], l.aside[half + f :]))

    # -- the u-stream, a row at a time ----------------------------------------------------------------------------------

    def _start_row(self, i: int) -> None:
        """All of the u-stream that row i needs and earlier rows did not; keeps what the l-stream reads of it, by row."""
        model = self.model
        u = self.input.row(i - 1) if i else self.zero[:, None].expand(-1, self.width, -1)
        self.first_above = self.above.row(i - 1) if i else None
        skips: list[list[Tensor]] = [[u]]
        self.up_rows: list[list[Tensor]] = []
        due = 0  # the coarsest level that moves at this row
        for stage, pairs in enumerate(self.up):
            rows = []
            for u_block, l_block in pairs:
                u = u_block.row(i >> stage, u, None)
                skips[-1].append(u)
                rows.append(l_block.product(u))
            self.up_rows.append(rows)
            due = stage
            if stage == model.stages - 1 or (i >> stage) % 2:
                if stage < model.stages - 1:
                    self.half[stage][0].put_row(i >> stage, u)
                break
            patches = self.half[stage][0]
            patches.put_row(i >> stage, u)
            u = patches.row(i >> stage, 2)
            skips.append([u])
        self._row_down(i, due, skips)

    def _row_down(self, i: int, due: int, skips: list[list[Tensor]]) -> None:
        """The way down from the coarsest level that is due; where a coarser one is not, its last row serves again."""
        top = self.model.stages - 1
        u = skips[top].pop() if due == top else None
        for stage in range(top - due, top + 1):
            level = top - stage
            if u is None:  # the level above is not due: spread its row, computed earlier
                u = self._spread_row(self.coarse[level + 1], i >> level, self.double[stage - 1][0])
            kept = []
            for u_block, l_block in self.down[stage]:
                u = u_block.row(i >> level, u, u_block.product(self._cut(skips[level].pop())))
                kept.append(both_signs(u) @ self.from_u[l_block] + l_block.aside_bias)
            self.down_rows[level] = kept
            self.coarse[level] = u
            if level:
                u = self._spread_row(u, i >> (level - 1), self.double[stage][0])

    def _spread_row(self, u: Tensor, i: int, spread: tuple[Tensor, Tensor]) -> Tensor:
        """Row i [B, 2 W, F] of the transposed convolution of a coarse row u [B, W, F]: column 2 c gets taps 1 of c, column
        2 c - 1 taps 0 of c and 2 of c - 1."""
        weight, bias = spread
        taps = weight[i % 2]  # [3, I, O]
        out = u.new_zeros(len(u), 2 * u.shape[1], weight.shape[3])
        out[:, 0::2] = u @ taps[1]
        out[:, 1::2] = u @ taps[2]
        out[:, 1:-1:2] += u[:, 1:] @ taps[0]
        return out + bias

    def _cut(self, skip: Tensor) -> Tensor:
        return skip if self.model.shortcuts else torch.zeros_like(skip)

    # -- the l-stream, a pixel at a time --------------------------------------------------------------------------------

    def outputs(self, i: int, j: int) -> Tensor:
        """Outputs [B, P] of pixel (i, j); every pixel before it must have been put."""
        if j == 0:
            self._start_row(i)
        l = self.zero if self.first_above is None else self.first_above[:, j]
        if j:
            l = l + self.beside.at(i, j - 1)
        l, skips = self._pixel_up(i, j, l)
        return torch.addmm(self.model.out.b, F.elu(self._pixel_down(i, j, l, skips)), self.out_weight)

    def _pixel_up(self, i: int, j: int, l: Tensor) -> tuple[Tensor | None, list[list[Tensor]]]:
        """The way up as far as levels are due at this pixel: what the top gives (None: it is not due) and the short-cuts."""
        skips = [[l]]
        for stage, pairs in enumerate(self.up):
            row, column = i >> stage, j >> stage
            for b, (_, block) in enumerate(pairs):
                l = block.at(row, column, l, self.up_rows[stage][b][:, column])
                skips[-1].append(l)
            if stage == self.model.stages - 1:
                return l, skips
            patches = self.half[stage][1]
            patches.put(row, column, l)
            if row % 2 or column % 2:
                return None, skips
            l = patches.at(row, column)
            skips.append([l])
        raise AssertionError("a network has a stage")

    def _pixel_down(self, i: int, j: int, l: Tensor | None, skips: list[list[Tensor]]) -> Tensor:
        top = self.model.stages - 1
        due = len(skips) - 1
        if l is not None:
            skips[top].pop()
        for stage in range(top - due, top + 1):
            level = top - stage
            row, column = i >> level, j >> level
            if l is None:
                l = self._spread_pixel(self.coarse_l[level + 1][:, row // 2, column // 2], row, column, stage - 1)
            for n, (_, block) in enumerate(self.down[stage]):
                skip = self._cut(skips[level].pop())
                aside = torch.addmm(self.down_rows[level][n][:, column], both_signs(skip), self.from_l[block])
                l = block.at(row, column, l, aside)
            if level:
                self.coarse_l[level][:, row, column] = l
                l = self._spread_pixel(l, i >> (level - 1), j >> (level - 1), stage)
        assert l is not None
        return l

    def _spread_pixel(self, l: Tensor, row: int, column: int, stage: int) -> Tensor:
        weight, bias = self.double[stage][1]
        return torch.addmm(bias, l, weight[row % 2, column % 2])

    def put(self, i: int, j: int, x: Tensor) -> None:
        """The value x [B, C] in [-1, 1] of pixel (i, j)."""
        value = F.pad(x, (0, 1), value=1.0)
        for patches in (self.input, self.above, self.beside):
            patches.put(i, j, value)
