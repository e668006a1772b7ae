"""`verify` trains arms in processes, caches them, judges, sabotages, reports and records."""

import json

import pytest

import cambrian
from cambrian.cli.main import main
from cambrian.engine import ledger, registry
from cambrian.errors import CapabilityError, ConfigError, RunError


def test_verify_judges_caches_and_the_sabotage_flips(toy, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAMBRIAN_LEDGER", str(tmp_path / "ledger"))
    first = cambrian.verify("toy", sabotage=True)[0]
    assert first.verdict == "holds" and first.sabotage.verdict == "fails"
    assert {arm: len(rows) for arm, rows in first.metrics.items()} == {"trained": 3, "frozen": 3, "sabotage": 3}
    results = {p: p.stat().st_mtime_ns for p in runs.glob(".arms/*/result.json")}
    assert len(results) == 6  # the sabotaged arm is the frozen one: trained once
    assert main(["verify", "toy", "--sabotage", "--record", "--report", str(tmp_path / "r.html"), "--json"]) == 0
    assert {p: p.stat().st_mtime_ns for p in runs.glob(".arms/*/result.json")} == results
    printed = json.loads(capsys.readouterr().out)[0]
    stored = ledger.records("toy")[0]
    assert stored == printed and stored["verdict"] == "holds" and not ledger.stale(stored)
    assert stored["arms"]["trained"]["values"] == [m["mse"] for m in first.metrics["trained"]]
    page = (tmp_path / "r.html").read_text()
    assert "holds" in page and "data:image/png;base64" in page
    assert "http://" not in page and "https://" not in page.replace("https://arxiv.org", "")
    assert ledger.stale({**stored, "config_hash": "0"})


def test_strict_exits_with_three(toy, capsys):
    assert main(["verify", "toy", "--seeds", "0", "--set"]) == 2
    assert main(["verify", "toy", "--seeds", "0", "1", "--preset", "smoke", "--strict"]) in (0, 3)
    out = capsys.readouterr().out
    assert "verdict:" in out and "paper:" in out


def test_a_failing_arm_is_named(toy, runs, monkeypatch):
    holder = registry.claim_holder("toy")
    from cambrian.engine.claims import Arm

    broken = dict(vars(holder.claims[0]))
    broken["arms"] = {"trained": Arm({"poison_at": 3}), "frozen": Arm({"lr": 0.0})}
    monkeypatch.setattr(holder, "claims", (type(holder.claims[0])(**broken),))
    with pytest.raises(RunError, match=r"arm trained/0: loss became nan at step 3"):
        cambrian.verify("toy", preset="smoke", workers=1)


def test_unknown_claims_and_systems_without_one(toy):
    with pytest.raises(ConfigError, match="has no claim 'fit' .did you mean fits"):
        cambrian.verify("toy", claim="fit")
    with pytest.raises(ConfigError, match="unknown system 'unrolled-gam' .did you mean unrolled-gan"):
        cambrian.verify("unrolled-gam")
    with pytest.raises(CapabilityError, match="is no compressor"):
        registry.load("toy", "compressor")
