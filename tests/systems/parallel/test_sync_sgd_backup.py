"""First-N accumulation against one-process SGD, order statistics against closed forms, and workers that die."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cambrian.data import digits
from cambrian.data.images import unit
from cambrian.dist.launch import WorkerLost, WorkerTimeout
from cambrian.dist.straggler import Straggler
from cambrian.engine.config import override
from cambrian.errors import ConfigError, NonFiniteError
from cambrian.systems.parallel.sync_sgd_backup import (
    Accumulator,
    StaleSGD,
    SyncBackup,
    exponential_order,
    mean_order,
    plan_backups,
)
from cambrian.systems.parallel.sync_sgd_backup._engines import Processes
from cambrian.systems.parallel.sync_sgd_backup.recipe import DigitsNet, SyncBackupStudy, cross_entropy

NET = partial(DigitsNet, width=2, seed=3)
SLOW = Straggler("lognormal", 0.02, 0.1, slow_probability=0.2, slow_factor=8.0)


@pytest.fixture(scope="module")
def train() -> dict[str, Tensor]:
    split = digits.load(0).train
    batch = split[torch.arange(len(split))]
    return {"x": unit(batch["image"]), "y": batch["label"]}


def one_process(train: dict[str, Tensor], trainer: SyncBackup, steps: int, lr: float) -> Tensor:
    """Plain SGD on the union of the workers' batches."""
    model = NET()
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        index = torch.cat([trainer.work.positions(rank, step) for rank in range(trainer.workers)])
        sgd.zero_grad()
        cross_entropy(model, {name: tensor[index] for name, tensor in train.items()}).backward()
        sgd.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("engine", ["simulated", "processes"])
def test_without_backups_it_is_sgd_on_the_union_of_the_batches(train: dict[str, Tensor], engine: str) -> None:
    trainer = SyncBackup(NET, cross_entropy, train, workers=4, batch=8, engine=engine)
    log = trainer.fit(12)
    expected = one_process(train, trainer, 12, 0.1)
    torch.testing.assert_close(trainer.vector, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(log.thetas[-1], trainer.vector, rtol=0, atol=0)
    assert log.accepted.all() and int(log.dropped.sum()) == 0 and not log.arrivals.isnan().any()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


class Watched(SyncBackup):
    """Remembers its worker processes, and kills some of them after an update."""

    def __init__(self, *args: object, kill: tuple[int, ...] = (), at: int = 5, **options: object) -> None:
        super().__init__(*args, **options)
        self.kill, self.at, self.pids = kill, at, {}

    def _open(self) -> Processes:
        self.opened = Processes(self.work, timeout=self.timeout)
        return self.opened

    def strike(self, step: int, loss: float) -> bool:
        self.pids = self.opened.fleet.pids()
        if step == self.at:
            for rank in self.kill:
                os.kill(self.pids[rank], signal.SIGKILL)
        return False


def test_processes_with_backups_use_n_gradients_of_each_step_and_leave_nobody(train: dict[str, Tensor]) -> None:
    trainer = Watched(NET, cross_entropy, train, workers=2, backups=2, batch=4, straggler=SLOW)
    log = trainer.fit(15, trainer.strike)
    assert (log.accepted.sum(1) == 2).all() and int(log.dropped.sum()) == 15 * 2
    assert (log.ended.diff() > 0).all() and (log.staleness == 0).all() and not log.lost
    assert (log.arrivals[log.accepted] > 0).all()
    assert len(trainer.pids) == 4 and not any(alive(pid) for pid in trainer.pids.values())


def test_a_killed_worker_is_named_and_a_backup_takes_its_place(train: dict[str, Tensor]) -> None:
    steady = Straggler("constant", 0.01)
    trainer = Watched(NET, cross_entropy, train, workers=2, backups=1, batch=4, straggler=steady, kill=(1,))
    log = trainer.fit(15, trainer.strike)
    assert list(log.lost) == [1] and "SIGKILL" in log.lost[1]
    assert len(log.ended) == 15 and (log.accepted.sum(1) == 2).all() and not log.accepted[-5:, 1].any()
    assert not any(alive(pid) for pid in trainer.pids.values())


def test_too_few_workers_left_is_an_error_that_names_the_dead(train: dict[str, Tensor]) -> None:
    trainer = Watched(NET, cross_entropy, train, workers=2, batch=4, kill=(0,))
    with pytest.raises(WorkerLost, match="worker 0 was lost.*SIGKILL"):
        trainer.fit(100, trainer.strike)
    assert len(trainer.pids) == 2 and not any(alive(pid) for pid in trainer.pids.values())
    assert not trainer.opened.arena.directory.exists()


def test_a_worker_that_raises_or_hangs_is_named(train: dict[str, Tensor]) -> None:
    bad = {"x": train["x"], "y": train["y"] + 100}
    with pytest.raises(WorkerLost, match="IndexError"):
        SyncBackup(NET, cross_entropy, bad, workers=1, batch=4).fit(1)
    hung = Straggler("constant", 60.0)
    trainer = SyncBackup(NET, cross_entropy, train, workers=1, batch=4, straggler=hung)
    with Processes(trainer.work, timeout=60) as engine:
        engine.timeout = 0.3
        engine.publish(trainer.vector, 0)
        with pytest.raises(WorkerTimeout, match="worker 0"):
            engine.wait()


def test_simulated_steps_take_the_order_statistics_of_the_delays(train: dict[str, Tensor]) -> None:
    tiny = {name: tensor[:8] for name, tensor in train.items()}
    trainer = SyncBackup(NET, cross_entropy, tiny, workers=3, backups=2, batch=1, straggler=SLOW, engine="simulated")
    log = trainer.fit(60)
    delays = SLOW.delays(60, 5, 0).sort(1).values[:, 2] + 1e-3
    torch.testing.assert_close(log.ended.diff(prepend=torch.zeros(1, dtype=torch.float64)), delays)
    waiting = SyncBackup(
        NET, cross_entropy, tiny, workers=3, backups=2, batch=1, straggler=SLOW, engine="simulated", wait="all"
    ).fit(60)
    torch.testing.assert_close(waiting.thetas[-1], log.thetas[-1])  # the same gradients, only later
    assert float(waiting.ended[-1]) > 1.5 * float(log.ended[-1])


def test_without_abandoning_late_gradients_come_stale_and_are_dropped(train: dict[str, Tensor]) -> None:
    options = dict(workers=3, backups=2, batch=1, straggler=SLOW, engine="simulated", abandon=False)
    log = SyncBackup(NET, cross_entropy, train, **options).fit(60)
    assert log.late > 0 and (log.accepted.sum(1) == 3).all()


def test_asynchronous_gradients_are_stale_by_the_other_workers(train: dict[str, Tensor]) -> None:
    even = Straggler("lognormal", 0.02, 0.01)
    trainer = SyncBackup(
        NET, cross_entropy, train, workers=5, batch=4, straggler=even, engine="simulated", mode="async"
    )
    log = trainer.fit(100)
    assert log.staleness[:5].tolist() == [0, 1, 2, 3, 4]
    assert 3.5 < float(log.staleness[20:].float().mean()) < 4.5
    real = SyncBackup(NET, cross_entropy, train, workers=2, batch=4, straggler=even, mode="async").fit(20)
    assert (real.accepted.sum(1) == 1).all() and 0.5 < float(real.staleness.float().mean()) < 2.5


def test_a_fixed_partition_starves_the_slow_workers_data(train: dict[str, Tensor]) -> None:
    order = train["y"].argsort()
    by_class = {name: tensor[order] for name, tensor in train.items()}
    slow = Straggler("constant", 0.01, slow_workers=(4,), slow_factor=9.0)

    def accuracy(sampling: str) -> float:
        trainer = SyncBackup(partial(DigitsNet, width=4), cross_entropy, by_class, workers=4, backups=1, batch=16,
                             optimiser=partial(torch.optim.SGD, lr=0.3), straggler=slow, engine="simulated",
                             sampling=sampling)  # fmt: skip
        log = trainer.fit(80)
        assert int(log.dropped[4]) == 80
        with torch.no_grad():
            hits = trainer.model(by_class["x"]).argmax(1) == by_class["y"]
        return float(hits[-200:].float().mean())  # the slow worker's classes

    assert accuracy("random") > 0.6 and accuracy("partition") < 0.2


def test_the_accumulator_refuses_stale_surplus_and_repeated_gradients() -> None:
    box = Accumulator(2)
    box.open(7)
    one = torch.ones(3)
    assert not box.offer(0, 6, one) and box.offer(2, 7, one) and not box.offer(2, 7, one)
    assert box.offer(0, 7, 3 * one) and box.full and not box.offer(1, 7, one)
    assert box.workers == [0, 2] and box.mean().tolist() == [2.0, 2.0, 2.0]
    box.open(8)
    assert not box.full
    with pytest.raises(AssertionError, match="stale"):
        box.mean()


def test_order_statistics_of_shifted_exponential_arrivals() -> None:
    arrivals = Straggler("exponential", 0.2, 0.5).delays(200_000, 6, 1)
    for k, n in ((1, 6), (4, 6), (6, 6), (4, 4), (2, 3)):
        assert mean_order(arrivals, k, n) == pytest.approx(exponential_order(k, n, shift=0.2, rate=2.0), rel=0.02)
    with pytest.raises(ConfigError, match="at least 7"):
        mean_order(arrivals, 4, 7)
    with pytest.raises(ConfigError, match="wait='all'"):
        mean_order(torch.full((2, 2), float("nan")), 1, 2)


def test_the_planner_trades_backups_for_iterations() -> None:
    heavy = Straggler("lognormal", 0.05, 0.1, slow_probability=0.1, slow_factor=5.0).delays(20_000, 6, 0)
    plan = plan_backups(heavy, dict.fromkeys(range(1, 7), 100.0))
    assert plan.workers == 1  # where more gradients a step save no steps, the fastest is enough
    plan = plan_backups(heavy, {n: 400.0 / n for n in range(1, 7)})
    assert plan.workers + plan.backups == 6 and 1 <= plan.backups <= 3
    assert plan.seconds == min(row[3] for row in plan.table)
    steady = torch.ones(10, 6)
    assert plan_backups(steady, {n: 400.0 / n for n in range(1, 7)}).backups == 0
    with pytest.raises(ConfigError, match="1..6"):
        plan_backups(heavy, {9: 1.0})


def sgd_pair(tau: int, ramp: int = 0) -> tuple[nn.Parameter, StaleSGD]:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    return weight, StaleSGD(torch.optim.SGD([weight], lr=0.5, momentum=0.9), tau, ramp=ramp)


def test_staleness_zero_is_the_optimiser_bit_for_bit() -> None:
    weight, stale = sgd_pair(0)
    plain = nn.Parameter(weight.detach().clone())
    sgd = torch.optim.SGD([plain], lr=0.5, momentum=0.9)
    for step in range(20):
        weight.grad = plain.grad = torch.tensor([0.1 * step, 1.0 / (step + 1)])
        stale.step()
        sgd.step()
    assert torch.equal(weight, plain)


def test_a_stale_step_applies_the_gradient_of_tau_steps_ago() -> None:
    weight = nn.Parameter(torch.zeros(1))
    stale = StaleSGD(torch.optim.SGD([weight], lr=1.0), 3)
    seen = []
    for step in range(6):
        weight.grad = torch.tensor([10.0**step])
        stale.step()
        seen.append(-float(weight.detach()))
    assert seen == [0, 0, 0, 1, 11, 111]
    assert float(weight.grad) == 1e5 and len(stale.queue) == 3
    ramped = StaleSGD(torch.optim.SGD([weight], lr=1.0), 4, ramp=8)
    ages = []
    for _ in range(10):
        ages.append(ramped.age)
        ramped.step()
    assert ages == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(ConfigError, match="negative"):
        StaleSGD(torch.optim.SGD([weight], lr=1.0), -1)


def test_a_stale_optimiser_resumes_exactly() -> None:
    def run(weight: nn.Parameter, stale: StaleSGD, steps: range) -> None:
        for step in steps:
            weight.grad = torch.sin(weight.detach() + step)
            stale.step()

    straight, first, second = sgd_pair(3, 5), sgd_pair(3, 5), sgd_pair(3, 5)
    run(*straight, range(12))
    run(*first, range(6))
    second[0].data.copy_(first[0].data)
    second[1].load_state_dict(first[1].state_dict())
    run(*second, range(6, 12))
    assert torch.equal(straight[0], second[0])


def test_moving_average_schedule_and_divergence(train: dict[str, Tensor]) -> None:
    options = dict(workers=2, batch=8, engine="simulated")
    trainer = SyncBackup(NET, cross_entropy, train, ema=0.5, schedule=lambda step: float(step == 0), **options)
    log = trainer.fit(3)
    first, rest = log.thetas[1], log.thetas[2:]
    assert not torch.equal(log.thetas[0], first) and all(torch.equal(first, theta) for theta in rest)
    torch.testing.assert_close(trainer.average, log.thetas[0] + 0.875 * (first - log.thetas[0]))
    wild = partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(NonFiniteError, match="learning rate"):
        SyncBackup(NET, cross_entropy, train, optimiser=wild, **options).fit(5)


def test_smoke_preset_lowers_the_loss_and_reports(tmp_path: Path) -> None:
    config = override(SyncBackupStudy.presets["smoke"], {"steps": 25})
    found = SyncBackupStudy(config).measure(0, tmp_path, lambda done, total: None)
    assert found.metrics["final_loss"] < 2.0 and 0.3 < found.metrics["dropped_share"] < 0.35
    assert found.metrics["step_ms"] == pytest.approx(found.metrics["predicted_step_ms"], rel=0.2)
    assert found.sample is not None and len(found.sample.save(tmp_path, "s")) == 4


@pytest.mark.parametrize(
    "bad", [{"engine": "mpi"}, {"mode": "hogwild"}, {"wait": "some"}, {"sampling": "fixed"}, {"workers": 0}]
)
def test_bad_settings_are_typed_errors(train: dict[str, Tensor], bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SyncBackup(NET, cross_entropy, train, **bad)


def test_ray_actors_train_like_one_process(train: dict[str, Tensor]) -> None:
    pytest.importorskip("ray")
    trainer = SyncBackup(NET, cross_entropy, train, workers=2, batch=8, engine="ray")
    trainer.fit(6)
    torch.testing.assert_close(trainer.vector, one_process(train, trainer, 6, 0.1), rtol=0, atol=1e-5)
    backed = SyncBackup(NET, cross_entropy, train, workers=1, backups=1, batch=8, engine="ray", straggler=SLOW).fit(10)
    assert (backed.accepted.sum(1) == 1).all()
