"""Trying a claim: every arm with every seed as a one-thread process, side by side; finished arms are cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cambrian.codec import files
from cambrian.engine import registry
from cambrian.engine.claims import Arm, Claim, Judgement, claim_hash, judge
from cambrian.engine.config import nearest, override, to_json
from cambrian.engine.run import runs_root
from cambrian.errors import CambrianError, ConfigError, RunError

SABOTAGE = "sabotage"
Notify = Callable[[dict[str, tuple[int, int]]], None]


@dataclass
class Job:
    """One arm with one seed, and where its result stands."""

    arm: str
    seed: int
    directory: Path
    payload: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """`arm/seed`, for progress."""
        return f"{self.arm}/{self.seed}"

    def result(self) -> dict[str, Any] | None:
        """The finished result, or None."""
        path = self.directory / "result.json"
        return files.load_json(path) if path.exists() else None

    def progress(self) -> tuple[int, int]:
        """Steps done and in all, as last written by the child."""
        with contextlib.suppress(OSError, ValueError):
            done, total = (self.directory / "progress").read_text().split()
            return int(done), int(total)
        return 0, 1


@dataclass
class Trial:
    """A tried claim: metrics per arm and seed, the verdict, and the sabotaged verdict when that arm was run."""

    slug: str
    claim: Claim
    preset: str
    metrics: dict[str, list[dict[str, float]]]
    judgement: Judgement
    sabotage: Judgement | None
    hash: str
    data: str
    seconds: float
    cpu_seconds: dict[str, float]
    samples: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    curves: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def verdict(self) -> str:
        """`holds`, `smaller`, `fails` or `inconclusive`."""
        return self.judgement.verdict


def select(holder: Any, name: str | None) -> list[Claim]:
    """The claims to try: the headline, the one called `name`, or `all`. Raises `ConfigError`."""
    claims = list(holder.claims)
    if name is None:
        return claims[:1]
    if name == "all":
        return claims
    chosen = [c for c in claims if c.name == name]
    if not chosen:
        known = [c.name for c in claims]
        raise ConfigError(f"{holder.slug} has no claim {name!r}{nearest(name, known)}; claims: {', '.join(known)}")
    return chosen


def resolve_arms(holder: Any, claim: Claim, preset: str) -> dict[str, dict[str, Any]]:
    """Every arm's full configuration as JSON, with the sabotaged arm under `sabotage`."""
    if preset not in holder.presets:
        raise ConfigError(f"{holder.slug} has no preset {preset!r}; presets: {', '.join(holder.presets)}")
    arms: Mapping[str, Arm] = {**claim.arms, SABOTAGE: claim.sabotage}
    base = holder.presets[preset]
    return {
        name: {"config": to_json(override(base, arm.overrides)), "with": list(arm.with_)} for name, arm in arms.items()
    }


def current_hash(slug: str, claim: Claim, preset: str) -> str:
    """The hash that a ledger record of this claim must carry to be up to date with the code."""
    return claim_hash(slug, claim, resolve_arms(registry.claim_holder(slug), claim, preset))


def _jobs(holder: Any, claim: Claim, preset: str, data: str | None, sabotage: bool, seeds: Sequence[int]) -> list[Job]:
    code = registry.code_hash(holder.slug)
    jobs: list[Job] = []
    for arm, values in resolve_arms(holder, claim, preset).items():
        if arm == SABOTAGE and not sabotage:
            continue
        for seed in seeds:
            payload = {"slug": holder.slug, "role": holder.role, "seed": seed, "data": data, **values}
            key = hashlib.sha256((json.dumps(payload, sort_keys=True) + code).encode()).hexdigest()[:20]
            jobs.append(Job(arm, seed, runs_root() / ".arms" / f"{holder.slug}-{key}", payload))
    return jobs


def _start(job: Job) -> None:
    job.directory.mkdir(parents=True, exist_ok=True)
    for stale in ("error", "progress", "result.json"):
        (job.directory / stale).unlink(missing_ok=True)
    files.replace_json(job.directory / "job.json", job.payload)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "cambrian.engine.arm", str(job.directory / "job.json")]
    with (job.directory / "log").open("wb") as log:
        job.process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **threads}
        )


def _finish(job: Job) -> None:
    """Raise what the child met, if it failed."""
    assert job.process is not None
    if job.process.returncode == 0 and job.result() is not None:
        return
    error = job.directory / "error"
    if error.exists():
        kind, _, message = error.read_text(encoding="utf-8").partition(": ")
        raise (RunError if kind != "ConfigError" else ConfigError)(f"arm {job.name}: {message}")
    tail = (job.directory / "log").read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    raise RunError(
        f"arm {job.name} ended with status {job.process.returncode}: {tail[0]} (log: {job.directory / 'log'})"
    )


@contextlib.contextmanager
def _reaped(jobs: Sequence[Job]) -> Generator[None]:
    """Whatever happens, no child outlives the verify."""
    try:
        yield
    finally:
        for job in jobs:
            if job.process is not None and job.process.poll() is None:
                job.process.terminate()
        for job in jobs:
            if job.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.process.wait(timeout=10)
                if job.process.poll() is None:
                    job.process.kill()


def run_jobs(jobs: Sequence[Job], workers: int, notify: Notify) -> None:
    """Run what is not cached, `workers` at a time; `notify({arm/seed: (done, total)})` is called about twice a second."""
    unique = {job.directory: job for job in jobs}
    waiting = [job for job in unique.values() if job.result() is None]
    running: list[Job] = []
    with _reaped(waiting):
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                _start(job)
                running.append(job)
            time.sleep(0.2)
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                _finish(job)
                running.remove(job)
            notify({job.name: (1, 1) if job.result() else job.progress() for job in jobs})


def verify(
    slug: str,
    *,
    claim: str | None = None,
    preset: str | None = None,
    data: str | None = None,
    seeds: Sequence[int] | None = None,
    sabotage: bool = False,
    workers: int | None = None,
    fresh: bool = False,
    notify: Notify = lambda progress: None,
) -> list[Trial]:
    """Try the claims of `slug` (the headline unless `claim` names another, or `all`); one `Trial` each.

    `workers` defaults to the number of cores; a study that times itself (`exclusive`) runs its arms one after the other.
    """
    holder = registry.claim_holder(slug)
    trials: list[Trial] = []
    for one in select(holder, claim):
        used = tuple(seeds) if seeds else one.seeds
        chosen = preset or one.preset
        jobs = _jobs(holder, one, chosen, data, sabotage, used)
        if fresh:
            for job in jobs:
                (job.directory / "result.json").unlink(missing_ok=True)
        started = time.monotonic()
        pool = 1 if getattr(holder, "exclusive", False) else workers or max(1, os.cpu_count() or 1)
        run_jobs(jobs, pool, notify)
        trials.append(_judge(holder, one, chosen, data, jobs, time.monotonic() - started))
    return trials


def _judge(holder: Any, claim: Claim, preset: str, data: str | None, jobs: Sequence[Job], seconds: float) -> Trial:
    metrics: dict[str, list[dict[str, float]]] = {}
    cpu: dict[str, float] = {}
    shown: dict[str, dict[str, str]] = {"sample": {}, "curves": {}}
    for job in jobs:
        result = job.result()
        assert result is not None
        if claim.metric not in result["metrics"]:
            raise CambrianError(
                f"{holder.slug} gives no metric {claim.metric!r}; it gives: {', '.join(result['metrics'])}"
            )
        metrics.setdefault(job.arm, []).append(result["metrics"])
        cpu[job.arm] = cpu.get(job.arm, 0.0) + float(result["cpu_seconds"])
        for kind, found in shown.items():
            page = job.directory / f"{kind}.html"
            if job.arm not in found and page.exists():
                found[job.arm] = page.read_text(encoding="utf-8")
    plain = {arm: rows for arm, rows in metrics.items() if arm != SABOTAGE}
    broken = judge(claim, {**plain, claim.system: metrics[SABOTAGE]}) if SABOTAGE in metrics else None
    digest = claim_hash(holder.slug, claim, resolve_arms(holder, claim, preset))
    where = data or f"embedded {getattr(holder, 'default_data', '')}".strip()
    total = max(seconds, 0.0)
    return Trial(
        holder.slug, claim, preset, metrics, judge(claim, plain), broken, digest, where, total, cpu, shown["sample"], shown["curves"]
    )  # fmt: skip
