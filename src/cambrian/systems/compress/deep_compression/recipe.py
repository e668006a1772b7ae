"""The compressor with its stages as rows, and the study that sets the chain against each stage alone."""

from __future__ import annotations

import copy
import lzma
import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Compressor, Measurement, Progress, Study, compressor, study
from cambrian.engine.samples import Table
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.kmeans1d import INITS
from cambrian.inspect.results import Compression, Row
from cambrian.inspect.size import compression_row, fp32_bytes, store, weight_names
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target
from cambrian.systems.compress.deep_compression._pictures import byte_figure, histogram_figure, layer_figure
from cambrian.systems.compress.deep_compression.model import (
    choose_densities,
    is_conv,
    layer_rows,
    prune,
    sensitivity,
    share,
)

LEVELS = (0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 1.0)


@config
class Options:
    density: float = option(0.1, "share of weights that each layer keeps; 1: no pruning", low=1e-4, high=1.0)
    densities: tuple[str, ...] = option((), "exceptions, each LAYER=DENSITY")
    q: float = option(0.0, "threshold in standard deviations of a layer's weights; 0: by density", low=0.0)
    scan_drop: float = option(
        0.0, "densities by a sensitivity scan that lets each layer cost so much; 0: no scan", low=0.0
    )
    rounds: int = option(3, "prune and retrain so many times", low=1)
    steps: int = option(300, "retraining steps after pruning, over all rounds", low=0)
    lr: float = option(0.01, "retraining rate (SGD), a tenth of the original's", low=0.0)
    conv_bits: int = option(8, "bits of a shared value's index in convolutions; 0: do not share", low=0, high=16)
    fc_bits: int = option(5, "bits of a shared value's index in linear layers; 0: do not share", low=0, high=16)
    conv_index_bits: int = option(8, "field of a position gap in convolutions; 0: the best", low=0, high=8)
    fc_index_bits: int = option(5, "field of a position gap in linear layers; 0: the best", low=0, high=8)
    init: str = option("linear", "where k-means starts", choices=INITS)
    share_steps: int = option(150, "training steps of the shared values", low=0)
    share_lr: float = option(1e-3, "Adam's rate for the shared values", low=0.0)

    def check(self) -> None:
        """Conditions across fields."""
        for text in self.densities:
            name, _, value = text.partition("=")
            try:
                good = bool(name) and 0 < float(value) <= 1
            except ValueError:
                good = False
            if not good:
                raise ConfigError(f"densities are LAYER=DENSITY with a density above 0 and at most 1, not {text!r}")


@compressor("deep-compression")
class DeepCompression(Compressor[Options]):
    """Any trained classifier -> pruned, weights shared, Huffman coded; one row and file after each stage."""

    needs = ("logits", "retrain")
    quick = {"steps": 60, "share_steps": 30, "rounds": 2, "density": 0.3}

    stage_names: ClassVar[tuple[str, ...]] = ("prune", "quantise")

    def stages(self) -> tuple[str, ...]:
        """What this compressor does with its options, for the order of a chain."""
        o = self.options
        pruning = o.density < 1 or o.q > 0 or o.scan_drop > 0 or any(not t.endswith("=1") for t in o.densities)
        sharing = o.conv_bits > 0 or o.fc_bits > 0
        return tuple(n for n, on in zip(self.stage_names, (pruning, sharing), strict=True) if on)

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The compressed module, its last file, and a row for each stage beside the original as it is."""
        o, module = self.options, copy.deepcopy(target.module)
        state = copy.deepcopy(target.state) or CompressionState()
        if not weight_names(module):
            raise CapabilityError("the network has no convolution or linear layer to compress")
        work = _Stages(target, module, state, directory)
        work.note("original", 0)
        if "prune" in self.stages():
            rule = {"q": self._each(module, o.q)} if o.q else {"densities": self._densities(target)}
            prune(target, module, state, **rule, rounds=o.rounds, steps=o.steps, lr=o.lr, lr_scale=1.0,
                  generator=generator)  # fmt: skip
            for name in weight_names(module):
                state.of(name).gap_bits = o.conv_index_bits if is_conv(module, name) else o.fc_index_bits
            work.note("prune", o.steps)
        if "quantise" in self.stages():
            bits = {name: o.conv_bits if is_conv(module, name) else o.fc_bits for name in weight_names(module)}
            bits = {name: width for name, width in bits.items() if width}
            share(target, module, state, bits, init=o.init, steps=o.share_steps, lr=o.share_lr, generator=generator)
            work.note("share", o.share_steps, huffman=False)
            work.note("huffman", 0)
        largest = max(weight_names(module), key=lambda name: module.get_parameter(name).numel())
        before, after = (part.get_parameter(largest).detach() for part in (target.module, module))
        figures = {
            "bytes": byte_figure(work.files),
            "layers": layer_figure(layer_rows(module, state)),
            "weights": histogram_figure(before, after, largest),
        }
        return Compression(module, work.rows, work.path, state, figures)

    def _each(self, module: nn.Module, value: float) -> dict[str, float]:
        return dict.fromkeys(weight_names(module), value)

    def _densities(self, target: Target) -> dict[str, float]:
        o, names = self.options, weight_names(target.module)
        found = self._each(target.module, o.density)
        if o.scan_drop:
            scan = sensitivity(target, LEVELS)
            found = choose_densities(scan, LEVELS, target.metric(split="valid")["accuracy"], o.scan_drop)
        for text in o.densities:
            layer, _, value = text.partition("=")
            name = layer if layer.endswith("weight") else f"{layer}.weight"
            if name not in names:
                raise ConfigError(
                    f"no layer {layer!r} to prune; layers: {', '.join(n.removesuffix('.weight') for n in names)}"
                )
            found[name] = float(value)
        return found


class _Stages:
    """Rows and files as a chain goes on."""

    def __init__(self, target: Target, module: nn.Module, state: CompressionState, directory: Path) -> None:
        self.target, self.module, self.state, self.directory = target, module, state, directory
        self.rows: list[Row] = []
        self.files: dict[str, Path] = {}
        self.path, self.steps = directory, 0
        self.before = target.metric()["accuracy"]

    def note(self, stage: str, steps: int, huffman: bool = True) -> None:
        """Store the module as it is and add its row."""
        self.steps += steps
        stored = self.state if huffman else _without_huffman(self.state)
        self.path = self.directory / f"{len(self.rows)}-{stage}.cmb"
        store(self.path, self.module, stored, chain=self.state.stages)
        self.files[stage] = self.path
        chain = (
            "original"
            if stage == "original"
            else "+".join([*(r["chain"].split("+")[-1] for r in self.rows[1:]), stage])
        )
        facts = {"accuracy before": self.before, "accuracy after": self.target.metric(self.module)["accuracy"]}
        row = compression_row(self.target, self.module, self.path, chain=chain, **facts)
        self.rows.append({**row, "xz of its fp32": len(xz(self.module)), "retrain steps": self.steps})


def _without_huffman(state: CompressionState) -> CompressionState:
    plain = copy.deepcopy(state)
    for of in plain.tensors.values():
        of.coding = {"sparse": "sparse-fixed", "huffman": ""}.get(of.coding, of.coding)
    return plain


def xz(module: nn.Module) -> bytes:
    """`xz -9` of a module's parameters in fp32."""
    return lzma.compress(fp32_bytes(module), preset=9)


# -- the claim -----------------------------------------------------------------------------------------------------------

# densities of the paper's tables 2 and 3 in proportion to the largest layer's, first to last layer
PROPORTIONS = {"lenet-300-100": (1.0, 1.1, 3.2), "lenet-5": (8.0, 1.5, 1.0, 2.4)}
TARGETS: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"net": "lenet-300-100", "size": 28, "lr": 0.05, "steps": 1500, "samples": 10_000},
    "lenet-5": {"net": "lenet-5", "size": 28, "lr": 0.02, "steps": 500, "samples": 10_000},
}


@config
class Config:
    method: str = option("chain", "what is done", choices=("chain", "prune", "share"))
    nets: tuple[str, ...] = option(tuple(TARGETS), "which networks")
    mlp_steps: int = option(1000, "retraining steps of LeNet-300-100, whatever is done", low=0)
    cnn_steps: int = option(300, "retraining steps of LeNet-5, whatever is done", low=0)
    rounds: int = option(3, "rounds of pruning", low=1)
    lr: float = option(0.1, "retraining rate of pruned weights", low=0.0)
    share_lr: float = option(1e-3, "Adam's rate for shared values", low=0.0)
    share_part: float = option(0.2, "chain: part of the steps in which shared values are trained", low=0.0, high=1.0)
    mlp_density: float = option(0.035, "density of LeNet-300-100's first layer", low=1e-3, high=1.0)
    mlp_bits: int = option(4, "bits of a shared value in LeNet-300-100", low=1, high=16)
    cnn_density: float = option(0.028, "density of LeNet-5's largest layer", low=1e-3, high=1.0)
    cnn_bits: int = option(4, "bits of a shared value in LeNet-5's linear layers", low=1, high=16)
    cnn_conv_bits: int = option(4, "bits of a shared value in LeNet-5's convolutions", low=1, high=16)
    target_steps: int = option(0, "training steps of the networks; 0: enough", low=0)

    def check(self) -> None:
        """Conditions across fields."""
        unknown = [name for name in self.nets if name not in TARGETS]
        if unknown or not self.nets:
            raise ConfigError(f"nets are among {', '.join(TARGETS)}, not {unknown or 'none'}")


CLAIM = Claim(
    name="chain",
    statement="At most 0.5 points less accurate on each of two networks, the file of pruning, sharing and Huffman coding is "
    "at most 1/1.8 of the best single stage's (pruned, as gaps and fp32 or as xz -9; or shared and Huffman coded), each "
    "at its own smallest setting and with as many retraining steps.",
    metric="share",
    direction="lower",
    margin=1 / 1.8,
    compare="ratio",
    paper="Table 1: LeNet-300-100 40x (1.64 -> 1.58 % error), LeNet-5 39x (0.80 -> 0.74 %); pruning "
    "alone 9x (AlexNet), 13x (VGG-16)",
    arms={
        "chain": Arm(),
        "prune": Arm({"method": "prune", "mlp_density": 0.02, "cnn_density": 0.013}),
        "share": Arm({"method": "share", "mlp_bits": 2, "cnn_bits": 2, "cnn_conv_bits": 3}),
    },
    system="chain",
    baselines=("prune", "share"),
    sabotage=Arm({"mlp_density": 1.0, "cnn_density": 1.0}),
    conditions=(
        Condition("chain", "drop lenet-300-100", "<=", 0.005),
        Condition("chain", "drop lenet-5", "<=", 0.005),
    ),
)


@study("deep-compression")
class DeepCompressionStudy(Study[Config]):
    """Compresses LeNet-300-100 and LeNet-5, trained on drawn digits, by the chain or by one of its stages."""

    presets = {
        "smoke": Config(nets=("lenet-300-100",), mlp_steps=8, rounds=2, target_steps=40),
        "laptop": Config(),
        "paper": Config(
            mlp_steps=20_000, cnn_steps=20_000, mlp_bits=6, mlp_density=0.08, cnn_density=0.08, cnn_conv_bits=8
        ),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        metrics: dict[str, float] = {}
        rows: list[Row] = []
        for number, net in enumerate(c.nets):
            overrides = {**TARGETS[net], **({"steps": c.target_steps} if c.target_steps else {})}
            target = trained("resnet", data="glyphs", overrides=overrides, seed=seed).target()
            found = self.compress(target, net, directory, torch.Generator().manual_seed(seed + 1))
            rows += found.pop("layers")
            metrics |= {f"{name} {net}": value for name, value in found.items()}
            progress(number + 1, len(c.nets))
        for name in ("share", "drop"):
            values = [metrics[f"{name} {net}"] for net in c.nets]
            metrics[name] = (
                math.exp(sum(map(math.log, values)) / len(values)) if name == "share" else sum(values) / len(values)
            )
        return Measurement(metrics, Table.of(rows))

    def compress(self, target: Target, net: str, directory: Path, generator: torch.Generator) -> dict[str, Any]:
        """File size, ratio and loss of accuracy of one network, and its table of layers."""
        c, module, state = self.config, copy.deepcopy(target.module), CompressionState()
        names, mlp = weight_names(module), net == "lenet-300-100"
        level = 1.0 if c.method == "share" else c.mlp_density if mlp else c.cnn_density
        steps = c.mlp_steps if mlp else c.cnn_steps
        sharing = {"chain": round(steps * c.share_part), "prune": 0, "share": steps}[c.method] if level < 1 else steps
        pruning = steps - sharing
        if level < 1:
            densities = {n: min(1.0, level * p) for n, p in zip(names, PROPORTIONS[net], strict=True)}
            prune(target, module, state, densities=densities, rounds=c.rounds, steps=pruning, lr=c.lr, lr_scale=1.0,
                  generator=generator)  # fmt: skip
        if c.method != "prune":
            bits = {n: c.mlp_bits if mlp else c.cnn_conv_bits if is_conv(module, n) else c.cnn_bits for n in names}
            share(target, module, state, bits, steps=sharing, lr=c.share_lr, generator=generator)
        size = store(directory / f"{net}.cmb", module, state)
        plain = len(fp32_bytes(target.module))
        facts: dict[str, Any] = {"file": float(size), "xz": float(len(xz(module)))}
        least = min(facts.values()) if c.method == "prune" else size  # xz knows nothing of shared values' networks
        before, after = target.metric(), target.metric(module)
        facts |= {"share": least / plain, "ratio": plain / least, "ratio to xz": len(xz(target.module)) / least}
        facts |= {"accuracy": after["accuracy"], "drop": before["accuracy"] - after["accuracy"]}
        return {**facts, "layers": [{"net": net, **row} for row in layer_rows(module, state)]}
