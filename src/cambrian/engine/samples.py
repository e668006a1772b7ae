"""What systems show: images, points, drawings, text, tables, curves. Each saves files and renders as self-contained HTML."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@runtime_checkable
class Sample(Protocol):
    """Anything to look at."""

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write the files that show it; returns their paths."""
        ...

    def html(self) -> str:
        """An HTML fragment without outside references."""
        ...


@dataclass
class Images:
    """`tensor` [N,C,H,W], C = 1 or 3, values in [0,1], shown as a grid of `columns`."""

    tensor: Tensor
    columns: int | None = None
    scale: int | None = None

    def grid(self) -> Image.Image:
        """All images on one sheet, a pixel apart, small ones enlarged by a whole factor."""
        x = (self.tensor.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Images takes [N,1|3,H,W], not {tuple(x.shape)}")
        n, _, h, w = x.shape
        columns = self.columns or max(1, math.ceil(math.sqrt(n)))
        rows = math.ceil(n / columns)
        sheet = torch.full((3, rows * (h + 1) + 1, columns * (w + 1) + 1), 255, dtype=torch.uint8)
        for i in range(n):
            top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
            sheet[:, top : top + h, left : left + w] = x[i].expand(3, h, w)
        picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
        factor = self.scale or max(1, 96 // max(h, w))
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM.png."""
        path = directory / f"{stem}.png"
        self.grid().save(path)
        return [path]

    def html(self) -> str:
        """The sheet as an inline PNG."""
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return _inline("image/png", buffer.getvalue())


@dataclass
class Animation:
    """Frames of images, as a GIF."""

    frames: Sequence[Images]
    milliseconds: int = 120

    def encode(self) -> bytes:
        """The GIF's bytes."""
        pictures = [frame.grid().convert("P", palette=Image.Palette.ADAPTIVE) for frame in self.frames]
        buffer = io.BytesIO()
        pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=self.milliseconds, loop=0)
        return buffer.getvalue()

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM.gif."""
        path = directory / f"{stem}.gif"
        path.write_bytes(self.encode())
        return [path]

    def html(self) -> str:
        """An inline GIF."""
        return _inline("image/gif", self.encode())


class Plotted:
    """Base of samples drawn with matplotlib: give `draw(axes)`."""

    size: tuple[float, float] = (4.0, 4.0)

    def draw(self, axes: Any) -> None:
        """Draw on a matplotlib `Axes`."""
        raise NotImplementedError

    def figure(self) -> Any:
        """The matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, layout="constrained")
        self.draw(figure.add_subplot())
        return figure

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM.png."""
        path = directory / f"{stem}.png"
        self.figure().savefig(path, dpi=120)
        return [path]

    def html(self) -> str:
        """The figure as inline PNG."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110)
        return _inline("image/png", buffer.getvalue())


@dataclass
class Plot(Plotted):
    """A finished matplotlib figure."""

    drawn: Any

    def figure(self) -> Any:
        """The figure as given."""
        return self.drawn


@dataclass
class Points(Plotted):
    """Generated points [N,2] over reference points [M,2]."""

    tensor: Tensor
    reference: Tensor | None = None
    limit: float | None = None

    def draw(self, axes: Any) -> None:
        """A scatter plot with equal axes."""
        if self.reference is not None:
            axes.scatter(
                *self.reference.detach().cpu().T.numpy(),
                s=90,
                facecolors="none",
                edgecolors="tab:orange",
                label="modes",
            )
        axes.scatter(*self.tensor.detach().cpu().T.numpy(), s=4, alpha=0.4, color="tab:blue", label="samples")
        if self.limit is not None:
            axes.set(xlim=(-self.limit, self.limit), ylim=(-self.limit, self.limit))
        axes.set_aspect("equal")
        axes.legend(loc="upper right", fontsize=7)


@dataclass
class Curves(Plotted):
    """Named lines: `{name: (xs, ys)}`."""

    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x: str = "step"
    y: str = ""
    size: tuple[float, float] = (5.5, 3.2)

    def draw(self, axes: Any) -> None:
        """One line per name."""
        for name, (xs, ys) in self.lines.items():
            axes.plot(xs, ys, label=name, linewidth=1.2)
        axes.set(xlabel=self.x, ylabel=self.y)
        axes.grid(alpha=0.3)
        if len(self.lines) > 1:
            axes.legend(fontsize=7)


@dataclass
class Drawings:
    """Vector drawings: complete `<svg>` elements."""

    svgs: Sequence[str]
    captions: Sequence[str] = ()

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write one SVG file per drawing."""
        paths = [directory / f"{stem}-{i:03d}.svg" for i in range(len(self.svgs))]
        for path, svg in zip(paths, self.svgs, strict=True):
            path.write_text(svg)
        return paths

    def html(self) -> str:
        """The drawings side by side."""
        captions = list(self.captions) + [""] * (len(self.svgs) - len(self.captions))
        cells = (
            f"<figure>{svg}<figcaption>{html.escape(c)}</figcaption></figure>" for svg, c in zip(self.svgs, captions)
        )
        return f'<div class="sheet">{"".join(cells)}</div>'


@dataclass
class Texts:
    """Lines of text."""

    lines: Sequence[str]

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM.txt."""
        path = directory / f"{stem}.txt"
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        return [path]

    def html(self) -> str:
        """Preformatted text."""
        return f"<pre>{html.escape(chr(10).join(self.lines))}</pre>"


@dataclass
class Table:
    """Rows under named columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """A table from dicts; columns in order of first appearance."""
        columns = list(dict.fromkeys(key for record in records for key in record))
        return cls(columns, [[record.get(c, "") for c in columns] for record in records])

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM.csv."""
        import csv

        path = directory / f"{stem}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.rows)
        return [path]

    def html(self) -> str:
        """An HTML table."""
        head = "".join(f"<th>{html.escape(str(c))}</th>" for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(short(v))}</td>" for v in row) + "</tr>" for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass
class Gallery:
    """Several samples under titles."""

    items: Mapping[str, Sample] = field(default_factory=dict[str, Sample])

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Save each item as STEM-TITLE."""
        named = ((f"{stem}-{_slug(title)}", item) for title, item in self.items.items())
        return [path for name, item in named for path in item.save(directory, name)]

    def html(self) -> str:
        """The items with captions."""
        return "".join(f"<h4>{html.escape(t)}</h4>{item.html()}" for t, item in self.items.items())


def short(value: Any) -> str:
    """A number with four significant digits; anything else as text."""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}"  # type: ignore[reportUnknownArgumentType]
    return str(value)


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


def _inline(kind: str, payload: bytes) -> str:
    return f'<img alt="" src="data:{kind};base64,{base64.b64encode(payload).decode()}">'
