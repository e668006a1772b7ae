"""The study: wall-clock to a training loss with and without backup workers; and serial SGD at a chosen staleness."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data import digits
from cambrian.data.images import unit
from cambrian.data.split import Split
from cambrian.dist.straggler import Straggler
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Measurement, Progress, Study, study
from cambrian.engine.samples import Curves, Gallery, Sample, Table
from cambrian.systems.parallel.sync_sgd_backup._orders import mean_order
from cambrian.systems.parallel.sync_sgd_backup._stale import StaleSGD
from cambrian.systems.parallel.sync_sgd_backup.model import RunLog, SyncBackup


@config
class Config:
    mode: str = option("sync", "how gradients meet the parameters", choices=("sync", "async", "stale"))
    engine: str = option("processes", "what carries them", choices=("simulated", "processes", "ray"))
    workers: int = option(4, "N, gradients in an update", low=1, high=1024)
    backups: int = option(2, "b, workers beyond N", low=0, high=1024)
    wait: str = option("first", "end a step at the first N gradients or at all of them", choices=("first", "all"))
    abandon: bool = option(True, "a late worker gives up its gradient")
    sampling: str = option("random", "where workers draw from", choices=("random", "partition"))
    steps: int = option(100, "updates by N gradients (asynchronous: N times as many by one)", low=1)
    batch: int = option(16, "samples per worker and gradient", low=1)
    lr: float = option(0.075, "gamma_0, learning rate per counted worker; used times N", low=0.0)
    momentum: float = option(0.0, "momentum of the server's SGD", low=0.0, high=0.999)
    optimiser: str = option("sgd", "the server's update rule", choices=("sgd", "rmsprop"))
    ema: float = option(0.0, "decay of the moving average of the parameters; 0 keeps none", low=0.0, high=0.99999)
    width: int = option(8, "channels of the first convolution", low=1)
    target: float = option(0.2, "training loss to reach", low=0.0)
    delay: float = option(0.05, "median of a worker's injected delay, seconds", low=0.0)
    spread: float = option(0.1, "standard deviation of its logarithm", low=0.0)
    slow: float = option(0.1, "probability that a gradient is delayed more", low=0.0, high=1.0)
    factor: float = option(5.0, "how much more", low=1.0)
    tau: int = option(0, "staleness of the serial study", low=0)
    ramp: int = option(0, "steps over which the staleness grows", low=0)


class DigitsNet(nn.Module):
    """Two convolutions and a linear layer on 8x8 images: [B,1,8,8] in [0,1] -> logits [B,10]."""

    def __init__(self, *, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
                nn.Flatten(), nn.Linear(32 * width, 10),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross entropy of a classifier on `x`, `y`."""
    return F.cross_entropy(model(batch["x"]), batch["y"])


def make_optimiser(parameters: list[nn.Parameter], *, name: str, lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD, or the paper's RMSProp (decay 0.9)."""
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, alpha=0.9, momentum=momentum)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


HEADLINE = Claim(
    name="wall-clock",
    statement="With 10 % of gradients 5x slower, N = 4 with b = 2 backups reaches training loss 0.2 in at most 0.7 of "
    "the wall-clock time of N = 4 without.",
    metric="seconds_to_target",
    direction="lower",
    margin=0.7,
    compare="ratio",
    paper="Section 4: Inception with 96 + 4 workers converges faster than with all 100 awaited (curves; no table)",
    arms={
        "backup": Arm(),
        "full": Arm({"backups": 0}),
        "six": Arm({"workers": 6, "backups": 0}),
        "async": Arm({"mode": "async", "workers": 6, "backups": 0}),
    },
    system="backup",
    baselines=("full",),
    sabotage=Arm({"wait": "all"}),
    conditions=(Condition("backup", "reached", ">=", 1.0), Condition("full", "reached", ">=", 1.0)),
)
_STALE = {"mode": "stale", "steps": 800, "batch": 64, "lr": 0.1}
STALENESS = Claim(
    name="staleness",
    statement="Serial SGD on gradients 32 steps old is at least 20 points less accurate than on fresh ones.",
    metric="test_accuracy",
    direction="higher",
    margin=0.2,
    paper="Section 2.1: an 18-layer network does not reach the same accuracy at high average staleness (curves)",
    arms={"fresh": Arm(_STALE), "stale": Arm({**_STALE, "tau": 32}), "tau 8": Arm({**_STALE, "tau": 8}),
          "stale, lr/8": Arm({**_STALE, "tau": 32, "lr": 0.0125}), "fresh, lr/8": Arm({**_STALE, "lr": 0.0125})},
    system="fresh",
    baselines=("stale",),
    sabotage=Arm({**_STALE, "tau": 32}),
)  # fmt: skip


@study("sync-sgd-backup")
class SyncBackupStudy(Study[Config]):
    presets = {
        "smoke": Config(engine="simulated", steps=40, target=1.5),
        "laptop": Config(),
        "paper": Config(engine="ray", workers=96, backups=4, steps=5000, optimiser="rmsprop", momentum=0.9, ema=0.9999,
                        lr=1e-5),
    }  # fmt: skip
    claims = (HEADLINE, STALENESS)
    exclusive = True

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Train once in the configured way and time it."""
        data = digits.load(seed)
        train, test = _everything(data.train), _everything(data.test)
        if self.config.mode == "stale":
            return _measure_stale(self.config, seed, train, test, progress)
        return self._measure_parallel(seed, train, test, progress)

    def _measure_parallel(
        self, seed: int, train: dict[str, Tensor], test: dict[str, Tensor], progress: Progress
    ) -> Measurement:
        c = self.config
        asynchronous = c.mode == "async"
        steps = c.steps * c.workers if asynchronous else c.steps
        counted = 1 if asynchronous else c.workers
        rule = partial(make_optimiser, name=c.optimiser, lr=c.lr * counted, momentum=c.momentum)

        def tick(step: int, loss: float) -> bool:
            progress(step + 1, steps)
            return False

        trainer = SyncBackup(
            partial(DigitsNet, width=c.width, seed=seed), cross_entropy, train,
            workers=c.workers, backups=c.backups, batch=c.batch, optimiser=rule, straggler=straggler(c),
            engine=c.engine, mode=c.mode, wait=c.wait, sampling=c.sampling, abandon=c.abandon, ema=c.ema, seed=seed,
        )  # fmt: skip
        log = trainer.fit(steps, tick)
        curve = loss_curve(log, trainer, train, every=max(1, steps // 100))
        if c.ema:
            trainer.vector.copy_(trainer.average)
        metrics = summary(log, curve, c)
        with torch.no_grad():
            metrics["test_accuracy"] = float((trainer.model(test["x"]).argmax(1) == test["y"]).float().mean())
        return Measurement(metrics, report(log, curve))


def _everything(split: Split | None) -> dict[str, Tensor]:
    """A whole split as `x` [N,1,8,8] in [0,1] and `y` [N]."""
    assert split is not None
    batch = split[torch.arange(len(split))]
    return {"x": unit(batch["image"]), "y": batch["label"]}


def straggler(c: Config) -> Straggler:
    """The delays that a configuration asks for."""
    return Straggler("lognormal", c.delay, c.spread, slow_probability=c.slow, slow_factor=c.factor)


Curve = list[tuple[int, float, float]]


@torch.no_grad()
def loss_curve(log: RunLog, trainer: SyncBackup, train: dict[str, Tensor], *, every: int) -> Curve:
    """(update, seconds, loss on the whole training set); computed after the run, so that it costs the clock nothing."""
    last = len(log.thetas) - 1
    seconds = [0.0, *log.ended.tolist()]
    points: Curve = []
    for step in sorted({*range(0, last + 1, every), last}):
        trainer.vector.copy_(log.thetas[step])
        points.append((step, seconds[step], float(cross_entropy(trainer.model, train))))
    return points


def summary(log: RunLog, curve: Curve, c: Config) -> dict[str, float]:
    """The figures of a run. Where the target was not reached its time is that of the whole run, a lower bound."""
    below = next((point for point in curve if point[2] <= c.target), None)
    reached = below or curve[-1]
    steps = log.ended.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return {
        "seconds_to_target": reached[1],
        "updates_to_target": float(reached[0]),
        "reached": float(below is not None),
        "step_ms": 1e3 * float(steps.mean()),
        "predicted_step_ms": 1e3 * predicted_step(c),
        "final_loss": curve[-1][2],
        "dropped_share": float(log.dropped.sum()) / log.accepted.numel() if c.mode == "sync" else 0.0,
        "mean_staleness": float(log.staleness.float().mean()),
        "late": float(log.late),
    }


def predicted_step(c: Config) -> float:
    """Seconds of an update by order statistics of the delays alone."""
    fleet = c.workers + c.backups
    delays = straggler(c).delays(20_000, fleet, 0)
    if c.mode == "async":
        return float(delays.mean()) / fleet
    return mean_order(delays, fleet if c.wait == "all" else c.workers, fleet)


def report(log: RunLog, curve: Curve) -> Sample:
    """Loss against wall clock, when the k-th gradient arrives, staleness, and who was dropped."""
    _, seconds, losses = zip(*curve)
    items: dict[str, Sample] = {"loss": Curves({"training loss": (seconds, losses)}, x="seconds", y="loss")}
    ranks: dict[str, tuple[list[float], list[float]]] = {}
    ordered = log.arrivals.nan_to_num(float("inf")).sort(1).values
    for k in range(ordered.shape[1]):
        times = ordered[:, k][ordered[:, k].isfinite()].sort().values
        if len(times) > 1:
            share = torch.linspace(0, len(times) / len(ordered), len(times) + 1)[1:]
            ranks[f"gradient {k + 1}"] = ((1e3 * times).tolist(), share.tolist())
    items["arrivals"] = Curves(ranks, x="ms from the start of the step", y="share of steps")
    ages, counts = log.staleness.unique(return_counts=True)
    items["staleness"] = Table(["updates", "gradients"], list(zip(ages.tolist(), counts.tolist())))
    shares = (log.dropped / max(1, len(log.accepted))).tolist()
    items["not counted"] = Table(["worker", "share of steps"], list(enumerate(shares)))
    return Gallery(items)


def _measure_stale(
    c: Config, seed: int, train: dict[str, Tensor], test: dict[str, Tensor], progress: Progress
) -> Measurement:
    """An MLP trained by serial SGD whose gradients are `tau` steps old."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=c.lr, momentum=c.momentum)
    stale = StaleSGD(sgd, c.tau, ramp=c.ramp)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(c.steps):
        index = torch.randint(len(train["y"]), (c.batch,), generator=generator)
        loss = cross_entropy(model, {name: tensor[index] for name, tensor in train.items()})
        stale.zero_grad()
        loss.backward()
        stale.step()
        losses.append(float(loss.detach()))
        progress(step + 1, c.steps)
    with torch.no_grad():
        accuracy = float((model(test["x"]).argmax(1) == test["y"]).float().mean())
    final = sum(losses[-20:]) / len(losses[-20:])
    curve = Curves({f"tau {c.tau}": (range(len(losses)), losses)}, y="loss")
    return Measurement({"test_accuracy": accuracy, "final_loss": final}, curve)
