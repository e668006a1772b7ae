"""Probes: closed forms against solvers, monitors that change no bit, reductions, factors, and the bypassed network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.data import digits
from cambrian.data.split import TensorSplit
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Supervised
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect import Space, wrap
from cambrian.inspect.controls import reinitialised, spearman
from cambrian.systems.explain.linear_probes.model import (
    STRENGTHS,
    Moments,
    Probes,
    Reduce,
    logistic,
    probe_points,
)
from cambrian.systems.explain.linear_probes.recipe import LinearProbes, MonitorOptions, Options, ProbeMonitor, bypassed


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def make_target(labels: torch.Tensor | None = None):
    data = digits.load(valid=200)
    if labels is not None:
        for split in (data.train, data.valid, data.test):
            split.fields["label"] = labels[: len(split)]
    return wrap(small_net(), space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)


def test_ridge_equals_the_textbook_solution_on_standardised_features():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7) + 3
    z[:, 4] = 2.5  # a constant feature must get weight zero
    y = torch.randint(3, (200,), generator=generator)
    onehot = F.one_hot(y, 3).double()
    moments = Moments(6, 3, z.device)
    for part in torch.arange(200).split(37):
        moments.add(z[part], onehot[part])
    weights, biases = moments.ridge()
    alive = [0, 1, 2, 3, 5]
    standard = (z - z.mean(0))[:, alive] / z.std(0, correction=0)[alive]
    for i, strength in enumerate(STRENGTHS):
        gram = standard.T @ standard / 200 + strength * torch.eye(5, dtype=torch.float64)
        solved = torch.linalg.solve(gram, standard.T @ (onehot - onehot.mean(0)) / 200)
        assert torch.allclose(z @ weights[i] + biases[i], standard @ solved + onehot.mean(0), atol=1e-9)
    assert not weights[:, 4].any()


def test_logistic_probe_reaches_scikit_learns_optimum():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(300, 5, generator=generator, dtype=torch.float64), torch.randint(4, (300,), generator=generator)
    z[:, 0] += y
    strength = 0.01
    weight, _, value = logistic(z, y, 4, strength)
    peer = LogisticRegression(C=1 / (300 * strength), max_iter=5000, tol=1e-10).fit(z.numpy(), y.numpy())
    coefficients = torch.from_numpy(peer.coef_.T)
    theirs = F.cross_entropy(z @ coefficients + torch.from_numpy(peer.intercept_), y)
    assert abs(value - float(theirs + strength / 2 * coefficients.square().sum())) < 1e-6
    assert torch.allclose(weight - weight.mean(1, keepdim=True), coefficients, atol=1e-3)


def test_probes_leave_the_network_alone_and_report_every_layer():
    target = make_target()
    target.module.train()
    before = copy.deepcopy(target.module.state_dict())
    found = LinearProbes().explain(target, torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert target.module.training and target.module[4].training
    names = ["input", "0", "2", "3", "6"]
    assert probe_points(target) == names
    assert [row["layer"] for row in found.rows] == names * 2
    assert {row["network"] for row in found.rows} == {"trained", "untrained"} and set(found.figures) == {"depth"}
    assert [row["features"] for row in found.rows[:5]] == [16, 128, 128, 128, 10]
    assert found.rows[2]["test error"] < found.rows[0]["test error"] < 0.5


def test_shuffled_labels_stay_at_chance():
    labels = torch.randint(10, (1400,), generator=torch.Generator().manual_seed(0))
    rows = Probes(points="0+3").fit(make_target(labels), torch.Generator().manual_seed(0))
    for row in rows:
        assert abs(row["test error"] - 0.9) < 3 * (0.9 * 0.1 / 397) ** 0.5


def test_the_converged_logistic_probe_reads_at_least_as_much_as_ridge():
    target = make_target()
    ridge, exact = (
        Probes(points="input", method=m, samples=100).fit(target, torch.Generator().manual_seed(0))[0]
        for m in ("ridge", "logistic")
    )
    assert exact["train error"] < ridge["train error"] and exact["test error"] < ridge["test error"] + 0.02


def test_reductions_are_fixed_per_layer_and_bounded():
    h = torch.rand(3, 40, 6, 6)
    pool = Reduce.parse("pool:4", torch.Generator(), limit=200)
    assert pool("a", h).shape == (3, 40 * 4) and torch.allclose(
        pool("a", h)[:, 0], h[:, 0, :3, :3].mean((1, 2)).double()
    )
    for text in ("subset:20", "proj:20"):
        reduce = Reduce.parse(text, torch.Generator().manual_seed(0))
        assert torch.equal(reduce("a", h), reduce("a", h)) and reduce("a", h).shape == (3, 20)
        assert not torch.equal(reduce("a", h), reduce("b", h))
    assert Reduce.parse("subset:9999", torch.Generator())("a", h).shape == (3, 1440)
    for bad in ("pool:0", "mean", "subset", "proj:x", "subset:-1"):
        with pytest.raises(ConfigError, match="reduce"):
            Reduce.parse(bad, torch.Generator())


def test_other_factors_can_be_read_and_unknown_ones_are_named():
    target = make_target()
    for split in target._splits.values():
        split.fields["bright"] = (split.fields["image"].float().mean((1, 2, 3)) > 80).long()
    rows = Probes(points="input", labels="bright").fit(target, torch.Generator())
    assert rows[0]["test error"] < 0.05 and rows[0]["labels"] == "bright"
    with pytest.raises(DataError, match=r"'font'; it has \['bright'\]"):
        Probes(points="input", labels="font").fit(target, torch.Generator())
    with pytest.raises(ConfigError, match="nearest"):
        Probes(points="input+convv").fit(target, torch.Generator())


def test_spearman_matches_ranks_with_ties():
    assert spearman([0, 1, 2, 3], [9.0, 4.0, 1.0, 0.0]) == pytest.approx(-1)
    from scipy.stats import spearmanr

    a, b = [1.0, 2, 2, 3, 5, 5, 9], [4.0, 1, 1, 0, 7, 2, 2]
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    assert spearman([1, 2, 3], [5, 5, 5]) == 0.0


def test_reinitialised_is_fresh_reproducible_and_refuses_loose_parameters():
    net = small_net()
    net[1].running_mean += 1
    seed_state = torch.random.get_rng_state()
    one, two = reinitialised(net, 5), reinitialised(net, 5)
    assert torch.equal(torch.random.get_rng_state(), seed_state)
    assert torch.equal(one[0].weight, two[0].weight) and not torch.equal(one[0].weight, net[0].weight)
    assert not one[1].running_mean.any()
    net.loose = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    with pytest.raises(CapabilityError, match="loose"):
        reinitialised(net, 0)


@config
class TinyConfig:
    steps: int = option(50, "steps", low=1)
    batch: int = option(32, "samples", low=1)


class TinyRecipe(Supervised[TinyConfig]):
    slug = "tiny"

    def build(self, config, data):
        self.model = small_net()
        self.optim = self.optimiser(torch.optim.Adam, self.model.parameters(), lr=1e-3)

    def objective(self, batch):
        return F.cross_entropy(self.model(batch["image"].float() / 255), batch["label"]), {}


def train_tiny(method: ProbeMonitor | None, steps: int = 50, recipe: TinyRecipe | None = None) -> TinyRecipe:
    recipe = recipe or TinyRecipe(TinyConfig(), data=digits.load(valid=200), methods=[method] if method else [])
    for step in range(recipe.iteration, steps):
        torch.manual_seed(step)  # dropout
        recipe.step(recipe.data.train[torch.arange(step * 16, step * 16 + 32) % 1200])
        recipe.iteration += 1
    return recipe


def test_monitored_training_is_bit_identical_and_its_probes_learn_and_resume():
    monitor = ProbeMonitor(MonitorOptions(every=5))
    watched, alone = train_tiny(monitor), train_tiny(None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(watched.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    )
    assert len(monitor.history) == 10 and set(monitor.history[0][1]) == {"0", "2", "3", "6"}
    first, last = monitor.history[0][1]["2"], monitor.history[-1][1]["2"]
    assert last < first - 0.2 and monitor.figure() is not None

    half = train_tiny(ProbeMonitor(MonitorOptions(every=5)), steps=23)
    state = half.state_dict()
    again = TinyRecipe(TinyConfig(), data=half.data, methods=[ProbeMonitor(MonitorOptions(every=5))])
    again.load_state_dict(copy.deepcopy(state))
    train_tiny(None, recipe=again)
    for name, weight in again.methods[0].weights.items():
        assert torch.equal(weight, monitor.weights[name])
    assert again.methods[0].history == monitor.history


def test_a_monitor_needs_labels_and_steps():
    with pytest.raises(DataError):
        ProbeMonitor().figure()
    recipe = TinyRecipe(TinyConfig(), data=digits.load(valid=200), methods=[ProbeMonitor()])
    with pytest.raises(CapabilityError, match="labels"):
        recipe.step({"image": torch.zeros(4, 1, 8, 8)})


def test_supervision_reaches_every_bypassed_layer():
    target = bypassed(0, steps=1, supervised=True)
    net, x, y = target.module, torch.rand(8, 64), torch.arange(8)
    logits, extra = net(x, supervised=True)
    assert logits.shape == (8, 10) and len(extra) == 4 and torch.equal(logits, net(x))
    net.zero_grad()
    torch.stack([F.cross_entropy(e, y) for e in extra]).mean().backward()
    assert all(bool(layer.weight.grad.any()) for layer in net.layers[:16])
    assert net.layers[16].weight.grad is None


def test_untrained_gan_style_modules_can_be_probed():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2))
            self.head = nn.Linear(144, 1)

        def forward(self, x):
            return self.head(self.features(x).flatten(1)).squeeze(1)

    data = digits.load(valid=200)
    target = wrap(Critic(), space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    rows = LinearProbes(Options(samples=300)).explain(target, torch.Generator().manual_seed(0)).rows
    assert [row["layer"] for row in rows[:4]] == ["input", "features.0", "features.1", "head"]
    assert rows[1]["test error"] < 0.3 < rows[3]["test error"]
    assert np.isfinite([row["test error"] for row in rows]).all()
    assert isinstance(data.train, TensorSplit)
