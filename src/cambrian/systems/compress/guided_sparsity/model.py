"""Guided sparsity learning: which layers to prune, when to stop with each, and the budget that is left (section 3)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.inspect.hooks import find
from cambrian.inspect.layers import layer_table
from cambrian.inspect.results import Row
from cambrian.inspect.size import weight_names
from cambrian.inspect.sparse_conv import SparseConv2d
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target
from cambrian.systems.compress.guided_sparsity._machine import Machine, Prediction, Work, predict

METHODS = ("gesl", "gdns", "esl", "dns")
STALL = 0.01  # a change of density between two looks below which a layer has settled


@dataclass
class LayerPlan:
    """A layer's part in the pruning: `active` while it is in the set S; `multiplier` is the priority of its l1."""

    name: str
    linear: bool
    prediction: Prediction | None
    multiplier: float = 1.0
    active: bool = True
    verdict: str = "pruned"
    densities: list[float] = field(default_factory=list)


def plans_of(module: nn.Module, example: Tensor, machine: Machine, *, guided: bool, fc: float) -> dict[str, LayerPlan]:
    """The set S by parameter name: guided, convolutions with no projected gain are never in it; fully connected layers
    have priority `fc`, and no bounds.
    """
    plans: dict[str, LayerPlan] = {}
    table = {layer.name: layer for layer in layer_table(module, example)}
    for name in weight_names(module):
        layer = name.removesuffix(".weight") if "." in name else ""
        part = module.get_submodule(layer)
        if layer not in table:
            continue
        linear = not isinstance(part, nn.Conv2d)
        prediction = None if linear else predict(Work.of(table[layer]), 0.1, machine, over="conv2d")
        plan = LayerPlan(layer, linear, prediction, fc if linear and guided else 1.0)
        if guided and prediction is not None and not prediction.useful:
            plan.active, plan.verdict = False, "dense: no projected gain"
        plans[name] = plan
    return plans


class Guide:
    """A `Constraint` for `finetune` that prunes the layers in S and takes them out again as the model advises.

    `decay` is the weight of l1 (soft thresholding by decay * rate * multiplier after each step). `surgery` instead masks
    weights below a_l = 0.9 (mean + c std) of their layer's magnitudes, and splices those above b_l = 1.1 (...) back in:
    dense values go on learning under the mask (dynamic network surgery).
    """

    def __init__(
        self,
        module: nn.Module,
        plans: dict[str, LayerPlan],
        *,
        decay: float,
        look: int,
        guided: bool,
        surgery: bool = False,
        c: float = 0.5,
    ) -> None:
        self.plans, self.decay, self.look, self.guided, self.surgery, self.c = plans, decay, look, guided, surgery, c
        weights = {name: module.get_parameter(name).detach() for name in plans}
        self.dense = {name: w.clone() for name, w in weights.items()}
        self.full = {name: w.clone() for name, w in weights.items()} if surgery else {}
        self.shown = {name: w.clone() for name, w in weights.items()} if surgery else {}
        self.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
        self.state, self.step = CompressionState(), 0

    def constrain_gradients(self, module: nn.Module) -> None:
        """Layers that stopped keep their zeros."""
        self.state.constrain_gradients(module)

    @torch.no_grad()
    def constrain_step(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Threshold or mask the active layers; every `look` steps decide about each."""
        self.state.constrain_step(module, optimiser)
        rate = float(optimiser.param_groups[0]["lr"])
        for name, plan in self.plans.items():
            if not plan.active:
                continue
            weight = module.get_parameter(name)
            if self.surgery:
                self._splice(name, weight, plan.multiplier)
            else:
                weight.copy_(weight.sign() * (weight.abs() - rate * self.decay * plan.multiplier).clamp_min(0.0))
        self.step += 1
        if self.step % self.look == 0:
            self.decide(module)

    def _splice(self, name: str, weight: Tensor, priority: float) -> None:
        full, mask = self.full[name], self.masks[name]
        full += weight - self.shown[name]  # the step that the masked weights took
        size = full.abs()
        middle = (size.mean() + self.c * size.std(correction=0)) * priority
        mask &= size >= 0.9 * middle
        mask |= size > 1.1 * middle
        weight.copy_(full * mask)
        self.shown[name].copy_(weight)

    def decide(self, module: nn.Module) -> None:
        """Stop layers sparser than useful; give layers back that settled where they gain nothing."""
        for name, plan in self.plans.items():
            weight = module.get_parameter(name)
            density = int(weight.count_nonzero()) / weight.numel()
            settled = bool(plan.densities) and abs(plan.densities[-1] - density) < STALL
            plan.densities.append(density)
            if not self.guided or not plan.active or plan.prediction is None:
                continue
            if density <= plan.prediction.low:
                plan.active, plan.verdict = False, "stopped: sparser gains nothing"
                self.state.prune(module, name, weight.detach() != 0)
            elif settled and density > plan.prediction.high:
                plan.active, plan.verdict = False, "dense: settled without gain"
                with torch.no_grad():
                    weight.copy_(self.dense[name])

    def pruned(self) -> list[str]:
        """Parameters that end with a mask: still in S, or stopped."""
        return [name for name, plan in self.plans.items() if not plan.verdict.startswith("dense")]


def budget_masks(module: nn.Module, guide: Guide, keep: float | None) -> dict[str, Tensor]:
    """Which weights stay: the non-zeros, or with `keep` that share of all weights of the net (layers outside S count as
    they are), by magnitude, one threshold for all; a layer never falls below its useful range.
    """
    weights = {name: module.get_parameter(name).detach() for name in guide.plans}
    inside = guide.pruned()
    if keep is None:
        return {name: weights[name] != 0 for name in inside}
    total = sum(w.numel() for w in weights.values())
    outside = total - sum(weights[n].numel() for n in inside)
    wanted = round(keep * total) - outside
    if not inside or wanted < len(inside):
        raise ConfigError(f"keep={keep} asks for fewer weights than the {outside} of layers that stay dense")
    scores = {}
    for name in inside:
        plan, score = guide.plans[name], weights[name].abs().contiguous()
        floor = 0.0 if plan.prediction is None or not guide.guided else min(plan.prediction.low, 1.0)
        least = max(1, round(floor * score.numel()))
        score.view(-1)[score.flatten().topk(least).indices] = torch.inf
        scores[name] = score
    flat = torch.cat([scores[n].flatten() for n in inside])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.argsort(descending=True, stable=True)[: min(wanted, len(flat))]] = True
    parts = kept.split([weights[n].numel() for n in inside])
    return {name: part.view_as(weights[name]) for name, part in zip(inside, parts, strict=True)}


@dataclass
class Sparsified:
    """A sparse network: `module`, its masks in `state`, and what became of each layer."""

    module: nn.Module
    state: CompressionState
    plans: dict[str, LayerPlan]
    machine: Machine

    def rows(self, example: Tensor) -> list[Row]:
        """A row for each layer: density, useful range, predicted speed-up at its density."""
        table, out = {layer.name: layer for layer in layer_table(self.module, example)}, []
        for name, plan in self.plans.items():
            weight = self.module.get_parameter(name)
            density = int(weight.count_nonzero()) / weight.numel()
            row: Row = {"layer": plan.name, "density": density, "verdict": plan.verdict}
            if plan.prediction is not None:
                there = predict(Work.of(table[plan.name]), density, self.machine, over="conv2d")
                row |= {"low": plan.prediction.low, "high": plan.prediction.high, "predicted speedup": there.speedup}
                row["ms"] = 1e3 * min(there.seconds_sparse, there.seconds_dense)
                row["ms dense"] = 1e3 * there.seconds_dense
            out.append(row)
        return out

    def conv_seconds(self, example: Tensor) -> float:
        """Time of all convolutions by the model, each on whichever kernel is faster."""
        return sum(row["ms"] for row in self.rows(example) if "ms" in row) / 1e3


def train_sparse(
    target: Target,
    machine: Machine,
    *,
    method: str = "gesl",
    decay: float = 2e-3,
    steps: int = 300,
    retrain: int = 200,
    look: int = 50,
    keep: float | None = None,
    fc: float = 0.1,
    lr: float = 0.01,
    batch: int = 64,
    c: float = 0.5,
    generator: torch.Generator,
    **settings: Any,
) -> Sparsified:
    """Prune `steps` with l1 ("gesl", unguided "esl") or dynamic network surgery ("gdns", "dns") at rate `lr`, cut to the
    budget `keep`, retrain the rest at lr / 10. `target.module` is not touched; masks of an earlier stage hold.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    module, guided = copy.deepcopy(target.module), method.startswith("g")
    plans = plans_of(module, target.example(), machine, guided=guided, fc=fc)
    guide = Guide(module, plans, decay=decay, look=look, guided=guided, surgery=method.endswith("dns"), c=c)
    before = target.state
    if before is not None:
        guide.state = copy.deepcopy(before)
    shared = {"lr_scale": 1.0, "batch": batch, "generator": generator, **settings}
    if steps:
        target.finetune(module, steps=steps, lr=lr, constraint=guide, schedule="constant", **shared)
    if guide.step % look:
        guide.decide(module)
    for name, mask in budget_masks(module, guide, keep).items():
        guide.state.prune(module, name, mask)
        guide.state.of(name).coding = "sparse"
    if retrain:
        target.finetune(module, steps=retrain, lr=lr / 10, constraint=guide.state, **shared)
    guide.state.stages.append("guided-sparsity")
    return Sparsified(module, guide.state, plans, machine)


def sparsify(module: nn.Module, *, below: float = 1.0, backend: str = "auto") -> nn.Module:
    """A copy whose convolutions with fewer than `below` non-zeros run on the sparse kernel; for inference."""
    fast = copy.deepcopy(module)
    names = [name for name, part in fast.named_modules() if isinstance(part, nn.Conv2d)]
    for name in names:
        part = find(fast, name)
        if not isinstance(part, nn.Conv2d) or part.padding_mode != "zeros":
            continue
        if int(part.weight.count_nonzero()) / part.weight.numel() < below:
            owner, _, leaf = name.rpartition(".")
            setattr(fast.get_submodule(owner), leaf, SparseConv2d.from_dense(part, backend=backend))
    return fast
