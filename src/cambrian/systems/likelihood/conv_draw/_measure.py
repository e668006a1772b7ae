"""What conv-draw's evaluation and actions measure. Shapes: N pictures uint8 [N, C, H, W]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cambrian.codec import baselines
from cambrian.data.split import Data
from cambrian.engine.samples import Plot
from cambrian.errors import ConfigError
from cambrian.metrics.judges import judge_of
from cambrian.nn.latent import DiagGaussian
from cambrian.systems.likelihood.conv_draw import _codec
from cambrian.systems.likelihood.conv_draw.model import ConvDRAW

RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
OTHERS = ("jpeg", "jpeg2000", "webp")


Found = tuple[baselines.Coded, np.ndarray]


def best(codec: str, shown: np.ndarray, rates: Sequence[float]) -> list[Found | None]:
    """For each rate, a codec's best montage of the pictures at about so many bits per dimension, and the pictures."""
    sheet = baselines.montage(shown)
    swept = baselines.sweep(codec, sheet)
    made = [baselines.at_budget(swept, sheet, rate * shown.size / 8) for rate in rates]
    return [m and (m, baselines.unmontage(m.picture, len(shown), *shown.shape[2:])) for m in made]


def other(codec: str, shown: np.ndarray, rate: float) -> dict[str, float]:
    """`psnr`, `rate` and `file_rate` of JPEG, JPEG 2000 or WebP. It may exceed the rate by a setting's step."""
    (made,) = best(codec, shown, [rate])
    if made is None:
        raise ConfigError(
            f"{codec} cannot code {len(shown)} pictures at {rate} bits per dimension; take more of either"
        )
    coded, pictures = made
    bits = 8 / shown.size
    return {
        "psnr": baselines.mean_psnr(shown, pictures),
        "rate": coded.payload * bits,
        "file_rate": coded.file * bits,
    }


def similarity(shown: np.ndarray, pictures: np.ndarray) -> float:
    """Mean MS-SSIM over the pictures."""
    pairs = zip(shown.transpose(0, 2, 3, 1), pictures.transpose(0, 2, 3, 1), strict=True)
    return float(np.mean([baselines.ms_ssim(a, b) for a, b in pairs]))


def curves(model: ConvDRAW, image: Tensor) -> list[dict[str, Any]]:
    """One row for each codec and rate, and for each number of drawing steps that the model may send."""
    shown = image.numpy()
    rows = []
    for steps in range(1, model.steps + 1):
        coded = _codec.encode(model, image, steps=steps)
        rows.append(_row("conv-draw", f"{steps} steps", coded.payload, len(coded.data), shown, coded.picture.numpy()))
    for codec in OTHERS:
        for made in best(codec, shown, RATES):
            if made is not None:
                rows.append(_row(codec, made[0].setting, made[0].payload, made[0].file, shown, made[1]))
    return rows


def _row(codec: str, setting: str, payload: int, file: int, shown: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    return {
        "codec": codec,
        "setting": setting,
        "rate": 8 * payload / shown.size,
        "file_rate": 8 * file / shown.size,
        "psnr": baselines.mean_psnr(shown, found),
        "ms_ssim": similarity(shown, found),
    }


def lines(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """`{codec: (xs, ys)}` of the rows, for curves."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        xs, ys = found.setdefault(row["codec"], ([], []))
        xs.append(row[x])
        ys.append(row[y])
    return found


def lossless(model: ConvDRAW, image: Tensor) -> list[dict[str, Any]]:
    """The bound of the float64 twin, the real stream with and without its initial bits, PNG and WebP of the montage."""
    twin, bits = model.exact(), 1 / (math.log(2) * image.numel())
    with torch.no_grad():
        nll, kl, _ = twin.elbo(image, torch.Generator().manual_seed(0))
    coded = _codec.encode(model, image, mode="lossless")
    rows = [
        {"codec": "bound of conv-draw", "bits_per_dim": float(nll.sum() + kl.sum()) * bits},
        {"codec": "conv-draw, payload", "bits_per_dim": coded.bits_per_dim},
        {
            "codec": "conv-draw, initial bits got back",
            "bits_per_dim": (8 * coded.payload - coded.initial) / image.numel(),
        },
    ]
    sheet = baselines.montage(image.numpy())
    for made in (baselines.png(sheet), baselines.webp_lossless(sheet)):
        rows.append({"codec": made.codec, "bits_per_dim": 8 * made.payload / image.numel()})
    return rows


def ordering(model: ConvDRAW, data: Data, n: int, seed: int) -> list[dict[str, Any]]:
    """A judge's accuracy (form and colour together) with the first or the last share of the latents' bits kept, cut
    where the mean cost of the latents, in the order of coding, reaches that share.
    """
    held = data.split("test")
    judge = judge_of(data.train, held, len(data.info["classes"]), limit=8000, steps=1200)
    batch = held[torch.arange(min(n, len(held)))]
    cost = model.cost.flatten().cumsum(0)
    place = cost / cost[-1]
    rows: list[dict[str, Any]] = []
    for share, last in ((1.0, False), (0.25, False), (0.25, True), (0.5, False), (0.5, True), (0.0, False)):
        keep = (place > 1 - share if last else place <= share).view_as(model.cost)
        found = _masked(model, batch["image"], keep, torch.Generator().manual_seed(seed))
        guess = judge.probabilities(found.float() / 255).argmax(1)
        rows.append(
            {
                "kept": f"{'last' if last else 'first'} {share:.0%} of the bits",
                "accuracy": float((guess == batch["label"]).float().mean()),
                "psnr": baselines.mean_psnr(batch["image"].numpy(), found.numpy()),
            }
        )
    real = judge.probabilities(batch["image"].float() / 255).argmax(1)
    return [*rows, {"kept": "originals", "accuracy": float((real == batch["label"]).float().mean()), "psnr": math.inf}]


@torch.no_grad()
def _masked(model: ConvDRAW, image: Tensor, keep: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures from posterior draws where `keep` [slots, widest] says so and prior means elsewhere."""

    def choose(slot: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Tensor:
        assert posterior is not None
        mine = keep[slot, : prior.mean[0].numel()].view(1, *prior.mean.shape[1:])
        return torch.where(mine, posterior.sample(generator), prior.mean)

    return model.picture(model.unfold(choose, model.scaled(image)))


def bars(latents: Sequence[float], rest: float) -> Plot:
    """Bits per picture of each drawing step; the pixels' part is said in the title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(1, len(latents) + 1), latents)
    axes.set(xlabel="drawing step", ylabel="KL, bits per picture", title=f"pixels given the latents: {rest:.0f} bits")
    return Plot(figure)


def save_png(picture: np.ndarray, path: Path) -> None:
    """uint8 [H, W, C] as a PNG file."""
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(path)
