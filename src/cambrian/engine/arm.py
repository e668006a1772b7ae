"""One arm of a claim with one seed: trained or measured in a process of its own. `python -m cambrian.engine.arm JOB.json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cambrian.codec import files
from cambrian.engine import methods, registry
from cambrian.engine.config import from_json
from cambrian.engine.loop import Loop, evaluate, fit, inference
from cambrian.engine.recipe import config_type
from cambrian.engine.run import RunSpec
from cambrian.engine.samples import Curves, Sample
from cambrian.errors import CambrianError


@dataclass
class Outcome:
    """What one arm with one seed gave."""

    metrics: dict[str, float]
    sample: Sample | None
    curves: Sample | None
    training_cpu: float = 0.0


class Ticker:
    """Writes `done total` to a file at most twice a second, for the parent's progress bar."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last > 0.5 or done >= total:
            self.last = now
            self.path.write_text(f"{done} {total}")


def run_recipe(spec: RunSpec, config: Any, ticker: Ticker) -> Outcome:
    """Train the recipe to its last step, then evaluate it on the test split."""
    loop = Loop(spec.make(config=config))
    every = max(1, config.steps // 150)
    history: dict[str, tuple[list[float], list[float]]] = {}

    def each(step: int, scalars: dict[str, float]) -> None:
        ticker(step, config.steps)
        if step % every == 0:
            for name, value in scalars.items():
                xs, ys = history.setdefault(name, ([], []))
                xs.append(step)
                ys.append(value)

    started = time.process_time()
    fit(loop, config.steps, each=each)
    training = time.process_time() - started
    metrics = evaluate(loop.recipe)
    try:
        with inference(loop.recipe, 0) as generator:
            sample = loop.recipe.sample(512 if loop.recipe.data.kind == "points" else 16, generator)
    except CambrianError:
        sample = None
    return Outcome(metrics, sample, Curves(history) if history else None, training)


def run_study(slug: str, values: Mapping[str, Any], seed: int, directory: Path, ticker: Ticker) -> Outcome:
    """Measure a study's arm."""
    cls = registry.load(slug, "study")
    found = cls(from_json(config_type(cls), values)).measure(seed, directory, ticker)
    return Outcome(found.metrics, found.sample, None)


def run_job(job: Mapping[str, Any], directory: Path) -> None:
    """Run the job and write `result.json`, `sample.html` and `curves.html` beside it."""
    started, cpu = time.monotonic(), time.process_time()
    ticker = Ticker(directory / "progress")
    if job["role"] == "study":
        outcome = run_study(job["slug"], job["config"], job["seed"], directory, ticker)
    else:
        ways = methods.describe(methods.parse_all(job["with"], "training-method"))
        spec = RunSpec(job["slug"], job["config"], seed=job["seed"], data=job["data"], methods=ways)
        cls = registry.load(job["slug"], "recipe")
        outcome = run_recipe(spec, from_json(config_type(cls), job["config"]), ticker)
    for name, shown in (("sample", outcome.sample), ("curves", outcome.curves)):
        if shown is not None:
            (directory / f"{name}.html").write_text(shown.html(), encoding="utf-8")
    if outcome.sample is not None:
        outcome.sample.save(directory, "sample")
    times = {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "training_cpu_seconds": round(outcome.training_cpu, 3),
    }
    files.replace_json(
        directory / "result.json", {"metrics": {k: float(v) for k, v in outcome.metrics.items()}, **times}
    )


def main() -> int:
    """Entry of the child process: an expected error is written to `error` for the parent to show."""
    import torch

    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    try:
        run_job(files.load_json(path), path.parent)
    except (CambrianError, ValueError) as error:
        (path.parent / "error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
