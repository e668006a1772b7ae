"""Profile one training step of a system or run: per layer operations, bytes, parameters, predicted and measured time."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from cambrian.cli.console import json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to profile."""
    parser.add_argument("what", metavar="SLUG|RUN")
    parser.add_argument("--preset", default="laptop", help="the preset, when a slug is given")
    parser.add_argument("--data", help="other data than the embedded default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="replace a configuration field"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps (default 5)")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from cambrian.inspect.profile import profile_step

    loop = _loop(args)
    modules = loop.recipe.modules()
    found: Any = profile_step(loop.advance, modules, repeats=args.repeats)
    if args.json:
        totals = {k: getattr(found, k) for k in ("predicted_ms", "measured_ms", "step_ms")}
        print_json({"system": loop.recipe.slug, **totals, "layers": [asdict(row) for row in found.rows]})
        return 0
    columns, cells = found.table()
    print_table(
        columns,
        cells,
        title=f"one training step of {loop.recipe.slug}, batch {getattr(loop.recipe.config, 'batch', '-')}",
    )
    print(
        f"predicted {found.predicted_ms:.2f} ms, operations {found.measured_ms:.2f} ms, whole step {found.step_ms:.2f} ms"
    )
    return 0


def _loop(args: argparse.Namespace) -> Any:
    from cambrian.engine import registry
    from cambrian.engine.config import parse_settings
    from cambrian.engine.loop import Loop
    from cambrian.engine.run import find, spec_for

    if args.what.replace("_", "-") in registry.cards():
        settings = parse_settings(args.set)
        spec, config = spec_for(args.what, preset=args.preset, data=args.data, settings=settings)
        return Loop(spec.make(config=config))
    return find(args.what).restore()
