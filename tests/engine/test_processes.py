"""Two processes train as one: same order, gradients of the whole batch, and runs that move between world sizes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from cambrian.engine.run import Run

pytest.importorskip("accelerate")
TRAIN = ["train", "vgg", "--data", "digits", "--device", "cpu", "--preset", "smoke", "--log-every", "1", "--set", "bn=false",
         "--set", "plan=A", "--set", "size=8", "--set", "stages=2", "--set", "head=gap", "--set", "batch=32", "--set", "lr=0.01"]  # fmt: skip


def cambrian(runs, *words, processes=1):
    """Run the command line on one process, or on several under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "cambrian"]
    if processes > 1:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port), "-m", "cambrian"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CAMBRIAN_RUNS": str(runs)}
    done = subprocess.run([*launch, *words], env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(runs.glob("vgg/*/run.json"), key=lambda p: p.stat().st_mtime)
    return Run(found[-1].parent)


def weights(run):
    return run.checkpoints.latest()[1]["recipe"]["parts"]["model"]


def test_one_and_two_processes_agree_and_a_run_moves_between_them(tmp_path):
    steps = ["--set", "steps=6", "--checkpoint-every", "2"]
    one = cambrian(tmp_path / "one", *TRAIN, *steps)
    two = cambrian(tmp_path / "two", *TRAIN, *steps, processes=2)
    assert len(list((tmp_path / "two").glob("vgg/*"))) == 1, "only rank 0 writes a run"
    assert two.info["processes"] == 2
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-6), name
    # 1 -> 2 -> 1: drop the later checkpoints, and carry on with another number of processes each time
    moving = tmp_path / "moving"
    run = cambrian(moving, *TRAIN, *steps)
    for keep, processes in ((2, 2), (4, 1)):
        for step in run.checkpoints.steps():
            if step > keep:
                for file in run.checkpoints.path(step).iterdir():
                    file.unlink()
                run.checkpoints.path(step).rmdir()
        run = cambrian(moving, "resume", str(run.path), processes=processes)
        assert run.info["status"] == "done" and [r["step"] for r in run.metrics()] == [1, 2, 3, 4, 5, 6]
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(run)[name], atol=1e-6), name
    first = json.loads((one.path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert abs(first - run.metrics()[0]["loss"]) < 1e-5


def test_a_batch_that_cannot_be_shared_is_refused():
    from cambrian.engine.devices import Processes
    from cambrian.errors import ConfigError

    class Fake:
        process_index, num_processes = 1, 2

    world = Processes(Fake())
    assert world.share(8) == slice(4, 8)
    with pytest.raises(ConfigError, match="cannot be split evenly over 2"):
        world.share(7)
