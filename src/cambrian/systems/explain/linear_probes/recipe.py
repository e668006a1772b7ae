"""The explainer, the monitor that trains probes beside a recipe, and the study of trained against untrained
networks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data import digits
from cambrian.data.split import Batch, Split
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Scalars
from cambrian.engine.roles import (
    Explainer,
    Measurement,
    Objective,
    Progress,
    Study,
    TrainingMethod,
    explainer,
    study,
    training_method,
)
from cambrian.engine.samples import Curves
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError, DataError
from cambrian.inspect.controls import reinitialised, spearman
from cambrian.inspect.hooks import watch
from cambrian.inspect.results import Explanation, Row
from cambrian.inspect.target import ModuleTarget, Space, Target, wrap
from cambrian.nn.hub import Pretrained
from cambrian.systems.explain.linear_probes.model import (
    KINDS,
    METHODS,
    Probes,
    Reduce,
    depth_figure,
)

# -- explain ---------------------------------------------------------------------------------------------------------


@config
class Options:
    points: str = option("auto", "layers to probe, joined by +; auto: input, convolutions, activations, pools, linear")
    reduce: str = option("pool", "pool[:grid], subset:n or proj:n, the same for every layer")
    labels: str = option("class", "what to read: class, or a whole-number factor of the data")
    method: str = option("discriminant", "how a probe is solved", choices=METHODS)
    samples: int | None = option(None, "samples per split (None: all)", low=10)
    limit: int = option(512, "features of a pooled layer at most", low=1)
    control: bool = option(True, "probe a re-initialised copy too")


@explainer("linear-probes")
class LinearProbes(Explainer[Options]):
    """Where in a network the labels become linearly readable."""

    needs = ("retrain",)
    quick = {"samples": 500}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """One row per layer and network ("trained", "untrained"), and the error-over-depth figure."""
        o = self.options
        probes = Probes(o.points, o.reduce, o.labels, o.method, o.samples, o.limit)
        curves = {"trained": probes.fit(target, generator)}
        if o.control:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            other = copy.copy(target)
            other.module = reinitialised(target.module, seed)
            curves["untrained"] = probes.fit(other, generator)
        rows = [{"network": network, **row} for network, found in curves.items() for row in found]
        return Explanation(rows, {"depth": depth_figure(curves)})


# -- probes during training ------------------------------------------------------------------------------------------


@config
class MonitorOptions:
    every: int = option(10, "training steps between two probe updates", low=1)
    points: str = option("auto", "layers to probe, joined by +")
    lr: float = option(0.01, "Adam rate of the probes", low=0.0)
    grid: int = option(2, "pooling grid of spatial layers", low=1)
    field: str = option("label", "field of the batch to read")


@training_method("linear-probes")
class ProbeMonitor(TrainingMethod[MonitorOptions]):
    """Trains a probe on every layer while a supervised recipe trains; logs `probe/<layer>` (batch error before the
    update).

    Features are detached copies of the recipe's own forward pass, probes have their own optimiser and draw no
    random numbers: the network trains bit for bit as it would without them.
    """

    def __init__(self, options: MonitorOptions | None = None) -> None:
        super().__init__(options)
        self.weights: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.updates = 0
        self.history: list[tuple[int, dict[str, float]]] = []

    def attach(self, recipe: Recipe[Any]) -> None:
        self.require_supervised(recipe)

    def objective(self, recipe: Recipe[Any], batch: Batch, objective: Objective) -> tuple[Tensor, Scalars]:
        if recipe.iteration % self.options.every == 0:
            field = self.options.field
            if field not in batch:
                have = [name for name, v in batch.items() if v.dim() == 1 and not v.is_floating_point()]
                raise CapabilityError(f"{recipe.slug} has no labels in {field!r}; set field to one of {have}")
            with watch(recipe.model, self._names(recipe.model)) as features:
                loss, scalars = objective(batch)
            with torch.no_grad():
                errors = self._learn(features, batch[field].long(), recipe)
            self.history.append((recipe.iteration, errors))
        else:
            loss, scalars = objective(batch)
        return loss, {**scalars, **{f"probe/{name}": error for name, error in self.history[-1][1].items()}}

    def _names(self, model: nn.Module) -> list[str]:
        if self.options.points != "auto":
            return self.options.points.split("+")
        leaves = [(n, m) for n, m in model.named_modules() if n and not any(True for _ in m.children())]
        return [name for name, part in leaves if any(kind in type(part).__name__ for kind in KINDS)]

    def _learn(self, features: Mapping[str, Tensor], y: Tensor, recipe: Recipe[Any]) -> dict[str, float]:
        """One Adam step of every probe on its standardised features; returns the errors before it."""
        classes, errors = _class_count(recipe.data.info, y), {}
        reduce = Reduce.parse(f"pool:{self.options.grid}", torch.Generator(), limit=1 << 30)
        onehot = F.one_hot(y, classes).float()
        self.updates += 1
        for name, h in features.items():
            z = reduce(name, h).float()
            z = F.pad((z - z.mean(0)) / (z.std(0, correction=0) + 1e-5), (0, 1), value=1.0)  # last column: bias
            if name not in self.weights:
                self.weights[name] = z.new_zeros(z.shape[1], classes)
                self.moments[name] = z.new_zeros(2, z.shape[1], classes)
            scores = z @ self.weights[name]
            errors[name] = float((scores.argmax(1) != y).float().mean())
            grad = z.T @ (scores.softmax(1) - onehot) / len(z)
            first, second = self.moments[name]
            first.mul_(0.9).add_(grad, alpha=0.1)
            second.mul_(0.999).add_(grad.square(), alpha=0.001)
            step = (first / (1 - 0.9**self.updates)) / ((second / (1 - 0.999**self.updates)).sqrt() + 1e-8)
            self.weights[name] -= self.options.lr * step
        return errors

    def figure(self):
        """Heat map of the batch error, layers by training time."""
        from matplotlib.figure import Figure

        if not self.history:
            raise DataError("the monitor has seen no training step yet")
        names = list(self.history[0][1])
        table = [[errors[name] for _, errors in self.history] for name in names]
        figure = Figure(figsize=(5, 1 + 0.2 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        last = self.history[-1][0]
        shown = axes.imshow(table, aspect="auto", vmin=0, vmax=1, extent=(0, last + 1, len(names), 0), cmap="magma")
        axes.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=6)
        axes.set_xlabel("training step")
        figure.colorbar(shown, label="probe error on the batch")
        return figure

    def state_dict(self) -> dict[str, Any]:
        state = {"weights": self.weights, "moments": self.moments, "updates": self.updates}
        return {**state, "history": [[step, errors] for step, errors in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = {name: w.clone() for name, w in state["weights"].items()}
        self.moments = {name: m.clone() for name, m in state["moments"].items()}
        self.updates = int(state["updates"])
        self.history = [(int(step), dict(errors)) for step, errors in state["history"]]


def _class_count(info: Mapping[str, Any], y: Tensor) -> int:
    classes = info.get("classes")
    return classes if isinstance(classes, int) else len(classes) if classes else int(y.max()) + 1


# -- the bypassed network --------------------------------------------------------------------------------------------


class BypassNet(Pretrained, nn.Module):
    """A deep fully connected net whose input jumps over its first half: `h_half = relu(W h) + P x` (the paper's
    pathology).

    `forward` gives logits `[B,K]`; with `supervised` also those of auxiliary heads on every fourth layer of the
    first half.
    """

    def __init__(self, *, inputs: int, classes: int, width: int = 64, depth: int = 32, bypass: bool = True) -> None:
        super().__init__()
        self.half, self.bypass = depth // 2, bypass
        self.layers = nn.ModuleList(nn.Linear(inputs if i == 0 else width, width) for i in range(depth))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(depth))
        self.skip = nn.Linear(inputs, width)
        self.junction = nn.Identity()
        self.head = nn.Linear(width, classes)
        self.helpers = nn.ModuleDict({str(i): nn.Linear(width, classes) for i in range(3, self.half, 4)})
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, supervised: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """`x [B,inputs]`."""
        h, extra = x, []
        for i, (layer, relu) in enumerate(zip(self.layers, self.relus, strict=True)):
            if i == self.half:
                h = self.junction(h + self.skip(x) if self.bypass else h)
            h = relu(layer(h))
            if supervised and str(i) in self.helpers:
                extra.append(self.helpers[str(i)](h))
        return (self.head(h), extra) if supervised else self.head(h)


def bypass_loss(module: nn.Module, x: Tensor, y: Tensor, supervised: bool) -> Tensor:
    """Cross-entropy, plus the mean of the helpers' with deep supervision."""
    if not supervised:
        return F.cross_entropy(module(x), y)
    logits, extra = module(x, supervised=True)
    return F.cross_entropy(logits, y) + torch.stack([F.cross_entropy(e, y) for e in extra]).mean()


# -- the claims ------------------------------------------------------------------------------------------------------


@config
class Config:
    experiment: str = option("depth", "what to measure", choices=("depth", "bypass"))
    network: str = option("trained", "depth: which weights", choices=("trained", "untrained"))
    supervised: bool = option(False, "bypass: auxiliary losses on the bypassed layers")
    steps: int = option(400, "bypass: training steps", low=1)
    target_steps: int = option(600, "depth: training steps of the probed network", low=1)
    samples: int | None = option(2000, "samples per split (None: all)", low=10)


# Eight convolutions on real pictures, hard enough that no layer reads them without error: on easy data the curve goes
# flat half way and its ranks are noise.
DEEP_TARGET: dict[str, object] = {"plan": "A", "stages": 5, "width": 0.125}

DEPTH = Claim(
    name="depth",
    statement="Probe error falls with depth in a trained network, whose middle layer beats the untrained one's by 10 points.",
    metric="middle_accuracy",
    direction="higher",
    margin=0.10,
    paper="Figure 7: ResNet-50 probe validation error 0.99 at the input, 0.76 at add7, 0.31 at add16",
    arms={"trained": Arm(), "untrained": Arm({"network": "untrained"})},
    system="trained",
    baselines=("untrained",),
    sabotage=Arm({"network": "untrained"}),
    conditions=(Condition("trained", "spearman", "<=", -0.9),),
)
BYPASS = Claim(
    name="bypass",
    statement="The bypassed half of a deep net stays useless to its last layer; deep supervision wakes it.",
    metric="error_before",
    direction="lower",
    margin=0.05,
    paper="Section 3.6: the first 64 of 128 layers stay useless behind a skip connection, and probes show it",
    arms={
        "supervised": Arm({"experiment": "bypass", "supervised": True}),
        "plain": Arm({"experiment": "bypass"}),
    },
    system="supervised",
    baselines=("plain",),
    sabotage=Arm({"experiment": "bypass"}),
    conditions=(Condition("plain", "excess", ">=", 0.05), Condition("plain", "junction_ratio", "<=", 0.5)),
)


@study("linear-probes")
class ProbeStudy(Study[Config]):
    """Probes a trained and an untrained network over depth; or both sides of the junction of a bypassed network."""

    presets = {
        "smoke": Config(target_steps=60, samples=200, steps=20),
        "laptop": Config(),
        "paper": Config(target_steps=10_000, samples=None, steps=2000),
    }
    claims = (DEPTH, BYPASS)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        rows, metrics = self._depth(seed) if self.config.experiment == "depth" else self._bypass(seed)
        progress(1, 1)
        line = ([row["depth"] for row in rows], [row["test error"] for row in rows])
        return Measurement(metrics, Curves({"probe test error": line}), notes={"layers": rows})

    def _depth(self, seed: int) -> tuple[list[Row], dict[str, float]]:
        overrides = {**DEEP_TARGET, "steps": self.config.target_steps}
        target = trained("vgg", data="photos", overrides=overrides, seed=seed).target()
        if self.config.network == "untrained":
            target = copy.copy(target)
            target.module = reinitialised(target.module, seed + 1000)
        rows = Probes(samples=self.config.samples).fit(target, torch.Generator().manual_seed(seed))
        return rows, summary(rows) | {"model_error": 1 - target.metric()["accuracy"]}

    def _bypass(self, seed: int) -> tuple[list[Row], dict[str, float]]:
        target = bypassed(seed, steps=self.config.steps, supervised=self.config.supervised)
        names = "+".join(["input", *(f"relus.{i}" for i in range(target.module.half)), "junction", "relus.31"])
        rows = Probes(points=names, samples=None).fit(target, torch.Generator().manual_seed(seed))
        found = {row["layer"]: row["test error"] for row in rows}
        before, after = found[f"relus.{target.module.half - 1}"], found["junction"]
        metrics = {"error_input": found["input"], "error_before": before, "error_after": after}
        metrics |= {"excess": before - found["input"], "junction_ratio": after / max(before, 1e-9)}
        return rows, metrics | {"model_error": 1 - target.metric()["accuracy"]}


def summary(rows: list[Row]) -> dict[str, float]:
    """Rank correlation of error with depth, and the accuracies of the middle and the last probe."""
    errors = [row["test error"] for row in rows]
    middle = 1 - errors[len(errors) // 2]
    return {
        "spearman": spearman([float(row["depth"]) for row in rows], errors),
        "middle_accuracy": middle,
        "last_error": errors[-1],
    }


def bypassed(seed: int, *, steps: int, supervised: bool, bypass: bool = True) -> ModuleTarget:
    """A `BypassNet` trained on scikit-learn's digits with Adam."""
    data = digits.load(seed, valid=300)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BypassNet(inputs=64, classes=10, bypass=bypass)
    splits = {name: _flat(data.split(name)) for name in ("train", "valid", "test")}
    target = wrap(
        net,
        space=Space.vector(64, 0.0, 1.0),
        classes=data.info["classes"],
        data=splits,
        loss=lambda module, x, y, meta: bypass_loss(module, x, y, supervised),
    )
    generator = torch.Generator().manual_seed(seed)
    target.finetune(net, steps=steps, lr=1e-3, lr_scale=1.0, factory=torch.optim.Adam, generator=generator)
    return target


def _flat(split: Split) -> tuple[Tensor, Tensor]:
    batch = split[torch.arange(len(split))]
    return batch["image"].flatten(1).float() / 255, batch["label"]
