"""What compress, explain and attack have in common on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from cambrian.cli.console import json_option, print_json, print_records


def common_arguments(parser: argparse.ArgumentParser, role: str) -> None:
    """The run, `--with`, `--seed`, `--json`."""
    parser.add_argument("run")
    parser.add_argument(
        "--with", dest="with_", action="append", required=True, metavar="METHOD[:OPTION=VALUE,...]",
        help=f"a {role}; see 'cambrian list --role {role}'",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    json_option(parser)


def show(child: Any, as_json: bool) -> None:
    """The table of a child run, and where it stands."""
    rows = child.info["rows"]
    if as_json:
        print_json({"run": child.id, "parent": child.info["parent"], "path": str(child.path), "rows": rows})
        return
    print_records(rows)
    print(f"{child.info['verb']} of {child.info['parent']}: {child.path / 'report.html'}")
