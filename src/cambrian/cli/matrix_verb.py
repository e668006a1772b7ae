"""Every compressor, explainer and attacker on one run, with quick options, as three tables."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from cambrian.cli.console import json_option, print_json, print_records
from cambrian.cli.method_verb import network_arguments, subject


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
        print(f"\n{verb} of {found.run}")
        print_records(rows)
        for slug, reason in found.reasons[verb].items():
            print(f"  {slug}: {reason}")
    return 0
