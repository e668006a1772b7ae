"""Convolutions that look up and left only, causal by padding and not by masks (Salimans et al. 2017, arXiv 1701.05517).

Two streams cover what precedes a pixel in raster order: one sees rows above (and, below its first layer, its own row of a
shifted input), one sees rows above and pixels to the left. `DownShifted` pads k-1 rows on top and (l-1)/2 columns on each
side; `DownRightShifted` pads k-1 rows on top and l-1 columns on the left. With `stride` 2 output i sees inputs up to 2 i;
the transposed ones spread it over 2 i and 2 i + 1, so no pixel meets what comes after it.

Shapes: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from cambrian.nn.causal.weight_norm import WNConv2d


def shift_down(x: Tensor) -> Tensor:
    """Rows moved down by one: row 0 is zero, the last is dropped."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Columns moved right by one: column 0 is zero, the last is dropped."""
    return F.pad(x, (1, 0))[:, :, :, :-1]


class DownShifted(WNConv2d):
    """Kernel k x l over rows above and this one, all around in columns."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 3), *, stride: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        rows, side = self.kernel[0] - 1, (self.kernel[1] - 1) // 2
        return super().forward(F.pad(x, (side, side, rows, 0)))


class DownRightShifted(WNConv2d):
    """Kernel k x l over rows above and this one, columns to the left and this one."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 2), *, stride: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (k - 1 for k in self.kernel)
        return super().forward(F.pad(x, (columns, 0, rows, 0)))


class DownShiftedUp(WNConv2d):
    """Transposed 2 x 3, stride 2: [B, C, H, W] -> [B, C', 2 H, 2 W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (2, 3), stride=2, transposed=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, :, 1 : 2 * x.shape[3] + 1]


class DownRightShiftedUp(WNConv2d):
    """Transposed 2 x 2, stride 2: [B, C, H, W] -> [B, C', 2 H, 2 W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (2, 2), stride=2, transposed=True)
