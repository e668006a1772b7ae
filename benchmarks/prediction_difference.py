"""All patches and samples of a picture in full batches with cached factors, against one patch at a time.

The baseline does what the paper's equations say, patch by patch: it solves the conditional Gaussian anew, draws the same
samples, and sends them through the network. Both give the same map (largest difference below 1e-4 bits).

Run: python benchmarks/prediction_difference.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.systems.explain.prediction_difference import PDA, PatchGaussian, log_odds, patch_corners
from cambrian.systems.explain.prediction_difference._pictures import scenes
from cambrian.systems.explain.prediction_difference.model import spread


def patch_by_patch(target, x: Tensor, label: int, pda: PDA, model: PatchGaussian, noise: Tensor, one: bool) -> Tensor:
    """`x [1,C,H,W]`; with `one`, every sample is a forward pass of its own."""
    k, size, count = pda.k, pda.window, target.size("train")
    corners = patch_corners(*x.shape[2:], k, pda.stride)
    evidence = torch.zeros(len(corners), dtype=torch.float64)
    with torch.no_grad():
        clean = target.module(x).softmax(1)[0, label]
        for number, (row, column) in enumerate(corners.tolist()):
            top, left = (min(max(at - (size - k) // 2, 0), x.shape[2] - size) for at in (row, column))
            part = PatchGaussian.geometry(fresh(model), k, row - top, column - left)
            window = x[0, :, top : top + size, left : left + size].flatten().double()
            mean = model.mean[part.inside] + part.gain @ (window[part.outside] - model.mean[part.outside])
            fills = (mean + noise @ part.factor.T).clamp(0, 1).float().view(-1, x.shape[1], k, k)
            variants = x.repeat(len(fills), 1, 1, 1)
            variants[:, :, row : row + k, column : column + k] = fills
            parts = variants.split(1) if one else [variants]
            p = torch.cat([target.module(part) for part in parts]).softmax(1)[:, label].double().mean()
            evidence[number] = log_odds(clean, count, 10) - log_odds(p, count, 10)
    return spread(evidence, corners, k, *x.shape[2:])


def fresh(model: PatchGaussian) -> PatchGaussian:
    """The same Gaussian with nothing solved yet."""
    other = object.__new__(PatchGaussian)
    other.__dict__.update(vars(model), _known={})
    return other


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = zoo.build("vgg-small", widths=(12, 24, 32, 48), pools=(0, 1), classes=10, channels=3).eval()
    data = scenes(train=500, test=10, seed=0)
    target = wrap(net, space=Space.image((3, 32, 32)), classes=data.info["classes"], data=data)
    x = target.draw("test", torch.tensor([0]))[0]
    pda = PDA(k=4, window=8, stride=2, samples=8)
    sampler = pda.prepare(target, torch.Generator().manual_seed(0))

    def ours() -> Tensor:
        return pda(target, x, torch.tensor([3]), generator=torch.Generator(), sampler=sampler)[0, 0]

    def theirs(one: bool = False) -> Tensor:
        return patch_by_patch(target, x, 3, pda, sampler.model, sampler.noise, one)

    gap = float((ours() - theirs()).abs().max())
    assert gap < 1e-4, f"the maps differ by {gap}"
    for name, run in {"patch by patch": theirs, "patch by patch, sample by sample": lambda: theirs(True)}.items():
        result = compare({"ours": ours, name: run}, repeats=5, warmup=1)
        print(f"one picture of 32x32, 225 patches, 8 samples (largest difference {gap:.1e}):", result)


if __name__ == "__main__":
    main()
