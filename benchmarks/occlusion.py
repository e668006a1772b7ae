"""Occlusion against Captum, one window a pass and several, and against our own whole-picture passes: equal maps first.

Run: python benchmarks/occlusion.py     (pip install captum)
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.systems.explain.occlusion import deconvnet, occlusion_map

SIZE, STRIDE, BATCHED = 6, 2, 64


def network(seed: int = 0) -> nn.Module:
    """The batch-norm network of the studies, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = zoo.build("vgg-small", channels=1, classes=10)
    net(torch.rand(64, 1, 32, 32))
    return net.eval()


def maps(images: int) -> None:
    """Attribution maps of `images` pictures: ours (regional and whole), Captum's with 1 and with 64 windows a pass."""
    import captum.attr as peer

    net = network()
    target = wrap(copy.deepcopy(net), space=Space.image((1, 32, 32)), classes="0123456789")
    x, y = torch.rand(images, 1, 32, 32), torch.arange(images) % 10
    method = peer.Occlusion(net)

    def theirs(windows: int):
        settings = {"strides": (1, STRIDE, STRIDE), "target": y, "baselines": 0.5, "perturbations_per_eval": windows}
        with torch.no_grad():
            return method.attribute(x, (1, SIZE, SIZE), **settings)

    def ours(regional: bool = True):
        return occlusion_map(target, x, y, SIZE, STRIDE, "grey", of="logit", way="average", regional=regional)

    for other in (theirs(1), theirs(BATCHED), ours(False)):
        gap = float((ours() - other).abs().max())
        assert gap < 1e-5, f"the maps differ by {gap}"
    print(f"{images} picture(s), {SIZE}x{SIZE} square, stride {STRIDE}, max difference {gap:.1e}")
    repeats = 4
    print("  1 window a pass: ", compare({"ours": ours, "captum": lambda: theirs(1)}, repeats=repeats))
    print(f"  {BATCHED} windows a pass:", compare({"ours": ours, "captum": lambda: theirs(BATCHED)}, repeats=repeats))
    print("  whole pictures:  ", compare({"patches": ours, "whole": lambda: ours(False)}, repeats=repeats))


def projections() -> None:
    """One projection for each of 16 pictures."""
    import captum.attr as peer

    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
    target = wrap(
        nn.Sequential(copy.deepcopy(body), nn.Flatten(), nn.Linear(32 * 256, 10)),
        space=Space.image((1, 32, 32)),
        classes="0123456789",
    )
    x, method = torch.rand(16, 1, 32, 32), peer.Deconvolution(body)
    value = body(x).detach()[:, 3, 5, 5].view(-1, 1, 1, 1)
    ours, theirs = lambda: deconvnet(target, x, "0.3", 3, (5, 5)), lambda: method.attribute(x, target=(3, 5, 5))
    gap = float((ours() - theirs() * value).abs().max())
    assert gap < 1e-6, f"the projections differ by {gap}"
    print(f"deconvnet, max difference {gap:.1e}:", compare({"ours": ours, "captum": theirs}, repeats=31))


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    maps(1)
    maps(4)
    projections()


if __name__ == "__main__":
    main()
