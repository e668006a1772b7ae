"""Verbs on what verbs left, on networks of one's own, and all of them at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import cambrian
from cambrian.cli.main import main
from cambrian.codec import tensors
from cambrian.engine import registry
from cambrian.engine.config import config, option
from cambrian.engine.roles import Explainer
from cambrian.engine.run import Run
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, DataError, ShapeError
from cambrian.inspect.target import Space, wrap

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def words():
    return "no module"

def sized(width):
    return nn.Linear(width, 10)
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path / "runs"))
    small = {"plan": "A", "stages": 3, "width": 0.05, "steps": 60, "samples": 400, "size": 16}
    return cambrian.train("vgg", data="glyphs", preset="smoke", device="cpu", **small)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path / "runs"))
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


def test_a_compressed_network_is_attacked(trained: Run) -> None:
    small = cambrian.compress(trained, "inq:steps=1")
    target = small.target()
    weights = [p for p in target.module.parameters() if p.dim() > 1]
    assert all(len(p.abs().unique()) <= 9 for p in weights)  # five bits: eight powers of two and zero
    child = cambrian.attack(small, "fgsm:reference=false", n=20)
    assert child.info["parent"] == small.id and child.info["rows"][0]["samples"] == 20
    again = cambrian.load(small.path).target()
    assert all(torch.equal(a, b) for a, b in zip(target.module.parameters(), again.module.parameters(), strict=True))


def test_adversarial_inputs_are_what_the_next_verb_sees(trained: Run) -> None:
    attacked = cambrian.attack(trained, "fgsm:reference=false,eps=0.2", n=30)
    stored = tensors.load(attacked.artifacts / "inputs.safetensors")
    target = attacked.target()
    (x, y, meta), *rest = target.batches("test")
    assert not rest and torch.equal(x, stored["x_adv"]) and torch.equal(y, stored["y"])
    assert "font" in meta and len(meta["font"]) == 30  # what the world knows goes along
    assert target.metric()["accuracy"] == pytest.approx(attacked.info["rows"][0]["robust accuracy"])
    assert target.size("train") == 400  # other splits stay


def test_a_damaged_or_missing_result_is_named(trained: Run) -> None:
    small = cambrian.compress(trained, "inq:steps=1")
    file = small.path / small.info["file"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(CheckpointError, match="checksum"):
        cambrian.attack(small, "fgsm")
    file.unlink()
    with pytest.raises(CheckpointError, match="no encoded file"):
        small.target()


def test_a_chain_of_compressors_hands_the_network_on(trained: Run) -> None:
    child = cambrian.compress(trained, ["inq:bits=5,steps=1", "inq:bits=5,steps=1"])
    assert {row["method"] for row in child.info["rows"]} == {"inq"} and child.info["file"].startswith("artifacts/1-inq")


def test_own_network(net: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    safetensors.torch.save_file(made.state_dict(), str(weights))
    run = cambrian.own_network(net, weights=weights, data="digits")
    x, _, _ = next(run.target().batches("test", n=4))
    torch.testing.assert_close(run.target().logits(x), made(x))
    assert cambrian.own_network(net, weights=weights, data="digits").id == run.id  # nothing changed: the same run
    child = cambrian.attack(run, "fgsm:reference=false", n=8)
    assert child.info["parent"] == run.id and (child.path / "report.html").is_file()
    Path(net.rpartition(":")[0]).write_text(NET + "\n# another day\n")
    with pytest.raises(CheckpointError, match="changed since"):
        run.target()
    assert cambrian.own_network(net, weights=weights, data="digits").id != run.id


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("bild", {"data": "digits"}, ConfigError, "defines no 'bild'; it defines: build, words, sized"),
        ("sized", {"data": "digits"}, ConfigError, r"sized\(\) of .* failed: TypeError"),
        ("words", {"data": "digits"}, CapabilityError, "gives str"),
        ("build", {}, ConfigError, "needs --data"),
        ("build", {"data": "sketches"}, DataError, "no labelled pictures"),
        ("build", {"data": "glyphs"}, CapabilityError, "does not give logits"),
    ],
)
def test_own_network_that_does_not_fit(
    net: str, name: str, options: dict[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        cambrian.own_network(net.rpartition(":")[0] + ":" + name, **options)
    assert not (tmp_path / "runs").exists()


def test_a_file_that_cannot_be_imported_is_named(net: str) -> None:
    Path(net.rpartition(":")[0]).write_text("import a_package_that_is_not_there")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        cambrian.own_network(net, data="digits")
    with pytest.raises(ConfigError, match="there is no file"):
        cambrian.own_network("nowhere/net.py:build", data="digits")


def test_own_weights_that_do_not_fit(net: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"1.weight": torch.zeros(16, 64)}, str(weights))
    with pytest.raises(CheckpointError, match="'1.bias' is missing"):
        cambrian.own_network(net, weights=weights, data="digits")
    weights.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        cambrian.own_network(net, weights=weights, data="digits")


def test_own_network_on_the_command_line(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attack", net, "--data", "digits", "--with", "fgsm:reference=false", "--n", "5", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["samples"] == 5
    assert main(["attack", "last", "--data", "digits", "--with", "fgsm"]) == 1
    assert "goes with a network of your own" in capsys.readouterr().err
    assert main(["attack", net, "--data", "digits", "--range", "wide", "--with", "fgsm"]) == 1
    assert "--range takes two numbers" in capsys.readouterr().err


def test_a_method_says_why_it_does_not_apply(trained: Run) -> None:
    @config
    class Options:
        depth: int = option(1, "nothing")

    class Needy(Explainer[Options]):
        slug, needs = "needy", ("masks", "decoder", "grad_x")

    target = trained.target()
    assert len(Needy.lacks(target)) == 2
    with pytest.raises(CapabilityError, match="needy does not apply.*where the object is; it is a classifier"):
        Needy().require(target)
    tokens = wrap(nn.Embedding(3, 2), space=Space("tokens", (4,)), classes=["a", "b"])
    offered = tokens.offers()
    assert all(offered[need] for need in ("grad_x", "retrain", "masks", "image")) and offered["logits"] is None


def test_every_method_declares_needs_that_exist(trained: Run) -> None:
    offered = trained.target().offers()
    for slug, card in registry.cards().items():
        for role in ("compressor", "explainer", "attacker"):
            if role in card.roles:
                assert set(registry.load(slug, role).needs) <= set(offered), slug


def test_samples_of_another_size_are_no_split(trained: Run) -> None:
    target = trained.target()
    with pytest.raises(ShapeError):
        target.with_split("test", torch.zeros(3, 1, 9, 9), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="as many inputs"):
        target.with_split(
            "test", torch.zeros(3, 1, 16, 16), torch.zeros(3, dtype=torch.int64), {"mask": torch.zeros(2)}
        )


def test_matrix_of_attacks(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", trained.id, "--only", "attack", "--n", "8", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["run"] == trained.id and any(row["system"] == "fgsm" for row in out["tables"]["attack"])
    assert set(out["tables"]) == {"attack"}


def test_nothing_is_left_of_a_verb_that_fails(trained: Run) -> None:
    with pytest.raises(CapabilityError, match="carries no relevance"):
        cambrian.compress(trained, "taylor-pruning:criterion=relevance,oracle=false")
    assert [run.id for run in cambrian.runs()] == [trained.id]


def test_last_is_the_newest_of_runs_that_began_in_one_second(net: str) -> None:
    made = [cambrian.own_network(net, data="digits")]
    made += [cambrian.attack(made[0], "fgsm:reference=false", n=4) for _ in range(4)]
    assert [run.id for run in cambrian.runs()] == [run.id for run in made]
    assert cambrian.load("last").id == made[-1].id
