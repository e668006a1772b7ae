"""What the verbs print: tables and progress for people, JSON for programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_PIPED = 120  # characters of a line when the output is no terminal


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def print_json(value: Any) -> None:
    """Strict JSON on standard output; NaN and infinity become null."""
    print(json.dumps(_strict(value), indent=1, default=str))


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table that fits the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(number(v) for v in row))
    width = None if sys.stdout.isatty() else max(_PIPED, _width(columns, rows))  # a pipe has no edge to fold at
    Console(highlight=False, width=width).print(table)


def print_records(records: Sequence[Mapping[str, Any]]) -> None:
    """A table from dicts: a line for each record, or where that is wider than the terminal a line for each field."""
    columns = list(dict.fromkeys(k for r in records for k in r))
    rows = [[r.get(c, "") for c in columns] for r in records]
    across = _width(columns, rows)
    turned = [[name, *(row[i] for row in rows)] for i, name in enumerate(columns)]
    room = shutil.get_terminal_size((_PIPED, 40)).columns
    if across > room and len(records) > 0 and _width([""] * (len(rows) + 1), turned) <= room:
        print_table([""] * (len(rows) + 1), turned)
        return
    print_table(columns, rows)


def _width(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Characters that a table needs in one line."""
    widths = [max([len(name), *(len(number(row[i])) for row in rows)]) for i, name in enumerate(columns)]
    return sum(widths) + 2 * len(widths)


def number(value: Any) -> str:
    """Four significant digits for floats; text otherwise, with no markup."""
    from rich.markup import escape

    return f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=4)


@contextlib.contextmanager
def training_progress(name: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A bar with rate and time left for `report(step, steps, scalars)`; plain lines when the output is no terminal."""
    bar = _bar()
    if not bar.console.is_terminal:
        yield _plain_lines(name)
        return
    with bar:
        task = bar.add_task(name, total=None, note="")

        def report(step: int, steps: int, scalars: dict[str, float]) -> None:
            note = "  ".join(f"{k} {v:.4g}" for k, v in list(scalars.items())[:3])
            bar.update(task, completed=step, total=steps, note=note)

        yield report


def _plain_lines(name: str) -> Callable[[int, int, dict[str, float]], None]:
    import sys
    import time

    last = time.monotonic()

    def report(step: int, steps: int, scalars: dict[str, float]) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last > 10:
            last = time.monotonic()
            note = "  ".join(f"{k} {v:.4g}" for k, v in list(scalars.items())[:3])
            print(f"{name}: step {step} of {steps}  {note}", file=sys.stderr, flush=True)

    return report


@contextlib.contextmanager
def arms_progress() -> Iterator[Callable[[dict[str, tuple[int, int]]], None]]:
    """A bar per arm for `notify({arm/seed: (done, total)})`."""
    bar = _bar()
    if not bar.console.is_terminal:
        yield _plain_arms()
        return
    with bar:
        tasks: dict[str, Any] = {}

        def notify(progress: dict[str, tuple[int, int]]) -> None:
            for arm, (done, total) in _by_arm(progress).items():
                if arm not in tasks:
                    tasks[arm] = bar.add_task(arm, total=100, note="")
                seeds = sum(d >= t for n, (d, t) in progress.items() if n.rpartition("/")[0] == arm)
                bar.update(tasks[arm], completed=round(100 * done / max(total, 1e-9)), note=f"{seeds} seeds done")

        yield notify


def _by_arm(progress: Mapping[str, tuple[int, int]]) -> dict[str, tuple[float, float]]:
    out: dict[str, tuple[float, float]] = {}
    for name, (done, total) in progress.items():
        arm = name.rpartition("/")[0]
        before = out.get(arm, (0.0, 0.0))
        out[arm] = (before[0] + done / max(total, 1), before[1] + 1.0)
    return out


def _plain_arms() -> Callable[[dict[str, tuple[int, int]]], None]:
    import sys
    import time

    last = 0.0

    def notify(progress: dict[str, tuple[int, int]]) -> None:
        nonlocal last
        if time.monotonic() - last > 8:
            last = time.monotonic()
            parts = (f"{arm} {100 * done / total:.0f}%" for arm, (done, total) in _by_arm(progress).items())
            print("verify: " + ", ".join(parts), file=sys.stderr, flush=True)

    return notify
