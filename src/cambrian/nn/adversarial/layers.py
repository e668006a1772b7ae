"""Layers that discriminators and generators of 2014-2017 are made of.

Maxout and Gaussian noise, minibatch discrimination, weight normalisation with data-dependent initialisation, and two
batch norms that keep an adversarial batch honest: `SplitBatchNorm` (statistics per source of data) and
`VirtualBatchNorm` (statistics of a fixed reference batch).

Shapes: N samples, A features, B kernels, C dimensions of a kernel, R reference samples. Images are `[N, C, H, W]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError

REAL, FAKE = 0, 1


def maxout(x: Tensor, pieces: int) -> Tensor:
    """Largest of each run of `pieces` neighbouring channels: `[N, units * pieces, ...] -> [N, units, ...]`."""
    if x.shape[1] % pieces:
        raise ShapeError(f"{x.shape[1]} channels cannot be cut into runs of {pieces}")
    return x.unflatten(1, (x.shape[1] // pieces, pieces)).amax(2)


class MaxoutLinear(nn.Module):
    """`max_j (W_j x + b_j)` over `pieces` affine maps (Goodfellow et al. 2013, 1302.4389)."""

    def __init__(self, *, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, units * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return maxout(self.linear(x), self.pieces)


class GaussianNoise(nn.Module):
    """Adds N(0, sigma^2) while training, from torch's global generator as dropout does."""

    def __init__(self, *, sigma: float) -> None:
        super().__init__()
        if sigma < 0:
            raise ConfigError(f"sigma must be >= 0, got {sigma}")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x) if self.training and self.sigma else x


class MinibatchDiscrimination(nn.Module):
    """Tells each sample how close the others of its batch are (Salimans et al. 2016, 1606.03498, section 3.2).

        M_i = f(x_i) T,  c_b(i, j) = exp(-|| M_ib - M_jb ||_1),  o_b(i) = sum_{j != i} c_b(i, j) + bias_b

    `[N, A] -> [N, A + B]`. As in the released code T is weight-normalised, and `initialise` sets its scale so that
    the nearest neighbour of a sample is 2 away on average and o has mean 0. Hand in real and fake batches
    separately, never mixed: the layer would tell them apart by their neighbours.
    """

    def __init__(self, *, features: int, kernels: int = 100, dims: int = 5) -> None:
        super().__init__()
        self.kernels, self.dims = kernels, dims
        self.direction = nn.Parameter(torch.randn(features, kernels, dims) * 0.05)
        self.log_scale = nn.Parameter(torch.zeros(kernels, dims))
        self.bias = nn.Parameter(torch.full((kernels,), -1.0))

    def distances(self, x: Tensor) -> Tensor:
        """L1 distances `[B, N, N]` between all pairs, kernel by kernel; `cdist` never builds the `[N, N, B, C]`
        tensor.
        """
        if x.ndim != 2 or x.shape[0] < 2:
            raise ShapeError(f"minibatch discrimination needs [batch >= 2, features], got {tuple(x.shape)}")
        norm = torch.linalg.vector_norm(self.direction, dim=0)
        kernel = self.direction * (self.log_scale.exp() / norm)
        rows = (x @ kernel.flatten(1)).unflatten(1, (self.kernels, self.dims)).transpose(0, 1).contiguous()
        return torch.cdist(rows, rows, p=1.0)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Scale and bias from one batch of features `[N, A]`."""
        far = torch.eye(x.shape[0], device=x.device) * 1e6
        nearest = (self.distances(x) + far).amin(2).mean(1).clamp_min(1e-8)
        self.log_scale -= (0.5 * nearest).log()[:, None]
        self.bias.copy_(-self._similarity(x).mean(0))

    def _similarity(self, x: Tensor) -> Tensor:
        # the distance of a sample to itself is exactly 0, so leaving it out is subtracting exactly 1
        return (torch.exp(-self.distances(x)).sum(2) - 1.0).T

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self._similarity(x) + self.bias), dim=1)


class _WeightNorm(nn.Module):
    """`y = s * (v . x) / |v| + b` per output unit (Salimans & Kingma 2016, 1602.07868, eq. 2); `learn_scale=False`
    leaves s fixed after initialisation, as the hidden layers of the released semi-supervised nets do."""

    def __init__(self, shape: tuple[int, ...], learn_scale: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(shape) * 0.05)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        scale = torch.ones(shape[0])
        if learn_scale:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def weight(self) -> Tensor:
        """The normalised weight, each output unit's of norm `scale`."""
        norm = torch.linalg.vector_norm(self.direction.flatten(1), dim=1)
        return self.direction * (self.scale / norm).view(-1, *[1] * (self.direction.ndim - 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Scale and bias so that each output unit has mean 0 and variance 1 on this batch; gives the output."""
        out = self.forward(x)
        dims = [0, *range(2, out.ndim)]
        mean, deviation = out.mean(dims), out.var(dims, unbiased=False).sqrt().clamp_min(1e-6)
        self.bias.copy_((self.bias - mean) / deviation)
        self.scale.div_(deviation)
        return self.forward(x)


class WeightNormLinear(_WeightNorm):
    """Fully connected: `[N, inputs] -> [N, outputs]`."""

    def __init__(self, *, inputs: int, outputs: int, learn_scale: bool = False) -> None:
        super().__init__((outputs, inputs), learn_scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)


class WeightNormConv2d(_WeightNorm):
    """Square convolution: `[N, inputs, H, W] -> [N, outputs, H', W']`."""

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__((outputs, inputs, kernel, kernel), learn_scale)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding)


@torch.no_grad()
def initialise_from_data(net: nn.Sequential, x: Tensor) -> Tensor:
    """Run a batch through a sequence; every layer with an `initialise(x)` sets itself by the activations it meets."""
    for layer in net:
        if isinstance(layer, nn.Sequential):
            x = initialise_from_data(layer, x)
            continue
        if hasattr(layer, "initialise"):
            layer.initialise(x)
        x = layer(x)
    return x


class SplitBatchNorm(nn.Module):
    """Batch norm with statistics per source: a batch made of equal runs of several sources is normalised run by run.

    One pass over `cat(real, fake)` then equals two passes over real and fake. Statistics over the mixture would
    tell the discriminator which share is fake, and the generator's gradient would run through the real samples.
    Scale and shift are shared; running statistics (evaluation mode) are kept for each of `sources`.
    """

    def __init__(self, *, features: int, sources: int = 2, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.normal(1.0, 0.02, (features,)))  # DCGAN's initialisation
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(sources, features))
        self.register_buffer("running_var", torch.ones(sources, features))

    def forward(self, x: Tensor, sources: tuple[int, ...] = (REAL,)) -> Tensor:
        """`sources` names the source of each of the equal runs that `x [N, F, ...]` consists of."""
        if x.shape[0] % len(sources):
            raise ShapeError(f"a batch of {x.shape[0]} cannot be cut into equal runs of {len(sources)} sources")
        parts = zip(x.chunk(len(sources)), sources, strict=True)
        runs = [self._normalise(run, source) for run, source in parts]
        return runs[0] if len(runs) == 1 else torch.cat(runs)

    def _normalise(self, x: Tensor, source: int) -> Tensor:
        # statistics are copied out and back: under vmap, batch norm would update a copy of a row and lose it
        mean, var = self.running_mean[source].clone(), self.running_var[source].clone()
        x = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        if self.training:
            self.running_mean[source].copy_(mean)
            self.running_var[source].copy_(var)
        return x


class VirtualBatchNorm(nn.Module):
    """Normalises each sample by a reference batch and itself (Salimans et al. 2016, section 3.5).

    The first `reference` rows of the input are the reference batch; statistics of another row are those of the
    reference batch with that row counted in, weight `1 / (R + 1)`. So a net of such layers is called as
    `net(cat(reference, x))[R:]` and no sample's output depends on its neighbours.
    """

    def __init__(self, *, features: int, reference: int, eps: float = 1e-5) -> None:
        super().__init__()
        if reference < 2:
            raise ConfigError(f"a reference batch needs at least 2 samples, got {reference}")
        self.reference, self.eps = reference, eps
        self.weight = nn.Parameter(torch.normal(1.0, 0.02, (features,)))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] <= self.reference:
            raise ShapeError(f"a batch of {x.shape[0]} rows holds no sample beyond the {self.reference} of reference")
        spatial = list(range(2, x.ndim))
        mean = x.mean(spatial) if spatial else x  # [N, F]
        square = x.square().mean(spatial) if spatial else x.square()
        held_mean, held_square = mean[: self.reference].mean(0), square[: self.reference].mean(0)
        share = 1.0 / (self.reference + 1)
        own_mean = torch.lerp(held_mean.expand_as(mean), mean, share)
        own_square = torch.lerp(held_square.expand_as(square), square, share)
        is_reference = (torch.arange(x.shape[0], device=x.device) < self.reference)[:, None]
        mean = torch.where(is_reference, held_mean, own_mean)
        variance = torch.where(is_reference, held_square, own_square) - mean.square()
        scale = self.weight * (variance + self.eps).rsqrt()
        shape = (*mean.shape, *[1] * len(spatial))
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)
