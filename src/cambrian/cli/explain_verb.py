"""Explain a trained run; a child run holds the table, the pictures and the report."""

from __future__ import annotations

import argparse

from cambrian.cli.method_verb import common_arguments, show, subject


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run and the methods."""
    common_arguments(parser, "explainer")


def run(args: argparse.Namespace) -> int:
    """Apply the methods and print the table."""
    from cambrian.engine.api import explain

    show(explain(subject(args), args.with_, seed=args.seed), args.json)
    return 0
