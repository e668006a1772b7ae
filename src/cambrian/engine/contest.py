"""A family's comparison: every entrant on every world with the same budget and seeds, as one table and one page.

A family declares it as data, `CONTEST` in `systems/<family>/_contest.py`; `cambrian verify --family F --table` runs it.
There is no verdict: the table says what each way bought and cost.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.codec import files
from cambrian.engine import ledger, registry, report
from cambrian.engine.config import override, to_json
from cambrian.engine.devices import describe, pick
from cambrian.engine.run import commit, runs_root, versions
from cambrian.engine.samples import Table, short
from cambrian.engine.verify import Job, Notify, run_jobs
from cambrian.errors import ConfigError

SPEED = "ms_per_step"


@dataclass(frozen=True)
class World:
    """One column group: embedded data, the settings that every entrant gets, and the metrics that are shown."""

    name: str
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    data: str | None = None  # where the world's name is not that of its data


@dataclass(frozen=True)
class Entrant:
    """One row: a system with settings of its own, for all worlds or by world, and training methods."""

    name: str
    slug: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    by_world: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    with_: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contest:
    """Entrants, worlds and seeds of one family."""

    family: str
    worlds: tuple[World, ...]
    entrants: tuple[Entrant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass
class Outcome:
    """Metrics `[entrant][world]` as one dict a seed, and the folders in which the arms left their pictures."""

    contest: Contest
    metrics: dict[str, dict[str, list[dict[str, float]]]]
    folders: dict[tuple[str, str], Path] = field(repr=False)
    seeds: tuple[int, ...] = ()

    def table(self, world: World) -> Table:
        """Entrants by metric: the mean over seeds, lowest and highest in brackets."""
        names = [*world.metrics, SPEED]
        rows = [
            [entrant.name, *(_cell([m.get(name) for m in self.metrics[entrant.name][world.name]]) for name in names)]
            for entrant in self.contest.entrants
        ]
        return Table([world.name, *(name.replace("_", " ") for name in names)], rows)


def of_family(family: str) -> Contest:
    """The contest that a family declares. Raises `ConfigError` where it declares none."""
    families = sorted({card.family for card in registry.cards().values()} - {"plugin"})
    if family not in families:
        raise ConfigError(f"no family {family!r}; families: {', '.join(families)}")
    place = registry.SYSTEMS / family / "_contest.py"
    if not place.is_file():
        raise ConfigError(f"the family {family} declares no comparison; try its claims with 'cambrian verify SLUG'")
    return importlib.import_module(f"cambrian.systems.{family}._contest").CONTEST


def run(
    contest: Contest,
    *,
    seeds: Sequence[int] | None = None,
    entrants: Sequence[str] | None = None,
    workers: int = 2,
    notify: Notify = lambda progress: None,
) -> Outcome:
    """Train and judge every entrant on every world (finished arms are cached); `entrants` keeps those of these slugs."""
    chosen = tuple(e for e in contest.entrants if entrants is None or e.slug in entrants or e.name in entrants)
    if not chosen:
        known = ", ".join(e.name for e in contest.entrants)
        raise ConfigError(f"none of {', '.join(entrants or ())} takes part; entrants: {known}")
    contest = Contest(contest.family, contest.worlds, chosen, tuple(seeds or contest.seeds))
    jobs = {
        (entrant.name, world.name, seed): _job(entrant, world, seed)
        for entrant in chosen
        for world in contest.worlds
        for seed in contest.seeds
    }
    run_jobs(list(jobs.values()), workers, notify)
    metrics: dict[str, dict[str, list[dict[str, float]]]] = {}
    for (entrant, world, _), job in jobs.items():
        metrics.setdefault(entrant, {}).setdefault(world, []).append(_figures(job))
    folders = {
        (entrant, world): job.directory for (entrant, world, seed), job in jobs.items() if seed == contest.seeds[0]
    }
    return Outcome(contest, metrics, folders, contest.seeds)


def record(outcome: Outcome) -> dict[str, Any]:
    """The outcome as the ledger keeps it."""
    contest = outcome.contest
    entrants = {
        e.name: {"slug": e.slug, "settings": dict(e.settings), "by_world": {k: dict(v) for k, v in e.by_world.items()},
                 "with": list(e.with_)} for e in contest.entrants
    }  # fmt: skip
    worlds = {w.name: {"settings": dict(w.settings), "metrics": list(w.metrics)} for w in contest.worlds}
    return {
        "family": contest.family, "seeds": list(outcome.seeds), "worlds": worlds, "entrants": entrants,
        "metrics": outcome.metrics, "tables": {w.name: _plain(outcome.table(w)) for w in contest.worlds},
        "device": describe(pick("cpu")), "versions": versions(), "commit": commit(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def write(outcome: Outcome) -> Path:
    """Put the comparison into the ledger, as `tables/FAMILY.json`; replaces the family's earlier one."""
    path = ledger.root() / "tables" / f"{outcome.contest.family}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_json(path, record(outcome))
    return path


def page(outcome: Outcome, path: Path) -> Path:
    """A self-contained HTML page: the tables, and for every entrant what it made on each world (first seed)."""
    body = [f"<h1>{html.escape(outcome.contest.family)}: one budget for all</h1>"]
    body.append(f"<p>Mean over seeds {list(outcome.seeds)}, lowest to highest in brackets.</p>")
    for world in outcome.contest.worlds:
        same = ", ".join(f"{name} {value}" for name, value in world.settings.items())
        body += [f"<h2>{html.escape(world.name)}</h2><p>{html.escape(same)}</p>", outcome.table(world).html()]
        body.append('<div class="arms">')
        for entrant in outcome.contest.entrants:
            shown = outcome.folders[entrant.name, world.name] / "sample.html"
            if shown.exists():
                body.append(
                    f"<section><h3>{html.escape(entrant.name)}</h3>{shown.read_text(encoding='utf-8')}</section>"
                )
        body.append("</div>")
    return report.write(path, f"{outcome.contest.family}: comparison", "".join(body) + report.environment_html({}))


def pictures(outcome: Outcome, folder: Path, width: int = 600) -> list[Path]:
    """One PNG a world, FAMILY-WORLD.png: what every entrant made (first seed), one row each with its name."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for world in outcome.contest.worlds:
        rows: list[Any] = []
        for entrant in outcome.contest.entrants:
            found = _sheet(outcome.folders[entrant.name, world.name])
            if found is None:
                continue
            with Image.open(found) as shown:
                wide = shown.convert("RGB")
            scale = min(1.0, width / wide.width)
            row = Image.new("RGB", (width, round(wide.height * scale) + 16), "white")
            row.paste(wide.resize((round(wide.width * scale), round(wide.height * scale))), (0, 16))
            ImageDraw.Draw(row).text((2, 2), entrant.name, fill="black")
            rows.append(row)
        if not rows:
            continue
        sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
        top = 0
        for row in rows:
            sheet.paste(row, (0, top))
            top += row.height
        path = folder / f"{outcome.contest.family}-{world.name}.png"
        sheet.quantize(64).save(path, optimize=True)
        written.append(path)
    return written


def _sheet(folder: Path) -> Path | None:
    """The picture of the samples themselves, where a system shows more than them; else the first there is."""
    found = sorted(folder.glob("sample*.png"))
    named = [path for path in found if path.stem in ("sample", "sample-samples", "sample-cloud")]
    return next(iter([*named, *found]), None)


def _job(entrant: Entrant, world: World, seed: int) -> Job:
    cls = registry.load(entrant.slug, "recipe")
    overrides = {**world.settings, **entrant.settings, **entrant.by_world.get(world.name, {})}
    settings = to_json(override(cls.presets["laptop"], overrides))
    payload = {
        "slug": entrant.slug, "role": "recipe", "seed": seed, "data": world.data or world.name, "config": settings,
        "with": list(entrant.with_),
    }  # fmt: skip
    slugs = [entrant.slug, *(method.partition(":")[0] for method in entrant.with_)]
    code = "".join(registry.code_hash(slug) for slug in slugs)
    key = hashlib.sha256((json.dumps(payload, sort_keys=True) + code).encode()).hexdigest()[:20]
    return Job(f"{entrant.name} on {world.name}", seed, runs_root() / ".arms" / f"{entrant.slug}-{key}", payload)


def _figures(job: Job) -> dict[str, float]:
    result = job.result()
    assert result is not None
    return {**result["metrics"], SPEED: 1e3 * result["training_cpu_seconds"] / job.payload["config"]["steps"]}


def _cell(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return ""
    return f"{short(float(np.mean(found)))} ({short(min(found))} .. {short(max(found))})"


def _plain(table: Table) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": [list(row) for row in table.rows]}
