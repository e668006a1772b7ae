"""Looking into recurrent networks: where gates stand, and how far gradients reach. Shapes: T time, B batch, H hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.engine.samples import Curves, Gallery, Table
from cambrian.errors import CapabilityError
from cambrian.nn.scan import at, scan
from cambrian.systems.perception.recurrent.model import SequenceModel, class_loss, key_loss, value_loss

BINS = 20
SHUT, OPEN = 0.1, 0.9


@torch.no_grad()
def gate_values(model: SequenceModel, x: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    """What the gates (values in [0, 1]) of the first layer's forward cell take on over sequences, flat, by name.

    Steps beyond a sequence's length are left out. Raises `CapabilityError` for a cell that shows no gate.
    """
    cell = model.rnn.cells[0]
    if not hasattr(cell, "values"):
        raise CapabilityError(f"a {type(cell).__name__} shows no gates; use a cell without dropout, zoneout or chunk")
    inputs = model.read(x)
    projected, state = cell.project(inputs), cell.initial(inputs.shape[1], inputs)
    found: dict[str, list[Tensor]] = {}
    for t in range(len(inputs)):
        rows = torch.ones(inputs.shape[1], dtype=torch.bool) if lengths is None else t < lengths
        for name, value in cell.values(at(projected, t), state).items():
            if isinstance(value, Tensor) and value.shape == state[0].shape and name.isidentifier() and "__" not in name:
                found.setdefault(name, []).append(value[rows.to(value.device)].flatten())
        _, state = cell.step(at(projected, t), state)
    pooled = {name: torch.cat(values) for name, values in found.items()}
    return {name: v for name, v in pooled.items() if v.min() >= 0 and v.max() <= 1 and name not in ("h", "c")}


def gates(model: SequenceModel, x: Tensor, lengths: Tensor | None) -> Gallery:
    """Histograms of every gate, and the shares below 0.1 and above 0.9."""
    found = gate_values(model, x, lengths)
    if not found:
        raise CapabilityError("this cell has no gate")
    centres = [(i + 0.5) / BINS for i in range(BINS)]
    lines = {name: (centres, (v.cpu().histc(BINS, 0, 1) / len(v)).tolist()) for name, v in found.items()}
    rows = [[name, float((v < SHUT).float().mean()), float((v > OPEN).float().mean())] for name, v in found.items()]
    shares = Table(["gate", f"below {SHUT}", f"above {OPEN}"], rows)
    return Gallery({"histogram": Curves(lines, x="value", y="share"), "saturation": shares})


def gradient_norms(model: SequenceModel, x: Tensor, y: Tensor, task: str) -> Tensor:
    """|dL / ds_t| [states, T] of the loss at the last step alone, as root mean square over sequences.

    `s` are the states of the first layer after step t: h, and c where there is one.
    """
    cell = model.rnn.cells[0]
    with torch.enable_grad():
        seen: list[Tensor] = []
        inputs = model.read(x)
        start = tuple(s.requires_grad_() for s in cell.initial(inputs.shape[1], inputs))
        h, _ = scan(cell, inputs, start, callback=lambda t, output, state: seen.extend(state))
        for other in list(model.rnn.cells)[1:]:
            h, _ = scan(other, h)
        loss = last_loss(model.head(h[-1:]), y, task)
        found = torch.autograd.grad(loss, seen, allow_unused=True)
    norms = [loss.new_zeros(()) if g is None else g.square().sum(1).mean().sqrt() for g in found]
    return torch.stack(norms).detach().unflatten(0, (len(x), len(start))).t()


def last_loss(outputs: Tensor, y: Tensor, task: str) -> Tensor:
    """Summed loss of outputs [1, B, O] on what is asked last."""
    if task == "value":
        return value_loss(outputs, y)[0]
    if task == "keys":
        return key_loss(outputs, y[-1:], torch.ones(y.shape[1], dtype=torch.int64, device=y.device))[0]
    return class_loss(outputs, y[-1:])[0]


def gradients(model: SequenceModel, x: Tensor, y: Tensor, task: str, lags: int) -> Curves:
    """log10 of `gradient_norms` by lag, 0 = the last step. Raises `CapabilityError` for a bidirectional network."""
    if model.rnn.directions == 2:
        raise CapabilityError("the lag of a bidirectional network is not defined")
    norms = gradient_norms(model, x, y, task).flip(1)[:, :lags].clamp(min=1e-30).log10()
    names = ("h", "c", *(f"state {i}" for i in range(2, len(norms))))
    lines = {name: (list(range(len(row))), row.tolist()) for name, row in zip(names, norms, strict=False)}
    return Curves(lines, x="lag", y="log10 |dL/dstate|")
