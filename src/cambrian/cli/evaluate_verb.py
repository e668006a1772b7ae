"""Evaluate a trained run on a split of its data, or on other data of the same kind."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run and the split."""
    parser.add_argument("run", nargs="?", default="last")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--data", help="other data of the same kind and shape")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the figures."""
    from cambrian.engine.run import find

    found = find(args.run)
    figures = found.evaluate(args.split, data=args.data)
    if args.json:
        print_json({"run": found.id, "split": args.split, "figures": figures})
    else:
        print_table([f"{args.split} figure", "value"], list(figures.items()))
    return 0
