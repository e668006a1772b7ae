"""The loop against the equations written out, the bound against torch's distributions, the twin's exactness."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.likelihood.conv_draw import ConvDRAW
from cambrian.systems.likelihood.conv_draw.model import PIXELS
from cambrian.worlds import figures

SMALL: dict[str, Any] = {"size": 8, "hidden": 6, "latent": 2, "steps": 3}
VARIANTS = [
    {}, {"scale": 4, "size": 16}, {"layers": 2}, {"prior": "standard"}, {"feedback": False}, {"kernel": 5},
    {"likelihood": "gaussian"}, {"likelihood": "bernoulli", "channels": 1}, {"steps": 1},
]  # fmt: skip


def make(**options: Any) -> ConvDRAW:
    torch.manual_seed(0)
    model = ConvDRAW(**{**SMALL, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))  # no bias at its first value
    return model.eval()


def pictures(n: int = 4, channels: int = 3, size: int = 8) -> Tensor:
    return figures.load(size=size, train=n, valid=1, test=1).train[torch.arange(n)]["image"][:, :channels]


# -- the loop --------------------------------------------------------------------------------------------------------


def lstm(cell: Any, inputs: Tensor, extra: Tensor | float, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One convolutional LSTM as one writes it first."""
    h, c = state
    pad = cell.recurrent.padding
    g, i, f, o = (
        F.conv2d(inputs, w, b, padding=pad) + F.conv2d(h, u, padding=pad) + e
        for w, b, u, e in zip(
            cell.input.weight.chunk(4), cell.input.bias.chunk(4), cell.recurrent.weight.chunk(4),
            extra.chunk(4, 1) if isinstance(extra, Tensor) else [extra] * 4, strict=True,
        )
    )  # fmt: skip
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def by_the_equations(model: ConvDRAW, image: Tensor, z: list[Tensor]) -> tuple[list[Any], Tensor]:
    """eps, h_e, q, p, h_d and r of one layer, straight from the card, with given latents."""
    x = (image.float() - 127.5) / 128
    side = image.shape[2] // model.scale
    zero = torch.zeros(len(x), model.hidden, side, side)
    encoder, decoder = (zero, zero), (zero, zero)
    r = model.canvas.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
    found = []
    for t in range(model.steps):
        eps = x - r[:, : model.channels]
        read = F.conv2d(torch.cat((x, eps), 1), torch.cat((model.read.weight, model.read_error.weight), 1),
                        stride=model.scale, padding=2)  # fmt: skip
        encoder = lstm(model.encoders[0], decoder[0], read, encoder)
        q, p = model.posteriors[0](encoder[0]).chunk(2, 1), model.priors[0](decoder[0]).chunk(2, 1)
        found.append((q, p))
        seen = F.conv2d(r, model.read_canvas.weight, stride=model.scale, padding=2)
        decoder = lstm(model.decoders[0], z[t], seen, decoder)
        r = r + F.pixel_shuffle(model.write(decoder[0]), model.scale)
    return found, r


@pytest.mark.parametrize("scale", [2, 4])
def test_the_loop_is_the_papers_equations(scale: int) -> None:
    model, image = make(scale=scale), pictures()
    shape = (4, *model.slot_shape(0, 8, 8))
    z = [torch.randn(shape) for _ in range(3)]
    seen: list[tuple[DiagGaussian, DiagGaussian]] = []

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        assert posterior is not None
        seen.append((posterior, prior))
        return z[slot]

    with torch.no_grad():
        canvas = model.unfold(choose, model.scaled(image))
        expected, last = by_the_equations(model, image, z)
    torch.testing.assert_close(canvas, last, rtol=1e-4, atol=1e-5)
    for pair, wanted in zip(seen, expected, strict=True):
        for mine, (mean, logvar) in zip(pair, wanted, strict=True):
            torch.testing.assert_close(mine.mean, mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mine.logvar, logvar.clamp(-10, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_prior_is_read_before_its_latents(layers: int) -> None:
    """d prior_s / d z_t is 0 for t >= s and not for t < s; a decoder that broke this could not decode."""
    model = make(layers=layers)
    z = [torch.randn(1, *model.slot_shape(s, 8, 8), requires_grad=True) for s in range(model.slots)]
    priors: list[DiagGaussian] = []

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        priors.append(prior)
        return z[slot]

    canvas = model.unfold(choose, batch=1)
    for s, prior in enumerate(priors):
        if s == 0:
            continue
        gradient = torch.autograd.grad(
            prior.mean.square().sum() + prior.logvar.square().sum(), z, retain_graph=True, allow_unused=True
        )
        assert all(g is None or not g.any() for g in gradient[s:])
        own = [t for t in range(s) if layers == 1 or s % 2 == 1 or t % 2 == 0]  # layer 2 does not hear layer 1
        assert all(gradient[t] is not None and gradient[t].any() for t in own)
    assert all(g.any() for g in torch.autograd.grad(canvas.square().sum(), z))


def test_single_shot_has_the_same_parameters() -> None:
    sizes = [[tuple(p.shape) for p in make(steps=t).parameters()] for t in (1, 3)]
    assert sizes[0] == sizes[1]


# -- the bound -------------------------------------------------------------------------------------------------------


def test_the_bound_is_torchs_and_below_the_evidence() -> None:
    """KL by torch.distributions from the same draws, pixels by the bins' masses; and the bound is a bound: averaged
    importance weights of 200 draws exceed it.
    """
    model, image = make(), pictures(2)
    nll, kl, _ = model.elbo(image, torch.Generator().manual_seed(3))
    generator, expected, log_w = torch.Generator().manual_seed(3), [], torch.zeros(2)

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        nonlocal log_w
        assert posterior is not None
        q, p = (torch.distributions.Normal(d.mean, d.std) for d in (posterior, prior))
        expected.append(torch.distributions.kl_divergence(q, p).flatten(1).sum(1))
        z = posterior.sample(generator)
        log_w = log_w + (p.log_prob(z) - q.log_prob(z)).flatten(1).sum(1)
        return z

    canvas = model.unfold(choose, model.scaled(image))
    torch.testing.assert_close(kl, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)
    mu, logvar = canvas.double().chunk(2, 1)
    sigma = torch.exp(0.5 * logvar - 3.0)
    normal = torch.distributions.Normal(mu, sigma)
    x = (image.double() - 127.5) / 128
    mass = (normal.cdf(x + 1 / 256) - normal.cdf(x - 1 / 256)).clamp_min(1e-300)
    inside = (image > 0) & (image < 255) & (mass > 1e-12)
    mine = PIXELS.log_prob(model.pixel_params(canvas), model.scaled(image))
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(mine.double()[inside], mass.log()[inside], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(nll, -mine.flatten(1).sum(1))
    many = image[:1].expand(200, -1, -1, -1)
    log_w, expected = torch.zeros(200), []
    with torch.no_grad():
        canvas = model.unfold(choose, model.scaled(many))
        weights = log_w + model.log_likelihood(canvas, many, generator)
        bounds = [model.elbo(many, generator) for _ in range(2)]
    mean_bound = torch.stack([n + k.sum(1) for n, k, _ in bounds]).mean()
    assert -(torch.logsumexp(weights, 0) - math.log(200)) <= mean_bound + 1.0


def test_the_uniform_observation_bounds_the_bins() -> None:
    """Jensen: a uniform draw in the bin costs at least the bin's mass, on average."""
    model, image = make(likelihood="gaussian"), pictures(2)
    canvas = torch.randn(2, 6, 8, 8) * 0.3
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([model.log_likelihood(canvas, image, generator) for _ in range(300)]).mean(0)
    bins = PIXELS.log_prob(model.pixel_params(canvas), model.scaled(image)).flatten(1).sum(1)
    assert (drawn <= bins + 1.0).all()
    assert (drawn > 1.2 * bins - 50).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model = make(**options).train()
    image = pictures(4, model.channels, model.size)
    nll, kl, means = model.elbo(image, torch.Generator().manual_seed(0), profile=True)
    assert kl.shape == (4, model.steps)
    assert (kl >= 0).all()
    torch.testing.assert_close(means.sum(), kl.sum(1).mean(), rtol=1e-4, atol=1e-4)
    (nll + kl.sum(1)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any() or model.steps == 1, name  # in one step, nothing is read from the zero state


# -- pictures --------------------------------------------------------------------------------------------------------


def test_reconstructions_and_samples() -> None:
    model, image = make(), pictures(3)
    g = torch.Generator
    whole = model.reconstruct(image, generator=g().manual_seed(0))
    assert whole.shape == image.shape
    assert whole.dtype == torch.uint8
    gist = [model.reconstruct(image, keep=0, generator=g().manual_seed(s)) for s in (0, 1)]
    assert torch.equal(gist[0], gist[1])  # nothing of the picture, nothing random
    assert torch.equal(gist[0][0], gist[0][1])
    assert torch.equal(gist[0], model.reconstruct(image, keep=0, rest="zero-var", generator=g()))
    drawn = [model.reconstruct(image, keep=1, rest="sample", generator=g().manual_seed(s)) for s in (0, 1)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(
        model.reconstruct(image, keep=1, generator=g().manual_seed(0)),
        model.reconstruct(image, keep=1, last=True, generator=g().manual_seed(0)),
    )
    cold = model.sample(3, 0.0, generator=g().manual_seed(0))
    assert torch.equal(cold, gist[0])
    wide = model.sample(2, generator=g().manual_seed(0), height=16, width=24)
    assert wide.shape == (2, 3, 16, 24)


@pytest.mark.parametrize("options", [{}, {"scale": 4}, {"layers": 2}, {"likelihood": "bernoulli"}])
def test_the_twin_is_exact(options: dict[str, Any]) -> None:
    """One picture or eight, another memory layout, another number of threads: the same bits, and float32's numbers."""
    model, image = make(**options), pictures(8)
    twin = model.exact()
    z = [torch.randn(8, *model.slot_shape(s, 8, 8)).double() for s in range(model.slots)]
    z = [torch.round(part / twin.grid) * twin.grid for part in z]

    def run(part: slice, source: ConvDRAW = twin) -> list[Tensor]:
        seen: list[Tensor] = []

        def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
            assert posterior is not None
            seen.extend((prior.mean, prior.logvar, posterior.mean, posterior.logvar))
            return z[slot][part].to(source.canvas.dtype)

        with torch.no_grad():
            seen.append(source.unfold(choose, source.scaled(image[part])))
        return seen

    together = run(slice(0, 8))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = run(slice(0, 8), twin.to(memory_format=torch.channels_last))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(together, again, strict=True):
        assert torch.equal(a, b)
    for i in range(8):
        for a, b in zip(together, run(slice(i, i + 1)), strict=True):
            assert torch.equal(a[i : i + 1], b)
    for a, b in zip(together, run(slice(0, 8), model), strict=True):
        torch.testing.assert_close(a, b.double(), rtol=0.02, atol=0.02)


def test_bad_requests_are_typed_errors() -> None:
    model, image = make(), pictures()
    for bad in (image.float(), image[0], image[:, :1], image[..., :7], image[:0]):
        with pytest.raises(ShapeError):
            model.elbo(bad, torch.Generator())
    for keep, rest in itertools.chain(((k, "mean") for k in (-1, 4)), [(1, "median")]):
        with pytest.raises(ConfigError):
            model.reconstruct(image, keep=keep, rest=rest, generator=torch.Generator())
    for options in (
        {"likelihood": "poisson"},
        {"prior": "flat"},
        {"layers": 3},
        {"kernel": 4},
        {"size": 9},
        {"scale": 3},
    ):
        with pytest.raises(ConfigError):
            ConvDRAW(**{**SMALL, **options})


def test_weights_round_trip(tmp_path: Path) -> None:
    model, image = make(), pictures()
    model.save_pretrained(tmp_path)
    again = ConvDRAW.from_pretrained(tmp_path)
    first, second = (m.elbo(image, torch.Generator().manual_seed(0))[0] for m in (model, again))
    assert torch.equal(first, second)
    assert torch.equal(kl_diag(DiagGaussian.standard(torch.zeros(2))), torch.zeros(2))
