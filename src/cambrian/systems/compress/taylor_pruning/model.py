"""Ranking maps across layers, and the loop that fine-tunes, scores and removes them.

Works on any `Target`; the network itself is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.results import Row
from cambrian.inspect.state import CompressionState
from cambrian.inspect.surgery import ChannelGraph
from cambrian.inspect.target import Target
from cambrian.systems.compress.taylor_pruning import _criteria as criteria
from cambrian.systems.compress.taylor_pruning._criteria import Batches, Scores

CRITERIA = ("taylor", "obd", "weight", "activation", "std", "apoz", "mi", "oracle", "random", "relevance")
STOPS = ("flops", "params", "maps", "accuracy")


def score(criterion: str, target: Target, batches: Batches, *, units: bool, generator: torch.Generator) -> Scores:
    """Scores by a criterion's name (one of `CRITERIA`)."""
    if criterion == "std":
        return criteria.activation(target, batches, units=units, statistic="std")
    if criterion in ("random", "obd"):
        return getattr(criteria, criterion)(target, batches, units=units, generator=generator)
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    return getattr(criteria, criterion)(target, batches, units=units)


def combined(
    scores: Scores, *, l2: bool = True, flops: float = 0.0, costs: Mapping[str, Tensor] | None = None
) -> Scores:
    """Scores that can be compared across layers: divided by their layer's l2 norm (eq. 9), less `flops` times `costs`,
    the MFLOPs that go with a map `[C]` (eq. 10).
    """
    if flops and costs is None:
        raise ConfigError("FLOPs regularisation needs costs: MFLOPs of each map by layer")
    out: Scores = {}
    for name, value in scores.items():
        norm = float(value.norm()) if l2 else 1.0
        out[name] = value / norm if norm > 0 else value
        if flops and costs is not None:
            out[name] = out[name] - flops * costs[name]
    return out


def rank(
    scores: Scores, l2: bool = True, flops: float = 0.0, costs: Mapping[str, Tensor] | None = None
) -> list[tuple[str, int]]:
    """All maps as `(layer, index)`, least important first; ties in order of layers and position."""
    final = combined(scores, l2=l2, flops=flops, costs=costs)
    places = [(name, i) for name, value in final.items() for i in range(len(value))]
    order = torch.cat(list(final.values())).argsort(stable=True)
    return [places[i] for i in order.tolist()]


def costs_of(graph: ChannelGraph, scores: Scores) -> dict[str, Tensor]:
    """MFLOPs (2 for a multiply and an add) that go with each map of the scored groups."""
    return {name: 2e-6 * graph.cost(graph.groups[name]) for name in scores}


@dataclass(frozen=True)
class Until:
    """Where to stop: `flops`, `params` or `maps` down to this share of the first network's, or before validation
    accuracy falls below `accuracy`.
    """

    measure: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Until:
        """`flops=0.5` and the like. Raises `ConfigError`."""
        measure, _, number = text.partition("=")
        try:
            made = cls(measure.strip(), float(number))
        except ValueError:
            raise ConfigError(f"until must be like flops=0.5, not {text!r}") from None
        if made.measure not in STOPS or not 0.0 < made.value <= 1.0:
            raise ConfigError(f"until must be one of {', '.join(STOPS)} = a share in (0, 1], not {text!r}")
        return made


@dataclass
class Pruner:
    """The state of one pruning: `module` shrinks, `history` has a row for each removal; masks of an earlier compressor
    hold, and shrink too, in `state`.
    """

    target: Target
    module: nn.Module
    criterion: str
    batches: Batches
    generator: torch.Generator
    units: bool = False
    l2: bool = True
    flops: float = 1e-3
    history: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = self.sizes()
        self.state = copy.deepcopy(self.target.state) or CompressionState()
        self._relevance = dict(self.target.relevance or {})

    def sizes(self) -> dict[str, float]:
        """Present multiply-accumulates, parameters, and maps that could go."""
        graph = ChannelGraph(self.module, self.target.example())
        maps = sum(len(group) for group in graph.prunable(units=self.units).values())
        return {"flops": 2 * graph.macs, "params": sum(p.numel() for p in self.module.parameters()), "maps": maps}

    def current(self) -> Target:
        """The target around the present network."""
        here = copy.copy(self.target)
        here.module = self.module
        if self._relevance:
            here.relevance = self._relevance
        return here

    def remove(self, count: int) -> dict[str, list[int]]:
        """Take out the `count` least important maps, leaving at least one in each group; returns which."""
        graph = ChannelGraph(self.module, self.target.example())
        scores = score(self.criterion, self.current(), self.batches, units=self.units, generator=self.generator)
        order = rank(scores, self.l2, self.flops, costs_of(graph, scores) if self.flops else None)
        chosen: dict[str, list[int]] = {}
        for name, index in order:
            if sum(map(len, chosen.values())) == count:
                break
            if len(chosen.get(name, ())) + 1 < len(scores[name]):
                chosen.setdefault(name, []).append(index)
        if not chosen:
            raise CapabilityError("every layer is down to its last map; stop earlier")
        gone = self._spread(graph, chosen)
        masks = {name: s.mask for name, s in self.state.tensors.items() if s.mask is not None}
        for name, mask in graph.cut(masks, gone).items():
            self.state.of(name).mask = mask
        self.module = graph.remove(gone)
        return chosen

    def _spread(self, graph: ChannelGraph, chosen: dict[str, list[int]]) -> dict[str, list[int]]:
        """Channels of groups as maps of layers; what an explainer found for them is dropped too."""
        maps: dict[str, list[int]] = {}
        for name, channels in chosen.items():
            for layer, channel in graph.groups[name].layers.items():
                gone = [i for i, c in enumerate(channel.tolist()) if c in set(channels)]
                maps[layer] = gone
                if layer in self._relevance:
                    stay = [i for i in range(len(channel)) if i not in set(gone)]
                    self._relevance[layer] = self._relevance[layer][stay]
        return maps


def prune(
    target: Target,
    *,
    criterion: str = "taylor",
    until: Until = Until("flops", 0.5),
    updates: int = 30,
    maps: int = 1,
    final: int = 0,
    samples: int = 256,
    lr: float = 1e-2,
    batch: int = 32,
    l2: bool = True,
    flops: float = 1e-3,
    units: bool = False,
    generator: torch.Generator,
    progress: Callable[[Pruner], None] | None = None,
) -> Pruner:
    """Fine-tune `updates` steps, score on `samples` training inputs, remove `maps`, until small enough; then `final`
    steps of fine-tuning. Batch-norm statistics are estimated anew at the end where nothing follows the last removal.

    Raises `CapabilityError` when the network has nothing to remove or the goal needs a layer's last map.
    """
    count = min(samples, target.size("train"))
    seed = int(torch.randint(2**31, (1,), generator=generator))
    batches = list(target.batches("train", count, seed, size=128))
    work = Pruner(target, copy.deepcopy(target.module), criterion, batches, generator, units, l2, flops)
    settings = {"lr": lr, "lr_scale": 1.0, "batch": batch, "generator": generator}
    while True:
        sizes = work.sizes()
        if until.measure != "accuracy" and sizes[until.measure] <= until.value * work.start[until.measure]:
            break
        if updates:
            target.finetune(work.module, steps=updates, schedule="constant", constraint=work.state, **settings)
        previous = work.module, copy.deepcopy(work.state)
        gone = work.remove(maps)
        if until.measure == "accuracy":
            reestimate(work.module, batches)
            if target.metric(work.module, "valid")["accuracy"] < until.value:
                work.module, work.state = previous
                break
        work.history.append({"removed": sum(map(len, gone.values())), "from": ", ".join(gone), **work.sizes()})
        if progress is not None:
            progress(work)
    work.state.stages.append("taylor-pruning")
    if final:
        target.finetune(work.module, steps=final, constraint=work.state, **settings)
    else:
        reestimate(work.module, batches)
    return work


@torch.no_grad()
def reestimate(module: nn.Module, batches: Batches) -> nn.Module:
    """Set the running statistics of every batch norm to the mean over these batches: after surgery those of the maps
    behind a removed one are wrong. In place; modes are restored.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # a plain average
    try:
        for x, *_ in batches if norms else ():
            module(x)
    finally:
        for part, mode in before:
            part.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return module
