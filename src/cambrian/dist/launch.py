"""Local worker processes: started quickly, one thread each, told apart when they die, and gone when the block ends.

A `Fleet` starts one process per argument tuple. Each runs `entry(connection, rank, *arguments)` with a two-way pipe of
bytes to the parent. Children come from a fork server that has imported torch and the entry's module already (spawn
where there is none), so starting one takes milliseconds, and no thread of the parent is copied. `run_group` is the short way
to run a function on every rank of a `torch.distributed` group.

A script that uses this needs the usual `if __name__ == "__main__":` guard: children import its main module.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from cambrian.errors import ConfigError, RunError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PAYLOAD, _FAILURE = b"\x00", b"\x01"


class WorkerLost(RunError):
    """A worker process died, or raised (`died` is False); `rank` says which."""

    def __init__(self, rank: int, reason: str, died: bool = True) -> None:
        super().__init__(f"worker {rank} was lost: {reason}")
        self.rank, self.died = rank, died


class WorkerTimeout(RunError):
    """Workers did not answer in time; `ranks` says which."""

    def __init__(self, ranks: Sequence[int], seconds: float) -> None:
        names = ", ".join(map(str, ranks))
        super().__init__(
            f"no answer from worker {names} within {seconds:g} s; give a longer time-out or find what hangs"
        )
        self.ranks = list(ranks)


def start_method() -> str:
    """`forkserver` where the platform has it, else `spawn`."""
    return "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"


class Fleet:
    """N worker processes; use as a context manager, which kills whatever is left of them at the end."""

    def __init__(
        self,
        entry: Callable[..., None],
        arguments: Sequence[tuple[Any, ...]],
        *,
        threads: int = 1,
        method: str | None = None,
        grace: float = 2.0,
    ) -> None:
        if not arguments:
            raise ConfigError("a fleet needs at least 1 worker")
        self.entry, self.arguments = entry, list(arguments)
        self.threads, self.grace = threads, grace
        self._context = mp.get_context(method or start_method())
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload([name for name in ("torch", entry.__module__) if name != "__main__"])
        self.processes: dict[int, Any] = {}
        self.connections: dict[int, Connection] = {}
        self._losses: list[WorkerLost] = []

    def __enter__(self) -> Fleet:
        try:
            with _environment(self.threads):
                for rank, arguments in enumerate(self.arguments):
                    ours, theirs = self._context.Pipe()
                    task = (self.entry, theirs, rank, self.threads, arguments)
                    process = self._context.Process(target=_child, args=task, daemon=True, name=f"cambrian-{rank}")
                    self.connections[rank] = ours
                    process.start()
                    theirs.close()
                    self.processes[rank] = process
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> list[int]:
        """Ranks that have not been lost."""
        return sorted(self.connections)

    def pids(self) -> dict[int, int]:
        """Process ids by rank."""
        return {rank: process.pid for rank, process in self.processes.items()}

    def send(self, rank: int, message: bytes) -> bool:
        """Send to one worker; False when it is gone (the next `receive` says why)."""
        try:
            self.connections[rank].send_bytes(message)
        except (BrokenPipeError, ConnectionError, KeyError):
            return False
        return True

    def receive(self, timeout: float) -> list[tuple[int, bytes]]:
        """Block for at least one message; several that are there come together, in order of rank.

        Raises `WorkerLost` for a worker that died or raised (it counts no more, and the call can be repeated),
        `WorkerTimeout` when nothing comes, and `RunError` when no worker is left.
        """
        ranks = {connection: rank for rank, connection in self.connections.items()}
        if not self._losses and not ranks:
            raise RunError("every worker of this fleet has been lost")
        ready = [] if self._losses else wait(list(ranks), timeout)
        messages: list[tuple[int, bytes]] = []
        for rank in sorted(ranks[connection] for connection in ready):  # type: ignore[index]
            try:
                message = self.connections[rank].recv_bytes()
            except (EOFError, OSError):
                self._drop(rank)
                self._losses.append(WorkerLost(rank, self._obituary(rank)))
                continue
            if message[:1] == _PAYLOAD:
                messages.append((rank, message[1:]))
            else:
                self._drop(rank)
                self._losses.append(WorkerLost(rank, message[1:].decode(errors="replace"), died=False))
        if messages:
            return messages  # what has arrived is handed over before a loss is told
        if self._losses:
            raise self._losses.pop(0)
        raise WorkerTimeout(self.alive, timeout)

    def stop(self) -> None:
        """End every worker: closed pipe, then SIGTERM, then SIGKILL; returns when all are gone."""
        for rank in list(self.connections):
            self._drop(rank)
        deadline = time.monotonic() + self.grace
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes.values():
            if process.is_alive():
                process.terminate()
        for process in self.processes.values():
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()

    def _drop(self, rank: int) -> None:
        with contextlib.suppress(OSError):
            self.connections.pop(rank).close()

    def _obituary(self, rank: int) -> str:
        process = self.processes[rank]
        process.join(1.0)
        code = process.exitcode
        if code is not None and code < 0:
            return f"process {process.pid} was killed by {signal.Signals(-code).name}"
        return f"process {process.pid} ended with status {code}"


class Channel:
    """The worker's end of its pipe: messages of bytes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: bytes) -> None:
        """Send to the parent."""
        self._connection.send_bytes(_PAYLOAD + message)

    def receive(self) -> bytes:
        """Block for the parent's next message; `EOFError` when the parent is gone or has closed this worker."""
        return self._connection.recv_bytes()

    def poll(self, seconds: float = 0.0) -> bool:
        """Whether a message comes within `seconds`."""
        return self._connection.poll(seconds)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The thread counts that libraries read when they are loaded, for children only."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _child(
    entry: Callable[..., None], connection: Connection, rank: int, threads: int, arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    try:
        entry(Channel(connection), rank, *arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone or has closed this worker
    except BaseException as error:
        reason = traceback.format_exception_only(error)[-1].strip()
        with contextlib.suppress(OSError):
            connection.send_bytes(_FAILURE + reason.encode())
        sys.exit(1)


def run_group(
    function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 120.0, threads: int = 1
) -> list[Any]:
    """`function(rank, world, *arguments)` on every rank of a gloo group of local processes; the results by rank.

    Results must be JSON values. The ranks meet through a file, so no port has to be chosen. Raises `WorkerLost` when
    one rank fails (all others are ended) and `WorkerTimeout` after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="cambrian-") as folder:
        meeting = str(Path(folder) / "meeting")
        tasks = [(world, meeting, timeout, function, arguments)] * world
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        with Fleet(_member, tasks, threads=threads) as fleet:
            while len(results) < world:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WorkerTimeout(sorted(set(range(world)) - set(results)), timeout)
                try:
                    for rank, message in fleet.receive(left):
                        results[rank] = json.loads(message)
                except WorkerLost as loss:
                    if loss.rank not in results:  # one that has answered may go
                        raise _cause(fleet, loss) from None
    return [results[rank] for rank in range(world)]


def _cause(fleet: Fleet, first: WorkerLost, seconds: float = 5.0) -> WorkerLost:
    """The loss that brought the others about: when one rank goes, its partners fail too, and may be heard first."""
    losses = [first]
    deadline = time.monotonic() + seconds
    while fleet.alive and time.monotonic() < deadline and _is_effect(losses[-1]):
        try:
            fleet.receive(max(0.0, deadline - time.monotonic()))
        except WorkerLost as loss:
            losses.append(loss)
        except WorkerTimeout:
            break
    return min(losses, key=_is_effect)


def _is_effect(loss: WorkerLost) -> bool:
    """Whether it is a broken connection to a partner: gloo's way to notice that another rank has gone."""
    return not loss.died and "onnection" in str(loss)


def _member(
    channel: Channel, rank: int, world: int, meeting: str, timeout: float, function: Callable[..., Any], rest: Any
) -> None:
    from datetime import timedelta

    import torch.distributed as group

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    limit = timedelta(seconds=timeout)
    group.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=limit)
    try:
        result = function(rank, world, *rest)
        group.barrier()
        channel.send(json.dumps(result).encode())
    finally:
        group.destroy_process_group()
