"""Runs: training, exact resume, interruption, locks, and what happens when the place is full or forbidden."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import cambrian
from cambrian.engine import train as training
from cambrian.engine.run import Run, find, spec_for
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError, NonFiniteError, RunError


def parameters(run):
    return {k: v.clone() for k, v in run.recipe().model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_train_evaluate_sample_do(toy, runs):
    run = cambrian.train("toy", preset="smoke", hidden=8)
    assert run.info["status"] == "done" and run.spec.config["hidden"] == 8
    assert [r["step"] for r in run.metrics()] == list(range(1, 41))
    again = cambrian.load("last")
    assert again.evaluate() == {"mse": pytest.approx(run.info["figures"]["mse"])}
    assert again.sample(5).tensor.shape == (5, 2)
    assert again.do("predict", times=3).lines == again.predict(times=3).lines
    with pytest.raises(CapabilityError, match=r"did you mean predict"):
        again.do("predcit")
    with pytest.raises(CapabilityError, match="no classifier"):
        again.target()


def test_same_seed_twice_is_bit_equal_and_another_seed_is_not(toy):
    a, b, c = (cambrian.train("toy", preset="smoke", seed=s) for s in (3, 3, 4))
    assert same(parameters(a), parameters(b)) and a.metrics() == b.metrics()
    assert not same(parameters(a), parameters(c))


def test_training_leaves_the_callers_random_state_alone(toy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cambrian.train("toy", preset="smoke").evaluate()
    assert torch.equal(torch.rand(3), expected)


def stopped_at(stop, **settings):
    """A run stopped after `stop` steps, as Ctrl-C stops it."""
    spec, config = spec_for("toy", preset="smoke", settings=settings)

    def report(step, steps, scalars):
        if step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    if stop:
        return training.start(spec, config, report=report)
    run = Run.create(spec, extra={"log_every": 1, "checkpoint_every": 8})
    from cambrian.engine.loop import Loop

    run.checkpoints.save(0, Loop(spec.make(config=config)).state_dict())
    return Run(run.path)


@pytest.mark.parametrize("stops", [(0,), (1,), (9, 17), (10, 20), (11, 39), (39, 40), (20, 20)])
def test_resume_equals_not_having_stopped(toy, stops):
    straight = cambrian.train("toy", preset="smoke")
    run = stopped_at(stops[0])
    assert run.info["step" if stops[0] else "seed"] == stops[0]
    for stop in stops[1:]:

        def report(step, steps, scalars, stop=stop):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        run = training.resume(run, report=report)
    run = Run(training.resume(run).path)
    assert same(parameters(run), parameters(straight))
    assert run.metrics() == straight.metrics()
    a, b = (r.checkpoints.latest()[1] for r in (run, straight))
    assert json.dumps(a, default=lambda t: t.tolist()) == json.dumps(b, default=lambda t: t.tolist())


def test_kill_nine_in_training_then_resume(toy, runs):
    command = [
        sys.executable,
        "-m",
        "cambrian",
        "train",
        "toy",
        "--preset",
        "smoke",
        "--set",
        "pause=0.01",
        "--checkpoint-every",
        "2",
    ]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(runs.glob("toy/*/checkpoints/step-0000001*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait()
    straight = cambrian.train("toy", preset="smoke")
    killed = next(
        Run(p.parent) for p in runs.glob("toy/*/run.json") if json.loads(p.read_text())["status"] == "running"
    )
    done = Run(cambrian.resume(killed).path)
    assert same(parameters(done), parameters(straight)) and done.metrics() == straight.metrics()


def test_a_second_writer_is_refused(toy):
    run = stopped_at(5)
    with run.lock(), pytest.raises(RunError, match="written by another process"):
        training.resume(run)


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(toy, runs):
    with pytest.raises(NonFiniteError, match=r"loss became nan at step 21 .*resume"):
        cambrian.train("toy", preset="smoke", poison_at=21)
    run = cambrian.load("last")
    assert run.info["status"] == "failed" and run.checkpoints.latest()[0] == 16


def test_finding_runs(toy):
    run = cambrian.train("toy", preset="smoke", steps=1)
    assert find(run.id).path == find(run.id[:13]).path == find(run.path).path == find("last").path
    other = cambrian.train("toy", preset="smoke", steps=1)
    with pytest.raises(RunError, match="names 2 runs"):
        find(run.id[:8])
    with pytest.raises(RunError, match="no run 'nothing'"):
        find("nothing")
    assert [r.id for r in cambrian.runs()] == [run.id, other.id]  # oldest first, also within one second


def test_damaged_runs_are_refused(toy):
    run = cambrian.train("toy", preset="smoke", steps=4)
    config = (run.path / "config.json").read_text()
    (run.path / "config.json").write_text('{"steps": {"_target_": "os.system"}}')
    with pytest.raises(ConfigError):
        Run(run.path).evaluate()
    (run.path / "config.json").write_text(config)
    for path in run.path.glob("checkpoints/*/tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        Run(run.path).evaluate()
    (run.path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a run"):
        Run(run.path)


def test_changed_data_is_noticed(toy, monkeypatch):
    run = cambrian.train("toy", preset="smoke", steps=4)
    run.update(fingerprint="0" * 16)
    with pytest.raises(DataError, match="has changed since"):
        Run(run.path).evaluate()


def test_no_permission_to_write_a_run(toy, monkeypatch):
    monkeypatch.setenv("CAMBRIAN_RUNS", "/proc/nowhere")
    with pytest.raises(RunError, match="cannot write a run"):
        cambrian.train("toy", preset="smoke")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"hiden": 3}, "did you mean hidden?"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"batch": 1000}, "larger than the training split"),
        ({"with_": ["evee"]}, "unknown system 'evee'"),
        ({"with_": ["toy"]}, "is no training-method"),
        ({"data": "no/such/place"}, "no file or folder"),
        ({"device": "abacus"}, "unknown device"),
        ({"precision": "fp7"}, "precision must be one of"),
    ],
)
def test_mistakes_are_one_sentence(toy, runs, words, message):
    with pytest.raises((ConfigError, DataError, CapabilityError), match="^[^\n]+$") as caught:
        cambrian.train("toy", **{"preset": "smoke", **words})
    assert message in str(caught.value)


def test_a_run_exports_its_network_with_a_card(toy, tmp_path):
    run = cambrian.train("toy", preset="smoke", hidden=5)
    run.save_pretrained(tmp_path)
    net = toy.ToyNet.from_pretrained(tmp_path)
    assert same(net.state_dict(), parameters(run))
    card = (tmp_path / "README.md").read_text()
    assert "mse" in card and "| hidden | 5 |" in card and "fits better than the constant" in card
    with pytest.raises(CapabilityError, match="no network 'other'"):
        run.save_pretrained(tmp_path, network="other")


def test_pretrained_round_trip(toy, tmp_path):
    net = toy.ToyNet(hidden=5).eval()
    net.save_pretrained(tmp_path)
    back = toy.ToyNet.from_pretrained(tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(net(x), back(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "config.json").write_text('{"architecture": "ToyNet", "arguments": {"hidden": 6}}')
    with pytest.raises(CheckpointError, match=r"body\.0\.weight is torch\.float32 \[5, 4\]"):
        toy.ToyNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "os.system", "arguments": {}}')
    with pytest.raises(CheckpointError, match=r"holds a 'os\.system', not a ToyNet"):
        toy.ToyNet.from_pretrained(tmp_path)
