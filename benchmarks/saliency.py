"""Gradient attributions against Captum: equal maps first, then pictures per second.

Run: python benchmarks/saliency.py     (pip install captum)
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn import zoo
from cambrian.systems.explain.saliency import saliency

IMAGES, STEPS = 16, 50


def network(seed: int = 0) -> nn.Module:
    """The batch-norm network of the studies, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = zoo.build("vgg-small", channels=1, classes=10)
    net(torch.rand(64, 1, 32, 32))
    return net.eval()


def contenders(target, net: nn.Module, x: Tensor, y: Tensor) -> dict:
    """Name -> (ours, Captum's)."""
    import captum.attr as peer

    integrated, zero = peer.IntegratedGradients(net), torch.zeros_like(x)
    cam = peer.LayerGradCam(net, net.body.relu5)
    guided = peer.GuidedBackprop(copy.deepcopy(net))
    return {
        "gradient": (lambda: saliency(target, x, y), lambda: peer.Saliency(net).attribute(x, target=y, abs=False)),
        "guided": (lambda: saliency(target, x, y, "guided"), lambda: guided.attribute(x, target=y)),
        "grad-cam": (
            lambda: saliency(target, x, y, "grad-cam", layer="body.relu5"),
            lambda: peer.LayerAttribution.interpolate(
                cam.attribute(x, target=y, relu_attributions=True), (32, 32), interpolate_mode="bilinear"
            ),
        ),
        f"integrated, {STEPS} gradients": (
            lambda: saliency(target, x, y, "integrated", n=STEPS),
            lambda: integrated.attribute(x, zero, target=y, n_steps=STEPS),
        ),
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    net = network()
    target = wrap(copy.deepcopy(net), space=Space.image((1, 32, 32)), classes="0123456789")
    x = torch.rand(IMAGES, 1, 32, 32)
    y = torch.arange(IMAGES) % 10
    for name, (ours, theirs) in contenders(target, net, x, y).items():
        gap = float((ours() - theirs()).abs().max())
        assert gap < 1e-5, f"{name} differs by {gap}"
        repeats = 7 if "integrated" in name else 31
        print(f"{name}: max difference {gap:.1e};", compare({"ours": ours, "captum": theirs}, repeats=repeats))
    folded = lambda: saliency(target, x, y, "integrated", n=STEPS, fold=True)  # noqa: E731
    gap = (folded() - theirs()).abs()  # a unit within rounding of its kink may change sides in one of the gradients
    assert float(gap.median()) < 1e-6 and float(gap.max()) < 1e-3, f"folded gradients differ by {gap.max()}"
    print(
        f"  with folded batch norms: max difference {gap.max():.1e};",
        compare({"ours": folded, "captum": theirs}, repeats=7),
    )


if __name__ == "__main__":
    main()
