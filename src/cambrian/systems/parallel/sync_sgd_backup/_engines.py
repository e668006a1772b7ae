"""Three ways to carry parameters to workers and gradients back: simulated time, local processes, Ray actors.

All offer the same: `publish` a version to all or one of the workers, `wait` for arrivals, `now`.
"""

from __future__ import annotations

import heapq
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cambrian.dist.launch import Channel, Fleet, WorkerLost, WorkerTimeout
from cambrian.dist.pool import start_ray
from cambrian.dist.shared import Arena, Published, Region
from cambrian.systems.parallel.sync_sgd_backup._work import Replica, Work

_TOKEN, _HEADER = struct.Struct("<q"), struct.Struct("<qd")


@dataclass(frozen=True)
class Arrival:
    """A gradient [P] of the parameters of version `stamp`. It stays valid until the worker is given a new version."""

    worker: int
    stamp: int
    loss: float
    gradient: Tensor


class Engine(Protocol):
    """Carries versions out and gradients in; use as a context manager."""

    @property
    def alive(self) -> Sequence[int]:
        """Workers that have not been lost."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exc: Any) -> None: ...

    def publish(self, vector: Tensor, version: int, worker: int | None = None) -> None:
        """Give the version to one worker, or to all."""
        ...

    def wait(self) -> list[Arrival]:
        """Block for at least one arrival. Raises `WorkerLost` and `WorkerTimeout`."""
        ...

    def now(self) -> float:
        """Seconds."""
        ...


class Simulated:
    """One process and a clock of its own: a step takes `compute` seconds and the worker's delay. Deterministic."""

    def __init__(self, work: Work, *, compute: float = 1e-3) -> None:
        self.work, self.compute = work, compute
        self.alive: Sequence[int] = range(work.workers)
        self._replica = Replica(work)
        self._clock, self._latest = 0.0, (-1, self._replica.vector.clone())
        self._busy: dict[int, tuple[float, int, Tensor]] = {}
        self._events: list[tuple[float, int, int]] = []

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._busy.clear()

    def publish(self, vector: Tensor, version: int, worker: int | None = None) -> None:
        """As `Engine.publish`; a worker that is busy gives up, or ends first where it may not."""
        self._latest = (version, vector.detach().clone())
        for rank in self.alive if worker is None else [worker]:
            if self.work.late == "abandon" or rank not in self._busy:
                self._begin(rank)

    def _begin(self, rank: int) -> None:
        version, vector = self._latest
        end = self._clock + self.compute + self.work.delay(rank, version)
        self._busy[rank] = (end, version, vector)
        heapq.heappush(self._events, (end, rank, version))

    def wait(self) -> list[Arrival]:
        """As `Engine.wait`; the clock moves to the arrival."""
        while True:
            end, rank, version = heapq.heappop(self._events)
            if self._busy.get(rank, (0.0, -1))[:2] == (end, version):
                break
        self._clock = end
        self._replica.vector.copy_(self._busy.pop(rank)[2])
        gradient = torch.empty_like(self._replica.vector)
        loss = self._replica.gradient(rank, version, gradient)
        if self._latest[0] > version and self.work.late == "finish":
            self._begin(rank)
        return [Arrival(rank, version, loss, gradient)]

    def now(self) -> float:
        """Simulated seconds."""
        return self._clock


class Processes:
    """Real local processes. Parameters and gradients stand in shared memory, one flat buffer each; pipes carry stamps."""

    def __init__(self, work: Work, *, timeout: float = 120.0) -> None:
        self.work, self.timeout = work, timeout
        self._stack = ExitStack()

    def __enter__(self) -> Processes:
        with ExitStack() as stack:
            self.arena = arena = stack.enter_context(Arena())
            size = sum(p.numel() for p in self.work.model_fn().parameters())
            vector, at_vector = arena.zeros("parameters", size)
            lock, at_lock = arena.zeros("version", 2, dtype=torch.int64)
            self._slots, at_slots = arena.zeros("gradients", self.work.workers, size)
            self._published = Published(vector, lock)
            data = {name: arena.put(f"data-{name}", tensor) for name, tensor in self.work.data.items()}
            task = (replace(self.work, data={}), data, at_vector, at_lock, at_slots)
            self.fleet = stack.enter_context(Fleet(_serve, [task] * self.work.workers))
            ready: set[int] = set()
            while len(ready) < self.work.workers:
                ready.update(rank for rank, _ in self.fleet.receive(self.timeout))
            arena.seal()  # everyone has mapped it: the memory now ends with the last process
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    @property
    def alive(self) -> Sequence[int]:
        """Workers that have not been lost."""
        return self.fleet.alive

    def publish(self, vector: Tensor, version: int, worker: int | None = None) -> None:
        """As `Engine.publish`."""
        self._published.write(vector.detach(), version)
        for rank in self.alive if worker is None else [worker]:
            self.fleet.send(rank, _TOKEN.pack(version))

    def wait(self) -> list[Arrival]:
        """As `Engine.wait`."""
        return [
            Arrival(rank, *_HEADER.unpack(message), self._slots[rank])
            for rank, message in self.fleet.receive(self.timeout)
        ]

    def now(self) -> float:
        """Wall clock."""
        return time.perf_counter()


def _serve(
    channel: Channel, rank: int, work: Work, data: dict[str, Region], vector: Region, lock: Region, slots: Region
) -> None:
    """A worker process: newest version in, gradient into its own slot, sleep, stamp out."""
    work = replace(work, data={name: region.map() for name, region in data.items()})
    published, slot = Published(vector.map(), lock.map()), slots.map()[rank]
    replica = Replica(work)
    channel.send(b"ready")
    stamp = -1
    while True:
        _next(channel, stamp)
        while True:
            stamp = published.read(replica.vector)
            loss = replica.gradient(rank, stamp, slot)
            delay = work.delay(rank, stamp)
            if work.late != "abandon":
                time.sleep(delay)
                break
            if not _outdated(channel, stamp, delay):
                break
        channel.send(_HEADER.pack(stamp, loss))


def _next(channel: Channel, stamp: int) -> None:
    """Block for a version newer than `stamp`."""
    while _TOKEN.unpack(channel.receive())[0] <= stamp:
        pass


def _outdated(channel: Channel, stamp: int, seconds: float) -> bool:
    """Sleep for `seconds`; True as soon as a newer version is announced."""
    end = time.perf_counter() + seconds
    while channel.poll(max(0.0, end - time.perf_counter())):
        if _TOKEN.unpack(channel.receive())[0] > stamp:
            return True
    return False


class RayActors:
    """Ray actors, for workers on several hosts. A worker ends the gradient it has begun before it takes a new version."""

    def __init__(self, work: Work, *, timeout: float = 120.0) -> None:
        self.work, self.timeout = work, timeout

    def __enter__(self) -> RayActors:
        self._ray, self._owner = start_ray(self.work.workers)
        actor = self._ray.remote(num_cpus=1)(RayWorker)
        work = self._ray.put(self.work)
        self._actors = {rank: actor.remote(work, rank) for rank in range(self.work.workers)}
        self._running: dict[Any, int] = {}
        self._latest: tuple[int, Any] = (-1, None)
        self._ray.get([one.ready.remote() for one in self._actors.values()], timeout=self.timeout)
        return self

    def __exit__(self, *exc: Any) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._owner:
            self._ray.shutdown()

    @property
    def alive(self) -> Sequence[int]:
        """Workers that have not been lost."""
        return sorted(self._actors)

    def publish(self, vector: Tensor, version: int, worker: int | None = None) -> None:
        """As `Engine.publish`; busy workers take it when they are done."""
        self._latest = (version, self._ray.put(vector.detach().numpy().copy()))
        busy = set(self._running.values())
        for rank in self.alive if worker is None else [worker]:
            if rank not in busy:
                self._begin(rank)

    def _begin(self, rank: int) -> None:
        version, vector = self._latest
        self._running[self._actors[rank].gradient.remote(vector, version)] = rank

    def wait(self) -> list[Arrival]:
        """As `Engine.wait`."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=self.timeout)
        if not ready:
            raise WorkerTimeout(sorted(self._running.values()), self.timeout)
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._take(one) for one in ready]

    def _take(self, future: Any) -> Arrival:
        rank = self._running.pop(future)
        try:
            stamp, loss, gradient = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            del self._actors[rank]
            raise WorkerLost(rank, str(error).splitlines()[0]) from error
        if self._latest[0] > stamp and self.work.late != "wait":
            self._begin(rank)
        return Arrival(rank, stamp, loss, torch.from_numpy(gradient.copy()))

    def now(self) -> float:
        """Wall clock."""
        return time.perf_counter()


class RayWorker:
    """The actor."""

    def __init__(self, work: Work, rank: int) -> None:
        torch.set_num_threads(1)
        self.replica, self.rank = Replica(work), rank

    def ready(self) -> bool:
        """Answers once the model is built."""
        return True

    def gradient(self, vector: Any, version: int) -> tuple[int, float, Any]:
        """(stamp, loss, gradient [P] as numpy)."""
        self.replica.vector.copy_(torch.from_numpy(vector.copy()))
        out = torch.empty_like(self.replica.vector)
        loss = self.replica.gradient(self.rank, version, out)
        time.sleep(self.replica.work.delay(self.rank, version))
        return version, loss, out.numpy()
