"""What the worker processes of the tests run; importable by name in a child."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as group

from cambrian.dist.launch import Channel
from cambrian.dist.shared import Published, Region


def echo(channel: Channel, rank: int, word: str) -> None:
    while True:
        channel.send(f"{rank} {word} {channel.receive().decode()} {torch.get_num_threads()}".encode())


def fail(channel: Channel, rank: int) -> None:
    if rank == 1:
        raise ValueError("a bad batch")
    channel.receive()


def hang(channel: Channel, rank: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.send(b"ready")
    time.sleep(600)


def sleep_on(channel: Channel, rank: int) -> None:
    channel.send(b"ready")
    channel.receive()


def read_versions(channel: Channel, rank: int, vector: Region, lock: Region, reads: int) -> None:
    published, out, torn = Published(vector.map(), lock.map()), torch.empty(vector.shape), 0
    channel.send(b"ready")
    for _ in range(reads):
        version = published.read(out)
        torn += int(not bool((out == version).all()))
    channel.send(str(torn).encode())


def total(rank: int, world: int, scale: float) -> list[float]:
    x = torch.tensor([scale * (rank + 1)])
    group.all_reduce(x)
    return [float(x), rank]


def total_or_die(rank: int, world: int) -> int:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.barrier()
    return rank


def total_or_raise(rank: int, world: int) -> int:
    if rank == 1:
        raise ValueError("no data")
    group.barrier()
    return rank


def square(x: int) -> int:
    return x * x


def refuse(x: int) -> int:
    raise ValueError(f"no {x}")


def die(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x
