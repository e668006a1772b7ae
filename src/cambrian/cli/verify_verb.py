"""Try the claims of systems: every arm, several seeds, the paper's figure beside the measured one, and a verdict."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from cambrian.cli.console import arms_progress, json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which claims, on what, and where the results go."""
    parser.add_argument("slugs", nargs="*", metavar="SLUG")
    parser.add_argument("--family", help="every system of a family, instead of naming them")
    parser.add_argument("--table", action="store_true", help="with --family: train all its entrants on the same worlds and budget, and print one table")  # fmt: skip
    parser.add_argument("--claim", help="a claim by name, or 'all' (default: the headline)")
    parser.add_argument("--preset", help="budget (default: the claim's own, laptop)")
    parser.add_argument("--data", help="other data than the embedded default")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the claim's")
    parser.add_argument("--sabotage", action="store_true", help="also run the arm whose mechanism is switched off: its verdict must not be 'holds'")  # fmt: skip
    parser.add_argument("--workers", type=int, help="processes side by side (default: one per core)")
    parser.add_argument("--fresh", action="store_true", help="ignore cached arms")
    parser.add_argument("--record", action="store_true", help="write the results into the ledger")
    parser.add_argument("--report", type=Path, help="where to write the HTML report (default: under the runs folder)")
    parser.add_argument("--pictures", type=Path, help="with --table: also write one PNG a world into this folder")
    parser.add_argument("--strict", action="store_true", help="exit with 3 unless every verdict is 'holds'")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Try, print, report."""
    from cambrian.engine import ledger
    from cambrian.engine.verify import verify

    slugs = _slugs(args)
    if args.table:
        return _table(args)
    trials: list[Any] = []
    for slug in slugs:
        with arms_progress() as notify:
            found = verify(
                slug, claim=args.claim, preset=args.preset, data=args.data, seeds=args.seeds, sabotage=args.sabotage,
                workers=args.workers, fresh=args.fresh, notify=notify,
            )  # fmt: skip
        trials += found
        path = _report(slug, found, args.report if len(slugs) == 1 else None)
        for trial in found:
            if args.record:
                ledger.write(trial, args.seeds)
            if not args.json:
                show(trial)
        if not args.json:
            print(f"report: {path}\n")
    if args.json:
        print_json([ledger.record(trial, args.seeds) for trial in trials])
    return 3 if args.strict and any(t.verdict != "holds" for t in trials) else 0


def _slugs(args: argparse.Namespace) -> list[str]:
    """The systems to try; raises `ConfigError` before anything is trained."""
    from cambrian.engine import registry
    from cambrian.errors import ConfigError

    if args.table and not args.family:
        raise ConfigError("--table compares a family; name it: cambrian verify --family gans --table")
    if args.table:
        return args.slugs
    slugs = list(args.slugs)
    if args.family:
        members = [card.slug for card in registry.cards().values() if card.family == args.family]
        if not members:
            known = sorted({card.family for card in registry.cards().values()})
            raise ConfigError(f"no family {args.family!r}; families: {', '.join(known)}")
        slugs += [slug for slug in members if {"recipe", "study"} & set(registry.card(slug).roles)]
    if not slugs:
        raise ConfigError("name a system or a --family; 'cambrian list' shows both")
    for slug in slugs:
        registry.claim_holder(slug)
    return slugs


def _table(args: argparse.Namespace) -> int:
    from cambrian.engine import contest
    from cambrian.engine.run import runs_root

    declared = contest.of_family(args.family)
    with arms_progress() as notify:
        outcome = contest.run(declared, seeds=args.seeds, entrants=args.slugs or None, workers=args.workers or 2, notify=notify)  # fmt: skip
    name = f"{args.family}-{time.strftime('%Y%m%d-%H%M%S')}.html"
    path = contest.page(outcome, args.report or runs_root() / ".verify" / name)
    if args.record:
        contest.write(outcome)
    if args.pictures:
        contest.pictures(outcome, args.pictures)
    if args.json:
        print_json(contest.record(outcome))
        return 0
    for world in outcome.contest.worlds:
        table = outcome.table(world)
        print_table(table.columns, table.rows)
    print(f"report: {path}")
    return 0


def _report(slug: str, trials: list[Any], path: Path | None) -> Path:
    from cambrian.engine.report import trials_report
    from cambrian.engine.run import runs_root
    from cambrian.errors import RunError

    place = path or runs_root() / ".verify" / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}.html"
    try:
        return trials_report(place, slug, trials)
    except OSError as error:
        raise RunError(f"cannot write the report to {place}: {error.strerror or error}") from None


def show(trial: Any) -> None:
    """A trial in the terminal."""
    from cambrian.engine.report import trial_table

    claim, judged = trial.claim, trial.judgement
    print(f"\n{trial.slug}, claim '{claim.name}': {claim.statement}")
    table = trial_table(trial)
    print_table(table.columns, table.rows)
    margin = f"margin {claim.margin:g}" + ("x" if claim.compare == "ratio" else "")
    low, high = claim.effect_text(judged.low), claim.effect_text(judged.high)
    print(f"paper:    {claim.paper}")
    print(
        f"measured: {claim.effect_text(judged.mean)} (95 %: {low} .. {high}; {margin}; preset {trial.preset}; {trial.data})"
    )
    for condition in claim.conditions:
        print(f"also:     {condition}: {'not met' if str(condition) in judged.unmet else 'met'}")
    print(f"verdict:  {trial.verdict}")
    if trial.sabotage is not None:
        print(f"sabotage: {dict(claim.sabotage.overrides)} -> {trial.sabotage.verdict}")
