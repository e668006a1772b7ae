"""The oracle on cached prefixes against one pass of the network for each map; one backward of the criterion; surgery
against torch-pruning; the time that a half-pruned network takes.

Run: python benchmarks/taylor_pruning.py     (pip install torch-pruning)
"""

from __future__ import annotations

import copy
import importlib.util

import torch
import torch.nn.functional as F
from torch import nn

from cambrian.inspect import Space, wrap
from cambrian.inspect.bench import compare
from cambrian.inspect.surgery import ChannelGraph, remove_maps
from cambrian.inspect.target import Target
from cambrian.nn import zoo
from cambrian.systems.compress.taylor_pruning import criteria


def network() -> Target:
    torch.manual_seed(0)
    net = zoo.build(
        "vgg-a", classes=10, channels=1, size=32, bn=True, width=0.125, head="gap", stages=4, mean=(0.5,), std=(0.5,)
    )
    return wrap(net.eval(), space=Space.image((1, 32, 32)), classes="0123456789")


def one_by_one(target: Target, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The oracle by setting each map to zero and running the whole network."""
    base, found = F.cross_entropy(target.logits(x), y), {}
    for name, group in ChannelGraph(target.module, target.example()).prunable().items():
        act = target.module.get_submodule(name.replace("conv", "relu"))
        found[name] = torch.zeros(len(group), dtype=torch.float64)
        for k in range(len(group)):
            handle = act.register_forward_hook(lambda _m, _i, z, k=k: z.index_fill(1, torch.tensor([k]), 0.0))
            with torch.no_grad():
                found[name][k] = (F.cross_entropy(target.logits(x), y) - base).abs()
            handle.remove()
    return found


def oracle() -> None:
    for size in (16, 64):
        oracle_of(network(), size)


def oracle_of(target: Target, size: int) -> None:
    x, y = torch.rand(size, 1, 32, 32), torch.arange(size) % 10
    ours, theirs = criteria.oracle(target, [(x, y)]), one_by_one(target, x, y)
    gap = max(float((ours[n] - theirs[n]).abs().max()) for n in theirs)
    assert gap < 5e-6, gap
    result = compare(
        {"prefix once": lambda: criteria.oracle(target, [(x, y)]), "whole net per map": lambda: one_by_one(target, x, y)},
        repeats=3, warmup=1,
    )  # fmt: skip
    print(f"oracle of {sum(map(len, ours.values()))} maps, {size} pictures (max difference {gap:.0e}):", result)


def criterion() -> None:
    target = network()
    plain, x, y = target.module, torch.rand(256, 1, 32, 32), torch.arange(256) % 10

    def backward() -> None:
        F.cross_entropy(plain(x), y).backward()

    result = compare({"criterion": lambda: criteria.taylor(target, [(x, y)]), "plain backward": backward}, repeats=9)
    print("Taylor of all maps against a training step's passes:", result)


def surgery() -> None:
    if not importlib.util.find_spec("torch_pruning"):
        print("torch-pruning is not installed")
        return
    import torch_pruning

    torch.manual_seed(0)
    net, x = zoo.build("resnet-20", channels=3).eval(), torch.rand(2, 3, 32, 32)
    maps = {"stem.conv": [0, 3], "body.block2_1.conv2": [1, 5, 9], "body.block3_2.conv1": list(range(0, 64, 2))}

    def peer() -> nn.Module:
        other = copy.deepcopy(net)
        graph = torch_pruning.DependencyGraph().build_dependency(other, example_inputs=x)
        for name, index in maps.items():
            part = other.get_submodule(name)
            graph.get_pruning_group(part, torch_pruning.prune_conv_out_channels, idxs=index).prune()
        return other

    ours, theirs = remove_maps(net, maps, x), peer()
    with torch.no_grad():
        gap = float((ours(x) - theirs(x)).abs().max())
    assert gap < 1e-5, gap
    result = compare({"remove_maps": lambda: remove_maps(net, maps, x), "torch-pruning": peer}, repeats=7)
    print(f"surgery on ResNet-20, equal networks (max difference {gap:.0e}):", result)


def latency() -> None:
    target = network()
    net, x = target.module, torch.rand(16, 1, 32, 32)
    graph = ChannelGraph(net, target.example())
    small = graph.remove({name: list(range(0, len(group), 3)) for name, group in graph.prunable().items()})
    left = ChannelGraph(small, target.example()).macs / graph.macs
    with torch.no_grad():
        result = compare({"pruned": lambda: small(x), "whole": lambda: net(x)}, repeats=31)
    print(f"a third of each layer's maps removed ({100 * left:.0f} % of the FLOPs), 16 pictures:", result)


def main() -> None:
    torch.set_num_threads(1)
    oracle()
    criterion()
    surgery()
    latency()


if __name__ == "__main__":
    main()
