"""Layers against loops, closed forms and two-pass references."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import (
    FAKE,
    REAL,
    DCGANDiscriminator,
    DCGANGenerator,
    GaussianNoise,
    MaxoutLinear,
    MinibatchDiscrimination,
    SplitBatchNorm,
    VirtualBatchNorm,
    WeightNormConv2d,
    WeightNormLinear,
    initialise_from_data,
    maxout,
    stages_for,
)


def test_minibatch_discrimination_equals_a_triple_loop() -> None:
    torch.manual_seed(0)
    layer, x = MinibatchDiscrimination(features=6, kernels=4, dims=3), torch.randn(5, 6)
    layer.initialise(torch.randn(16, 6))
    norm = layer.direction.square().sum(0).sqrt()
    rows = torch.einsum("na,abc->nbc", x, layer.direction * layer.log_scale.exp() / norm)
    expected = torch.zeros(5, 4)
    for i in range(5):
        for b in range(4):
            for j in range(5):
                if j != i:
                    expected[i, b] += torch.exp(-(rows[i, b] - rows[j, b]).abs().sum())
    out = layer(x)
    assert torch.equal(out[:, :6], x)
    torch.testing.assert_close(out[:, 6:], expected + layer.bias, atol=1e-5, rtol=0)


def test_minibatch_initialisation_puts_nearest_neighbours_two_apart_with_zero_mean() -> None:
    torch.manual_seed(1)
    layer, x = MinibatchDiscrimination(features=8, kernels=5, dims=2), torch.randn(40, 8) * 7
    layer.initialise(x)
    distances = layer.distances(x) + 1e6 * torch.eye(40)
    torch.testing.assert_close(distances.amin(2).mean(1), torch.full((5,), 2.0))
    torch.testing.assert_close(layer(x)[:, 8:].mean(0), torch.zeros(5), atol=1e-5, rtol=0)


def test_minibatch_layer_refuses_a_batch_of_one() -> None:
    with pytest.raises(ShapeError, match="batch >= 2"):
        MinibatchDiscrimination(features=3, kernels=2)(torch.randn(1, 3))


@pytest.mark.parametrize("learn_scale", [False, True])
def test_weight_norm_initialises_to_unit_activations(learn_scale: bool) -> None:
    torch.manual_seed(2)
    x = torch.randn(256, 5) * 3 + 1
    layer = WeightNormLinear(inputs=5, outputs=7, learn_scale=learn_scale)
    layer.initialise(x)
    out = layer(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(7), atol=1e-4, rtol=0)
    assert ("scale" in dict(layer.named_parameters())) is learn_scale
    assert "scale" in layer.state_dict()


def test_weight_norm_ignores_the_length_of_its_direction() -> None:
    torch.manual_seed(3)
    layer, x = WeightNormConv2d(inputs=2, outputs=3, kernel=3, padding=1), torch.randn(4, 2, 6, 6)
    before = layer(x)
    with torch.no_grad():
        layer.direction.mul_(5.0)
    torch.testing.assert_close(layer(x), before)
    norms = layer.weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, layer.scale)


def test_data_dependent_initialisation_reaches_every_layer_of_a_sequence() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(
        WeightNormLinear(inputs=4, outputs=6), nn.ReLU(), nn.Sequential(WeightNormLinear(inputs=6, outputs=2))
    )
    out = initialise_from_data(net, torch.randn(500, 4) * 9)
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)


def test_maxout_is_the_largest_of_its_pieces() -> None:
    torch.manual_seed(5)
    layer, x = MaxoutLinear(inputs=3, units=4, pieces=5), torch.randn(6, 3)
    pieces = layer.linear(x).view(6, 4, 5)
    assert torch.equal(layer(x), pieces.max(2).values)
    with pytest.raises(ShapeError, match="cannot be cut"):
        maxout(torch.randn(2, 7), 3)


def test_noise_is_there_in_training_only() -> None:
    layer, x = GaussianNoise(sigma=0.5), torch.zeros(20_000)
    assert abs(float(layer(x).std()) - 0.5) < 0.02
    assert torch.equal(layer.eval()(x), x)
    with pytest.raises(ConfigError, match="sigma"):
        GaussianNoise(sigma=-1.0)


def test_split_batch_norm_of_both_sources_equals_two_passes() -> None:
    torch.manual_seed(6)
    real, fake = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4) * 2 + 5
    once, twice = SplitBatchNorm(features=3), SplitBatchNorm(features=3)
    twice.load_state_dict(once.state_dict())
    together = once(torch.cat((real, fake)), (REAL, FAKE))
    apart = torch.cat((twice(real, (REAL,)), twice(fake, (FAKE,))))
    assert torch.equal(together, apart)
    assert torch.equal(once.running_mean, twice.running_mean)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict({**plain.state_dict(), "weight": once.weight, "bias": once.bias})
    torch.testing.assert_close(together[:8], plain(real))
    torch.testing.assert_close(once.running_mean[REAL], plain.running_mean)


def test_split_batch_norm_gives_real_samples_no_gradient_from_fake_ones() -> None:
    torch.manual_seed(7)
    both = torch.randn(8, 3, requires_grad=True)
    SplitBatchNorm(features=3)(both, (REAL, FAKE))[4:].square().sum().backward()
    assert both.grad is not None
    assert float(both.grad[:4].abs().max()) == 0.0 < float(both.grad[4:].abs().max())
    with pytest.raises(ShapeError, match="equal runs"):
        SplitBatchNorm(features=3)(torch.randn(5, 3), (REAL, FAKE))


def test_virtual_batch_norm_counts_each_sample_into_the_reference() -> None:
    torch.manual_seed(8)
    reference, x = torch.randn(6, 3, 2, 2), torch.randn(4, 3, 2, 2) * 3
    layer = VirtualBatchNorm(features=3, reference=6)
    out = layer(torch.cat((reference, x)))
    for i in range(4):
        pool = torch.cat((reference, x[i : i + 1]))
        mean = pool.mean((0, 2, 3), keepdim=True)
        variance = pool.var((0, 2, 3), unbiased=False, keepdim=True)
        expected = (x[i : i + 1] - mean) / (variance + layer.eps).sqrt()
        expected = expected * layer.weight.view(1, 3, 1, 1) + layer.bias.view(1, 3, 1, 1)
        torch.testing.assert_close(out[6 + i : 7 + i], expected, atol=1e-5, rtol=1e-4)
    alone = layer(torch.cat((reference, x[2:3])))[6:]
    torch.testing.assert_close(alone, out[8:9], atol=1e-6, rtol=1e-5)  # neighbours do not matter
    with pytest.raises(ShapeError, match="beyond"):
        layer(reference)
    with pytest.raises(ConfigError, match="reference"):
        VirtualBatchNorm(features=3, reference=1)


@pytest.mark.parametrize(("size", "stages"), [(64, 4), (32, 3), (28, 2), (8, 1)])
def test_dcgan_shapes_and_range(size: int, stages: int) -> None:
    assert stages_for(size) == stages
    torch.manual_seed(9)
    up = DCGANGenerator(latent=5, channels=3, size=size, base=4)
    down = DCGANDiscriminator(channels=3, size=size, base=4)
    x = up(torch.randn(2, 5))
    assert x.shape == (2, 3, size, size)
    assert float(x.detach().abs().max()) <= 1.0
    assert down(x).shape == (2, 1)
    assert [m.shape[-1] for m in down.maps(x)] == [size // 2 ** (i + 1) for i in range(stages)]


def test_the_papers_generator_is_1024_512_256_128() -> None:
    up = DCGANGenerator(latent=100, channels=3, size=64, base=128)
    assert up.first == (1024, 4)
    assert [block.conv.out_channels for block in up.blocks] == [512, 256, 128, 3]


def test_pyramid_pools_every_map_to_four_by_four() -> None:
    torch.manual_seed(10)
    down = DCGANDiscriminator(channels=1, size=32, base=4).eval()
    x = torch.rand(2, 1, 32, 32)
    features = down.pyramid(x)
    assert features.shape == (2, (4 + 8 + 16) * 16)
    first = nn.functional.max_pool2d(down.blocks[0](x), 4).flatten(1)
    torch.testing.assert_close(features[:, : 4 * 16], first)


def test_virtual_batch_norm_in_dcgan_makes_samples_independent() -> None:
    torch.manual_seed(11)
    up = DCGANGenerator(latent=4, channels=1, size=8, base=4, norm="virtual", reference=6)
    reference, z = torch.randn(6, 4), torch.randn(3, 4)
    both = up(z, reference)
    torch.testing.assert_close(both[1:2], up(z[1:2], reference), atol=1e-6, rtol=1e-5)
    with pytest.raises(ShapeError, match="reference"):
        up(z)


def test_sizes_that_do_not_halve_are_named() -> None:
    with pytest.raises(ShapeError, match="30 is not a multiple of 16"):
        DCGANGenerator(latent=4, channels=1, size=30, base=4, stages=4)
    with pytest.raises(ShapeError, match="must be"):
        DCGANDiscriminator(channels=1, size=8, base=4)(torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="norm"):
        DCGANDiscriminator(channels=1, size=8, base=4, stages=2, norm="layer")
