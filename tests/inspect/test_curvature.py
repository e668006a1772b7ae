"""The curvature of a loss in each weight: closed forms, loops over samples and classes, the exact Hessian."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect import Space, wrap
from cambrian.inspect.curvature import WAYS, floored, hessian_diag


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 10)
    )
    data = digits.load(valid=200)
    made = wrap(net, space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(net, steps=400, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


NAMES = ["0.weight", "5.weight"]


def diagonal(target, how: str, n: int = 60, seed: int = 1, **settings) -> Tensor:
    found = hessian_diag(target, NAMES, n=n, how=how, generator=torch.Generator().manual_seed(seed), **settings)
    assert [found[name].shape for name in NAMES] == [target.module.get_parameter(name).shape for name in NAMES]
    return torch.cat([found[name].flatten() for name in NAMES])


def samples(target, n: int = 60, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    chosen = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed)))
    return [(x[i : i + 1], y[i : i + 1]) for x, y, _ in target.batches("train", n, chosen, 50) for i in range(len(x))]


def test_gauss_newton_equals_the_loop_over_samples_and_classes(target):
    module, total = copy.deepcopy(target.module).eval(), 0.0
    weights = [module.get_parameter(name) for name in NAMES]
    for x, _ in samples(target):
        log_p = module(x).log_softmax(1)[0]
        for y in range(10):
            slopes = torch.autograd.grad(log_p[y], weights, retain_graph=True)
            total = total + log_p[y].exp().detach() * torch.cat([g.flatten() for g in slopes]) ** 2
    assert torch.allclose(diagonal(target, "gauss-newton"), total / 60, rtol=1e-4, atol=1e-8)


def test_of_the_last_layer_it_is_the_exact_hessian_and_has_a_closed_form(target):
    """Cross-entropy is convex in the last layer: h_kd = mean p_k (1 - p_k) a_d^2."""
    last = slice(45, None)
    exact = diagonal(target, "exact")[last]
    assert torch.allclose(diagonal(target, "gauss-newton")[last], exact, rtol=1e-3, atol=1e-7)
    x = torch.cat([x for x, _ in samples(target)])
    p, a = target.logits(x).softmax(1), target.features(x, ["4"])["4"]
    closed = ((p * (1 - p))[:, :, None] * (a**2)[:, None]).mean(0).flatten()
    assert torch.allclose(exact, closed.detach(), rtol=1e-3, atol=1e-7)


def test_estimates_agree_with_the_exact_hessian_of_a_small_network(target):
    exact = diagonal(target, "exact", 300)
    assert spearmanr(exact, diagonal(target, "hutchinson", 300, probes=600)).statistic > 0.9
    assert spearmanr(exact, diagonal(target, "gauss-newton", 300)).statistic > 0.9
    whole, drawn = diagonal(target, "gauss-newton", 1200), diagonal(target, "fisher", 1200)
    assert spearmanr(whole, drawn).statistic > 0.8 and 0.7 < float(drawn.mean() / whole.mean()) < 1.4
    assert spearmanr(exact, diagonal(target, "adam", 300, batch=5)).statistic > 0.5


def test_squared_batch_gradients_are_not_it(target):
    whole = diagonal(target, "gauss-newton", 300)
    assert float((diagonal(target, "adam", 300, batch=300) ** 2).mean()) < 0.1 * float(whole.mean())


def test_it_leaves_the_network_alone_and_repeats_itself(target):
    before, mode = copy.deepcopy(target.module.state_dict()), target.module.training
    for how in WAYS:
        assert torch.equal(diagonal(target, how, 20, probes=2), diagonal(target, how, 20, probes=2)), how
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert target.module.training == mode and all(p.requires_grad for p in target.module.parameters())


def test_floors_lift_negative_and_zero_estimates():
    found = floored({"a": torch.tensor([-1.0, 0.0, 4.0]), "b": torch.tensor([0.0])}, share=0.01)
    assert found["a"].tolist() == pytest.approx([0.01, 0.01, 4.01]) and found["b"].tolist() == pytest.approx([0.01])
    assert floored({"a": torch.zeros(2)})["a"].tolist() == [1.0, 1.0]


def test_unknown_ways_and_large_networks_are_refused(target):
    with pytest.raises(ConfigError, match="curvature is one of"):
        diagonal(target, "newton")
    with pytest.raises(ConfigError, match="no parameter"):
        hessian_diag(target, ["9.weight"], generator=torch.Generator())
    big = wrap(nn.Linear(100, 100), space=Space.vector(100, 0, 1), classes=range(100), data={
        "train": (torch.rand(4, 100), torch.arange(4))})  # fmt: skip
    with pytest.raises(CapabilityError, match="exact curvature"):
        hessian_diag(big, ["weight"], how="exact", generator=torch.Generator())
