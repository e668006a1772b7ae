"""Write one self-contained HTML page for a run: card, figures, samples, curves, configuration, environment."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", nargs="?", default="last")
    parser.add_argument("-n", "--n", type=int, default=16, help="how many samples to show")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from cambrian.engine.report import run_report
    from cambrian.engine.run import find

    found = find(args.run)
    path = found.path / "report.html"
    if not found.info.get("verb"):
        path = run_report(found, args.n)
    print_json({"run": found.id, "report": str(path)}) if args.json else print(path)
    return 0
