"""The panels of the paper's figures: what a square does to a picture, and what drives a feature."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cambrian.inspect.target import Target
from cambrian.systems.explain.occlusion._projection import Top, deconvnet, receptive_box
from cambrian.systems.explain.occlusion.model import spread


def _shown(target: Target, picture: Tensor):
    """`[C,H,W]` in the target's box as an array that imshow takes."""
    x = ((picture.detach().cpu() - target.space.lo) / target.space.width).clamp(0, 1)
    return x.permute(1, 2, 0).numpy() if len(x) == 3 else x.mean(0).numpy()


def panel_figure(target: Target, x: Tensor, found: Mapping[str, Tensor], size: int, titles: list[str]):
    """One column a picture (figure 7): picture, probability of the class by place of the square, strongest feature map's
    total, and the answer; `found` is `occlude`'s for at least these pictures.
    """
    from matplotlib.figure import Figure

    height, width = x.shape[2:]
    places = found["tops"], found["lefts"]
    rows: dict[str, tuple[Tensor, dict]] = {}
    rows["p(class)"] = (
        spread(found["prob"][: len(x)], *places, size, height, width),
        {"cmap": "jet", "vmin": 0, "vmax": 1},
    )
    if "activation" in found:
        rows["top map"] = (spread(found["activation"][: len(x)], *places, size, height, width), {"cmap": "jet"})
    labels = found["label"][: len(x), None]
    rows["answer"] = (labels, {"cmap": "tab20", "vmin": 0, "vmax": max(20, len(target.classes))})
    figure = Figure(figsize=(1.25 * len(x) + 0.6, 1.25 * (len(rows) + 1)), layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(x), squeeze=False)
    for i in range(len(x)):
        axes[0, i].imshow(_shown(target, x[i]), cmap="gray", vmin=0, vmax=1)
        axes[0, i].set_title(titles[i], fontsize=8)
        for row, (values, style) in enumerate(rows.values(), start=1):
            axes[row, i].imshow(values[i, 0].cpu().numpy(), **style)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, name in enumerate(["input", *rows]):
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure


def projection_figure(target: Target, layer: str, tops: Mapping[int, Top], split: str = "test"):
    """One row a feature (figure 2): projections of its top activations on the left, the same parts of the pictures on the
    right. Projections are scaled by their largest value, for the eye only; mid grey is zero.
    """
    from matplotlib.figure import Figure

    n = max(len(top.index) for top in tops.values())
    figure = Figure(figsize=(0.55 * 2 * n + 0.8, 0.6 * len(tops) + 0.4), layout="constrained")
    axes = figure.subplots(len(tops), 2 * n, squeeze=False)
    for row, (channel, top) in enumerate(tops.items()):
        x, _, _ = target.draw(split, top.index)
        projected = deconvnet(target, x, layer, channel)
        scale = projected.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
        grey = target.space.lo + target.space.width * (0.5 + projected / (2 * scale))
        for i in range(len(top.index)):
            high, left, low, right = receptive_box(target, layer, (int(top.position[i, 0]), int(top.position[i, 1])))
            for column, picture in ((i, grey[i]), (n + i, x[i])):
                axes[row, column].imshow(_shown(target, picture[:, high:low, left:right]), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(str(channel), fontsize=7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    figure.suptitle(f"{layer}: projections | pictures", fontsize=8)
    return figure
