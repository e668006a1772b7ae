"""Attack a trained run; a child run holds the table, the pictures and the report."""

from __future__ import annotations

import argparse

from cambrian.cli.method_verb import common_arguments, show, subject


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run and the methods."""
    common_arguments(parser, "attacker")
    parser.add_argument("-n", "--n", type=int, default=256, help="how many inputs (default 256)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))


def run(args: argparse.Namespace) -> int:
    """Apply the methods and print the table."""
    from cambrian.engine.api import attack

    show(attack(subject(args), args.with_, n=args.n, split=args.split, seed=args.seed), args.json)
    return 0
