"""Oracles of the model: closed forms, quadrature, brute force, finite differences."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.nn.latent import DiagGaussian, Funnel, bound_loss, kl_diag, log_mean_exp, normalised_weights
from cambrian.systems.likelihood.vae import VAE, Pixels
from cambrian.systems.likelihood.vae._objectives import objective_loss, wake_sleep_loss
from cambrian.systems.likelihood.vae._semi import every_class, marginal_nll, unlabelled_bound

TINY = dict(shape=(1, 2, 3), hidden=(5,), latent=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(seed: int = 0, **settings: object) -> VAE:
    """A model in float64 whose pictures depend on z, and whose posterior covers where they do."""
    torch.manual_seed(seed)
    model = VAE(**{**TINY, **settings}).double()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)
        model.posterior.weight.mul_(0.6)
        model.posterior.bias[model.latent : 2 * model.latent] = 0.5
        if model.prior is not None:
            model.prior.weight.mul_(0.3)
    return model


def coins(n: int = 4, shape: tuple[int, ...] = (1, 2, 3), seed: int = 3) -> Tensor:
    return torch.randint(2, (n, *shape), generator=seeded(seed)).double()


# -- a linear VAE is probabilistic PCA -----------------------------------------------------------------------------------


def blobs() -> Tensor:
    """Pictures [300, 1, 2, 3] with two strong directions, in [0, 1]."""
    load = torch.tensor([[0.12, 0.05, -0.03, 0.06, 0.0, 0.02], [0.0, -0.07, 0.06, 0.02, 0.05, -0.01]]).double()
    x = 0.5 + torch.randn(300, 2, generator=seeded(1)).double() @ load
    return (x + 0.03 * torch.randn(300, 6, generator=seeded(2)).double()).clamp(0, 1).view(-1, 1, 2, 3)


def pca(x: Tensor) -> tuple[Tensor, Tensor, Tensor, MultivariateNormal]:
    """Mean, loadings [6, 2] and noise variance at the maximum of the likelihood (Tipping & Bishop 1999), and p(x)."""
    flat = x.flatten(1)
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    noise = values[:4].mean()
    load = vectors[:, 4:] * (values[4:] - noise).sqrt()
    return mean, load, noise, MultivariateNormal(mean, load @ load.T + noise * torch.eye(6).double())


def analytic_bound(model: VAE, x: Tensor) -> Tensor:
    """The bound of a linear VAE with its expectation over z in closed form, mean over x."""
    q, weight = model.encode(x), model.decoder.head.weight
    error = (x.flatten(1) - model.decoder.head(q.mean)).square().sum(1)
    spread = (q.logvar.exp() * weight.square().sum(0)).sum(1)
    log_p = -0.5 * (6 * (math.log(2 * math.pi) + model.logvar) + (error + spread) * torch.exp(-model.logvar))
    return (log_p - kl_diag(q).sum(1)).mean()


def test_a_linear_vae_reaches_probabilistic_pca_and_never_exceeds_it() -> None:
    x = blobs()
    best = float(pca(x)[3].log_prob(x.flatten(1)).mean())
    model = build(hidden=(), likelihood="gaussian-scalar")
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )
    seen: list[float] = []

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -analytic_bound(model, x)
        loss.backward()
        seen.append(-float(loss.detach()))
        return loss

    optimiser.step(closure)
    assert max(seen) <= best + 1e-9
    assert max(seen) == pytest.approx(best, abs=1e-2)
    with torch.no_grad():  # the model's own estimators agree with the closed form
        sampled = model.elbo(x, seeded(), samples=400).value.mean()
        assert float(sampled) == pytest.approx(max(seen), abs=0.02)
        assert -float(model.nll(x, seeded(), 400).mean()) == pytest.approx(best, abs=0.02)


def test_with_the_exact_posterior_every_bound_is_the_likelihood() -> None:
    x = blobs()[:20]
    mean, load, noise, density = pca(blobs())
    model = build(hidden=(), likelihood="gaussian-scalar")
    variance = 1.0 / (1.0 + load.square().sum(0) / noise)  # the columns of the loadings are orthogonal
    with torch.no_grad():
        model.decoder.head.weight.copy_(load)
        model.decoder.head.bias.copy_(mean)
        model.logvar.copy_(noise.log())
        model.centre.copy_(mean.view(1, 2, 3))
        model.posterior.weight.zero_()
        model.posterior.weight[:2] = variance[:, None] * load.T / noise
        model.posterior.bias[2:] = variance.log()
        expected = density.log_prob(x.flatten(1))
        log_w = model.log_weights(x, model.draw(x, 6, seeded()))
        torch.testing.assert_close(log_w, expected.expand(6, -1), atol=1e-5, rtol=0)
        for k in (1, 7):
            torch.testing.assert_close(model.iwae(x, k, seeded()), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(analytic_bound(model, x), expected.mean(), atol=1e-5, rtol=0)


# -- likelihoods by quadrature ---------------------------------------------------------------------------------------------


def exact_log_p(model: VAE, x: Tensor, y: Tensor | None) -> Tensor:
    """log p(x) [B] by a sum over a grid of both latent features (of both layers)."""
    axis = torch.linspace(-6, 6, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = 2 * math.log(float(axis[1] - axis[0]))
    if model.second:
        below = DiagGaussian(*model.down(grid[:, 1:]).chunk(2, 1))
        z, log_prior = (
            grid[:, :1],
            DiagGaussian.standard(grid[:, 1:]).log_prob(grid[:, 1:]) + below.log_prob(grid[:, :1]),
        )
        log_prior = log_prior[:, None]
    else:
        prior = model._prior(y, torch.zeros(len(x), 2).double())
        z, log_prior = grid, prior.log_prob(grid[:, None, :].expand(-1, len(x), -1))
    log_lik = model.log_likelihood(x, z[:, None, :].expand(-1, len(x), -1), y)
    return torch.logsumexp(log_lik + log_prior + cell, 0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"flow": "planar", "flow_layers": 1}, {"flow": "iaf"}, {"latent": 1, "second": 1}, {"classes": 3, "learned_prior": True},
     {"classes": 3}, {"likelihood": "categorical", "levels": 2}],
    ids=["plain", "planar", "iaf", "two layers", "learned prior", "conditional", "categorical"],
)  # fmt: skip
@torch.no_grad()
def test_bounds_rise_to_the_likelihood_by_quadrature(settings: dict[str, object]) -> None:
    model, x = build(**settings), coins()
    y = torch.tensor([0, 1, 2, 1]) if model.classes else None
    truth = exact_log_p(model, x, y)
    many = torch.stack([model.log_weights(x, model.draw(x, 50, seeded(s), y), y) for s in range(400)])
    bounds = [log_mean_exp(many.view(-1, k, len(x)), 1) for k in (1, 5, 50)]
    means, errors = ([f(b) for b in bounds] for f in (lambda b: b.mean(0), lambda b: b.std(0) / len(b) ** 0.5))
    for tighter in (1, 2):
        assert (means[tighter] > means[tighter - 1] - 3 * errors[tighter - 1]).all()
    assert (means[2] < truth + 4 * errors[2]).all()
    torch.testing.assert_close(-model.nll(x, seeded(9), 20_000, y), truth, atol=0.05, rtol=0)
    # estimator B, whose divergence is a formula where there is one, agrees with the mean log weight
    elbo = model.elbo(x, seeded(5), 20_000, y).value
    assert ((elbo - means[0]).abs() < 6 * errors[0] + 0.02).all()


@torch.no_grad()
def test_analytic_divergence_equals_the_sampled_one() -> None:
    model, x = build(classes=3, learned_prior=True), coins()
    draw = model.draw(x, 40_000, seeded(), torch.tensor([0, 1, 2, 0]))
    sampled = draw.log_q - draw.log_prior
    assert ((draw.kl[0].sum(1) - sampled.mean(0)).abs() < 5 * sampled.std(0) / 200).all()


@torch.no_grad()
def test_chunks_and_a_loop_over_samples_give_the_same_estimate() -> None:
    for settings in ({}, {"latent": 1, "second": 1}):
        model, x = build(**settings), coins()
        whole = model.nll(x, seeded(), 37)
        torch.testing.assert_close(model.nll(x, seeded(), 37, chunk=1), whole)
        noise = model.noise(37, len(x), seeded())
        rows = [model.log_weights(x, model.draw(x, 1, seeded(), noise=one[None])) for one in noise]
        torch.testing.assert_close(-log_mean_exp(torch.cat(rows)), whole)


# -- estimators --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"samples": 3, "beta": 0.4}, {"floor": 0.2}, {"objective": "iwae", "samples": 4}]
)
def test_gradients_equal_finite_differences(options: dict[str, object]) -> None:
    model, x = build(), coins()
    parameters = list(model.parameters())
    loss, _ = objective_loss(model, x, seeded(7), **options)
    gradient = torch.autograd.grad(loss, parameters)
    direction = [torch.randn(p.shape, generator=seeded(i)).double() for i, p in enumerate(parameters)]
    values = []
    with torch.no_grad():
        for move in (1e-6, -2e-6):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(d, alpha=move)
            values.append(float(objective_loss(model, x, seeded(7), **options)[0]))
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"second": 2}], ids=["one layer", "two layers"])
def test_dreg_gives_the_encoder_squared_weights_and_the_decoder_plain_ones(settings: dict[str, int]) -> None:
    model, x = build(**settings), coins()
    noise = model.noise(4, len(x), seeded())
    log_w = model.log_weights(x, model.draw(x, 4, seeded(), noise=noise, path_only=True))
    w = normalised_weights(log_w)
    groups = {"decoder": [model.decoder, *([model.down] if model.second else [])],
              "encoder": [model.encoder, model.posterior, *([model.up] if model.second else [])]}  # fmt: skip
    expected, parameters = [], []
    for name, power in (("decoder", 1), ("encoder", 2)):
        own = [p for module in groups[name] for p in module.parameters()]
        loss = -(w**power * log_w).sum(0).mean()
        expected += torch.autograd.grad(loss, own, retain_graph=True)
        parameters += own
    funnel = Funnel()
    again = model.log_weights(x, model.draw(x, 4, seeded(), noise=noise, path_only=True, funnel=funnel))
    funnel.close(again)
    found = torch.autograd.grad(bound_loss(again, "dreg"), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("settings", [{}, {"second": 2}], ids=["one layer", "two layers"])
@pytest.mark.parametrize(("kind", "peer"), [("stl", "elbo-sampled"), ("dreg", "iwae")])
def test_path_estimators_agree_on_average(kind: str, peer: str, settings: dict[str, int]) -> None:
    model = build(**settings)
    x = coins().repeat(100, 1, 1, 1)
    parameters = [*model.posterior.parameters(), *(model.up.parameters() if model.second else ())]
    runs = {}
    for objective in (kind, peer):
        rows = []
        for seed in range(12):
            loss, _ = objective_loss(
                model, x, seeded(seed + (50 if objective == peer else 0)), objective=objective, samples=3
            )
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        runs[objective] = torch.stack(rows)
    error = (sum(r.var(0) for r in runs.values()) / 12).sqrt()
    gap = (runs[kind].mean(0) - runs[peer].mean(0)).abs()
    assert ((gap / error.clamp(min=1e-12)).square().mean() < 2.5) and (gap < 7 * error + 1e-9).all()


def test_wake_sleep_sends_no_gradient_through_a_sample() -> None:
    model, x = build(), coins()
    loss, scalars = wake_sleep_loss(model, x, seeded(), 2, None)
    decoder, encoder = list(model.decoder.parameters()), [*model.encoder.parameters(), *model.posterior.parameters()]
    found = torch.autograd.grad(loss, [*decoder, *encoder])
    generator = seeded()  # the same draws, each half alone
    with torch.no_grad():
        z = model.encode(x).sample(generator, 2)
        code = model.codes(len(x), generator)
        dream = model.pixels.sample(model.planes(code[None], None)[0], generator)
    alone = [*torch.autograd.grad(-model.log_likelihood(x, z).mean(), decoder),
             *torch.autograd.grad(-model.encode(dream).log_prob(code).mean(), encoder)]  # fmt: skip
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other)
    assert float(scalars["wake"] + scalars["sleep"]) == pytest.approx(float(loss.detach()))


# -- semi-supervised -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_unlabelled_bound_sums_over_classes_and_bounds_the_likelihood() -> None:
    model, x = build(classes=3, recogniser=True), coins()
    found = unlabelled_bound(model, x, seeded())
    every, y = every_class(x, 3)
    bounds = model.elbo(every, seeded(), y=y).value.view(3, -1)
    q = torch.softmax(model.classify(x), 1)
    for b in range(len(x)):
        terms = [float(q[b, c]) * (float(bounds[c, b]) - math.log(3) - math.log(float(q[b, c]))) for c in range(3)]
        assert float(found[b]) == pytest.approx(sum(terms))
    truth = torch.logsumexp(torch.stack([exact_log_p(model, x, torch.full((4,), c)) for c in range(3)]), 0) - math.log(
        3
    )
    torch.testing.assert_close(-marginal_nll(model, x, seeded(), 10_000), truth, atol=0.05, rtol=0)
    many = torch.stack([unlabelled_bound(model, x, seeded(s)) for s in range(400)]).mean(0)
    assert (many < truth + 0.05).all()


# -- pixels and nets -----------------------------------------------------------------------------------------------------------


def test_planes_are_read_as_what_they_mean() -> None:
    raw = torch.randn(2, 5, 6, 2, 2, generator=seeded())  # K, B, 3 channels of 2 levels, H, W
    x = torch.randint(2, (5, 3, 2, 2), generator=seeded(1)).float()
    found = Pixels("categorical", channels=3, levels=2).log_prob(raw, x)
    logits = raw.view(2, 5, 3, 2, 2, 2)
    expected = torch.zeros(2, 5)
    for k, b, c, i, j in torch.cartesian_prod(*map(torch.arange, (2, 5, 3, 2, 2))).tolist():
        expected[k, b] += logits[k, b, c, :, i, j].log_softmax(0)[int(x[b, c, i, j])]
    torch.testing.assert_close(found, expected)
    wide = raw.clone()
    normal = Pixels("gaussian-pixel", channels=3).log_prob(wide, x)
    mean, logvar = raw.view(2, 5, 3, 2, 2, 2).unbind(3)
    peer = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(x).flatten(2).sum(2)
    torch.testing.assert_close(normal, peer)


def test_discrete_likelihoods_give_masses_to_the_levels_of_a_pixel() -> None:
    levels = (torch.arange(256) / 255.0).view(-1, 1, 1, 1)
    for kind, grid in (
        ("logistic", levels),
        ("categorical", (torch.arange(16) / 15.0).view(-1, 1, 1, 1)),
        ("dmol", levels),
    ):
        pixels = Pixels(kind, channels=1)
        raw = torch.randn(1, 1, pixels.planes, 1, 1, generator=seeded()) * 0.3
        mass = pixels.log_prob(raw.expand(1, len(grid), -1, -1, -1), grid).exp().sum()
        assert float(mass) == pytest.approx(1.0, abs=1e-4)
        drawn = pixels.sample(raw[0].expand(500, -1, -1, -1), seeded())
        assert torch.isin((drawn * (len(grid) - 1)).round(), (grid * (len(grid) - 1)).round()).all()
        assert (drawn >= 0).all() and (drawn <= 1).all()
        torch.testing.assert_close((drawn * (len(grid) - 1)).round() / (len(grid) - 1), drawn, atol=1e-5, rtol=0)


def test_the_mixture_takes_the_colours_of_a_pixel_together() -> None:
    pixels = Pixels("dmol", channels=3, components=2)
    raw = torch.randn(2, 5, pixels.planes, 2, 2, generator=seeded())
    x = torch.randint(256, (5, 3, 2, 2), generator=seeded(1)) / 255.0
    head, value = pixels.head, (x * 255).round() * 2 / 255 - 1
    expected = torch.stack([head.log_prob(raw[k].movedim(1, -1), value.movedim(1, -1)).sum((1, 2)) for k in range(2)])
    torch.testing.assert_close(pixels.log_prob(raw, x), expected)
    assert pixels.planes == 20 and pixels.bins == 256 and pixels.mean(raw).shape == (2, 5, 3, 2, 2)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (28, 28), (9, 13), (4, 4), (40, 24)])
def test_convolutions_fit_every_size(size: tuple[int, int]) -> None:
    model = VAE(
        shape=(3, *size), encoder="conv", decoder="conv", hidden=(16,), base=4, classes=2, likelihood="gaussian"
    )
    x, y = torch.rand(2, 3, *size, generator=seeded()), torch.tensor([0, 1])
    assert model.reconstruct(x, y).shape == x.shape
    loss = -model.elbo(x, seeded(), y=y).value.mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_it_begins_at_the_mean_picture() -> None:
    for settings in ({}, {"encoder": "conv", "decoder": "conv", "base": 2}, {"likelihood": "gaussian"}):
        model = VAE(**{**TINY, "shape": (1, 8, 8), **settings})
        mean = torch.full((1, 8, 8), 0.2)
        model.initialise(mean)
        with torch.no_grad():
            for p in (model.decoder.head.weight,):
                p.zero_()
            torch.testing.assert_close(model.decode(torch.randn(3, 2)), mean.expand(3, 1, 8, 8))


# -- the public door -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_a_typed_error() -> None:
    model, told = VAE(**TINY), VAE(**TINY, classes=3)
    x, y = torch.zeros(2, 1, 2, 3), torch.tensor([0, 2])
    bad = [torch.zeros(2, 6), x.long(), x + 2, torch.full_like(x, float("nan")), x[:0]]
    for one in bad:
        for call in (
            model.encode,
            model.reconstruct,
            lambda v: model.nll(v, seeded(), 2),
            lambda v: model.elbo(v, seeded()),
        ):
            with pytest.raises(ShapeError):
                call(one)
    for label in (None, y.float(), torch.tensor([0, 3]), torch.tensor([0])):
        with pytest.raises(ShapeError, match="class"):
            told.encode(x, label)
    with pytest.raises(ShapeError, match="conditional"):
        model.encode(x, y)
    with pytest.raises(ShapeError, match="codes"):
        model.decode(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="class"):
        told.sample(2, seeded())
    with pytest.raises(CapabilityError, match="recogniser"):
        told.classify(x)
    for settings in ({"second": 2, "flow": "iaf"}, {"learned_prior": True}, {"encoder": "rnn"}, {"likelihood": "poisson"},
                     {"activation": "sine"}, {"recogniser": True}):  # fmt: skip
        with pytest.raises(ConfigError):
            VAE(**{**TINY, **settings})
    bent = VAE(**TINY, flow="planar")
    with pytest.raises(CapabilityError, match="flow"):
        bent.draw(x, 2, seeded(), path_only=True)
    with pytest.raises(CapabilityError, match="wake-sleep"):
        wake_sleep_loss(bent, x, seeded(), 1, None)


@pytest.mark.parametrize("settings", [{}, {"second": 2}, {"flow": "iaf"}, {"classes": 3, "learned_prior": True}])
def test_codes_of_the_surface(settings: dict[str, object], tmp_path: Path) -> None:
    model = VAE(**TINY, **settings).eval()
    x = coins(2).float()
    y = torch.tensor([1, 1]) if model.classes else None
    line = model.interpolate(x[0], x[1], 5, None if y is None else y[:1])
    ends = model.reconstruct(x, y)
    torch.testing.assert_close(line[[0, -1]], ends)
    assert torch.equal(model.sample(2, seeded(), y), model.sample(2, seeded(), y))
    assert set(model.sample(2, seeded(), y, pixels=True).unique().tolist()) <= {0.0, 1.0}
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(VAE.from_pretrained(tmp_path).reconstruct(x, y), ends)
