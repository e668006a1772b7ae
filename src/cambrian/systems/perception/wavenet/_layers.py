"""The layers of WaveNet, channels last. Shapes: B batch, T time, R residual, G gate, S skip channels, K classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.audio import mulaw
from cambrian.nn.causal.dilated import DilatedConv, doubling, receptive_field


class Stem(nn.Module):
    """The first causal convolution, over one-hot samples (a table look-up a tap) or over the samples' values."""

    values: Tensor

    def __init__(self, *, classes: int, channels: int, kernel: int = 2, inputs: str = "onehot") -> None:
        super().__init__()
        self.kernel = kernel
        rows = classes if inputs == "onehot" else 1
        scale = (kernel * (1 if inputs == "onehot" else 1 / 3)) ** -0.5  # outputs of about unit size either way
        self.weight = nn.Parameter(torch.randn(kernel, rows, channels) * scale)
        self.bias = nn.Parameter(torch.zeros(channels))
        levels = torch.as_tensor(mulaw.decode(torch.arange(classes), classes), dtype=torch.float32)
        self.register_buffer("values", levels[:, None], persistent=False)

    def table(self) -> Tensor:
        """What each sample value adds at each tap, the oldest first: [k, K, R]."""
        return self.weight if self.weight.shape[1] == len(self.values) else self.values * self.weight

    def forward(self, idx: Tensor) -> Tensor:
        """idx [B, T] -> [B, T - k + 1, R]."""
        length = idx.shape[1] - self.kernel + 1
        taps = (F.embedding(idx[:, j : j + length], rows) for j, rows in enumerate(self.table()))
        return sum(taps, self.bias)


class GatedLayer(nn.Module):
    """z = tanh(Wf * h + ..) sigmoid(Wg * h + ..), and one product of z gives both the residual and the skip output."""

    def __init__(self, *, residual: int, gate: int, skip: int, kernel: int, dilation: int, last: bool) -> None:
        super().__init__()
        self.residual = 0 if last else residual  # what the last layer would hand on, nobody reads
        self.conv = DilatedConv(inputs=residual, outputs=2 * gate, kernel=kernel, dilation=dilation)
        self.out = nn.Linear(gate, self.residual + skip)

    def forward(self, h: Tensor, extra: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """h [B, T, R], extra [B, >= T - span | 1, 2G] -> the next h [B, T - span, R], skip [B, count, S]."""
        a = self.conv(h)
        if extra is not None:
            a = a + extra[:, -a.shape[1] :]
        return self.finish(a, h[:, self.conv.span :], count)

    def finish(self, a: Tensor, h: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """From the gate's inputs a [B, T, 2G] and the residual path h [B, T, R]."""
        filtered, gate = a.chunk(2, -1)
        z = torch.tanh(filtered) * torch.sigmoid(gate)
        if not self.residual:
            return h, self.out(z[:, -count:])
        both = self.out(z)
        return h + both[..., : self.residual], both[:, -count:, self.residual :]


class Upsample(nn.Module):
    """Frames [B, F, C] to samples [B, F s, C'] by a learned transposed convolution that starts as linear interpolation.

    The filter is 3 s long and centred on its frame: sample t lies in frame t // s, and values are those of the frames'
    middles. Sums over the filter's phases are equal at the start, so there is no checkerboard to unlearn.
    """

    def __init__(self, *, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.ConvTranspose1d(inputs, outputs, 3 * stride, stride=stride, padding=stride)
        middle = (3 * stride - 1) / 2
        ramp = (1 - (torch.arange(3 * stride) - middle).abs() / stride).clamp(min=0)
        with torch.no_grad():
            mix = torch.randn(inputs, outputs) * inputs**-0.5
            self.conv.weight.copy_(mix[:, :, None] * ramp)
            nn.init.zeros_(self.conv.bias)

    def forward(self, y: Tensor) -> Tensor:
        """y [B, F, C] -> [B, F s, C']; at both ends the outermost frame counts as going on."""
        padded = torch.cat((y[:, :1], y, y[:, -1:]), 1)
        return self.conv(padded.transpose(1, 2))[..., self.stride : -self.stride].transpose(1, 2)


class ContextStack(nn.Module):
    """A smaller, slower WaveNet over means of `pool` samples; what it says about the past conditions the big stack.

    Blocks of `pool` samples are counted from time 0; the sample at time u is told of the blocks that are over by then.
    """

    def __init__(self, *, classes: int, layers: int, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.embed = nn.Embedding(classes, width)
        dilations = doubling(layers)
        self.layers = nn.ModuleList(
            GatedLayer(residual=width, gate=width, skip=width, kernel=2, dilation=d, last=d == dilations[-1])
            for d in dilations
        )
        self.blocks = receptive_field(dilations)

    @property
    def span(self) -> int:
        """How many samples before a position must be there, so that it is told of `blocks` blocks."""
        return (self.blocks + 1) * self.pool

    def forward(self, idx: Tensor, start: int, count: int) -> Tensor:
        """For the successors of the last `count` samples of idx [B, T], whose first is at time `start`: [B, count, W]."""
        length = idx.shape[1]
        begin = -start % self.pool
        n = (length - begin) // self.pool
        embedded = self.embed(idx[:, begin : begin + n * self.pool])
        h = embedded.unflatten(1, (n, self.pool)).mean(2)
        keep = n - self.blocks + 1
        skips = 0.0
        for layer in self.layers:
            h, skip = layer(h, None, keep)
            skips = skips + skip
        first = (start + begin) // self.pool + self.blocks - 1  # the number of the first block with an output
        target = torch.arange(start + length - count, start + length, device=idx.device) + 1
        return F.relu(skips)[:, torch.div(target, self.pool, rounding_mode="floor") - 1 - first]
