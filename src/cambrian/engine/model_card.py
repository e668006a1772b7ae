"""The card that goes with exported weights: what the model is, how it was trained, and the measured claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cambrian.engine import ledger, registry
from cambrian.engine.samples import short


def model_card(slug: str, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown for a README.md beside config.json and model.safetensors."""
    card = registry.card(slug)
    figures: dict[str, Any] = info.get("figures") or {}
    lines = ["---", "library_name: cambrian", "license: apache-2.0", f"tags: [{slug}, cambrian]", "---", ""]
    lines += [f"# {card.title}", "", card.reference, "", card.summary, "", "## Training", ""]
    lines += [
        f"Preset {info.get('preset')}, seed {info.get('seed')}, data {info.get('source')}, {info.get('step')} steps."
    ]
    lines += ["", "| field | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in config.items())]
    lines += ["", "## Test figures", "", *(f"- {k}: {short(v)}" for k, v in figures.items())]
    lines += ["", "## The paper's claim, measured", "", card.claim, ""]
    for record in ledger.records(slug):
        lines.append(
            f"- {record['claim']}: **{record['verdict']}**, {record['metric']} {record['effect']['text']} (the paper: {record['paper']})"
        )
    return "\n".join(lines) + "\n"
