"""Draw samples from a trained run into its artifacts, or into a folder of your choice."""

from __future__ import annotations

import argparse
from pathlib import Path

from cambrian.cli.console import json_option, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """The run and how many."""
    parser.add_argument("run", nargs="?", default="last")
    parser.add_argument("-n", "--n", type=int, default=16, help="how many samples (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to write to (default: the run's artifacts)")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Save the samples and print the files."""
    from cambrian.engine.run import find

    found = find(args.run)
    paths = save(found.sample(args.n, seed=args.seed), args.out or found.artifacts, f"sample-{args.seed}")
    if args.json:
        print_json({"run": found.id, "files": [str(p) for p in paths]})
    else:
        print("\n".join(map(str, paths)))
    return 0


def save(sample: object, folder: Path, stem: str) -> list[Path]:
    """Write a sample's files. Raises `RunError` when the folder cannot be written."""
    from cambrian.engine.samples import Sample
    from cambrian.errors import RunError

    assert isinstance(sample, Sample)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return sample.save(folder, stem)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from None
