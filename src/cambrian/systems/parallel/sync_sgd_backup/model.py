"""The server: a stamped accumulator that takes the first N gradients, the update, and the record of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from cambrian.dist.launch import WorkerLost
from cambrian.dist.straggler import Straggler
from cambrian.errors import ConfigError, NonFiniteError
from cambrian.nn.flat import share
from cambrian.systems.parallel.sync_sgd_backup._engines import Arrival, Engine, Processes, RayActors, Simulated
from cambrian.systems.parallel.sync_sgd_backup._work import Loss, Work

ENGINES = ("simulated", "processes", "ray")
Optimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Stop = Callable[[int, float], bool]


class Accumulator:
    """Takes the first `needed` gradients of the open step and refuses all others."""

    def __init__(self, needed: int) -> None:
        self.needed, self.stamp = needed, -1
        self._taken: dict[int, tuple[int, Tensor]] = {}

    def open(self, stamp: int) -> None:
        """Begin a step: from now on only gradients with this stamp count."""
        self.stamp = stamp
        self._taken.clear()

    def offer(self, worker: int, stamp: int, gradient: Tensor) -> bool:
        """Whether the gradient is one of the first `needed` of this step."""
        if stamp != self.stamp or self.full or worker in self._taken:
            return False
        self._taken[worker] = (stamp, gradient)
        return True

    @property
    def full(self) -> bool:
        """Whether the step can be made."""
        return len(self._taken) >= self.needed

    @property
    def workers(self) -> list[int]:
        """Whose gradients were taken."""
        return sorted(self._taken)

    def mean(self) -> Tensor:
        """The mean gradient [P]; summed in order of worker, so that it does not depend on who was first."""
        assert self.full and all(stamp == self.stamp for stamp, _ in self._taken.values()), "a stale gradient was taken"
        return torch.stack([self._taken[worker][1] for worker in self.workers]).mean(0)


@dataclass
class RunLog:
    """What happened: one row per step (asynchronous: per update).

    `arrivals` [T, W] seconds from the start of the step to each gradient that arrived in it, NaN for none; `accepted`
    [T, W] which were used; `ended` [T] seconds since the start of the run; `losses` [T] mean of the accepted batches;
    `thetas` [T+1, P] the parameters before the first step and after each; `staleness` [T] updates between reading and
    applying (0 when synchronous); `late` gradients that came with an old stamp; `lost` workers by reason.
    """

    arrivals: Tensor
    accepted: Tensor
    ended: Tensor
    losses: Tensor
    thetas: Tensor
    staleness: Tensor
    late: int = 0
    lost: Mapping[int, str] = field(default_factory=dict)

    @property
    def dropped(self) -> Tensor:
        """Steps of each worker that did not count [W]."""
        return (~self.accepted).sum(0)


class _Record:
    """A `RunLog` in the making."""

    def __init__(self, workers: int, vector: Tensor) -> None:
        self.workers, self.thetas, self.late = workers, [vector.clone()], 0
        self.arrivals: list[list[float]] = []
        self.accepted: list[list[bool]] = []
        self.ended: list[float] = []
        self.losses: list[float] = []
        self.staleness: list[int] = []
        self.lost: dict[int, str] = {}

    def row(self, times: Mapping[int, float], used: Sequence[int], ended: float, loss: float, stale: int) -> None:
        self.arrivals.append([times.get(w, float("nan")) for w in range(self.workers)])
        self.accepted.append([w in used for w in range(self.workers)])
        self.ended.append(ended)
        self.losses.append(loss)
        self.staleness.append(stale)

    def log(self) -> RunLog:
        return RunLog(
            torch.tensor(self.arrivals, dtype=torch.float64).view(-1, self.workers),
            torch.tensor(self.accepted, dtype=torch.bool).view(-1, self.workers),
            torch.tensor(self.ended, dtype=torch.float64),
            torch.tensor(self.losses),
            torch.stack(self.thetas),
            torch.tensor(self.staleness),
            self.late,
            self.lost,
        )


class SyncBackup:
    """Data-parallel SGD with backup workers.

    `model_fn() -> nn.Module` and `loss_fn(model, batch) -> loss` are importable functions (or partials of such);
    `data` maps names to equally long tensors, `batch` samples of which make each worker's gradient. `optimiser` makes
    the server's optimiser from its parameters (SGD at 0.1 if not given); `schedule(step)` multiplies its learning rate. `wait="all"` takes the
    first N but ends the step only when every gradient has come (to record arrivals); `mode="async"` applies each as it
    comes. `ema` > 0 keeps a moving average of the parameters in `average`.

    A worker that dies is noted in `RunLog.lost`; training goes on while N are left, else `WorkerLost` is raised.
    Raises `ConfigError` for settings that do not fit.
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        loss_fn: Loss,
        data: Mapping[str, Tensor],
        *,
        workers: int = 4,
        backups: int = 0,
        batch: int = 32,
        optimiser: Optimiser | None = None,
        schedule: Callable[[int], float] | None = None,
        straggler: Straggler | None = None,
        engine: str = "processes",
        mode: str = "sync",
        wait: str = "first",
        sampling: str = "random",
        abandon: bool = True,
        ema: float = 0.0,
        seed: int = 0,
        timeout: float = 120.0,
    ) -> None:
        _check(engine, mode, wait, sampling, workers, backups, batch)
        self.workers, self.fleet = workers, workers + backups
        self.mode, self.wait, self.engine, self.timeout, self.ema = mode, wait, engine, timeout, ema
        delays = (straggler or Straggler()).delays(4096, self.fleet, seed)
        late = "wait" if mode == "async" else "abandon" if abandon else "finish"
        self.work = Work(model_fn, loss_fn, dict(data), self.fleet, batch, seed, sampling, late, delays)
        self.model = model_fn()
        self.vector = share(self.model.parameters())
        self.average = self.vector.clone()
        self._flat = nn.Parameter(self.vector)
        self._optimiser = (optimiser or partial(torch.optim.SGD, lr=0.1))([self._flat])
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._schedule = schedule or (lambda step: 1.0)

    def fit(self, steps: int, stop: Stop | None = None) -> RunLog:
        """Make `steps` updates, or fewer if `stop(step, loss)` says so."""
        record = _Record(self.fleet, self.vector)
        with self._open() as engine:
            advance = self._asynchronous if self.mode == "async" else self._synchronous
            advance(engine, steps, stop or (lambda step, loss: False), record)
        return record.log()

    def _open(self) -> Engine:
        if self.engine == "simulated":
            return Simulated(self.work)
        return (RayActors if self.engine == "ray" else Processes)(self.work, timeout=self.timeout)

    def _synchronous(self, engine: Engine, steps: int, stop: Stop, record: _Record) -> None:
        accumulator, start = Accumulator(self.workers), engine.now()
        for step in range(steps):
            began, times, losses = engine.now(), {}, {}
            accumulator.open(step)
            engine.publish(self.vector, step)
            while not accumulator.full or (self.wait == "all" and set(engine.alive) - set(times)):
                for one in self._arrivals(engine, record):
                    if one.stamp != step:
                        record.late += 1
                        continue
                    times[one.worker] = engine.now() - began
                    if accumulator.offer(one.worker, one.stamp, one.gradient):
                        losses[one.worker] = one.loss
            loss = sum(losses.values()) / len(losses)
            self._update(accumulator.mean(), step, loss)
            record.row(times, accumulator.workers, engine.now() - start, loss, 0)
            record.thetas.append(self.vector.clone())
            if stop(step, loss):
                break

    def _asynchronous(self, engine: Engine, steps: int, stop: Stop, record: _Record) -> None:
        start, step = engine.now(), 0
        began = dict.fromkeys(engine.alive, start)
        engine.publish(self.vector, 0)
        while step < steps:
            for one in self._arrivals(engine, record):
                now = engine.now()
                self._update(one.gradient, step, one.loss)
                record.row({one.worker: now - began[one.worker]}, [one.worker], now - start, one.loss, step - one.stamp)
                record.thetas.append(self.vector.clone())
                step, began[one.worker] = step + 1, now
                if step >= steps or stop(step - 1, one.loss):
                    return
                engine.publish(self.vector, step, one.worker)

    def _arrivals(self, engine: Engine, record: _Record) -> list[Arrival]:
        try:
            return engine.wait()
        except WorkerLost as loss:
            record.lost[loss.rank] = str(loss)
            if len(engine.alive) < (self.workers if self.mode == "sync" else 1):
                raise
            return []

    def _update(self, gradient: Tensor, step: int, loss: float) -> None:
        if not loss == loss or abs(loss) == float("inf"):
            raise NonFiniteError(f"the loss of step {step} is {loss}; lower the learning rate")
        self._flat.grad = gradient
        for group, rate in zip(self._optimiser.param_groups, self._rates):
            group["lr"] = rate * self._schedule(step)
        self._optimiser.step()
        if self.ema:
            self.average.lerp_(self.vector, 1 - self.ema)


def _check(engine: str, mode: str, wait: str, sampling: str, workers: int, backups: int, batch: int) -> None:
    allowed = {
        "engine": (engine, ENGINES),
        "mode": (mode, ("sync", "async")),
        "wait": (wait, ("first", "all")),
        "sampling": (sampling, ("random", "partition")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if workers < 1 or backups < 0 or batch < 1:
        raise ConfigError(
            f"workers and batch must be at least 1 and backups at least 0, not {workers}, {batch}, {backups}"
        )
