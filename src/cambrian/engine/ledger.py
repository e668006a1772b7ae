"""The ledger: one JSON file per claim, saying what was measured, where and at which commit. `ledger/SLUG.CLAIM.json`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cambrian.codec import files
from cambrian.engine import registry
from cambrian.engine.claims import Claim, Judgement, bootstrap
from cambrian.engine.devices import describe, pick
from cambrian.engine.run import commit, versions
from cambrian.engine.verify import SABOTAGE, Trial, current_hash


def root() -> Path:
    """Where records stand: `$CAMBRIAN_LEDGER`, the checkout's `ledger/`, or the copy inside the installed package."""
    if os.environ.get("CAMBRIAN_LEDGER"):
        return Path(os.environ["CAMBRIAN_LEDGER"])
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent.parent / "ledger"
    return checkout if checkout.is_dir() else package / "_ledger"


def _arm(rows: Sequence[dict[str, float]], metric: str) -> dict[str, Any]:
    values = [float(row[metric]) for row in rows]
    mean, low, high = bootstrap(values)
    others = {k: [float(row[k]) for row in rows] for k in rows[0] if k != metric and all(k in row for row in rows)}
    return {"mean": mean, "low": low, "high": high, "values": values, "other": others}


def _effect(claim: Claim, judgement: Judgement) -> dict[str, Any]:
    keys = {"mean": judgement.mean, "low": judgement.low, "high": judgement.high, "per_seed": judgement.effects}
    return {**keys, "text": claim.effect_text(judgement.mean), "unmet": judgement.unmet}


def record(trial: Trial, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """The ledger record of a trial."""
    claim = trial.claim
    arms = {name: _arm(rows, claim.metric) for name, rows in trial.metrics.items() if name != SABOTAGE}
    out: dict[str, Any] = {
        "slug": trial.slug, "claim": claim.name, "statement": claim.statement, "verdict": trial.verdict, "paper": claim.paper,
        "metric": claim.metric, "direction": claim.direction, "compare": claim.compare, "margin": claim.margin,
        "system": claim.system, "baselines": list(claim.baselines), "effect": _effect(claim, trial.judgement),
        "conditions": [str(c) for c in claim.conditions], "arms": arms, "seeds": list(seeds or claim.seeds),
        "preset": trial.preset, "data": trial.data, "device": describe(pick("cpu")), "versions": versions(), "commit": commit(),
        "date": datetime.date.today().isoformat(), "seconds": round(trial.seconds, 1),
        "cpu_seconds": {k: round(v, 1) for k, v in trial.cpu_seconds.items()}, "config_hash": trial.hash,
    }  # fmt: skip
    if trial.sabotage is not None:
        arm = _arm(trial.metrics[SABOTAGE], claim.metric)
        out["sabotage"] = {"overrides": dict(claim.sabotage.overrides), "verdict": trial.sabotage.verdict,
                           "effect": _effect(claim, trial.sabotage), "arm": arm}  # fmt: skip
    return out


def write(trial: Trial, seeds: Sequence[int] | None = None) -> Path:
    """Put a trial into the ledger; replaces the claim's earlier record."""
    folder = root()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{trial.slug}.{trial.claim.name}.json"
    files.replace_json(path, record(trial, seeds))
    return path


def records(slug: str | None = None) -> list[dict[str, Any]]:
    """Every record, ordered by slug and claim."""
    found = [files.load_json(path) for path in sorted(root().glob("*.json"))]
    return [r for r in found if slug is None or r["slug"] == slug]


def stale(entry: dict[str, Any]) -> bool:
    """Whether the claim or its configuration changed since the record was made."""
    holder = registry.claim_holder(entry["slug"])
    claim = next((c for c in holder.claims if c.name == entry["claim"]), None)
    return claim is None or current_hash(entry["slug"], claim, entry["preset"]) != entry["config_hash"]
