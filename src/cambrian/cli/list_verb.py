"""List the systems; without torch, so it answers at once."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table
from cambrian.engine import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Filters."""
    parser.add_argument("words", nargs="*", help="show systems whose slug, title or summary holds all these words")
    parser.add_argument("--role", choices=sorted(registry.ROLES.values()), help="only systems with this role")
    parser.add_argument("--family", help="only this family, e.g. gans")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    words = [w.lower() for w in args.words]
    found = [
        card
        for card in registry.cards().values()
        if (args.role is None or args.role in card.roles)
        and (args.family is None or args.family == card.family)
        and all(w in f"{card.slug} {card.title} {card.summary}".lower() for w in words)
    ]
    if args.json:
        print_json([card.row() for card in found])
    else:
        print_table(
            ["slug", "family", "roles", "title"], [[c.slug, c.family, ", ".join(c.roles), c.title] for c in found]
        )
    return 0
