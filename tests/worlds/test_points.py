"""Points worlds: determinism, distinct modes, exact densities."""

from __future__ import annotations

import math

import pytest
import torch

from cambrian.errors import ConfigError, DataError
from cambrian.worlds import points


def test_eight_modes_are_eight() -> None:
    centres = points.ring8().centres
    assert float(torch.pdist(centres).min()) == pytest.approx(2 * 2.0 * math.sin(math.pi / 8), rel=1e-5)
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 2.0))


@pytest.mark.parametrize(("name", "modes"), [("ring8", 8), ("grid25", 25), ("r15", 15)])
def test_samples_lie_around_their_modes(name: str, modes: int) -> None:
    data = points.load(name)
    batch = data.split("train")[torch.arange(20_000)]
    centres = torch.tensor(data.info["centres"])
    off = (batch["point"] - centres[batch["label"]]) / data.info["deviation"]
    torch.testing.assert_close(off.mean(0), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(off.T.cov(), torch.eye(2), atol=0.04, rtol=0)
    share = torch.bincount(batch["label"], minlength=modes) / 20_000
    assert len(centres) == modes and float((share * modes - 1).abs().max()) < 0.15


def test_a_sample_depends_on_its_index_only_and_splits_differ() -> None:
    data = points.load("grid25")
    alone = data.split("train")[torch.tensor([17])]["point"]
    assert torch.equal(data.split("train")[torch.tensor([3, 17, 99])]["point"][1:2], alone)
    assert not torch.equal(data.split("test")[torch.tensor([17])]["point"], alone)
    assert not torch.equal(points.load("grid25", seed=1).split("train")[torch.tensor([17])]["point"], alone)


def test_density_integrates_to_one_and_matches_torch() -> None:
    world = points.Mixture(points.circle(3, 1.0, turn=0.2), 0.4)
    ticks = torch.linspace(-4, 4, 161, dtype=torch.float64)
    x = torch.cartesian_prod(ticks, ticks)
    assert float(world.log_density(x).exp().sum()) * 0.05**2 == pytest.approx(1.0, abs=1e-6)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3)),
        torch.distributions.Independent(torch.distributions.Normal(world.centres, 0.4), 1),
    )
    y = world.draw(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(world.log_density(y), mixture.log_prob(y), atol=1e-5, rtol=1e-5)


def test_unknown_names_and_shapes() -> None:
    with pytest.raises(ConfigError, match="ring8"):
        points.mixture("ring9")
    with pytest.raises(DataError, match=r"\[N, 2\]"):
        points.ring8().log_density(torch.zeros(3))
