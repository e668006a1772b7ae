import itertools
import math

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.nn.likelihood.dmol import DMOL, dmol_log_prob, dmol_sample


def params(head, n, scale=1.0, seed=0):
    return scale * torch.randn(n, head.n_params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_grey_levels_sum_to_one(scale):
    head = DMOL(4, 1)
    p = params(head, 20, scale)
    x = head.grid(torch.arange(256), torch.float64)
    total = head.log_prob(p[:, None].expand(-1, 256, -1), x[None, :, None].expand(20, -1, -1)).exp().sum(1)
    assert torch.allclose(total, torch.ones(20).double(), atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_colours_of_eight_levels_sum_to_one(scale):
    head = DMOL(3, 3, levels=8)
    p = params(head, 6, scale)
    x = head.grid(torch.tensor(list(itertools.product(range(8), repeat=3))), torch.float64)
    total = head.log_prob(p[:, None].expand(-1, 512, -1), x.expand(6, -1, -1)).exp().sum(1)
    assert torch.allclose(total, torch.ones(6).double(), atol=1e-9)


def test_one_pixel_by_hand():
    head = DMOL(2, 3)
    p, x = params(head, 1)[0], torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)
    x = head.round(x)
    pi, m = p[:2].softmax(0), p[2:8].view(3, 2)
    s, c = p[8:14].view(3, 2).exp(), p[14:].view(3, 2).tanh()
    total = 0.0
    for k in range(2):
        means = (m[0, k], m[1, k] + c[0, k] * x[0], m[2, k] + c[1, k] * x[0] + c[2, k] * x[1])
        each = pi[k]
        for j in range(3):
            upper = 1.0 if x[j] > 0.999 else torch.sigmoid((x[j] + 1 / 255 - means[j]) / s[j, k])
            lower = 0.0 if x[j] < -0.999 else torch.sigmoid((x[j] - 1 / 255 - means[j]) / s[j, k])
            each = each * (upper - lower)
        total += float(each)
    assert float(head.log_prob(p, x)) == pytest.approx(math.log(total), abs=1e-9)


def test_float32_agrees_with_float64_and_gradients_are_finite_at_the_extremes():
    head = DMOL(5, 3)
    for scale in (1.0, 30.0):
        p = params(head, 500, scale)
        x = head.grid(torch.randint(0, 256, (500, 3), generator=torch.Generator().manual_seed(1)))
        exact = head.log_prob(p, x.double())
        single = p.float().requires_grad_()
        found = head.log_prob(single, x)
        found.sum().backward()
        assert torch.allclose(found.double(), exact, rtol=1e-3, atol=1e-2) and torch.isfinite(single.grad).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_coders_distribution_is_the_probability(channels):
    head = DMOL(3, channels, levels=16)
    p = params(head, 7, 2.0)
    x = head.grid(torch.randint(0, 16, (7, channels), generator=torch.Generator().manual_seed(0)), torch.float64)
    log_prob = torch.zeros(7, dtype=torch.float64)
    for c in range(channels):
        mass = head.cdf(p, x[:, :c]).diff(dim=-1)
        assert mass.shape == (7, 16) and (mass >= 0).all() and torch.allclose(mass.sum(1), torch.ones(7).double())
        log_prob += mass.gather(1, head.level(x[:, c])[:, None])[:, 0].log()
    assert torch.allclose(log_prob, head.log_prob(p, x), atol=1e-8)


def test_draws_follow_the_distribution_and_sit_on_the_grid():
    head = DMOL(2, 1, levels=8)
    p = params(head, 1, 1.0).float().expand(40000, -1)
    drawn = head.sample(p, torch.Generator().manual_seed(0))
    share = torch.bincount(head.level(drawn)[:, 0], minlength=8) / 40000
    x = head.grid(torch.arange(8))
    assert torch.allclose(share, head.log_prob(p[:8], x[:, None]).exp(), atol=0.01)
    assert torch.equal(head.round(drawn), drawn)
    cold = head.sample(p[:4], torch.Generator().manual_seed(1), temperature=0.0)
    assert (cold == cold[0]).all()


def test_pictures():
    p = torch.randn(2, 50, 4, 4)
    x = dmol_sample(p, torch.Generator().manual_seed(0))
    assert x.shape == (2, 3, 4, 4) and dmol_log_prob(p, x).shape == (2, 4, 4)


def test_bad_input():
    head = DMOL(2, 3)
    with pytest.raises(ShapeError):
        head.log_prob(torch.zeros(1, 19), torch.zeros(1, 3))
    with pytest.raises(ShapeError, match=r"\[-1, 1\]"):
        head.log_prob(torch.zeros(1, 20), torch.full((1, 3), 1.5))
    with pytest.raises(ShapeError):
        DMOL(2, 2)
