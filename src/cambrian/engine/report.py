"""Reports: one HTML file that can be opened from disk or mailed, with nothing fetched from outside."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cambrian.codec.files import replace_bytes
from cambrian.engine import registry
from cambrian.engine.claims import bootstrap
from cambrian.engine.config import describe as describe_config
from cambrian.engine.recipe import config_type
from cambrian.engine.run import Run, versions
from cambrian.engine.samples import Curves, Table, short
from cambrian.engine.verify import SABOTAGE, Trial
from cambrian.errors import CambrianError

_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.6rem 0}td,th{border:1px solid var(--line);padding:.25rem .6rem;text-align:left}
img{max-width:100%;background:#fff}.arms{display:flex;flex-wrap:wrap;gap:1.2rem}.arms>section{flex:1 1 22rem;min-width:18rem}
.sheet{display:flex;flex-wrap:wrap;gap:.5rem}.sheet figure{margin:0;background:#fff;color:#000}.sheet svg{width:9rem;height:9rem}
.sheet figcaption{font-size:.75rem;text-align:center}pre{overflow:auto;border:1px solid var(--line);padding:.6rem}
.verdict{font-weight:700;padding:.1rem .5rem;border-radius:.3rem;color:#fff}
.holds{background:#187a3b}.smaller{background:#996a00}.fails{background:#b3261e}.inconclusive{background:#5a5f66}
details{margin:.8rem 0}
"""


def page(title: str, body: str) -> str:
    """A complete document."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>'


def write(path: Path, title: str, body: str) -> Path:
    """Write a page atomically; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, page(title, body).encode())
    return path


def card_html(slug: str) -> str:
    """Title, reference, what it does, and the whole docstring folded away."""
    card = registry.card(slug)
    lines = [f"<h1>{html.escape(card.title)}</h1>", f"<p><em>{html.escape(card.reference)}</em></p>"]
    lines += [f"<p>{html.escape(card.summary)}</p>", f"<p><strong>Claim.</strong> {html.escape(card.claim)}</p>"]
    lines.append(f"<details><summary>The method</summary><pre>{html.escape(card.body)}</pre></details>")
    return "".join(lines)


def verdict_html(verdict: str) -> str:
    """A coloured verdict."""
    return f'<span class="verdict {verdict}">{verdict}</span>'


def trial_table(trial: Trial) -> Table:
    """Arms of a trial: mean, 95 % interval and each seed's value."""
    rows: list[list[Any]] = []
    for arm, metrics in trial.metrics.items():
        values = [m[trial.claim.metric] for m in metrics]
        mean, low, high = bootstrap(values)
        role = "system" if arm == trial.claim.system else "sabotaged system" if arm == SABOTAGE else "baseline"
        if role == "baseline" and arm not in trial.claim.baselines:
            role = "shown beside"
        seeds = ", ".join(short(v) for v in values)
        rows.append(
            [arm, role, short(mean), f"{short(low)} .. {short(high)}", seeds, f"{trial.cpu_seconds.get(arm, 0):.0f}"]
        )
    return Table(["arm", "role", trial.claim.metric, "95 % of the mean", "seeds", "CPU s"], rows)


def trial_html(trial: Trial) -> str:
    """The verdict, the table of arms, and their pictures side by side."""
    claim, judged = trial.claim, trial.judgement
    margin = (
        f"{'-' if claim.direction == 'lower' else '+'}{claim.margin:g}"
        if claim.compare == "difference"
        else f"{claim.margin:g}x"
    )
    effect = f"{claim.effect_text(judged.mean)} (95 %: {claim.effect_text(judged.low)} .. {claim.effect_text(judged.high)}; margin {margin})"
    parts = [f"<h2>{html.escape(claim.name)} {verdict_html(trial.verdict)}</h2><p>{html.escape(claim.statement)}</p>"]
    facts = [["The paper", claim.paper], ["Measured effect", effect], ["Data", trial.data], ["Preset", trial.preset]]
    facts += [["Condition", f"{c}: {'not met' if str(c) in judged.unmet else 'met'}"] for c in claim.conditions]
    if trial.sabotage is not None:
        facts.append(["With the mechanism sabotaged", f"{trial.sabotage.verdict} ({dict(claim.sabotage.overrides)})"])
    parts += [Table(["", ""], facts).html(), trial_table(trial).html(), '<div class="arms">']
    for arm in trial.metrics:
        shown = trial.samples.get(arm, "") + trial.curves.get(arm, "")
        if shown:
            parts.append(f"<section><h3>{html.escape(arm)}</h3>{shown}</section>")
    return "".join([*parts, "</div>"])


def trials_report(path: Path, slug: str, trials: Sequence[Trial]) -> Path:
    """The report of a `verify`."""
    body = card_html(slug) + "".join(trial_html(t) for t in trials) + environment_html({})
    return write(path, f"{slug}: {', '.join(t.verdict for t in trials)}", body)


def run_report(run: Run, samples: int = 16) -> Path:
    """The report of a training run, written to its `report.html`."""
    records = run.metrics()
    names = list(dict.fromkeys(k for r in records for k in r if k not in ("step", "split")))
    parts = [
        card_html(run.spec.slug),
        f"<p>Run {html.escape(run.id)}: {html.escape(str(run.info['status']))}, step {run.info.get('step')}</p>",
    ]
    figures: dict[str, Any] = run.info.get("figures") or {}
    if figures:
        parts.append("<h2>Test figures</h2>" + Table(["figure", "value"], [[k, v] for k, v in figures.items()]).html())
    try:
        parts.append("<h2>Samples</h2>" + run.sample(samples).html())
    except CambrianError as error:
        parts[-1:] = [*parts[-1:], f"<p>{html.escape(str(error))}</p>"]
    if records:
        lines = [
            Curves({n: ([r["step"] for r in records if n in r], [r[n] for r in records if n in r])}, y=n).html()
            for n in names
        ]
        parts.append('<h2>Curves</h2><div class="arms">' + "".join(f"<section>{x}</section>" for x in lines) + "</div>")
    parts.append("<h2>Configuration</h2>" + config_html(run.spec.slug, run.spec.config) + environment_html(run.info))
    return write(run.path / "report.html", f"{run.spec.slug} {run.id}", "".join(parts))


def config_html(slug: str, values: Mapping[str, Any]) -> str:
    """Every field with its value and help."""
    cls = config_type(registry.load(slug, "recipe"))
    rows = [[row["name"], values.get(row["name"]), row["help"]] for row in describe_config(cls)]
    return Table(["field", "value", "meaning"], rows).html()


def environment_html(info: Mapping[str, Any]) -> str:
    """Versions and machine, folded away."""
    shown = {**versions(), **{k: v for k, v in info.items() if k not in ("figures", "versions")}}
    text = json.dumps(shown, indent=1, default=str)
    return f"<details><summary>Environment</summary><pre>{html.escape(text)}</pre></details>"
