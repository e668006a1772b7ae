"""Carry a stopped or killed run on, bit-equal on CPU to one that was never interrupted."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, training_progress
from cambrian.cli.train_verb import show


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", nargs="?", default="last")
    parser.add_argument(
        "--threads", type=int, help="torch threads; use the same number as before for bit-equal results"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Resume and print the test figures."""
    from cambrian.engine import train
    from cambrian.engine.run import find

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    found = find(args.run)
    with training_progress(found.spec.slug) as report:
        show(train.resume(found, report=report), args.json)
    return 0
