"""Networks that a study trains itself are trained once."""

import torch
from torch import nn

from cambrian.engine.targets import kept


def test_kept_trains_once_for_each_set_of_facts(monkeypatch, tmp_path):
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path))
    calls = []

    def train(module):
        calls.append(1)
        nn.init.constant_(module[0].weight, float(len(calls)))
        module[1].running_mean += 3

    def get(seed):
        return kept("eve", {"seed": seed, "sizes": [1, 2]}, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), train)

    first, again, other = get(0), get(0), get(1)
    assert len(calls) == 2 and not again.training and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert other[0].weight[0, 0].item() == 2.0 and float(again[1].running_mean[0]) == 3.0
