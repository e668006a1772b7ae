"""Unrolling against finite differences, a closed form, torch's Adam; inversion against problems with known minima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import InnerAdam, InnerSGD, forbid_running_statistics, invert, lbfgs, unroll


def _game(inner: object, steps: int, differentiable: bool = True):
    """A small smooth game in float64: `f_K(theta)` of an MLP opponent."""
    torch.manual_seed(0)
    x, noise = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    phi = {"w": torch.randn(2, 4, dtype=torch.float64), "v": torch.randn(4, dtype=torch.float64)}

    def value(theta: Tensor) -> Tensor:
        fake = torch.tanh(noise @ theta)

        def loss(p: dict[str, Tensor]) -> Tensor:
            on_real, on_fake = (torch.tanh(rows @ p["w"]) @ p["v"] for rows in (x, fake))
            return nn.functional.softplus(-on_real).mean() + nn.functional.softplus(on_fake).mean()

        start = {name: p.clone().requires_grad_() for name, p in phi.items()}
        return -loss(unroll(loss, start, steps=steps, inner=inner, differentiable=differentiable).parameters)

    theta = torch.randn(3, 2, dtype=torch.float64)
    return value, theta


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("inner", [InnerSGD(0.3), InnerAdam(0.05)], ids=["sgd", "adam"])
def test_gradient_through_the_steps_equals_central_differences(inner: object, steps: int) -> None:
    value, theta = _game(inner, steps)
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(value(theta), theta)
    numeric, h = torch.zeros_like(theta), 1e-6
    for i in range(3):
        for j in range(2):
            step = torch.zeros_like(theta)
            step[i, j] = h
            numeric[i, j] = (value((theta + step).detach()) - value((theta - step).detach())) / (2 * h)
    torch.testing.assert_close(gradient, numeric, atol=1e-6, rtol=1e-6)


def test_dropping_the_second_term_changes_the_gradient_but_not_the_value() -> None:
    full, theta = _game(InnerSGD(0.3), 3)
    cut, _ = _game(InnerSGD(0.3), 3, differentiable=False)
    theta.requires_grad_()
    a, b = full(theta), cut(theta)
    torch.testing.assert_close(a, b)
    assert not torch.allclose(torch.autograd.grad(a, theta)[0], torch.autograd.grad(b, theta)[0], atol=1e-3)


def test_quadratic_game_has_a_closed_form() -> None:
    # f = theta phi - phi^2 / 2, ascended in phi: phi_K = theta - (1 - eta)^K (theta - phi)
    theta, phi, eta, steps = torch.tensor(1.7, requires_grad=True), torch.tensor([0.4]), 0.2, 5

    def loss(p: dict[str, Tensor]) -> Tensor:
        return -(theta * p["phi"] - p["phi"] ** 2 / 2).sum()

    ahead = unroll(loss, {"phi": phi.requires_grad_()}, steps=steps, inner=InnerSGD(eta))
    shrink = (1 - eta) ** steps
    end = theta.detach() - shrink * (theta.detach() - 0.4)
    torch.testing.assert_close(ahead.parameters["phi"][0], end)
    (gradient,) = torch.autograd.grad(-loss(ahead.parameters), theta)
    # df_K/dtheta = phi_K + (theta - phi_K) dphi_K/dtheta
    torch.testing.assert_close(gradient, end + (theta.detach() - end) * (1 - shrink))
    torch.testing.assert_close(ahead.first_gradients[0], torch.tensor([-(1.7 - 0.4)]))
    assert len(ahead.losses) == steps


@pytest.mark.parametrize("as_one_vector", [False, True])
def test_inner_adam_takes_the_steps_that_torch_takes_from_the_same_moments(as_one_vector: bool) -> None:
    torch.manual_seed(1)
    a, b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))
    outer = torch.optim.Adam([a, b], lr=0.02, betas=(0.5, 0.99))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (x**4).sum() + (x[:2] * y).sum() + y.square().sum()

    for _ in range(3):
        outer.zero_grad()
        loss(a, b).backward()
        outer.step()
    inner = InnerAdam(0.02, (0.5, 0.99), follow=outer)
    if as_one_vector:
        start = {"all": torch.cat((a, b)).detach().requires_grad_()}
        ahead = unroll(lambda p: loss(p["all"][:3], p["all"][3:]), start, steps=4, inner=inner).parameters["all"]
    else:
        start = {"a": a.detach().requires_grad_(), "b": b.detach().requires_grad_()}
        ahead = torch.cat(list(unroll(lambda p: loss(p["a"], p["b"]), start, steps=4, inner=inner).parameters.values()))
    moments = [outer.state[p]["exp_avg"].clone() for p in (a, b)]
    for _ in range(4):
        outer.zero_grad()
        loss(a, b).backward()
        outer.step()
    torch.testing.assert_close(ahead, torch.cat((a, b)), atol=1e-6, rtol=1e-5)
    assert not torch.equal(moments[0], outer.state[a]["exp_avg"])


def test_adam_has_a_finite_gradient_where_a_parameter_never_had_one() -> None:
    theta, phi = torch.ones(1, requires_grad=True), torch.zeros(2, requires_grad=True)
    inner = InnerAdam(0.1)
    ahead = unroll(lambda p: (p["phi"][:1] * theta).sum(), {"phi": phi}, steps=2, inner=inner)
    (gradient,) = torch.autograd.grad((ahead.parameters["phi"] * theta).sum(), theta)
    assert torch.isfinite(gradient).all()


def test_unrolling_changes_no_parameter_and_refuses_what_it_cannot_do() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match="'1' tracks running statistics"):
        forbid_running_statistics(net)
    forbid_running_statistics(net[0])
    with pytest.raises(ConfigError, match=">= 0"):
        unroll(lambda p: p["x"].sum(), {"x": torch.ones(1, requires_grad=True)}, steps=-1, inner=InnerSGD(0.1))
    x = torch.ones(1, requires_grad=True)
    unroll(lambda p: (p["x"] ** 2).sum(), {"x": x}, steps=2, inner=InnerSGD(0.1))
    assert float(x.detach()) == 1.0 and x.grad is None


def test_lbfgs_solves_rows_of_very_different_scale_in_one_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    n, d = 12, 6
    root = torch.randn(n, d, d, generator=generator, dtype=torch.float64)
    matrix = root @ root.transpose(1, 2) + 0.1 * torch.eye(d, dtype=torch.float64)
    matrix = matrix * torch.logspace(-2, 3, n, dtype=torch.float64)[:, None, None]
    goal = torch.randn(n, d, generator=generator, dtype=torch.float64)

    def objective(z: Tensor) -> Tensor:
        off = z - goal
        return 0.5 * torch.einsum("ni,nij,nj->n", off, matrix, off)

    z, value = lbfgs(objective, torch.zeros(n, d, dtype=torch.float64), steps=60)
    torch.testing.assert_close(z, goal, atol=1e-4, rtol=0)
    alone, _ = lbfgs(lambda row: objective(row.expand(n, d))[3:4], torch.zeros(1, d, dtype=torch.float64), steps=60)
    torch.testing.assert_close(alone[0], z[3], atol=1e-6, rtol=0)  # neighbours do not matter
    assert float(value.max()) < 1e-6


def test_lbfgs_descends_a_curved_valley_and_never_rises() -> None:
    def rosenbrock(z: Tensor) -> Tensor:
        return (1 - z[:, 0]) ** 2 + 100 * (z[:, 1] - z[:, 0] ** 2) ** 2

    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    previous = rosenbrock(start)
    for steps in (1, 5, 20, 80):
        z, value = lbfgs(rosenbrock, start, steps=steps)
        assert bool((value <= previous + 1e-12).all())
        previous = value
    torch.testing.assert_close(z, torch.ones(3, 2, dtype=torch.float64), atol=1e-4, rtol=0)
    with pytest.raises(ShapeError, match="one value per row"):
        lbfgs(lambda z: z.sum(), start)
    with pytest.raises(ShapeError, match="problems, unknowns"):
        lbfgs(rosenbrock, torch.zeros(3))


def test_inversion_recovers_what_the_decoder_made_and_restarts_help() -> None:
    torch.manual_seed(3)
    decode = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 20))
    hidden = torch.randn(5, 4)
    x = decode(hidden).detach()

    def prior(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 4, generator=generator)

    errors = []
    for restarts in (1, 4):
        z, error = invert(
            decode, x, prior=prior, generator=torch.Generator().manual_seed(0), restarts=restarts, steps=60
        )
        torch.testing.assert_close((decode(z) - x).square().mean(1).detach(), error)
        errors.append(error)
    assert float(errors[1].max()) < 1e-5
    assert float(errors[1].mean()) <= float(errors[0].mean())
    with pytest.raises(ConfigError, match="restarts"):
        invert(decode, x, prior=prior, generator=torch.Generator(), restarts=0)
