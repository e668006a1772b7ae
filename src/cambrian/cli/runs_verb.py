"""List the runs, newest last."""

from __future__ import annotations

import argparse

from cambrian.cli.console import json_option, print_json, print_table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Filters."""
    parser.add_argument("slug", nargs="?", help="only runs of this system")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from cambrian.codec.files import load_json
    from cambrian.engine.run import all_paths
    from cambrian.errors import CheckpointError

    rows: list[dict[str, object]] = []
    for path in all_paths():
        try:
            info = load_json(path / "run.json")
            keep = {k: info.get(k) for k in ("slug", "verb", "preset", "seed", "status", "step", "figures")}
        except CheckpointError:
            keep = {"slug": path.parent.name, "status": "damaged"}
        rows.append({"run": path.name, **keep})
    rows = [r for r in rows if args.slug in (None, r["slug"])]
    if args.json:
        print_json(rows)
        return 0
    shown = [
        [
            r["run"],
            r["slug"],
            r.get("verb") or ("network" if r["preset"] == "own" else "train"),
            r["status"],
            r.get("step"),
            _figures(r.get("figures")),
        ]
        for r in rows
    ]
    print_table(["run", "system", "verb", "status", "step", "test figures"], shown)
    return 0


def _figures(figures: object) -> str:
    pairs = list(figures.items())[:4] if isinstance(figures, dict) else []
    return "  ".join(f"{k} {v:.4g}" for k, v in pairs if isinstance(v, (int, float)))
