"""Which channels of a network belong together, and taking them out for good.

Every channel of every tensor of one forward pass gets a label. A convolution or linear layer makes new labels, an
elementwise function passes them on, a sum (residual) makes those of both sides one, a concatenation puts them side by
side, flattening repeats each for its pixels. All slices of parameters under one label can only go together: the
filter, its batch-norm entries, and the columns of every consumer. Labels that something holds in place (the input,
the logits, layers that mix channels by position, unknown functions) are not removable.

Shapes: B batch, C channels of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cambrian.codec import container
from cambrian.errors import CapabilityError, CheckpointError, ConfigError
from cambrian.inspect import channel_rules as rules
from cambrian.inspect.hooks import find
from cambrian.inspect.tape import Tape

Slot = tuple[str, int]  # a parameter's or buffer's name, and the axis that carries channels


@dataclass
class Group:
    """Layers whose maps can only be removed together, `C` of them.

    `name` is the first layer; `layers` maps each to the group's channel `[C_layer]` that its map belongs to; `sites`
    are the values of the tape where the maps stand finished (after batch norm and activation, before pooling and
    sums), each with the group's channel of every map.
    """

    name: str
    labels: np.ndarray
    removable: np.ndarray
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    sites: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


class ChannelGraph:
    """The groups of channels of `module`, found from one pass of the batch `x`."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.tape = module, Tape(module, x)
        found = rules.Labels(self.tape, module)
        self.slots: dict[Slot, np.ndarray] = {slot: found.roots(labels) for slot, labels in found.slots.items()}
        self._macs = {name: count / len(x) for name, count in found.macs.items()}
        self.layers = {name: found.roots(labels) for name, labels in found.layers.items()}
        self._sites, self._count = found.sites, len(found.parent)
        self._pinned = {int(found.root(label)) for label in found.pinned}
        self.groups = self._group()

    def _group(self) -> dict[str, Group]:
        """Layers that share a label are one group; its channels are in order of first appearance."""
        owner: dict[int, str] = {}  # by label: the layer that stands for its group
        members: dict[str, list[str]] = {}
        for name, labels in self.layers.items():
            touching = dict.fromkeys(owner[v] for v in labels.tolist() if v in owner)
            members[name] = [*(layer for first in touching for layer in members.pop(first)), name]
            owner |= {v: name for layer in members[name] for v in self.layers[layer].tolist()}
        groups: dict[str, Group] = {}
        order = {name: i for i, name in enumerate(self.layers)}
        for names in sorted((sorted(m, key=order.__getitem__) for m in members.values()), key=lambda m: order[m[0]]):
            labels = np.array(list(dict.fromkeys(int(v) for n in names for v in self.layers[n])))
            group = Group(names[0], labels, np.array([v not in self._pinned for v in labels]))
            place = {label: i for i, label in enumerate(labels)}
            for name in names:
                group.layers[name] = np.array([place[v] for v in self.layers[name]])
                group.sites[self._sites[name]] = group.layers[name]
            groups[group.name] = group
        return groups

    def prunable(self, *, units: bool = False) -> dict[str, Group]:
        """Groups with removable maps of convolutions; with `units` those of hidden linear layers too."""
        kinds = (nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.Linear) if units else (nn.Conv2d, nn.Conv1d, nn.Conv3d)
        wanted = {n: g for n, g in self.groups.items() if g.removable.all() and isinstance(find(self.module, n), kinds)}
        if not wanted:
            raise CapabilityError(
                "the network has no feature maps that can be removed" + ("" if units else "; try units")
            )
        return wanted

    def group_of(self, layer: str) -> Group:
        """The group that a layer's maps belong to. Raises `ConfigError` for a name that gives no maps."""
        for group in self.groups.values():
            if layer in group.layers:
                return group
        find(self.module, layer)
        raise ConfigError(f"layer {layer!r} is neither a convolution nor a linear layer that ran")

    def site_of(self, layer: str) -> int:
        """The number, on the tape, of the value where a layer's maps stand finished."""
        return self._sites[layer]

    def cost(self, group: Group) -> Tensor:
        """Multiply-accumulates per sample `[C]` that go with each map: its own filter's, and its consumers' columns."""
        total = np.zeros(len(group))
        for (name, _axis), labels in self.slots.items():
            if name in self._macs:
                counts = (labels[None, :] == group.labels[:, None]).sum(1)
                total += counts * self._macs[name] / len(labels)
        return torch.from_numpy(total)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per sample of all convolutions and linear layers."""
        return float(sum(self._macs.values()))

    def remove(self, maps: Mapping[str, Sequence[int] | Tensor], *, joint: bool = True) -> nn.Module:
        """A smaller copy of the module without these maps; see `remove_maps`."""
        kept, small = self._kept(maps, joint), copy.deepcopy(self.module)
        for (name, axis), keep in kept.items():
            _cut(small, name, axis, keep)
        _declare(small, self.module)
        if hasattr(small, "save_pretrained"):
            object.__setattr__(small, "save_pretrained", _no_export)
        return small

    def cut(self, tensors: Mapping[str, Tensor], maps: Mapping[str, Sequence[int] | Tensor]) -> dict[str, Tensor]:
        """Tensors of the shapes of the parameters they are named after (masks), less what `remove(maps)` takes."""
        kept, out = self._kept(maps, True), dict(tensors)
        for (name, axis), keep in kept.items():
            if name in out:
                out[name] = out[name].index_select(axis, keep.to(out[name].device))
        return out

    def _kept(self, maps: Mapping[str, Sequence[int] | Tensor], joint: bool) -> dict[Slot, Tensor]:
        """What stays of each parameter that loses something."""
        gone, kept = np.zeros(self._count, dtype=bool), {}
        gone[list(self._labels_of(maps, joint))] = True
        for (name, axis), labels in self.slots.items():
            keep = ~gone[labels]
            if not keep.any():
                raise CapabilityError(f"removing these maps would leave nothing of {name}; keep at least one")
            if not keep.all():
                kept[name, axis] = torch.from_numpy(np.flatnonzero(keep))
        return kept

    def _labels_of(self, maps: Mapping[str, Sequence[int] | Tensor], joint: bool) -> set[int]:
        gone: set[int] = set()
        for layer, index in maps.items():
            group, wanted = self.group_of(layer), sorted({int(i) for i in index})
            own = self.layers[layer]
            if wanted and not (wanted[0] >= 0 and wanted[-1] < len(own)):
                raise ConfigError(f"layer {layer!r} has maps 0..{len(own) - 1}, asked to remove {wanted}")
            labels = {int(own[i]) for i in wanted}
            if labels & self._pinned:
                raise CapabilityError(f"maps of {layer!r} are held in place by the input, the output or a fixed layout")
            for other in group.layers if not joint else ():
                theirs = {int(self.layers[other][int(i)]) for i in maps.get(other, ())}
                if theirs != labels and labels & {int(v) for v in self.layers[other]}:
                    raise CapabilityError(f"{layer!r} and {other!r} are added together: remove the same maps of both")
            gone |= labels
        return gone


def remove_maps(
    module: nn.Module, maps: Mapping[str, Sequence[int] | Tensor], example: Tensor, *, joint: bool = True
) -> nn.Module:
    """A copy of `module` that never had these maps: `{layer: indices of its output maps}`.

    Filters, biases, batch-norm entries and every consumer's input columns go; layers that are added together lose the
    same maps (`joint=False`: they must all be named, else it is an error that names two). `example [B,...]` is one valid
    input. Equal to the old module with those maps set to zero after their activation. Raises `ConfigError` for unknown
    layers or indices, `CapabilityError` for maps that cannot go, or when nothing would be left of a layer.
    """
    return ChannelGraph(module, example).remove(maps, joint=joint)


def shaped_like(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` whose layers have the sizes of `tensors` (a state dict of the same names, no larger), loaded.

    Raises `CheckpointError` where names differ or a tensor does not fit.
    """
    small, own = copy.deepcopy(module), module.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"tensor {name!r} is only on one side; the file is of another model")
    for name, tensor in tensors.items():
        had = own[name]
        fits = tensor.dtype == had.dtype and tensor.ndim == had.ndim
        if not fits or any(now > before or now < 1 for now, before in zip(tensor.shape, had.shape, strict=True)):
            raise CheckpointError(f"tensor {name!r} is {list(tensor.shape)}, the model has {list(had.shape)}")
        if tensor.shape != had.shape:
            _put(small, name, tensor.to(had.device))
    _declare(small, module)
    small.load_state_dict(dict(tensors))
    return small


def load(path: Path, module: nn.Module) -> nn.Module:
    """A copy of `module` with the tensors, and the sizes, of a `.cmb` file that a compressor wrote for it."""
    try:
        return shaped_like(module, container.decode(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _cut(module: nn.Module, name: str, axis: int, keep: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    old = getattr(module.get_submodule(owner), leaf)
    new = old.detach().index_select(axis, keep.to(old.device))
    if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    _put(module, name, new)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter (its `requires_grad` stays) or a buffer by a tensor of another size."""
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    old = getattr(part, leaf)
    setattr(
        part, leaf, nn.Parameter(value.clone(), old.requires_grad) if isinstance(old, nn.Parameter) else value.clone()
    )


def _declare(small: nn.Module, before: nn.Module) -> None:
    """Bring the sizes that layers state about themselves in line with their weights."""
    for part, old in zip(small.modules(), before.modules(), strict=True):
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            part.out_channels = part.weight.shape[0]
            part.groups = part.out_channels * old.groups // old.out_channels if old.groups > 1 else 1
            part.in_channels = part.weight.shape[1] * part.groups
        elif isinstance(part, nn.Linear):
            part.out_features, part.in_features = part.weight.shape
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            kept = part.weight if part.weight is not None else part.running_mean
            part.num_features = part.num_features if kept is None else len(kept)
        elif isinstance(part, nn.PReLU):
            part.num_parameters = len(part.weight)


def _no_export(*_args: object, **_settings: object) -> None:
    raise CapabilityError("a network after surgery is not what its constructor builds; keep its .cmb file instead")
