"""The receiver's draws are the sender's, follow q, and cost KL plus a few bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.codec import relative_entropy as rec
from cambrian.codec.rans import Stack
from cambrian.errors import CambrianError, ConfigError, DataError, ShapeError


def normals(rng: np.random.Generator, size: int, shift: float = 0.5) -> tuple[rec.Normal, rec.Normal]:
    p = rng.normal(size=size), np.exp(0.3 * rng.normal(size=size))
    q = p[0] + shift * p[1] * rng.normal(size=size), p[1] * np.exp(-np.abs(rng.normal(size=size)) * 0.5)
    return q, p


def test_candidates_are_normal_and_random_access() -> None:
    drawn = rec.candidates((1, 2), 0, 4096, 20)
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.std()) - 1) < 0.01
    assert np.array_equal(rec.candidates((1, 2), 1000, 3, 20), drawn[1000:1003])
    assert not np.array_equal(rec.candidates((1, 3), 0, 5, 20), drawn[:5])
    assert abs(np.corrcoef(drawn[:-1, 3], drawn[1:, 3])[0, 1]) < 0.05


def test_divergence_and_weights_equal_torchs_normals() -> None:
    rng = np.random.default_rng(0)
    q, p = normals(rng, 7)
    mine = [torch.distributions.Normal(*map(torch.from_numpy, side)) for side in (q, p)]
    expected = torch.distributions.kl_divergence(*mine).sum() / math.log(2)
    assert rec.divergence(q, p) == pytest.approx(float(expected))
    drawn = rec.candidates((5, 5), 0, 50, 7)
    z = torch.from_numpy(p[0] + p[1] * drawn.astype(np.float64))
    ratio = (mine[0].log_prob(z) - mine[1].log_prob(z)).sum(1).numpy()
    found = rec.log_weights(drawn, q, p)
    np.testing.assert_allclose(found - found[0], ratio - ratio[0], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.0, 3.0))
def test_the_receiver_gets_the_senders_draws(seed: int, size: int, shift: float) -> None:
    """Blocks far beyond SPLIT bits are halved down to single latents; everything survives the bytes."""
    rng = np.random.default_rng(seed)
    sender = rec.Sender(np.random.default_rng(1))
    sent = []
    for block in range(6):
        q, p = normals(rng, size, shift)
        sent.append(sender.send(q, p, rec.block_key(seed, 3, block), block % 2))
    stack = rec.push_all(sender.symbols)
    content = rec.cost(sender.symbols)
    assert content - 1 < stack.bits() < content + 64 + 16
    receiver = rec.Receiver(Stack.from_bytes(stack.to_bytes()))
    for block in range(6):
        got = receiver.receive(size, rec.block_key(seed, 3, block), block % 2)
        assert np.array_equal(got, sent[block])
    assert receiver.stack.is_empty()


def test_draws_follow_q_and_cost_kl_plus_a_few_bits() -> None:
    rng, count = np.random.default_rng(0), 400
    p = np.zeros(6), np.ones(6)
    q = np.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5]), np.array([0.3, 0.5, 0.4, 1.0, 0.3, 0.9])
    sender = rec.Sender(rng)
    drawn = np.array([sender.send(q, p, rec.block_key(0, i, 0)) for i in range(count)])
    np.testing.assert_allclose(drawn.mean(0), q[0], atol=0.15)
    np.testing.assert_allclose(drawn.std(0), q[1], atol=0.12)
    bits = rec.divergence(q, p)
    assert 6 < bits < rec.SPLIT
    width = min(w for w in rec.WIDTHS if w >= bits)
    assert width <= rec.cost(sender.symbols) / count <= width + 0.3  # one class only: it costs next to nothing


@pytest.mark.parametrize("total", [0.0, 4.0, 33.0, 500.0])
def test_blocks_are_a_partition_near_the_target(total: float) -> None:
    share = np.random.default_rng(0).dirichlet(np.full(300, 0.3)) * total
    found = rec.blocks(share, 10.0)
    assert sorted(np.concatenate(found).tolist()) == list(range(300))
    assert len(found) <= max(1, math.ceil(total / 10))
    for block in found:
        assert share[block].sum() <= 10 + max(5, share.max()) + 1e-6
    for before, after in itertools.pairwise(found):
        assert share[before].min() >= share[after].max()


def test_damage_is_a_typed_error_or_shows() -> None:
    """A truncated stream never passes; a flipped bit is an error, leaves a rest, or gives other draws."""
    rng = np.random.default_rng(0)
    sender = rec.Sender(rng)
    sent = [sender.send(*normals(rng, 12), rec.block_key(0, 0, block)) for block in range(5)]
    good = rec.push_all(sender.symbols).to_bytes()
    for i in range(len(good)):
        for bad in (good[:i], good[:i] + bytes([good[i] ^ 16]) + good[i + 1 :]):
            try:
                receiver = rec.Receiver(Stack.from_bytes(bad))
                got = [receiver.receive(12, rec.block_key(0, 0, block)) for block in range(5)]
            except CambrianError:
                continue
            assert not receiver.stack.is_empty() or (len(bad) == len(good) and not np.array_equal(got, sent))


def test_bad_requests_are_typed_errors() -> None:
    sender, one = rec.Sender(np.random.default_rng(0)), np.ones(2)
    with pytest.raises(ShapeError):
        sender.send((one, one), (one, np.ones(3)), (0, 0))
    with pytest.raises(DataError):
        sender.send((one * np.nan, one), (one, one), (0, 0))
    with pytest.raises(DataError):
        rec.blocks(np.array([np.nan]))
    with pytest.raises(ConfigError):
        rec.block_key(-1, 0, 0)
