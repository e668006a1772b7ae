"""Every compressor, explainer and attacker on one run, with quick options, as three tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cambrian.cli.console import json_option, print_json, print_records
from cambrian.cli.method_verb import network_arguments, subject

SHOWN = 12  # rows of one table


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run, which verbs, how many inputs."""
    network_arguments(parser)
    parser.add_argument("--only", action="append", choices=("compress", "explain", "attack"), help="one verb (repeat)")
    parser.add_argument("-n", "--n", type=int, default=64, help="how many inputs are attacked (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Apply the methods and print the tables."""
    from cambrian.engine.api import matrix

    found = matrix(
        subject(args), only=args.only, n=args.n, seed=args.seed,
        report=lambda verb, slug: print(f"{verb} {slug} ...", file=sys.stderr),
    )  # fmt: skip
    if args.json:
        print_json(asdict(found))
        return 0
    for verb, rows in found.tables.items():
        print(f"\n== {verb} of {found.run} ==")
        for alike in _tables(rows):
            print()
            print_records(alike[:SHOWN])
            if len(alike) > SHOWN:
                print(f"... and {len(alike) - SHOWN} more rows: {found.children[verb + ' ' + alike[0]['system']]}")
        for slug, reason in found.reasons[verb].items():
            print(f"{slug}: {reason}")
    return 0


def _tables(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows in their order, one list for neighbours that share most of their columns."""
    tables: list[list[dict[str, Any]]] = []
    for row in rows:
        common = tables and len(tables[-1][0].keys() & row.keys()) > 0.6 * len(tables[-1][0].keys() | row.keys())
        if common:
            tables[-1].append(row)
        else:
            tables.append([row])
    return tables
