"""Training a run: log, checkpoint, stop cleanly, resume exactly."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from cambrian.engine import devices
from cambrian.engine.loop import Interrupt, Loop, evaluate, fit
from cambrian.engine.recipe import SingleProcess
from cambrian.engine.run import Run, RunSpec
from cambrian.errors import CambrianError, CheckpointError

Report = Callable[[int, int, dict[str, float]], None]


class Trainer:
    """Carries one run from its last checkpoint to `steps`, writing as it goes. Only rank 0 writes."""

    def __init__(self, run: Run, loop: Loop, *, log_every: int, checkpoint_every: int, report: Report | None) -> None:
        self.run, self.loop, self.report = run, loop, report
        self.log_every, self.checkpoint_every = max(1, log_every), max(1, checkpoint_every)
        self.steps = int(loop.recipe.config.steps)
        self.writes = loop.recipe.world.rank == 0
        self.interrupt = Interrupt()
        self.saved = -1

    def go(self) -> Run:
        """Train; returns the run, with status `done` or `stopped`."""
        started = time.monotonic()
        self._status("running")
        try:
            with self.interrupt:
                self._save()
                fit(self.loop, self.steps, each=self._after_step)
                self._save()
            done = self.loop.recipe.iteration >= self.steps
            if done and self.writes and self.steps:
                self._write_evaluation()
            self._status("done" if done else "stopped", seconds=round(time.monotonic() - started, 2))
        except BaseException as error:
            reason = str(error) if isinstance(error, CambrianError) else type(error).__name__
            self._status("failed", reason=reason)
            raise
        return self.run

    def _after_step(self, step: int, scalars: dict[str, float]) -> bool:
        if self.writes and (step % self.log_every == 0 or step == self.steps):
            with (self.run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        if step % self.checkpoint_every == 0:
            self._save()
        if self.report is not None:
            self.report(step, self.steps, scalars)
        return self.interrupt.raised

    def _save(self) -> None:
        step = self.loop.recipe.iteration
        if not self.writes or step == self.saved:
            return
        metrics = self.run.path / "metrics.jsonl"
        if metrics.exists():
            with metrics.open("a") as file:
                os.fsync(file.fileno())
        self.run.checkpoints.save(step, self.loop.state_dict())
        self.saved = step

    def _write_evaluation(self) -> None:
        figures = evaluate(self.loop.recipe)
        with (self.run.path / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.loop.recipe.iteration, "split": "test", **figures}) + "\n")
        self.run.update(figures={k: v if abs(v) < float("inf") else None for k, v in figures.items()})

    def _status(self, status: str, **values: Any) -> None:
        if self.writes:
            self.run.update(status=status, step=self.loop.recipe.iteration, **values)


def start(
    spec: RunSpec,
    config: Any,
    *,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    report: Report | None = None,
) -> Run:
    """Train a new run as specified. With several processes (torchrun) all call this; rank 0 writes and its run is returned."""
    world, device = devices.join(spec.device)
    recipe = spec.make(device=device, world=world, config=config)
    loop = Loop(recipe, precision=spec.precision)
    log = log_every or max(1, config.steps // 200)
    every = checkpoint_every or max(1, config.steps // 5)
    settings = {"log_every": log, "checkpoint_every": every, "processes": world.size}
    if world.rank == 0:
        found = {
            "fingerprint": recipe.data.fingerprint(),
            "source": recipe.data.source,
            "machine": devices.describe(device),
        }
        run = Run.create(spec, extra={**settings, **found})
        with run.lock():
            return Trainer(run, loop, log_every=log, checkpoint_every=every, report=report).go()
    return _follow(loop, spec)


def _follow(loop: Loop, spec: RunSpec) -> Run:
    """What ranks other than 0 do: compute their share of every step and write nothing."""
    with Interrupt() as interrupt:
        fit(loop, int(loop.recipe.config.steps), each=lambda step, scalars: interrupt.raised)
    raise SystemExit(0)


def resume(run: Run, *, report: Report | None = None) -> Run:
    """Carry a stopped, killed or failed run on to its last step, exactly as if it had not stopped."""
    world: SingleProcess
    world, device = devices.join(run.spec.device)
    if world.rank != 0:
        return _follow(run.restore(device=device, world=world), run.spec)
    with run.lock():
        run.checkpoints.sweep()
        if not run.checkpoints.steps():
            raise CheckpointError(
                f"run {run.id} has no checkpoint yet; start it again with 'cambrian train {run.spec.slug}'"
            )
        loop = run.restore(device=device, world=world)
        _truncate_metrics(run, loop.recipe.iteration)
        keys = {k: int(run.info.get(k, 1)) for k in ("log_every", "checkpoint_every")}
        return Trainer(run, loop, report=report, **keys).go()


def _truncate_metrics(run: Run, step: int) -> None:
    """Drop records after the checkpoint: they will be written again, bit-equal."""
    path = run.path / "metrics.jsonl"
    if path.exists():
        kept = [json.dumps(r) + "\n" for r in run.metrics() if r["step"] <= step]
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(kept))
        os.replace(beside, path)
