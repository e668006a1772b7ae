"""The losses of a network without each of its feature maps, with nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.inspect.surgery import Group
from cambrian.inspect.tape import Call, Tape

ROWS = 512  # samples in one stacked pass
ZERO_STAYS_ZERO = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "boolean_dispatch", "fn", "_max_pool2d",
    "dropout", "flatten",
}  # fmt: skip
Gates = dict[int, Callable[[Tensor], Tensor]]


def ablated_losses(tape: Tape, group: Group, y: Tensor) -> Tensor:
    """Cross-entropy `[C, B]` of each sample of the tape without map 0, 1, ... of the group; float64 on the CPU."""
    batch, losses = len(y), []
    reader = _only_reader(tape, group)
    for variants in torch.arange(len(group)).split(max(1, ROWS // batch)):
        gates = _silenced(group, variants, batch, y.device) if reader is None else _subtracted(tape, reader, variants)
        logits = tape.replay(gates, variants=len(variants))
        loss = F.cross_entropy(logits, y.repeat(len(variants)), reduction="none")
        losses.append(loss.view(len(variants), batch).double().cpu())
    return torch.cat(losses)


def _silenced(group: Group, variants: Tensor, batch: int, device: torch.device) -> Gates:
    """At every site, map `variants[v]` of the group set to zero in the v-th copy of the batch."""

    def gate(channel: np.ndarray) -> Callable[[Tensor], Tensor]:
        keep = (torch.from_numpy(channel).unsqueeze(0) != variants.unsqueeze(1)).to(device)  # [V, C_site]

        def silence(z: Tensor) -> Tensor:
            shaped = z.view(len(variants), batch, *z.shape[1:])
            return (shaped * keep.view(*keep.shape[:1], 1, -1, *[1] * (z.ndim - 2))).flatten(0, 1)

        return silence

    return {site: gate(channel) for site, channel in group.sites.items()}


def _only_reader(tape: Tape, group: Group) -> Call | None:
    """The convolution or linear layer that alone reads the group's maps, through pooling or flattening at most."""
    number, channel = next(iter(group.sites.items()))
    if len(group.sites) > 1 or not np.array_equal(channel, np.arange(len(group))):
        return None
    while True:
        readers = tape.consumers(number)
        if len(readers) != 1 or len(readers[0].inputs) != 1 or number == tape.output:
            return None
        call = readers[0]
        if call.name in ("conv2d", "linear"):
            given = _arguments(call)
            plain = isinstance(given["weight"], Tensor) and tape.values[number].ndim in (2, 4)
            return call if plain and given.get("groups", 1) == 1 else None
        if call.name not in ZERO_STAYS_ZERO:
            return None
        number = call.outputs[0]


def _subtracted(tape: Tape, reader: Call, variants: Tensor) -> Gates:
    """Behind the reader, whose output is linear in each map: all of it less the share of map `variants[v]`."""
    given = _arguments(reader)
    x, weight, whole = tape.values[reader.inputs[0]], given["weight"], tape.values[reader.outputs[0]]
    if reader.name == "linear":
        maps = x.shape[1] // _maps(tape, reader)  # columns of one map
        index = (variants.unsqueeze(1) * maps + torch.arange(maps)).to(x.device)  # [V, M]
        share = torch.einsum("bvm,ovm->vbo", x[:, index], weight[:, index])
    else:
        picked = weight[:, variants.to(x.device)].transpose(0, 1).flatten(0, 1).unsqueeze(1)  # [V * O, 1, kh, kw]
        how = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
        share = F.conv2d(x[:, variants.to(x.device)], picked, None, **how, groups=len(variants))
        share = share.unflatten(1, (len(variants), -1)).transpose(0, 1)
    result = (whole.unsqueeze(0) - share).flatten(0, 1)
    return {reader.outputs[0]: lambda _z: result}


def _arguments(call: Call) -> dict[str, Any]:
    """What a convolution or linear layer was called with, by name."""
    return {
        **dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), call.args)),
        **call.kwargs,
    }


def _maps(tape: Tape, reader: Call) -> int:
    """How many maps a linear layer reads: those before they were flattened."""
    number = reader.inputs[0]
    for call in reversed(tape.calls):
        if number in call.outputs and call.name == "flatten":
            return tape.values[call.inputs[0]].shape[1]
    return tape.values[number].shape[1]
