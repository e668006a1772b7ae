"""Compress a trained run into an encoded file; a child run holds the table, the file and the report."""

from __future__ import annotations

import argparse

from cambrian.cli.method_verb import common_arguments, show, subject


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run and the methods."""
    common_arguments(parser, "compressor")


def run(args: argparse.Namespace) -> int:
    """Apply the methods and print the table."""
    from cambrian.engine.api import compress

    show(compress(subject(args), args.with_, seed=args.seed), args.json)
    return 0
