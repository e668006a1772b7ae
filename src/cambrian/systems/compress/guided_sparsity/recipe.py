"""The compressor, and the study: the kernel on a trained pattern, the model's error, guided against unguided pruning."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Compressor, Measurement, Progress, Study, compressor, study
from cambrian.engine.run import runs_root
from cambrian.engine.samples import Table
from cambrian.engine.targets import kept, trained
from cambrian.errors import CapabilityError
from cambrian.inspect.hooks import capture, find, quiet
from cambrian.inspect.layers import layer_table
from cambrian.inspect.results import Compression, Row
from cambrian.inspect.size import compression_row, latency, store
from cambrian.inspect.sparse_conv import Csr, SparseConv2d, resolve, sparse_conv2d
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Space, Target, wrap
from cambrian.systems.compress.guided_sparsity._figures import layer_figure, roofline_figure
from cambrian.systems.compress.guided_sparsity._machine import (
    CONV3,
    OUTPUTS,
    Machine,
    Work,
    calibrate,
    interleaved,
    layer_case,
    predict,
)
from cambrian.systems.compress.guided_sparsity.model import METHODS, Sparsified, plans_of, sparsify, train_sparse
from cambrian.systems.perception.resnet import GLYPH_TARGETS
from cambrian.worlds import glyphs


def machine_here(backend: str = "auto") -> Machine:
    """This machine's numbers, measured once and kept beside the runs."""
    return calibrate(runs_root() / ".machine" / f"sparse-{torch.get_num_threads()}.json", backend=backend)


# -- the compressor --------------------------------------------------------------------------------------------------


@config
class Options:
    method: str = option("gesl", "guided l1 or dynamic network surgery; esl, dns: unguided", choices=METHODS)
    keep: float | None = option(None, "share of weights to keep; None: what l1 leaves", low=0.001, high=1.0)
    decay: float = option(0.02, "weight of l1", low=0.0)
    c: float = option(0.5, "surgery: thresholds at mean + c std of the magnitudes")
    steps: int = option(300, "steps of pruning", low=0)
    retrain: int = option(300, "steps of retraining, at a tenth of the rate", low=0)
    look: int = option(50, "steps between two decisions about each layer", low=1)
    fc: float = option(0.1, "priority of fully connected layers", low=0.01, high=1.0)
    lr: float = option(0.02, "rate", low=0.0)
    batch: int = option(64, "samples per step", low=1)
    backend: str = option("auto", "the kernel", choices=("auto", "numba", "torch"))


@compressor("guided-sparsity")
class GuidedSparsity(Compressor[Options]):
    """Any trained classifier with convolutions -> masks that make it faster, its `.cmb` file, and what the model said."""

    needs = ("logits", "retrain")
    quick = {"steps": 60, "retrain": 60, "look": 20, "keep": 0.3}

    def stages(self) -> tuple[str, ...]:
        return ("prune",)

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The masked module (dense tensors; `sparsify` puts it on the kernel), `guided-sparsity.cmb`, one row."""
        o = self.options
        if not any(isinstance(part, nn.Conv2d) for part in target.module.modules()):
            raise CapabilityError("guided sparsity is about convolutions; the network has none")
        machine = machine_here(o.backend)
        made = train_sparse(
            target, machine, method=o.method, decay=o.decay, steps=o.steps, retrain=o.retrain, look=o.look, keep=o.keep,
            fc=o.fc, lr=o.lr, batch=o.batch, c=o.c, generator=generator,
        )  # fmt: skip
        path = directory / "guided-sparsity.cmb"
        store(path, made.module, made.state, chain=made.state.stages, method=o.method)
        x = target.example()
        rows = made.rows(x)
        facts = {
            "accuracy before": target.metric()["accuracy"],
            "accuracy after": target.metric(made.module)["accuracy"],
            "retrain steps": o.steps + o.retrain,
            "kernel": resolve(o.backend),
            "sparse latency ms": latency(sparsify(made.module, below=_break_even(machine), backend=o.backend), x),
            "conv ms (model)": 1e3 * made.conv_seconds(x),
            "layers": "; ".join(f"{row['layer']} {100 * row['density']:.0f}% ({row['verdict']})" for row in rows),
        }
        table = {layer.name: Work.of(layer) for layer in layer_table(made.module, x)}
        works = {row["layer"]: table[row["layer"]] for row in rows if "low" in row}
        points = {name: [point] for name, point in measured_speedups(made.module, x, o.backend).items()}
        figures = {"layers": layer_figure(rows), "roofline": roofline_figure(works, machine, points)}
        row = compression_row(target, made.module, path, chain=f"guided-sparsity:{o.method}", **facts)
        return Compression(made.module, [row], path, made.state, figures)


def measured_speedups(module: nn.Module, x: torch.Tensor, backend: str = "auto") -> dict[str, tuple[float, float]]:
    """Density, and how many times as fast as dense conv2d the kernel really is, of each sparse convolution in place."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Conv2d) and sparse_enough(part)]
    found: dict[str, tuple[float, float]] = {}
    with quiet(module), torch.no_grad():
        inputs = capture(module, x, [f"{name}:in" for name in names]) if names else {}
        for name in names:
            conv, seen = find(module, name), inputs[f"{name}:in"]
            fast = SparseConv2d.from_dense(conv, backend=backend)
            runs = {"dense": lambda conv=conv, seen=seen: conv(seen), "sparse": lambda fast=fast, seen=seen: fast(seen)}
            times = interleaved(runs, 5, window=0.005)
            found[name] = fast.density, times["dense"] / times["sparse"]
    return found


def sparse_enough(conv: nn.Conv2d) -> bool:
    """Whether a convolution has zeros, and the kernel can run it."""
    return conv.padding_mode == "zeros" and int(conv.weight.count_nonzero()) < conv.weight.numel()


def _break_even(machine: Machine) -> float:
    """The share of non-zeros below which the kernel beats dense convolution."""
    return min(1.0, machine.flops / (machine.alpha * machine.conv_flops))


# -- the claims ------------------------------------------------------------------------------------------------------


@config
class Config:
    experiment: str = option("kernel", "what to measure", choices=("kernel", "model", "guided"))
    contender: str = option("sparse", "kernel: who is timed", choices=("sparse", "conv2d", "sgemm"))
    density: float = option(0.09, "kernel: share of non-zero weights", low=0.001, high=1.0)
    pattern: str = option(
        "trained", "kernel: the mask is a trained network's, or random", choices=("trained", "random")
    )
    samples: int = option(1200, "kernel: training pictures of the network that holds the layer", low=16)
    images: int = option(4, "kernel, model: images per call", low=1)
    repeats: int = option(15, "kernel, model: calls of each contender, in turn", low=3)
    alpha: float | None = option(None, "model: in place of the measured overheads (no fixed cost then)", low=0.1)
    method: str = option("gesl", "guided: which pruning", choices=METHODS)
    keep: float = option(0.08, "guided: share of weights that stay", low=0.005, high=1.0)
    decay: float = option(0.04, "guided: weight of l1", low=0.0)
    fc: float = option(0.6, "guided: priority of fully connected layers", low=0.01, high=1.0)
    steps: int = option(120, "guided: steps of pruning", low=1)
    retrain: int = option(200, "guided: steps of retraining", low=0)
    target_steps: int = option(400, "guided: training steps of the network to be pruned", low=1)
    target_samples: int = option(8000, "guided: pictures that it is trained on", low=10)


KERNEL = Claim(
    name="faster-than-dense",
    statement="AlexNet's conv3 at 9 % non-zeros, with a trained pattern, runs at least twice as fast on the sparse kernel "
    "as dense conv2d (oneDNN) and as a matrix product of equal size, one thread each.",
    metric="times_conv2d",
    direction="higher",
    margin=2.0,
    compare="ratio",
    paper="figure 5: conv2-5 of AlexNet at x = 0.09: 3.4 times SGEMM on a Xeon E5-2697v4, break-even at x = 0.3",
    arms={"sparse": Arm(), "conv2d": Arm({"contender": "conv2d"}), "sgemm": Arm({"contender": "sgemm"})},
    system="sparse",
    baselines=("conv2d", "sgemm"),
    sabotage=Arm({"density": 0.5}),
)
MODEL = Claim(
    name="performance-model",
    statement="The calibrated model predicts the speed-up over conv2d within 30 % at x = 0.3, 0.2, 0.1 and 0.05, and is "
    "nearer than counting operations.",
    metric="model_error",
    direction="lower",
    margin=0.3,
    paper="section 2.2 and figure 2: measured speed-ups lie near the model's lines, alpha = 3 on a Xeon",
    arms={"calibrated": Arm({"experiment": "model"}), "operations": Arm({"experiment": "model", "alpha": 1.0})},
    system="calibrated",
    baselines=("operations",),
    sabotage=Arm({"experiment": "model", "alpha": 1.0}),
    conditions=(Condition("calibrated", "model_error", "<=", 0.3),),
)
GUIDED = Claim(
    name="guided-pruning",
    statement="With equally many non-zeros and within half a point of accuracy, guided pruning leaves convolutions that "
    "take at most 0.8 of the time of unguided ones, by the model.",
    metric="conv_ms",
    direction="lower",
    margin=0.8,
    compare="ratio",
    paper="figure 4: AlexNet conv2-5 end below 20 % non-zeros guided, at about 40 % unguided, both at 57.4 % top-1",
    arms={
        "guided": Arm({"experiment": "guided"}),
        "unguided": Arm({"experiment": "guided", "method": "esl"}),
    },
    system="guided",
    baselines=("unguided",),
    sabotage=Arm({"experiment": "guided", "method": "esl"}),
    conditions=(Condition("guided", "against_unguided", ">=", -0.005),),
)


@study("guided-sparsity")
class GuidedSparsityStudy(Study[Config]):
    """Times the kernel on a trained layer, tests the model, or prunes a small network with and without guidance."""

    presets = {
        "smoke": Config(pattern="random", images=2, repeats=3, steps=4, retrain=4, target_steps=20, target_samples=200),
        "laptop": Config(),
        "paper": Config(samples=100_000, images=64, steps=20_000, retrain=10_000, target_steps=10_000),
    }
    claims = (KERNEL, MODEL, GUIDED)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            progress(0, 1)
            return {"kernel": self._kernel, "model": self._model, "guided": self._guided}[self.config.experiment](seed)
        finally:
            torch.set_num_threads(threads)
            progress(1, 1)

    def _kernel(self, seed: int) -> Measurement:
        """A verdict needs the compiled kernel; without numba the figures are NaN, which makes it inconclusive."""
        c, generator = self.config, torch.Generator().manual_seed(seed)
        try:
            resolve("numba")
        except CapabilityError as error:
            return Measurement({"times_conv2d": math.nan}, notes={"backend": str(error)})
        x, weight, csr = layer_case(c.density, c.images, generator)
        if c.contender == "sparse" and c.pattern == "trained":
            weight = trained_pattern(c.density, c.samples, seed)
            csr = Csr.of(weight, CONV3)
        times = _times(x, weight, csr, c.repeats)
        machine = machine_here("numba")
        guess = predict(Work.of_conv(CONV3, OUTPUTS, c.images), csr.density, machine, over="conv2d")
        metrics = {"times_conv2d": times["conv2d"] / times[c.contender], "density": csr.density}
        metrics |= {"predicted": guess.speedup, "break_even": guess.high, "alpha": machine.alpha}
        metrics |= {f"ms_{name}": 1e3 * value for name, value in times.items()}
        rows = csr.rows[1:] - csr.rows[:-1]
        metrics["row_spread"] = float(rows.std() / max(rows.mean(), 1e-9))
        return Measurement(metrics, Table(["figure", "value"], [[k, v] for k, v in metrics.items()]))

    def _model(self, seed: int) -> Measurement:
        c, generator = self.config, torch.Generator().manual_seed(seed)
        machine = machine_here()
        if c.alpha is not None:
            machine = Machine(machine.flops, machine.bandwidth, c.alpha, machine.conv_flops)
        work, rows, errors = Work.of_conv(CONV3, OUTPUTS, c.images), [], []
        for density in (0.3, 0.2, 0.1, 0.05):
            x, weight, csr = layer_case(density, c.images, generator)
            times = _times(x, weight, csr, c.repeats, product=False)
            measured = times["conv2d"] / times["sparse"]
            guess = predict(work, csr.density, machine, over="conv2d").speedup
            errors.append(abs(guess / measured - 1))
            rows.append([density, measured, guess])
        metrics = {"model_error": max(errors), "alpha": machine.alpha}
        return Measurement(metrics, Table(["x", "measured", "predicted"], rows))

    def _guided(self, seed: int) -> Measurement:
        c, machine = self.config, machine_here()
        overrides = {**GLYPH_TARGETS["lenet-5"], "steps": c.target_steps, "samples": c.target_samples}
        target = trained("resnet", data="glyphs", overrides=overrides, seed=seed).target()
        made = self._pruned(target, machine, c.method, seed)
        metrics = self._figures(target, made) | {"original": target.metric()["accuracy"]}
        other = made if c.method == "esl" else self._pruned(target, machine, "esl", seed)
        metrics["against_unguided"] = metrics["accuracy"] - target.metric(other.module)["accuracy"]
        rows: list[Row] = made.rows(target.example())
        return Measurement(metrics, Table.of(rows))

    def _pruned(self, target: Target, machine: Machine, method: str, seed: int) -> Sparsified:
        """The target pruned by this method; from the cache when another arm has pruned it alike."""
        c = self.config

        def train(module: nn.Module) -> None:
            made = train_sparse(
                target, machine, method=method, keep=c.keep, steps=c.steps, retrain=c.retrain, decay=c.decay, fc=c.fc,
                lr=0.02, look=max(1, c.steps // 4), generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            module.load_state_dict(made.module.state_dict())

        sizes = {
            "keep": c.keep,
            "decay": c.decay,
            "fc": c.fc,
            "steps": c.steps,
            "retrain": c.retrain,
            "target": [c.target_steps, c.target_samples],
        }
        facts = {"method": method, "seed": seed, **sizes, "machine": asdict(machine)}
        module = kept("guided-sparsity", facts, copy.deepcopy(target.module), train)
        plans = plans_of(module, target.example(), machine, guided=method.startswith("g"), fc=c.fc)
        return Sparsified(module, CompressionState(), plans, machine)

    def _figures(self, target: Target, made: Sparsified) -> dict[str, float]:
        weights = [made.module.get_parameter(name) for name in made.plans]
        kept = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
        seconds = made.conv_seconds(target.example())
        return {"accuracy": target.metric(made.module)["accuracy"], "conv_ms": 1e3 * seconds, "kept": kept}


def _times(x: torch.Tensor, weight: torch.Tensor, csr: Csr, repeats: int, *, product: bool = True) -> dict[str, float]:
    """Seconds of the kernel, conv2d and a matrix product of equal size, called in turn; first they must agree."""
    gap = float((sparse_conv2d(x, csr) - F.conv2d(x, weight, padding=1)).abs().max())
    if gap > 1e-4 * float(x.abs().max()) * weight[0].numel() ** 0.5:
        raise CapabilityError(f"the kernel differs from conv2d by {gap}")
    columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1).contiguous()  # [C R S, N H' W']
    matrix = weight.flatten(1).contiguous()
    runs = {"conv2d": lambda: F.conv2d(x, weight, padding=1), "sparse": lambda: sparse_conv2d(x, csr)}
    if product:
        runs["sgemm"] = lambda: torch.mm(matrix, columns)
    return interleaved(runs, repeats)


def trained_pattern(density: float, samples: int, seed: int) -> torch.Tensor:
    """The weight `[384, 256, 3, 3]` of a network that was trained for an epoch on characters, pruned by magnitude to
    this density, and retrained for an epoch under the mask.
    """
    data = glyphs.load(train=samples, valid=100, test=500, seed=seed, size=28, characters=glyphs.ALNUM)
    net = layer_network(len(data.info["classes"]), seed)
    target = wrap(net, space=Space.image((1, 28, 28)), classes=data.info["classes"], data=data)
    settings = {"epochs": 1, "lr": 0.05, "lr_scale": 1.0, "batch": 32}
    seeded = torch.Generator().manual_seed
    facts = {"net": "conv3", "samples": samples, "seed": seed}
    dense = kept("guided-sparsity", facts, net, lambda m: target.finetune(m, generator=seeded(seed), **settings))

    def prune(module: nn.Module) -> None:
        weight, state = module.conv3.weight, CompressionState()
        count = round(density * weight.numel())
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[weight.detach().abs().flatten().topk(count).indices] = True
        state.prune(module, "conv3.weight", mask.view_as(weight))
        target.finetune(module, constraint=state, generator=seeded(seed + 1), **settings)

    pruned = kept("guided-sparsity", {**facts, "density": density}, copy.deepcopy(dense), prune)
    return pruned.conv3.weight.detach().contiguous()


def layer_network(classes: int, seed: int) -> nn.Module:
    """A small network around AlexNet's conv3, which sees 13x13 pixels: grey pictures of 28x28."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module(
            "stem", nn.Sequential(nn.Conv2d(1, CONV3.channels, 4, 2), nn.BatchNorm2d(CONV3.channels), nn.ReLU())
        )
        net.add_module("conv3", nn.Conv2d(CONV3.channels, OUTPUTS, 3, padding=1))
        net.add_module(
            "after", nn.Sequential(nn.BatchNorm2d(OUTPUTS), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        )
        net.add_module("fc", nn.Linear(OUTPUTS, classes))
    return net
