"""What a chain of compressors knows about each weight tensor, and the constraints that hold while it is trained
further.

- `mask`: False where a weight was pruned; it stays zero.
- `frozen`: True where a weight has its final value; it stays bit-identical.
- `index` into `codebook`: weights of one cluster share one value; their gradients are summed.
- `alphabet`: the ascending values that final weights may take (powers of two for instance); decides the file's palette.
- `coding`: "huffman" allows the file entropy-coded indices, "sparse" stores the non-zero weights and the gaps between
  them (fields of `gap_bits`, 0: the best), "sparse-fixed" the same in fixed-length codes.

Gradients of constrained weights are zeroed after backward; after the optimiser's step their values are restored
(weight decay moves a weight without a gradient) and their entries in the optimiser's moments are zeroed (a moment
collected before a weight was frozen would go on moving it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cambrian.codec import container
from cambrian.codec.container import Palette, Sparse
from cambrian.errors import ConfigError, ShapeError


@dataclass
class TensorState:
    """Constraints on one tensor, and how it is stored; masks, values and indices have the tensor's shape."""

    mask: Tensor | None = None
    frozen: Tensor | None = None
    values: Tensor | None = None
    codebook: Tensor | None = None
    index: Tensor | None = None
    alphabet: Tensor | None = None
    coding: str = ""
    gap_bits: int = 0

    def held(self) -> Tensor | None:
        """Where the weight may not move: pruned or frozen."""
        if self.mask is None:
            return self.frozen
        return ~self.mask if self.frozen is None else ~self.mask | self.frozen


@dataclass
class CompressionState:
    """Constraints by parameter name, and the names of the stages applied so far; a `Constraint` for `finetune`."""

    tensors: dict[str, TensorState] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    @classmethod
    def of_file(cls, path: Path, module: nn.Module) -> CompressionState:
        """What a `.cmb` file that `module` was loaded from says of its weights: zeros of sparse kinds are pruned, and
        the entries of a palette share its values.
        """
        header, made = container.inspect(path), cls()
        chain = header.get("meta", {}).get("chain", []) if isinstance(header.get("meta"), dict) else []
        made.stages = [str(stage) for stage in chain] if isinstance(chain, list) else []
        weights = dict(module.named_parameters())
        for entry in header["tensors"]:
            weight, kind = weights.get(entry["name"]), entry["kind"]
            if weight is None or kind == "raw":
                continue
            of, dense = made.of(entry["name"]), weight.detach()
            of.coding, of.gap_bits = "huffman" if kind == "huffman" else "", entry.get("gap", 0)
            if kind in ("sparse", "scattered"):
                of.mask, of.coding = dense != 0, "sparse"
            if kind != "scattered":
                values = (
                    torch.cat([dense.new_zeros(1), dense[dense != 0].unique()]) if kind == "sparse" else dense.unique()
                )
                order = values.argsort()
                of.codebook, of.index = values, order[torch.searchsorted(values[order], dense.contiguous())]
        return made

    @property
    def quantised(self) -> bool:
        """Whether any weight has its final value, or shares one."""
        return any(
            s.frozen is not None or s.codebook is not None or s.alphabet is not None for s in self.tensors.values()
        )

    def of(self, name: str) -> TensorState:
        """The state of a tensor, made when it has none."""
        return self.tensors.setdefault(name, TensorState())

    def freeze(self, module: nn.Module, name: str, where: Tensor) -> None:
        """From now on the weights at `where` (added to those frozen before) keep the value that they have in
        `module`.
        """
        weight, state = _weight(module, name), self.of(name)
        if where.shape != weight.shape or where.dtype != torch.bool:
            raise ShapeError(f"{name}: freeze takes bool {list(weight.shape)}, got {where.dtype} {list(where.shape)}")
        state.frozen = where.clone() if state.frozen is None else state.frozen | where
        state.values = weight.detach().clone()

    def prune(self, module: nn.Module, name: str, keep: Tensor) -> None:
        """Set the weights outside of `keep` to zero and hold them there. Raises `ConfigError` after quantisation."""
        weight, state = _weight(module, name), self.of(name)
        if state.frozen is not None or state.codebook is not None:
            raise ConfigError(f"{name} is quantised already; prune before quantising")
        mask = keep.clone() if state.mask is None else state.mask & keep
        state.mask = mask
        with torch.no_grad():
            weight.masked_fill_(~mask, 0.0)

    def constrain_gradients(self, module: nn.Module) -> None:
        """After backward: share gradients inside clusters, zero them where a weight is held."""
        for name, state in self.tensors.items():
            grad = _weight(module, name).grad
            if grad is None:
                continue
            if state.codebook is not None and state.index is not None:
                sums = torch.zeros_like(state.codebook).index_add_(0, state.index.flatten(), grad.flatten())
                grad.copy_(sums[state.index])
            held = state.held()
            if held is not None:
                grad.masked_fill_(held, 0.0)

    @torch.no_grad()
    def constrain_step(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """After the optimiser's step: restore held weights, zero their moments, follow the codebook."""
        for name, state in self.tensors.items():
            weight = _weight(module, name)
            held = state.held()
            if held is not None:
                for moment in optimiser.state.get(weight, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == weight.shape:
                        moment.masked_fill_(held, 0.0)
            if state.mask is not None:
                weight.masked_fill_(~state.mask, 0.0)
            if state.frozen is not None and state.values is not None:
                weight.copy_(torch.where(state.frozen, state.values, weight))
            if state.codebook is not None and state.index is not None:
                state.codebook.scatter_(0, state.index.flatten(), weight.flatten())
                weight.copy_(state.codebook[state.index])  # vectorised and scalar arithmetic may differ in the last bit

    def share(self, module: nn.Module, name: str, codebook: Tensor, index: Tensor) -> None:
        """From now on the weights of `name` are `codebook [k]` at `index` (int64, the weight's shape).

        Raises `ConfigError` when they are quantised already.
        """
        weight, state = _weight(module, name), self.of(name)
        if index.shape != weight.shape or index.dtype != torch.int64 or codebook.dim() != 1:
            raise ShapeError(f"{name}: share takes a codebook [k] and an int64 index {list(weight.shape)}")
        if state.frozen is not None or state.codebook is not None:
            raise ConfigError(f"{name} is quantised already; quantise once")
        state.codebook, state.index = codebook.detach().to(weight.dtype).clone(), index.clone()
        with torch.no_grad():
            weight.copy_(state.codebook[state.index])

    def entries(self, module: nn.Module) -> dict[str, Tensor | Palette | Sparse]:
        """Every tensor of the module as the container stores it: coded where all its values are known, else raw.

        Raises `ValueError` when a weight has left its alphabet.
        """
        out: dict[str, Tensor | Palette | Sparse] = {}
        for name, tensor in module.state_dict().items():
            state = self.tensors.get(name)
            values = None if state is None else state.alphabet if state.alphabet is not None else state.codebook
            out[name] = _stored(tensor, state, None if values is None else values.unique())
        return out


def _stored(tensor: Tensor, state: TensorState | None, values: Tensor | None) -> Tensor | Palette | Sparse:
    coding = "" if state is None else state.coding
    if coding.startswith("sparse"):
        gap_bits = state.gap_bits if state is not None else 0
        return Sparse(tensor, None if values is None else values[values != 0], gap_bits, coding == "sparse")
    if values is None:
        return tensor
    kinds = ("fixed", "flagged", "huffman") if coding == "huffman" else ("fixed", "flagged")
    return Palette.of(tensor, values, kinds)


def _weight(module: nn.Module, name: str) -> nn.Parameter:
    try:
        return module.get_parameter(name)
    except AttributeError:
        raise ConfigError(f"the network has no parameter {name!r} that the compression state names") from None
