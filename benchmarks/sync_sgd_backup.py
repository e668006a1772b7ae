"""Gradients as one flat buffer in shared memory against one pickled message per tensor through a pipe.

Both carry the parameters of a network (62 tensors) to a worker process and as large a set of gradients back, as a
synchronous step does. The naive side is what `multiprocessing` offers out of the box.

    python benchmarks/sync_sgd_backup.py
"""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.dist.launch import Channel, Fleet, start_method
from cambrian.dist.shared import Arena, Published, Region
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.nn.flat import Layout, share


def flat_worker(channel: Channel, rank: int, vector: Region, lock: Region, slot: Region) -> None:
    """Gradient = 2 theta, one vector."""
    published, out = Published(vector.map(), lock.map()), slot.map()
    theta = torch.empty_like(out)
    channel.send(b"ready")
    while True:
        channel.receive()
        published.read(theta)
        torch.mul(theta, 2.0, out=out)
        channel.send(b"done")


def tensor_worker(connection: Connection) -> None:
    """Gradient = 2 theta, tensor by tensor."""
    torch.set_num_threads(1)
    while True:
        count = connection.recv()
        if count is None:
            return
        arrays = [connection.recv() for _ in range(count)]
        for array in arrays:
            connection.send(2.0 * array)


def one_by_one(connection: Connection, parameters: list[Tensor]) -> list[Tensor]:
    """A round trip with a message for every tensor; reads while the worker writes, so that no pipe fills up."""
    connection.send(len(parameters))
    for parameter in parameters:
        connection.send(parameter.detach().numpy())
    return [torch.from_numpy(connection.recv()) for _ in parameters]


def race(name: str, **arguments: Any) -> None:
    """Assert that both sides bring back the same gradients, then time a round trip of each."""
    model = zoo.build(name, **arguments)
    parameters = list(model.parameters())
    layout, theta = Layout.of(parameters), share(parameters)
    context: Any = mp.get_context(start_method())
    ours, theirs = context.Pipe()
    naive = context.Process(target=tensor_worker, args=(theirs,), daemon=True)
    with Arena() as arena:
        vector, at_vector = arena.zeros("parameters", layout.total)
        lock, at_lock = arena.zeros("version", 2, dtype=torch.int64)
        slot, at_slot = arena.zeros("gradient", layout.total)
        published = Published(vector, lock)
        with Fleet(flat_worker, [(at_vector, at_lock, at_slot)]) as fleet:
            fleet.receive(120.0)
            naive.start()

            def flat() -> Tensor:
                published.write(theta, 1)
                fleet.send(0, b"go")
                fleet.receive(60.0)
                return slot.clone()

            np.testing.assert_array_equal(flat(), layout.pack(one_by_one(ours, parameters)))
            print(f"{name}: {len(parameters)} tensors, {4 * layout.total / 1e6:.1f} MB each way")
            contenders = {"flat": flat, "per tensor": lambda: one_by_one(ours, parameters)}
            print(compare(contenders, repeats=41, threads=1))
            ours.send(None)
            naive.join()


def main() -> None:
    """A network of many tensors, and a small one."""
    torch.set_num_threads(1)
    race("resnet-18", width=0.25)
    race("lenet-5")


if __name__ == "__main__":
    main()
