"""Print the recorded verdicts: the paper's figure beside the measured one."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Filters."""
    parser.add_argument("slug", nargs="?", help="only this system")
    parser.add_argument("--verdict", choices=("holds", "smaller", "fails", "inconclusive"))
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from cambrian.engine.ledger import records

    found = [r for r in records(args.slug) if args.verdict in (None, r["verdict"])]
    if args.json:
        print_json(found)
        return 0
    rows = [[r["slug"], r["claim"], r["verdict"], r["effect"]["text"], r["margin"], r.get("sabotage", {}).get("verdict", ""),
             r["paper"]] for r in found]  # fmt: skip
    print_table(["system", "claim", "verdict", "measured", "margin", "sabotaged", "the paper"], rows)
    return 0
