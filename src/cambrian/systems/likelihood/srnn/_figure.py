"""The picture of a latent path. Shapes: T frames, X features, Z latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cambrian.systems.likelihood.srnn._parts import Bound


def latent_figure(x: Tensor, found: Sequence[Bound], begins: Tensor | None) -> Any:
    """x [T, X] as a picture, divergence per frame with a line wherever a phone begins, and the four latents that vary most,
    each a band of two standard deviations around its mean."""
    from matplotlib.figure import Figure

    kl = torch.cat([f.kl for f in found], 1)[0].cpu()
    gaussians = [f.posterior for f in found if f.posterior is not None]
    mean = torch.cat([g.mean for g in gaussians], 1)[0].cpu()
    std = torch.cat([g.std for g in gaussians], 1)[0].cpu()
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    steps = range(len(kl))
    top.imshow(x.T.cpu(), aspect="auto", origin="lower", cmap="coolwarm", interpolation="nearest")
    top.set_ylabel("frame")
    middle.plot(steps, kl, drawstyle="steps-mid")
    middle.set_ylabel("KL, nats")
    for j in mean.var(0).argsort(descending=True)[:4].tolist():
        bottom.plot(steps, mean[:, j], linewidth=1)
        bottom.fill_between(steps, mean[:, j] - 2 * std[:, j], mean[:, j] + 2 * std[:, j], alpha=0.25)
    bottom.set(xlabel="frame", ylabel="z, four widest")
    if begins is not None:
        for t in begins[0].nonzero()[:, 0].tolist():
            middle.axvline(t - 0.5, color="tab:red", linewidth=0.7, alpha=0.7)
    return figure
