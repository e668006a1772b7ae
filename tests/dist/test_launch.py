"""Worker processes answer, are named when they die, and are gone when the block ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cambrian.dist.launch import Fleet, WorkerLost, WorkerTimeout, run_group
from cambrian.dist.pool import open_pool
from cambrian.dist.shared import Arena, Published
from cambrian.errors import ConfigError, RunError

HERE = Path(__file__).resolve().parent


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("fleet_entries")


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_messages_travel_and_workers_have_one_thread(entries: ModuleType) -> None:
    with Fleet(entries.echo, [("a",), ("b",)]) as fleet:
        pids = fleet.pids()
        assert fleet.send(0, b"x") and fleet.send(1, b"y")
        answers: dict[int, bytes] = {}
        while len(answers) < 2:
            answers.update(fleet.receive(30.0))
        assert answers == {0: b"0 a x 1", 1: b"1 b y 1"}
        with pytest.raises(WorkerTimeout, match="worker 0, 1 within"):
            fleet.receive(0.05)
    assert all(gone(pid) for pid in pids.values())


def test_a_worker_that_raises_is_named_with_its_reason(entries: ModuleType) -> None:
    with Fleet(entries.fail, [()] * 3) as fleet:
        with pytest.raises(WorkerLost, match="worker 1 was lost: ValueError: a bad batch") as caught:
            fleet.receive(30.0)
        assert caught.value.rank == 1 and fleet.alive == [0, 2]
        assert not fleet.send(1, b"x")


def test_a_killed_worker_is_named_and_the_others_go_on(entries: ModuleType) -> None:
    with Fleet(entries.echo, [("a",), ("b",)]) as fleet:
        os.kill(fleet.pids()[1], signal.SIGKILL)
        with pytest.raises(WorkerLost, match="worker 1 was lost.*SIGKILL"):
            fleet.receive(30.0)
        fleet.send(0, b"still")
        assert fleet.receive(30.0) == [(0, b"0 a still 1")]
        os.kill(fleet.pids()[0], signal.SIGKILL)
        with pytest.raises(WorkerLost):
            fleet.receive(30.0)
        with pytest.raises(RunError, match="every worker"):
            fleet.receive(1.0)


def test_a_worker_that_ignores_everything_is_killed(entries: ModuleType) -> None:
    start = time.monotonic()
    with Fleet(entries.hang, [()], grace=0.2) as fleet:
        fleet.receive(30.0)
        pid = fleet.pids()[0]
        start = time.monotonic()
    assert gone(pid) and time.monotonic() - start < 5


def test_workers_end_when_their_parent_is_killed() -> None:
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(HERE)!r})
        import fleet_entries
        from cambrian.dist.launch import Fleet
        if __name__ == "__main__":
            with Fleet(fleet_entries.sleep_on, [()] * 2) as fleet:
                for _ in range(2):
                    fleet.receive(60)
                print(*fleet.pids().values(), flush=True)
                time.sleep(60)
    """)
    path = Path(os.environ["CAMBRIAN_RUNS"]) / "parent.py"
    path.write_text(script)
    parent = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_group_computes_together_and_names_the_rank_that_dies(entries: ModuleType) -> None:
    assert run_group(entries.total, 2, 0.5) == [[1.5, 0], [1.5, 1]]
    with pytest.raises(WorkerLost, match="worker 1 was lost"):
        run_group(entries.total_or_die, 2)
    with pytest.raises(WorkerLost, match="worker 1 was lost: ValueError: no data"):
        run_group(entries.total_or_raise, 2)


def test_a_reader_never_sees_half_a_version(entries: ModuleType) -> None:
    with Arena() as arena:
        (vector, region), (lock, latch) = arena.zeros("v", 20_000), arena.zeros("l", 2, dtype=torch.int64)
        published = Published(vector, lock)
        with Fleet(entries.read_versions, [(region, latch, 300)]) as fleet:
            fleet.receive(30.0)
            version = 0
            while not fleet.connections[0].poll():
                version += 1
                published.write(torch.full((20_000,), float(version)), version)
            assert fleet.receive(1.0) == [(0, b"0")]
            assert version > 1


def test_shared_memory_leaves_nothing_behind() -> None:
    with Arena() as arena:
        region = arena.put("x", torch.arange(6.0).view(2, 3))
        twin, other = region.map(), region.map()
        twin[1, 2] = -1.0
        assert other[1, 2] == -1.0 and twin.shape == (2, 3)
        arena.seal()
        assert not arena.directory.exists() and float(other.sum()) == 9.0
        with pytest.raises(RunError, match="is gone"):
            region.map()


def test_a_fleet_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Fleet(test_a_fleet_of_nobody_is_refused, [])


def test_pools_give_the_same_results(entries: ModuleType) -> None:
    jobs = list(range(7))
    with open_pool("local") as local, open_pool("processes", workers=2) as processes:
        assert local.map(entries.square, jobs) == processes.map(entries.square, jobs) == [x * x for x in jobs]
        assert sorted(processes.run(entries.square, jobs)) == [(x, x * x) for x in jobs]
        with pytest.raises(ValueError, match="no 3"):
            processes.map(entries.refuse, [3])
        with pytest.raises(WorkerLost):
            processes.map(entries.die, [1])
    with pytest.raises(ConfigError, match="engine"):
        open_pool("threads")


def test_ray_pool_gives_the_same_results(entries: ModuleType) -> None:
    pytest.importorskip("ray")
    with open_pool("ray", workers=2) as pool:
        assert pool.map(square_here, [1, 2, 3]) == [1, 4, 9]


def square_here(x: int) -> int:
    return x * x
