"""Worker pools: the same job over many inputs, in this process, in local processes, or on a Ray cluster.

    with open_pool("processes", workers=4) as pool:
        for index, result in pool.run(train_child, jobs):
            ...

Functions for `processes` and `ray` must be importable by name; what they take and give must travel between processes.
"""

from __future__ import annotations

import concurrent.futures as futures
import multiprocessing as mp
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch

from cambrian.dist.launch import WorkerLost, start_method
from cambrian.errors import ConfigError, MissingExtraError

ENGINES = ("local", "processes", "ray")


class Pool(Protocol):
    """Runs a function over jobs."""

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """`(position, result)` in the order in which jobs finish; an exception of a job is raised here."""
        ...

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        """The results in the order of the jobs."""
        ...

    def __enter__(self) -> Pool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalPool:
    """In this process, one after the other; the default, and what the others are tested against."""

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """As `Pool.run`."""
        yield from ((i, function(job)) for i, job in enumerate(jobs))

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
        """As `Pool.map`."""
        results = dict(self.run(function, jobs))
        return [results[i] for i in range(len(jobs))]

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the workers."""


class ProcessPool(LocalPool):
    """`workers` local processes with one thread each."""

    def __init__(self, workers: int) -> None:
        context = mp.get_context(start_method())
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(["torch"])
        self._pool = futures.ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))  # fmt: skip

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """As `Pool.run`; raises `WorkerLost` when a worker process dies."""
        waiting = {self._pool.submit(function, job): i for i, job in enumerate(jobs)}
        try:
            for done in futures.as_completed(waiting):
                yield waiting[done], done.result()
        except futures.process.BrokenProcessPool as error:
            raise WorkerLost(-1, "a process of the pool died while it had work") from error
        finally:
            for one in waiting:
                one.cancel()

    def close(self) -> None:
        """End the processes; queued jobs are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class RayPool(LocalPool):
    """Ray tasks, at most `workers` at a time, on the cluster that Ray finds (or a local one)."""

    def __init__(self, workers: int) -> None:
        self._ray, self._owner = start_ray(workers)
        self._workers = workers

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """As `Pool.run`."""
        remote = self._ray.remote(num_cpus=1)(function)
        queue, running = list(enumerate(jobs))[::-1], {}
        while queue or running:
            while queue and len(running) < self._workers:
                i, job = queue.pop()
                running[remote.remote(job)] = i
            ready, _ = self._ray.wait(list(running), num_returns=1)
            for one in ready:
                yield running.pop(one), self._ray.get(one)

    def close(self) -> None:
        """Shut Ray down if this pool started it."""
        if self._owner:
            self._ray.shutdown()


def start_ray(workers: int) -> tuple[Any, bool]:
    """The ray module, initialised, and whether it was this call that did so. Raises `MissingExtraError`."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "dist") from None
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    return ray, True


def open_pool(engine: str = "local", *, workers: int = 1) -> LocalPool:
    """A pool on `local`, `processes` or `ray`. Raises `ConfigError`, or `MissingExtraError` where Ray is not installed."""
    if engine not in ENGINES or workers < 1:
        raise ConfigError(f"a pool needs an engine of {', '.join(ENGINES)} and a worker, not {engine!r} with {workers}")
    makers: dict[str, Callable[[int], LocalPool]] = {"processes": ProcessPool, "ray": RayPool}
    return makers[engine](workers) if engine in makers else LocalPool()
