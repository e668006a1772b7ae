"""Principled GAN: its theorems against quadrature, simulation and exact distances; the bench; the cure."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import cambrian.systems.gans.principled_gan.recipe as roles
from cambrian.data.source import Source
from cambrian.engine import registry
from cambrian.engine import state as trees
from cambrian.engine.loop import Loop, evaluate
from cambrian.engine.methods import parse
from cambrian.engine.run import spec_for
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.nn.adversarial import ConnectedNet, DCGANDiscriminator, discriminator_loss, generator_loss
from cambrian.systems.gans.principled_gan import (
    NoiseAnneal,
    NoiseAnnealMethod,
    PrincipledGANStudy,
    diagnose,
    divergences,
    examine,
    generator_gradients,
    jacobian_norm,
    jsd_bound,
    noisy_ns_gradients,
    perfect_discriminator,
    smoothed_jsd,
    vanishing_bound,
)
from cambrian.systems.gans.principled_gan._diagnosis import distance_to_perfect, figure
from cambrian.systems.gans.principled_gan._theory import kl
from cambrian.systems.gans.principled_gan.recipe import Options


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _curves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of two closed curves in R^10 that cross once."""
    draw = _seeded(seed)
    frames = torch.randn(2, 2, 10, generator=draw)
    angle = 2 * math.pi * torch.rand(2, count, generator=draw)
    along = torch.stack((angle.cos() - 1, angle.sin()), dim=2)  # both pass through the origin at angle 0
    return along[0] @ frames[0], along[1] @ frames[1]


# -- theorems -------------------------------------------------------------------------------------------------------------


def test_a_perfect_discriminator_of_crossing_curves_is_right_and_flat_on_both() -> None:
    x, y = _curves(80, 0)
    net = perfect_discriminator(x, y)
    points = torch.cat((x, y)).requires_grad_()
    value = net(points)
    assert torch.equal(value, torch.cat((torch.ones(80), torch.zeros(80))))
    (slope,) = torch.autograd.grad(value.sum(), points)
    assert not slope.any()
    near = net((x + 0.3 * net.gap * nn.functional.normalize(torch.randn(80, 10, generator=_seeded(1)), dim=1)).detach())
    assert torch.equal(near, torch.ones(80))  # right in a neighbourhood, which is why it is flat


def test_between_the_clouds_it_is_smooth() -> None:
    net = perfect_discriminator(torch.zeros(1, 1), torch.ones(1, 1))
    at = torch.linspace(-0.2, 1.2, 141, dtype=torch.float64)[:, None].requires_grad_()
    net.double()
    value = net(at)
    assert torch.autograd.gradcheck(net, at, atol=1e-4)
    assert (
        bool((value[20:120].diff() <= 1e-12).all())
        and float(value.detach().min()) >= 0
        and float(value.detach().max()) <= 1
    )
    assert float(net(torch.tensor([[0.5]], dtype=torch.float64))) == pytest.approx(0.5)


def test_clouds_that_touch_have_no_perfect_discriminator() -> None:
    with pytest.raises(DataError, match="share a point"):
        perfect_discriminator(torch.zeros(3, 2), torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r"\[N, D\]"):
        perfect_discriminator(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match=r"\[B, 2\]"):
        perfect_discriminator(torch.zeros(3, 2), torch.ones(1, 2))(torch.zeros(4, 3))


def test_disjoint_supports_have_the_largest_divergences() -> None:
    apart = divergences(torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0, 0, 0.25, 0.75]))
    assert apart.jsd == pytest.approx(math.log(2), abs=1e-12)
    assert apart.kl_pq == math.inf == apart.kl_qp
    p, q = torch.tensor([0.1, 0.9]), torch.tensor([0.4, 0.6])
    assert divergences(p, q).kl_pq == pytest.approx(float(stats.entropy(p.double(), q.double())), abs=1e-6)
    assert divergences(p, p).jsd == 0
    with pytest.raises(ShapeError, match="sum to 1"):
        divergences(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(("mu", "sd"), [(0.7, 1.3), (-1.0, 0.6), (2.0, 1.0)])
def test_the_ns_gradient_at_the_best_discriminator_is_that_of_kl_minus_two_jsd(mu: float, sd: float) -> None:
    """Theorem 2.5 for g(z) = mu + sd z against N(0, 1), by quadrature on both sides."""
    theta = torch.tensor([mu, sd], dtype=torch.float64, requires_grad=True)
    grid = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    cell = float(grid[1] - grid[0])

    def log_normal(x: Tensor, m: Tensor | float, s: Tensor | float) -> Tensor:
        return -0.5 * ((x - m) / s) ** 2 - torch.as_tensor(s, dtype=torch.float64).log() - 0.5 * math.log(2 * math.pi)

    weights = log_normal(grid, 0.0, 1.0).exp() * cell
    x = theta[0] + theta[1] * grid
    held = theta.detach()
    logit = log_normal(x, 0.0, 1.0) - log_normal(x, held[0], held[1])  # D* = p_r / (p_r + p_g), held at theta
    left = torch.autograd.grad((weights * nn.functional.softplus(-logit)).sum(), theta)[0]
    made, real = log_normal(grid, theta[0], theta[1]).exp() * cell, log_normal(grid, 0.0, 1.0).exp() * cell
    middle = 0.5 * (made + real)
    right = torch.autograd.grad(kl(made, real) - kl(made, middle) - kl(real, middle), theta)[0]
    torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-3)


def test_the_unstable_gradient_is_cauchy_and_not_gaussian() -> None:
    jacobians = torch.randn(6, 3, 2, generator=_seeded(3))
    drawn = noisy_ns_gradients(jacobians, value_sd=0.5, gradient_sd=2.0, draws=4000, generator=_seeded(4))
    scale = 4.0 * jacobians.double().norm(dim=1).mean(0)
    for component in range(2):
        values = drawn[:, component].numpy()
        assert stats.kstest(values, "cauchy", args=(0.0, float(scale[component]))).pvalue > 0.01
        assert stats.kstest(values, "cauchy", args=stats.cauchy.fit(values)).pvalue > 0.01
        assert stats.kstest(values, "norm", args=(values.mean(), values.std())).pvalue < 1e-6
    with pytest.raises(ShapeError, match="Jacobians"):
        noisy_ns_gradients(jacobians[0], value_sd=1, gradient_sd=1, draws=2, generator=_seeded())


@pytest.mark.parametrize("kind", ["uniform", "truncated normal"])
def test_the_wasserstein_bound_is_never_violated(kind: str) -> None:
    draw = _seeded(5)
    for _ in range(100):
        size = int(torch.randint(1, 30, (), generator=draw))
        x, y = torch.randn(2, size, generator=draw).double() * torch.tensor([[1.0], [2.0]])
        y = y + 3 * torch.randn((), generator=draw)
        half = 0.05 + float(torch.rand((), generator=draw))
        if kind == "uniform":
            variance = half**2 / 3

            def density(t: Tensor, half: float = half) -> Tensor:
                return (t.abs() <= half).double()
        else:
            variance = float(stats.truncnorm(-2, 2, scale=half / 2).var())

            def density(t: Tensor, half: float = half) -> Tensor:
                return (t.abs() <= half) * torch.exp(-0.5 * (2 * t / half) ** 2)

        jsd, diameter = smoothed_jsd(x, y, density, half, cells=1500)
        assert stats.wasserstein_distance(x.numpy(), y.numpy()) <= jsd_bound(jsd, variance, diameter)


def test_smoothed_divergence_of_apart_and_equal_clouds() -> None:
    def box(t: Tensor) -> Tensor:
        return (t.abs() <= 0.1).double()

    x = torch.tensor([0.0, 1.0])
    assert smoothed_jsd(x, x + 5, box, 0.1)[0] == pytest.approx(math.log(2), abs=1e-9)
    assert smoothed_jsd(x, x, box, 0.1)[0] == pytest.approx(0, abs=1e-12)
    assert smoothed_jsd(x[:1], x[:1] + 0.1, box, 0.1)[0] == pytest.approx(0.5 * math.log(2), abs=2e-3)  # half of each
    assert jsd_bound(0.0, 0.25, 7.0) == 1.0
    with pytest.raises(ConfigError, match="jsd lies in"):
        jsd_bound(0.8, 1.0, 1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        vanishing_bound(-0.1, 1.0)
    assert vanishing_bound(1.0, 1.0) == math.inf


# -- the bench ------------------------------------------------------------------------------------------------------------


def _pair(seed: int = 0) -> tuple[nn.Sequential, ConnectedNet]:
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(3, 12), nn.Softplus(), nn.BatchNorm1d(12), nn.Linear(12, 5))
    return generator.eval(), ConnectedNet(inputs=(5,), outputs=(1,), hidden=(32, 32))


def _prior(count: int, draw: torch.Generator) -> Tensor:
    return torch.randn(count, 3, generator=draw)


@pytest.mark.parametrize("kind", ["ns", "minimax"])
def test_gradients_of_a_probe_equal_a_loop_of_backward_passes(kind: str) -> None:
    generator, critic = _pair()
    z, noise = torch.randn(4, 6, 3), torch.randn(4, 6, 5)
    found = generator_gradients(generator, critic, z, kind, noise)
    for row, some, shift in zip(found, z, noise, strict=True):
        loss = generator_loss(critic(generator(some) + shift), kind)
        one = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(generator.parameters()))])
        torch.testing.assert_close(row, one, atol=1e-6, rtol=1e-4)
    apart = generator_gradients(generator, critic, z.reshape(24, 1, 3), kind, noise.reshape(24, 1, 5))
    torch.testing.assert_close(apart.unflatten(0, (4, 6)).mean(1), found, atol=1e-6, rtol=1e-4)


def test_power_iteration_finds_the_jacobians_norm() -> None:
    generator, _ = _pair()
    z = torch.randn(6, 3)
    parameters = {name: p.detach() for name, p in generator.named_parameters()}
    squares = []
    for one in z:
        full = torch.func.jacrev(lambda p, one=one: torch.func.functional_call(generator, p, (one[None],)).flatten())(
            parameters
        )
        squares.append(torch.linalg.matrix_norm(torch.cat([j.flatten(1) for j in full.values()], 1), 2) ** 2)
    exact = float(torch.stack(squares).mean().sqrt())
    assert jacobian_norm(generator, z, _seeded(), rounds=40) == pytest.approx(exact, rel=0.01)


def test_the_saturating_gradient_stays_below_theorem_2_4_while_a_discriminator_trains() -> None:
    generator, critic = _pair(1)
    draw, z = _seeded(6), torch.randn(64, 3)
    m = jacobian_norm(generator, z, draw, rounds=40)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    below = 0
    for step in range(400):
        with torch.no_grad():
            fake = generator(z)
        if step % 20 == 0:
            eps = distance_to_perfect(critic, fake)
            norm = float(generator_gradients(generator, critic, z[None], "minimax").norm())
            assert norm <= vanishing_bound(eps, m)
            below += eps < 1
        loss = discriminator_loss(critic(4 + torch.randn(64, 5, generator=draw)), critic(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert below >= 5  # the bound said something


def test_without_noise_the_gradient_vanishes_and_with_it_it_does_not() -> None:
    traces = {}
    for sigma in (0.0, 3.0):
        generator, critic = _pair(2)
        generator[2].momentum = 0.1
        before = copy.deepcopy(generator.state_dict())
        generator.train()
        real = 3 + 0.1 * torch.randn(200, 5, generator=_seeded(1))
        traces[sigma] = diagnose(
            generator, _prior, real, critic, iterations=300, batch=32, lr=3e-3, sigma=sigma, probes=4, draw=_seeded(7)
        )
        assert generator.training and generator[2].training  # modes are put back
        assert all(torch.equal(v, generator.state_dict()[k]) for k, v in before.items())  # and nothing was trained
    plain, noisy = traces[0.0], traces[3.0]
    assert plain.at("saturating", 20) / plain.at("saturating", 300) > 10 * noisy.at("saturating", 20) / noisy.at(
        "saturating", 300
    )
    assert plain.at("accuracy", 300) > 0.99 > noisy.at("accuracy", 300)
    assert plain.iterations[:4] == [1, 2, 5, 10] and len(plain.table().rows) == len(plain.iterations)
    assert math.isnan(noisy.columns["bound"][-1]) and plain.columns["bound"][-1] > plain.columns["saturating"][-1]
    assert len(figure({"plain": plain, "noisy": noisy}).axes) == 3
    with pytest.raises(ConfigError, match="nothing was measured of 'loss'"):
        plain.at("loss", 300)
    with pytest.raises(ConfigError, match="sigma >= 0"):
        diagnose(*_pair()[:1], _prior, real, _pair()[1], sigma=-1.0)
    with pytest.raises(ShapeError, match="latents of a probe"):
        generator_gradients(*_pair(), torch.zeros(3, 3), "ns")


@pytest.mark.parametrize("slug", ["gan", "unrolled-gan"])
def test_any_adversarial_run_can_be_examined(slug: str) -> None:
    settings = {"steps": 2, "batch": 16} | ({"labels_per_class": 0, "loss": "ns"} if slug == "gan" else {"hidden": 16})
    spec, config = spec_for(slug, preset="smoke", settings=settings)
    recipe = spec.make(config=config)
    before = copy.deepcopy(trees.flatten(recipe.state_dict())[1])
    trace = examine(recipe, iterations=3, batch=8, probes=2, latents=2)
    again = examine(recipe, replay=True, iterations=3, batch=8, probes=2, latents=2)
    assert trace.iterations == again.iterations == [1, 2, 3]
    after = trees.flatten(recipe.state_dict())[1]
    assert all(torch.equal(before[name], value) for name, value in after.items())  # the run is left alone


@pytest.mark.parametrize("target", ["plain", "gan"])
def test_the_study_measures_what_its_claim_compares(target: str, tmp_path) -> None:
    config = dataclasses.replace(
        PrincipledGANStudy.presets["smoke"], target=target, stops=(2, 3), iterations=12, first=5, probes=2
    )
    seen: list[tuple[int, int]] = []
    found = PrincipledGANStudy(config).measure(100, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (24, 24)
    assert {"fall", "least_fall", "ns_growth", "accuracy_400", "within_bound"} <= set(found.metrics)
    assert found.metrics["least_fall"] <= found.metrics["fall"] and found.metrics["gap"] > 0
    paths = found.sample.save(tmp_path, "study")
    assert any(path.suffix == ".png" for path in paths)
    again = PrincipledGANStudy(config).measure(100, tmp_path, lambda done, total: None)
    assert again.metrics == found.metrics


def test_recipes_without_discriminators_are_refused() -> None:
    with pytest.raises(CapabilityError, match="has none"):
        roles.critics_of(spec_for("vgg", preset="smoke")[0].make())


# -- the cure ---------------------------------------------------------------------------------------------------------------


def test_schedules_start_at_sigma_and_end_at_zero() -> None:
    for schedule in ("linear", "exponential", "target-acc"):
        noise = NoiseAnneal(sigma=0.5, schedule=schedule, steps=100, until=0.8)
        sigmas = []
        for _ in range(101):
            sigmas.append(noise.sigma)
            noise.advance(0.85)
        assert sigmas[0] == 0.5 and sigmas[79] > 0 and sigmas[80] == sigmas[100] == 0
        assert all(a >= b for a, b in itertools.pairwise(sigmas))
    linear = NoiseAnneal(sigma=1.0, schedule="linear", steps=10, until=1.0)
    for _ in range(4):
        linear.advance()
    assert linear.sigma == pytest.approx(0.6)


def test_target_accuracy_raises_noise_for_a_strong_discriminator() -> None:
    strong, weak = (NoiseAnneal(sigma=0.1, schedule="target-acc", steps=10_000) for _ in range(2))
    for _ in range(100):
        strong.advance(1.0)
        weak.advance(0.5)
    assert strong.sigma > 0.5 and weak.sigma < 0.02
    for _ in range(400):
        strong.advance(1.0)
    assert strong.sigma == pytest.approx(1.0)  # at most ten times the start
    strong.advance(None)
    assert strong.sigma == pytest.approx(1.0)


@pytest.mark.parametrize("net", [
    ConnectedNet(inputs=(1, 8, 8), outputs=(1,), hidden=(8,)),
    DCGANDiscriminator(channels=1, size=8, base=2, norm="none"),
], ids=["connected", "dcgan"])  # fmt: skip
def test_noise_is_fresh_in_every_call_once_per_call_and_only_in_training(net: nn.Module) -> None:
    noise = NoiseAnneal(sigma=0.4, schedule="linear", steps=100)
    seen: list[Tensor] = []
    noise.noisy = lambda x, plain=noise.noisy: seen.append(plain(x)) or seen[-1]  # type: ignore[method-assign]
    net = copy.deepcopy(net)
    plain = copy.deepcopy(net)
    noise.attach(net)
    x = torch.zeros(400, 1, 8, 8)
    net.train()
    assert torch.equal(net(x), plain(seen[0]))  # noise enters once, though forward calls features
    assert torch.equal(net.features(x), plain.features(seen[1]))
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])
    assert float(seen[0].std()) == pytest.approx(0.4, abs=0.01)
    net.eval()
    assert torch.equal(net(x), plain(x)) and torch.equal(net.features(x), plain.features(x)) and len(seen) == 2
    net.train()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin.features(x).any()  # a copy of the net reads its own weights
    assert twin.state_dict().keys() == plain.state_dict().keys()


def test_what_cannot_be_noisy_is_refused() -> None:
    noise, (_, net) = NoiseAnneal(sigma=0.1, schedule="linear", steps=10), _pair()
    noise.attach(net)
    with pytest.raises(CapabilityError, match="float tensor"):
        net(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(CapabilityError, match="vmap"):
        torch.vmap(lambda x: net(x))(torch.zeros(3, 2, 5))
    assert net(torch.zeros(2, 5)).shape == (2, 1)  # a refused call leaves the net usable
    for wrong in ({"schedule": "cosine"}, {"sigma": -1.0}, {"until": 0.0}, {"target": 0.4}):
        with pytest.raises(ConfigError, match="schedule is one of"):
            NoiseAnneal(**{"sigma": 0.1, "schedule": "linear", "steps": 10, **wrong})
    with pytest.raises(ConfigError, match="schedule must be one of"):
        Options(schedule="target_acc")


@pytest.mark.parametrize(
    ("slug", "schedule"), [("gan", "target-acc"), ("gan", "exponential"), ("unrolled-gan", "linear")]
)
def test_training_with_noise_resumes_exactly(slug: str, schedule: str) -> None:
    settings = {"steps": 6, "batch": 16} | ({"labels_per_class": 0} if slug == "gan" else {"hidden": 16})
    method = f"principled-gan:schedule={schedule},sigma=0.2"
    spec, config = spec_for(slug, preset="smoke", with_=[method], settings=settings)
    straight, plain = (
        Loop(spec.make(config=config)),
        Loop(spec_for(slug, preset="smoke", settings=settings)[0].make(config=config)),
    )
    for _ in range(3):
        straight.advance()
        plain.advance()
    middle = copy.deepcopy(straight.state_dict())
    scalars = [straight.advance() for _ in range(3)]
    resumed = Loop(spec.make(config=config))
    resumed.load_state_dict(middle)
    assert [resumed.advance() for _ in range(3)] == scalars
    assert resumed.recipe.methods[0].state_dict()["t"] == 6
    name = "d_optim"
    changed = [not torch.equal(a, b) for a, b in zip(_first(straight, name), _first(plain, name), strict=True)]
    assert any(changed)
    assert evaluate(straight.recipe) == evaluate(straight.recipe)


def _first(loop: Loop, name: str) -> list[Tensor]:
    return [p.detach() for group in getattr(loop.recipe, name).param_groups for p in group["params"]]


def test_the_method_needs_critics_and_target_accuracy_needs_the_log() -> None:
    with pytest.raises(CapabilityError, match="vgg has none"):
        spec_for("vgg", preset="smoke", with_=["principled-gan"])[0].make()
    settings = {"steps": 2, "batch": 16, "hidden": 16}
    spec, config = spec_for(
        "unrolled-gan", preset="smoke", with_=["principled-gan:schedule=target-acc"], settings=settings
    )
    with pytest.raises(CapabilityError, match="does not log"):
        Loop(spec.make(config=config)).advance()
    assert registry.card("principled-gan").roles == ("study", "training-method")
    assert isinstance(parse("principled-gan:until=0.5", "training-method"), NoiseAnnealMethod)
    assert Source("world", "digits").value == "digits"
