import pytest
import torch

from cambrian.data.random import integers, normal, sample_keys, uniform
from cambrian.engine.order import SampleOrder
from cambrian.errors import ConfigError


def test_every_epoch_visits_each_sample_once_in_another_order():
    order = SampleOrder(64, 8, seed=3)
    epochs = [torch.cat([order.take(e * 8 + s)[0] for s in range(8)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(64))
    assert not torch.equal(epochs[0], epochs[1])


def test_order_is_a_pure_function_of_seed_and_step():
    straight = SampleOrder(50, 7, seed=1)
    jumping = SampleOrder(50, 7, seed=1)
    want = [straight.take(s) for s in range(30)]
    for step in (29, 0, 13, 7, 13):
        for a, b in zip(want[step], jumping.take(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(SampleOrder(50, 7, seed=2).take(0)[0], want[0][0])


def test_batch_larger_than_data_is_refused():
    with pytest.raises(ConfigError, match="batch 9 is larger"):
        SampleOrder(8, 9, seed=0)


def test_keys_do_not_depend_on_the_batch():
    index = torch.arange(1000)
    keys = sample_keys(5, 2, index)
    assert torch.equal(keys[400:410], sample_keys(5, 2, index[400:410]))
    assert len(set(keys.tolist())) == 1000
    assert not torch.equal(keys, sample_keys(5, 3, index))
    assert torch.equal(uniform(keys, 6)[400:410], uniform(keys[400:410], 6))


def test_keyed_numbers_have_their_distribution():
    keys = sample_keys(0, 0, torch.arange(20000))
    u, z, k = uniform(keys, 5, stream=1), normal(keys, 5, stream=2), integers(keys, 3, 7, stream=3)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert torch.allclose(u.mean(0), torch.full((5,), 0.5), atol=0.01)
    assert torch.allclose(u.var(0), torch.full((5,), 1 / 12), atol=0.003)
    assert torch.allclose(z.mean(0), torch.zeros(5), atol=0.03) and torch.allclose(z.std(0), torch.ones(5), atol=0.03)
    correlation = torch.corrcoef(torch.cat([u, z], 1).T) - torch.eye(10)
    assert correlation.abs().max() < 0.03
    counts = torch.bincount(k.reshape(-1), minlength=7)
    assert (counts - k.numel() / 7).abs().max() < 5 * (k.numel() / 7) ** 0.5
