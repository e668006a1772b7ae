"""Compressors in a chain: constraints go along, the last file has them all, and impossible orders are refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cambrian
from cambrian.codec import container
from cambrian.engine.run import Run
from cambrian.errors import ConfigError
from cambrian.inspect.size import weight_names

PRUNE = "deep-compression:density=0.2,rounds=1,steps=2,conv_bits=0,fc_bits=0"
SHARE = "deep-compression:density=1,share_steps=2,conv_bits=3,fc_bits=3"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CAMBRIAN_RUNS", str(tmp_path / "runs"))
    small = {"plan": "A", "stages": 3, "width": 0.05, "steps": 40, "samples": 300, "size": 16}
    return cambrian.train("vgg", data="glyphs", preset="smoke", device="cpu", **small)


@pytest.mark.parametrize("second", [SHARE, "inq:steps=2,portions=(0.5;1.0)"])
def test_what_was_pruned_stays_pruned_while_the_rest_is_quantised(trained: Run, second: str):
    child = cambrian.compress(trained, [PRUNE, second])
    entries = {entry["name"]: entry for entry in container.inspect(child.path / child.info["file"])["tensors"]}
    module = child.target().module
    for name in weight_names(module):
        weight = module.get_parameter(name)
        assert entries[name]["kind"] == "sparse"
        assert 0 < int(weight.count_nonzero()) <= round(0.2 * weight.numel()) and len(weight.unique()) <= 17
    assert child.info["rows"][-1]["bytes"] == (child.path / child.info["file"]).stat().st_size


@pytest.mark.parametrize("first", [SHARE, "inq:steps=1"])
def test_pruning_after_quantising_is_refused_before_anything_is_written(trained: Run, first: str):
    before = sorted(trained.path.parent.iterdir())
    with pytest.raises(ConfigError, match="put it before"):
        cambrian.compress(trained, [first, PRUNE])
    assert sorted(trained.path.parent.iterdir()) == before


def test_a_result_remembers_its_constraints(trained: Run):
    pruned = cambrian.compress(trained, PRUNE)
    state = pruned.target().state
    assert state.stages == ["prune"] and not state.quantised
    again = cambrian.compress(pruned, SHARE)
    final = again.target()
    for name in weight_names(final.module):
        zero = final.module.get_parameter(name) == 0
        assert torch.equal(zero, ~final.state.of(name).mask) and bool(zero.any())
        of = final.state.of(name)
        assert torch.equal(of.codebook[of.index], final.module.get_parameter(name)) and of.codebook[0] == 0
    with pytest.raises(ConfigError, match="the run's own compression"):
        cambrian.compress(again, PRUNE)
    with pytest.raises(ConfigError, match="quantise once"):
        cambrian.compress(again, SHARE)
    with pytest.raises(ConfigError, match="quantised yet"):
        cambrian.compress(again, "inq")
