"""EBGAN: rounds of a grid of cells in one stack against the same cells one after the other; the pulling-away term.

The serial peer trains each cell with its own modules and torch's fused Adam. Both start from the same weights and see
the same batches, and end with the same losses. The grid is tried with narrow cells, where Python is most of the time,
and with the claim's widest, where the products are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.inspect.bench import compare
from cambrian.nn.adversarial import FAKE, REAL, margin_loss, pulling_away
from cambrian.systems.gans.ebgan import _grid

BATCH, LATENT, MARGIN, PIXELS = 64, 64, 0.8, (1, 8, 8)


class Serial:
    """The cells of a grid as ordinary modules and optimisers, one round of each after the other."""

    def __init__(self, cells: list[_grid.Cell], train: Tensor) -> None:
        self.train = train
        self.nets = [cell.nets(PIXELS, LATENT, "split") for cell in cells]
        self.draws = [torch.Generator().manual_seed(cell.seed + 1) for cell in cells]
        self.optims = [
            [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=True) for net in pair]
            for pair in self.nets
        ]

    def step(self) -> Tensor:
        """One round of every cell; the discriminators' losses."""
        losses = []
        for (up, down), (g_optim, d_optim), draw in zip(self.nets, self.optims, self.draws, strict=True):
            x = self.train[torch.randint(len(self.train), (BATCH,), generator=draw)]
            fake = up(2.0 * torch.rand(BATCH, LATENT, generator=draw) - 1.0)
            real, made = down(torch.cat((x, fake.detach())), (REAL, FAKE))[0].chunk(2)
            loss = margin_loss(real, made, MARGIN)
            d_optim.zero_grad()
            loss.backward()
            d_optim.step()
            energy, codes = down(fake, (FAKE,))
            g_optim.zero_grad()
            (energy.mean() + 0.1 * pulling_away(codes)).backward()
            g_optim.step()
            losses.append(loss.detach())
        return torch.stack(losses)


def grid(width: int, members: int) -> None:
    """Equal losses over some rounds, then the time of one round of all members."""
    train = torch.rand(500, *PIXELS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cells = _grid.product("ebgan", layers=(2,), widths=(width,), dropouts=(0.0,), replicates=members)
    stack, serial = _grid.Population(cells, train, batch=BATCH, latent=LATENT, margin=MARGIN), Serial(cells, train)
    for _ in range(5):
        torch.testing.assert_close(stack.step()["d_loss"], serial.step(), atol=1e-3, rtol=1e-2)
    print(f"{members} cells, width {width}:", end=" ")
    print(compare({"stacked": stack.step, "one by one": serial.step}, repeats=15, threads=1))


def away_by_loop(codes: Tensor) -> Tensor:
    """The pulling-away term row by row, as it is printed."""
    total = codes.new_zeros(())
    for i in range(len(codes)):
        cosines = F.cosine_similarity(codes[i : i + 1], codes, dim=1)
        total = total + cosines.square().sum() - cosines[i].square()
    return total / (len(codes) * (len(codes) - 1))


def main() -> None:
    torch.manual_seed(0)
    for width, members in ((32, 16), (256, 4)):
        grid(width, members)
    codes = torch.randn(128, 256)
    torch.testing.assert_close(pulling_away(codes), away_by_loop(codes), atol=1e-6, rtol=1e-5)

    def slope(term):
        leaf = codes.clone().requires_grad_()
        return torch.autograd.grad(term(leaf), leaf)[0]

    torch.testing.assert_close(slope(pulling_away), slope(away_by_loop), atol=1e-7, rtol=1e-4)
    pair = {"one Gram matrix": lambda: slope(pulling_away), "row by row": lambda: slope(away_by_loop)}
    print("pulling away:", compare(pair, repeats=25, threads=1))


if __name__ == "__main__":
    main()
