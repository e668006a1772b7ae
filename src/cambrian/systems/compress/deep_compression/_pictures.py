"""Pictures of a compressed network: where the bytes are, what a layer's weights became, the table of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cambrian.codec import container
from cambrian.inspect.results import Row

PARTS = ("positions", "weights", "codebooks", "other tensors", "header")


def byte_parts(path: Path) -> dict[str, int]:
    """What the bytes of a `.cmb` file are for: the parts add up to its size."""
    found = dict.fromkeys(PARTS, 0)
    for entry in container.inspect(path)["tensors"]:
        size = entry["bytes"]
        if entry["kind"] == "raw":
            found["other tensors"] += size
            continue
        book = entry.get("symbols", 0) * getattr(torch, entry["dtype"]).itemsize
        positions = entry.get("split", 0)
        found["positions"] += positions
        found["codebooks"] += book
        found["weights"] += size - positions - book
    found["header"] = path.stat().st_size - sum(found.values())
    return found


def byte_figure(files: dict[str, Path]):
    """A stacked bar for each file; without the original, next to which nothing would be seen."""
    from matplotlib.figure import Figure

    files = {name: path for name, path in files.items() if name != "original" or len(files) == 1}
    figure = Figure(figsize=(6.5, 0.9 + 0.45 * len(files)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(files)
    parts = [byte_parts(path) for path in files.values()]
    for part in PARTS:
        width = [row[part] / 1000 for row in parts]
        axes.barh(list(files), width, left=left, label=part)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="kB on disk")
    axes.legend(fontsize=7)
    return figure


def histogram_figure(before: Tensor, after: Tensor, title: str):
    """A layer's non-zero weights before, and how many share each value afterwards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    alive = after[after != 0].cpu()
    axes.hist(before[before != 0].flatten().cpu().numpy(), bins=120, color="lightgrey", label="original weights")
    values, counts = alive.unique(return_counts=True)
    axes.vlines(values.numpy(), 0, counts.numpy(), color="tab:blue", lw=1.2, label="weights at each shared value")
    axes.set(title=title, xlabel="weight", ylabel="count", yscale="log")
    axes.legend(fontsize=7)
    return figure


def layer_figure(rows: Sequence[Row]):
    """The table of layers as a picture."""
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_short(row.get(column)) for column in columns] for row in rows]
    figure = Figure(figsize=(1.05 * len(columns) + 1, 0.6 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axis("off")
    table = axes.table(cells, colLabels=[c.replace(" coded", "\ncoded") for c in columns], loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    table.scale(1, 1.3)
    return figure


def _short(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
