"""Look at a file or folder of data without training: what was found, how it would be split, what is wrong with it."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """The path."""
    parser.add_argument("path", help="a file or folder, a name under $CAMBRIAN_DATA, or an embedded name")
    parser.add_argument("--size", type=int, help="rescale images to this many pixels a side")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the summary."""
    from cambrian.data.describe import describe

    found = describe(args.path, size=args.size)
    if args.json:
        print_json(found)
    else:
        print_table(["", ""], list(found.items()))
    return 0
