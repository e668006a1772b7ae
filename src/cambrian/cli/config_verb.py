"""Print every configuration field of a system: type, default, preset values, allowed range and help."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table
from cambrian.engine import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """The slug."""
    parser.add_argument("slug")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the fields of the recipe or study, and the options of the method roles."""
    from cambrian.engine.config import describe
    from cambrian.engine.recipe import config_type

    card = registry.card(args.slug)
    out: dict[str, list[dict[str, object]]] = {}
    for role in card.roles:
        cls = registry.load(card.slug, role)
        rows = describe(config_type(cls))
        for name, preset in getattr(cls, "presets", {}).items():
            for row in rows:
                row[name] = getattr(preset, row["name"])
        out[role] = rows
    if args.json:
        print_json(out)
        return 0
    for role, rows in out.items():
        presets = [k for k in rows[0] if k not in ("name", "type", "default", "allowed", "help")] if rows else []
        head = ["name", "type", *(presets or ["default"]), "allowed", "help"]
        print_table(head, [[row.get(c) for c in head] for row in rows], title=f"{card.slug} ({role})")
    return 0
