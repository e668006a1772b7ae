"""The ring, the sum tree and prioritised drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cambrian.errors import ConfigError, ShapeError
from cambrian.rl.replay import PrioritisedReplay, Replay, SumTree


def rows(start: int, n: int) -> dict[str, torch.Tensor]:
    number = torch.arange(start, start + n)
    return {"obs": number[:, None].to(torch.uint8), "reward": number.float()}


def test_the_ring_keeps_the_newest_and_the_types() -> None:
    ring = Replay(10)
    for start in range(0, 24, 4):
        ring.add(**rows(start, 4))
    assert ring.size == 10 and ring.columns["obs"].dtype == torch.uint8
    assert sorted(ring.columns["reward"].tolist()) == list(range(14, 24))
    batch = ring.sample(2000, torch.Generator().manual_seed(0))
    assert set(batch["reward"].tolist()) == set(range(14, 24))
    assert torch.equal(batch["obs"][:, 0].float(), batch["reward"])


@pytest.mark.parametrize("size", [1, 5, 64, 65, 5000])
def test_tree_sums_minima_and_search_equal_the_plain_way(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    tree, leaves = SumTree(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(30):
        index = torch.randint(0, size, (7,), generator=g).unique()
        values = torch.rand(len(index), generator=g, dtype=torch.float64) + 0.01
        tree.update(index, values)
        leaves[index] = values
    assert tree.total == pytest.approx(float(leaves.sum()), rel=1e-12)
    assert tree.smallest == float(leaves[leaves > 0].min())
    mass = torch.rand(500, generator=g, dtype=torch.float64) * tree.total
    found = tree.find(mass)
    expected = torch.searchsorted(leaves.cumsum(0), mass, right=True)
    assert (leaves[found] > 0).all()
    assert float((found == expected).double().mean()) > 0.99  # the rest stand on an edge, within rounding
    assert tree.find(torch.tensor([tree.total]))[0] == leaves.nonzero().max()


def test_draws_follow_the_priorities() -> None:
    """Chi-square of 6,000 draws against p^alpha: below its mean + 3 deviations."""
    memory, g = PrioritisedReplay(100, alpha=0.6), torch.Generator().manual_seed(0)
    memory.add(**rows(0, 100))
    errors = torch.rand(100, generator=g) * 4 - 2
    memory.update(torch.arange(100), errors)
    p = (errors.abs().double() + 1e-6) ** 0.6
    p = (p / p.sum()).numpy()
    # Single draws: the slices of a larger batch vary less than independent draws would.
    drawn = torch.cat([memory.sample(1, g, beta=1.0)["index"] for _ in range(6000)]).numpy()
    counts = np.bincount(drawn, minlength=100)
    chi = float(((counts - 6000 * p) ** 2 / (6000 * p)).sum())
    assert chi < 99 + 3 * np.sqrt(2 * 99), chi
    uniform = float(((counts - 60) ** 2 / 60).sum())
    assert uniform > 300


def test_weights_undo_the_priorities_over_the_whole_memory() -> None:
    memory, g = PrioritisedReplay(50, alpha=0.7), torch.Generator().manual_seed(1)
    memory.add(**rows(0, 40))
    errors = torch.linspace(0.1, 2, 40)
    memory.update(torch.arange(40), errors)
    batch = memory.sample(16, g, beta=0.5)
    p = (errors.double() + 1e-6) ** 0.7
    weights = (40 * p / p.sum()) ** -0.5
    expected = (weights / weights.max())[batch["index"]].float()
    torch.testing.assert_close(batch["weight"], expected)
    assert float((memory.sample(16, g, beta=0.0)["weight"] - 1).abs().max()) == 0


def test_new_transitions_get_the_largest_priority_so_far() -> None:
    memory = PrioritisedReplay(8, alpha=1.0)
    memory.add(**rows(0, 4))
    memory.update(torch.tensor([0, 1]), torch.tensor([5.0, -7.0]))
    memory.update(torch.tensor([1]), torch.tensor([0.5]))
    slots = memory.add(**rows(4, 2))
    assert memory.tree.sums[0][slots].tolist() == pytest.approx([7.000001] * 2)


@pytest.mark.parametrize("kind", [Replay, PrioritisedReplay])
def test_a_restored_memory_draws_the_same(kind: type[Replay]) -> None:
    memory, g = kind(70), torch.Generator().manual_seed(2)
    for start in range(0, 90, 3):
        slots = memory.add(**rows(start, 3))
        if isinstance(memory, PrioritisedReplay):
            memory.update(slots, torch.rand(3, generator=g))
    other = kind(70)
    other.load_state_dict(memory.state_dict())
    for _ in range(20):
        a = memory.sample(9, torch.Generator().manual_seed(3))
        b = other.sample(9, torch.Generator().manual_seed(3))
        assert all(torch.equal(a[k], b[k]) for k in a)
        memory.add(**rows(7, 5)), other.add(**rows(7, 5))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Replay(4).sample(1, torch.Generator())
    with pytest.raises(ConfigError, match="empty"):
        PrioritisedReplay(4).sample(1, torch.Generator())
    with pytest.raises(ConfigError, match="capacity"):
        Replay(0)
    ring = Replay(4)
    ring.add(**rows(0, 2))
    with pytest.raises(ShapeError, match="rows of"):
        ring.add(obs=torch.zeros(2, 2), reward=torch.zeros(2))
    with pytest.raises(ShapeError, match="rows of"):
        ring.add(**rows(0, 5))
    bigger = Replay(9)
    bigger.add(**rows(0, 9))
    with pytest.raises(ConfigError, match="more than the capacity"):
        ring.load_state_dict(bigger.state_dict())
