"""Surgery: the smaller network equals the masked one on every kind of wiring, costs by hand, and what cannot go."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cambrian.codec import container
from cambrian.errors import CapabilityError, CheckpointError, ConfigError
from cambrian.inspect import surgery
from cambrian.inspect.surgery import ChannelGraph, remove_maps
from cambrian.inspect.tape import Tape
from cambrian.nn import zoo

ZOO = [
    ("resnet-mini", {"channels": 1}, 32),
    ("inception-mini", {"channels": 1}, 32),
    ("lenet-5", {}, 28),
    ("nin", {"channels": 1, "width": 0.1}, 32),
    ("mlp", {"bn": True, "dropout": 0.5}, 28),
    ("vgg-a", {"channels": 1, "size": 32, "bn": True, "width": 0.125, "hidden": 64, "stages": 3, "classes": 10}, 32),
    ("alexnet-64", {"channels": 1, "width": 0.1, "hidden": 64, "lrn": True}, 64),
]


class Wired(nn.Module):
    """Depthwise convolution, PReLU, in-place ReLU, functional calls, a gate per map, a 1-map attention, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.prelu = nn.PReLU(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6)
        self.side = nn.Conv2d(6, 4, 1)
        self.gate = nn.Linear(6, 6)
        self.look = nn.Conv2d(6, 1, 1)
        self.last = nn.Linear(10 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.prelu(self.first(x))
        h = F.relu(self.deep(h), inplace=True)
        h = h * self.gate(h.mean((2, 3)))[:, :, None, None].sigmoid()
        h = h * torch.sigmoid(self.look(h))
        both = torch.cat([h, F.elu(self.side(h))], 1)
        both = F.max_pool2d(both, 2)
        return self.last(both.view(both.size(0), -1))


def awake(net: nn.Module) -> nn.Module:
    """Eval mode with batch norms that shift and scale."""
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (part.weight, part.bias, part.running_mean):
                tensor.data.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
    return net.eval()


def masked(graph: ChannelGraph, group: surgery.Group, gone: list[int]) -> torch.Tensor:
    def gate(channel):
        keep = torch.from_numpy(channel).unsqueeze(0).ne(torch.tensor(gone).unsqueeze(1)).all(0).float()
        return lambda z: z * keep.view(1, -1, *[1] * (z.ndim - 2))

    return graph.tape.replay({site: gate(channel) for site, channel in group.sites.items()})


@pytest.mark.parametrize(("name", "sizes", "side"), ZOO, ids=[z[0] for z in ZOO])
def test_the_smaller_network_equals_the_masked_one(name: str, sizes: dict, side: int):
    torch.manual_seed(0)
    net, x = awake(zoo.build(name, **sizes)), torch.rand(3, 1, side, side)
    before = copy.deepcopy(net.state_dict())
    graph = ChannelGraph(net, x)
    for key, group in graph.prunable(units=True).items():
        gone = [0, len(group) - 1] if len(group) > 2 else [0]
        small, wanted = graph.remove({key: gone}), masked(graph, group, gone)
        assert torch.allclose(
            small(x).detach(), wanted.detach(), atol=1e-5 * wanted.detach().abs().max().item() + 1e-6
        ), key
        again = ChannelGraph(small, x)
        lost = float(graph.cost(group)[gone].sum())
        if len(group.layers) == 1:  # a stream of sums pays for pairs of its maps
            assert again.macs == pytest.approx(graph.macs - lost)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_unusual_wiring_is_followed_and_what_is_fixed_stays():
    torch.manual_seed(0)
    net, x = Wired().eval(), torch.rand(2, 3, 8, 8)
    graph = ChannelGraph(net, x)
    first = graph.group_of("first")
    assert "gate" in first.layers and first.removable.all()  # depthwise and per-map gate go with the maps they act on
    small = graph.remove({"first": [1, 4], "side": [0]})
    assert small.deep.groups == small.deep.in_channels == 4 and small.prelu.weight.shape == (4,)
    assert small.gate.in_features == small.gate.out_features == 4 and small.last.in_features == 7 * 9
    mask = torch.ones(6)
    mask[[1, 4]] = 0
    with torch.no_grad():  # the same network with the maps silenced by hand
        net.deep.weight.mul_(mask.view(-1, 1, 1, 1))
        net.deep.bias.mul_(mask)
        net.side.weight[0], net.side.bias[0] = 0, 0
    assert torch.allclose(small(x), net(x), atol=1e-6)
    with pytest.raises(CapabilityError, match="look"):
        graph.remove({"look": [0]})


def test_added_layers_go_together_or_both_must_be_named():
    net = awake(zoo.build("resnet-mini", channels=1))
    graph = ChannelGraph(net, torch.rand(1, 1, 16, 16))
    assert set(graph.group_of("body.block2_1.conv2").layers) == {"body.block2_1.conv2", "body.block2_1.shortcut.conv"}
    assert graph.remove({"body.block2_1.shortcut.conv": [3]}).body.block2_1.conv2.out_channels == 15
    with pytest.raises(CapabilityError, match=r"body.block2_1.conv2.*body.block2_1.shortcut.conv"):
        graph.remove({"body.block2_1.conv2": [3]}, joint=False)
    both = {"body.block2_1.conv2": [3], "body.block2_1.shortcut.conv": [3]}
    assert graph.remove(both, joint=False).body.block2_1.bn2.num_features == 15


def test_costs_are_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 7)
    )
    graph = ChannelGraph(net, torch.rand(2, 3, 8, 8))
    first, second, third = 64 * 4 * 27, 4 * 5 * 36, 20 * 7
    assert graph.macs == first + second + third
    assert graph.cost(graph.groups["0"]).tolist() == [first / 4 + second / 4] * 4
    assert graph.cost(graph.groups["3"]).tolist() == [second / 5 + 4 * 7] * 5
    assert ChannelGraph(graph.remove({"0": [2]}), torch.rand(1, 3, 8, 8)).macs == graph.macs - first / 4 - second / 4


def test_bad_requests_are_typed_errors():
    net, x = zoo.build("lenet-5"), torch.rand(1, 1, 28, 28)
    for maps, error in [
        ({"body.conv9": [0]}, ConfigError), ({"body.act1": [0]}, ConfigError), ({"body.conv1": [20]}, ConfigError),
        ({"body.conv1": range(20)}, CapabilityError), ({"classifier.fc2": [0]}, CapabilityError),
    ]:  # fmt: skip
        with pytest.raises(error):
            remove_maps(net, maps, x)
    with pytest.raises(CapabilityError, match="constructor"):
        remove_maps(net, {"body.conv1": [0]}, x).save_pretrained("anywhere")
    with pytest.raises(CapabilityError, match="units"):
        ChannelGraph(nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.Linear(5, 3)), x).prunable()


def test_layers_that_mix_channels_by_position_hold_them():
    mixed = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 3, 1))
    graph = ChannelGraph(nn.Sequential(mixed, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(1, 1, 9, 9))
    assert not graph.groups["0.0"].removable.any()
    with pytest.raises(CapabilityError, match="held"):
        graph.remove({"0.0": [0]})


def test_shared_layers_lose_the_same_maps_at_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.again, self.end = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 2)

        def forward(self, x):
            h = self.again(F.relu(self.again(F.relu(self.start(x)))))
            return self.end(F.relu(h).mean((2, 3)))

    net, x = Twice().eval(), torch.rand(2, 1, 7, 7)
    small = remove_maps(net, {"start": [2]}, x)
    assert small.again.weight.shape[:2] == (4, 4) and small(x).shape == (2, 2)


def test_a_file_brings_its_own_sizes(tmp_path: Path):
    net, x = awake(zoo.build("resnet-mini", channels=1)), torch.rand(2, 1, 32, 32)
    small = remove_maps(net, {"stem.conv": [0, 5], "body.block3_1.conv1": [7]}, x)
    container.encode(tmp_path / "small.cmb", small.state_dict())
    again = surgery.load(tmp_path / "small.cmb", net)
    assert torch.equal(again.eval()(x), small(x)) and again.stem.conv.out_channels == 6
    with pytest.raises(CheckpointError, match="only on one side"):
        surgery.load(tmp_path / "small.cmb", zoo.build("lenet-5"))
    with pytest.raises(CheckpointError, match="the model has"):
        surgery.load(tmp_path / "small.cmb", zoo.build("resnet-mini", channels=1, width=0.5))


def test_replaying_variants_equals_running_each_alone():
    net, x = awake(zoo.build("resnet-mini", channels=1)), torch.rand(3, 1, 16, 16)
    tape = Tape(net, x)
    assert torch.equal(tape.values[tape.output], net(x))
    scales = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(3).view(-1, 1, 1, 1)
    whole = tape.replay({8: lambda z: z * scales}, variants=3)
    alone = [tape.replay({8: lambda z, s=s: z * s}) for s in (0.0, 0.5, 1.0)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-5) and torch.allclose(alone[2], net(x), atol=1e-6)


def test_networks_that_mix_samples_or_write_in_place_are_refused():
    class Mixing(nn.Module):
        def forward(self, x):
            return x.flatten(1).mean(0, keepdim=True) + 0 * x.flatten(1)[:1]

    class Writing(nn.Module):
        def forward(self, x):
            h = x * 2
            h.add_(1.0)
            return h.flatten(1)

    with pytest.raises(CapabilityError, match="mixes samples"):
        Tape(Mixing(), torch.rand(2, 1, 2, 2)).replay({0: lambda z: z}, variants=2)
    with pytest.raises(CapabilityError, match="in place"):
        Tape(Writing(), torch.rand(2, 1, 2, 2))
