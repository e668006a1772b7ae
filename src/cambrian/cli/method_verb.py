"""What compress, explain and attack have in common on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from cambrian.cli.console import json_option, print_json, print_records
from cambrian.errors import ConfigError


def common_arguments(parser: argparse.ArgumentParser, role: str) -> None:
    """The run or network, `--with`, `--seed`, `--json`."""
    network_arguments(parser)
    parser.add_argument(
        "--with", dest="with_", action="append", required=True, metavar="METHOD[:OPTION=VALUE,...]",
        help=f"a {role}; see 'cambrian list --role {role}'",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    json_option(parser)


def network_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, or a network of one's own with its weights and data."""
    parser.add_argument("run", help="a run (also what a verb left), or your own network: path/to/net.py:build")
    own = parser.add_argument_group("for a network of your own, which takes pictures and gives logits")
    own.add_argument("--weights", metavar="FILE", help="safetensors file that fits the network")
    own.add_argument("--data", help="labelled pictures: a folder, a table, or glyphs, photos, digits")
    own.add_argument("--size", type=int, help="edge to which pictures are scaled and cut")
    own.add_argument("--channels", type=int, choices=(1, 3))
    own.add_argument("--range", default="0,1", metavar="LO,HI", help="values of black and white (default 0,1)")


def subject(args: argparse.Namespace) -> Any:
    """The run that the words name: a stored one, or that of a network in a Python file."""
    from cambrian.engine import own
    from cambrian.engine.run import find

    given = [name for name in ("weights", "data", "size", "channels") if getattr(args, name) is not None]
    if not own.is_own(args.run):
        if given:
            raise ConfigError(f"--{given[0]} goes with a network of your own (path/to/net.py:build), not with a run")
        return find(args.run)
    try:
        lo, hi = (float(part) for part in args.range.split(","))
    except ValueError:
        raise ConfigError(f"--range takes two numbers as in 0,1 or -1,1, not {args.range!r}") from None
    return own.run_of(
        args.run, weights=args.weights, data=args.data, size=args.size, channels=args.channels, box=(lo, hi)
    )


def show(child: Any, as_json: bool) -> None:
    """The table of a child run, and where it stands."""
    rows = child.info["rows"]
    if as_json:
        print_json({"run": child.id, "parent": child.info["parent"], "path": str(child.path), "rows": rows})
        return
    print_records(rows)
    print(f"{child.info['verb']} of {child.info['parent']}: {child.path / 'report.html'}")
