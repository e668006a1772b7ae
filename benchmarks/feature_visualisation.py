"""All channels of a layer in one batch that stops at the layer, against one channel at a time, and against whole passes.

Run: python benchmarks/feature_visualisation.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.nn.zoo.vgg import VGG
from cambrian.systems.explain.feature_visualisation import visualise

STEPS = 10


def network() -> nn.Module:
    torch.manual_seed(0)
    net = VGG(plan="A", classes=10, channels=3, size=32, bn=True, width=0.125, head="gap", stages=3).eval()
    with torch.no_grad():  # as after training: a flat grey picture does not leave every unit at exactly 0
        for name, weight in net.named_parameters():
            if name.endswith("bias"):
                weight.add_(0.2 * torch.randn(weight.shape))
    return net


def by_hand(net: nn.Module, layer: str, channel: int) -> Tensor:
    """One channel, by a hook and whole forward passes, parameter gradients left on."""
    z, seen = torch.zeros(1, 3, 32, 32), {}
    handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    for _ in range(STEPS):
        z = z.detach().requires_grad_(True)
        net(0.5 + z)
        net.zero_grad()
        seen["out"][0, channel].mean().backward()
        z = z.detach() + 0.02 * z.grad / z.grad.square().mean().sqrt().clamp_min(1e-12)
    handle.remove()
    return 0.5 + z


def main() -> None:
    torch.set_num_threads(1)
    net = network()
    target = wrap(net, space=Space.image((3, 32, 32)), classes="0123456789")
    layer = next(row.name for row in target.layers() if row.kind == "BatchNorm2d" and row.shape_out[1] >= 32)
    width = target.features(target.example(), [layer])[layer].shape[1]
    aims = [f"{layer}:{channel}" for channel in range(width)]
    batch = lambda: visualise(target, aims, steps=STEPS, start="mean").free  # noqa: E731
    single = lambda: torch.cat([visualise(target, a, steps=STEPS, start="mean").free for a in aims])  # noqa: E731
    plain = lambda: torch.cat([by_hand(net, layer, c) for c in range(width)])  # noqa: E731
    for name, other in (("one by one", single), ("by hand", plain)):
        made = batch()
        gap = float((made - other()).abs().max())
        assert float(made.std()) > 0.01 and gap < 1e-3, f"{name} differs by {gap}"
        result = compare({"batch": batch, name: other}, repeats=7)
        print(f"{width} channels of {layer}, {STEPS} steps, against {name} (max difference {gap:.1e}):", result)


if __name__ == "__main__":
    main()
