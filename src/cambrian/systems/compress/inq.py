"""Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights.

Aojun Zhou, Anbang Yao, Yiwen Guo, Lin Xu, Yurong Chen. ICLR 2017. arXiv 1702.03044.

Turns a trained network into one whose weights are zero or a signed power of two, so that multiplying is shifting.
New was not to round all weights at once: the largest part of each layer is rounded and frozen, the rest is
retrained to make up for it, and so on until nothing is left to train.

Claim: a 5-bit network by INQ is at least 5 points more accurate than one rounded at once, and within half a point
of the float network.

    s = max |W|,  n1 = floor(log2(4 s / 3)),  n2 = n1 + 1 - 2^(b-1) / 2          P = {+-2^n1, ..., +-2^n2, 0}    (eq. 2, 3)
    W' = sign(W) beta  if (alpha + beta) / 2 <= |W| < 3 beta / 2, alpha < beta neighbours in P;  else 0              (eq. 4)
    round r: the largest |W| up to the portion sigma_r are rounded and frozen (T = 0);  W <- W - lr * grad * T       (eq. 8)

Differs from the paper:
- a weight that retraining moved above 3/2 of the largest power of two is rounded to that power (eq. 4 leaves it undefined);
- the file uses a fixed b-bit code or a zero flag and b - 1 bits (the paper's count), whichever is shorter, per layer.

Shapes: W any weight of a convolution or linear layer; biases and batch norm stay float.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Compressor, Measurement, Progress, Study, compressor, study
from cambrian.engine.samples import Curves
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect.results import Compression, Row
from cambrian.inspect.size import compression_row, store, weight_names
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target

PORTIONS: dict[int, tuple[float, ...]] = {
    5: (0.5, 0.75, 0.875, 1.0),
    4: (0.3, 0.5, 0.8, 0.9, 0.95, 1.0),
    3: (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    2: (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 1.0),
}
_HALF_AND_TOP = {torch.float32: (torch.int32, 1 << 22, -1 << 23), torch.float64: (torch.int64, 1 << 51, -1 << 52)}


# -- powers of two -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Powers:
    """The exponents of an alphabet: `high` = n1 down to `low` = n2, both signs, and zero."""

    high: int
    low: int

    @classmethod
    def of(cls, weight: Tensor, bits: int) -> Powers:
        """The alphabet of a layer (eq. 2, 3). Raises `DataError` when the layer holds only zeros or non-finite
        values.
        """
        top = weight.detach().double().abs().max()
        if not 0 < float(top) < float("inf"):
            raise DataError(f"a layer whose largest weight is {float(top)} has no power-of-two alphabet")
        mantissa, exponent = torch.frexp(top)  # top = mantissa * 2^exponent, mantissa in [1/2, 1): exact, unlike log2
        high = int(exponent) - (1 if float(mantissa) < 0.75 else 0)
        return cls(high, high + 1 - 2 ** (bits - 1) // 2)

    def alphabet(self) -> Tensor:
        """All values, ascending, float32 `[2 (n1 - n2 + 1) + 1]`."""
        powers = 2.0 ** torch.arange(self.low, self.high + 1, dtype=torch.float64)
        return torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers]).float()

    def round(self, weight: Tensor) -> Tensor:
        """Every weight to its value of the alphabet (eq. 4); the shape and type of `weight`."""
        kind = weight.dtype if weight.dtype in _HALF_AND_TOP else torch.float32
        integers, half, top = _HALF_AND_TOP[kind]
        exact = weight.detach().to(kind).contiguous()
        # Adding half a mantissa carries into the exponent exactly when |W| >= 1.5 * 2^k; cutting the mantissa leaves +-2^k.
        powers = ((exact.view(integers) + half) & top).view(kind)
        low, high = 2.0**self.low, 2.0**self.high
        sized = powers.abs().clamp(low, high).copysign(exact)
        return torch.where(exact.abs() < low / 2, torch.zeros_like(sized), sized).to(weight.dtype)


# -- the incremental loop --------------------------------------------------------------------------------------------


@dataclass
class Quantiser:
    """Rounds a module's weights portion by portion; what is rounded is frozen in `state`, masked weights stay zero."""

    module: nn.Module
    bits: int
    partition: str
    generator: torch.Generator
    state: CompressionState = field(default_factory=CompressionState)
    powers: dict[str, Powers] = field(default_factory=dict)

    def advance(self, portion: float) -> None:
        """Round and freeze until `portion` of each layer's unmasked weights is final."""
        for name in weight_names(self.module):
            weight = self.module.get_parameter(name)
            if name not in self.powers:  # fixed at the first round: the largest weight is in the first portion
                self.powers[name] = Powers.of(weight, self.bits)
                self.state.of(name).alphabet = self.powers[name].alphabet()
            where = self._choose(name, weight.detach(), portion)
            with torch.no_grad():
                weight.copy_(torch.where(where, self.powers[name].round(weight), weight))
            self.state.freeze(self.module, name, where)

    def _choose(self, name: str, weight: Tensor, portion: float) -> Tensor:
        """The weights to round now; exactly as many as the portion asks for, ties in order of position."""
        state = self.state.of(name)
        pruned = torch.zeros_like(weight, dtype=torch.bool) if state.mask is None else ~state.mask
        done = pruned if state.frozen is None else state.frozen | pruned
        wanted = round(portion * int((~pruned).sum())) - int((done & ~pruned).sum())
        if self.partition == "random":
            rank = torch.rand(weight.shape, generator=self.generator).to(weight.device)
        else:
            rank = weight.abs()
        order = rank.masked_fill(done, -1.0).flatten().argsort(descending=True, stable=True)
        chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        chosen[order[: max(wanted, 0)]] = True
        return chosen.view_as(weight) | pruned


def quantise(
    target: Target,
    *,
    bits: int = 5,
    portions: tuple[float, ...] = (),
    partition: str = "magnitude",
    steps: int = 60,
    lr: float = 0.05,
    batch: int = 64,
    generator: torch.Generator,
    state: CompressionState | None = None,
) -> tuple[Quantiser, list[Row]]:
    """INQ on a copy of the target's module: `steps` of SGD after every portion but the last, the rate schedule anew
    each time.

    `state` may carry pruning masks from an earlier stage (with `target.module` pruned accordingly). Returns the
    quantiser (its `module` and `state`) and one row per round with the test accuracy before and after retraining.
    """
    portions = portions or PORTIONS.get(bits, PORTIONS[5])
    work = Quantiser(
        copy.deepcopy(target.module), bits, partition, generator, copy.deepcopy(state) or CompressionState()
    )
    rows: list[Row] = []
    for number, portion in enumerate(portions, 1):
        work.advance(portion)
        rounded = target.metric(work.module)["accuracy"]
        if portion < 1:
            settings = {"lr": lr, "lr_scale": 1.0, "batch": batch, "generator": generator}
            target.finetune(work.module, steps=steps, constraint=work.state, **settings)
        after = target.metric(work.module)["accuracy"] if portion < 1 else rounded
        rows.append({"round": number, "portion": portion, "accuracy rounded": rounded, "accuracy retrained": after})
    work.state.stages.append("inq")
    return work, rows


# -- proof that multiplying became shifting --------------------------------------------------------------------------


class ShiftLayer(nn.Module):
    """A quantised `nn.Conv2d` or `nn.Linear` computed with integer shifts and additions only, for inputs that are
    multiples of `2^-fraction`; equal to the float layer computed in float64 without rounding. A reference, not a
    fast kernel.
    """

    def __init__(self, layer: nn.Module, powers: Powers, *, fraction: int = 8) -> None:
        super().__init__()
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or getattr(layer, "groups", 1) != 1:
            raise CapabilityError(f"shift-add is written for Linear and ungrouped Conv2d, not {type(layer).__name__}")
        if isinstance(layer, nn.Conv2d) and (max(layer.dilation) > 1 or isinstance(layer.padding, str)):
            raise CapabilityError("shift-add convolution takes numeric padding and no dilation")
        self.layer, self.powers, self.fraction = layer, powers, fraction

    def forward(self, x: Tensor) -> Tensor:
        """`x [B,C,H,W]` or `[B,D]` -> float64 of the layer's output shape."""
        whole = torch.round(x.double() * 2**self.fraction).long()
        if isinstance(self.layer, nn.Conv2d):
            (kh, kw), (sh, sw), (ph, pw) = self.layer.kernel_size, self.layer.stride, self.layer.padding
            patches = F.pad(whole, (pw, pw, ph, ph)).unfold(2, kh, sh).unfold(3, kw, sw)  # [B,C,H',W',kh,kw]
            columns = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [B,H',W',C*kh*kw]
        else:
            columns = whole
        weight = self.layer.weight.detach().double().flatten(1)  # [O,D]
        total = torch.zeros(*columns.shape[:-1], len(weight), dtype=torch.int64)
        for exponent in range(self.powers.low, self.powers.high + 1):
            signs = torch.where(weight.abs() == 2.0**exponent, weight.sign(), 0.0).long()  # -1, 0, 1: add or subtract
            total += (columns @ signs.T) << (exponent - self.powers.low)
        out = total.double() * 2.0 ** (self.powers.low - self.fraction)
        if self.layer.bias is not None:
            out = out + self.layer.bias.detach().double()
        return out.permute(0, 3, 1, 2) if isinstance(self.layer, nn.Conv2d) else out


# -- the compressor --------------------------------------------------------------------------------------------------


@config
class Options:
    bits: int = option(5, "bits per weight, zero included", low=2, high=8)
    portions: tuple[float, ...] = option((), "accumulated portions, ending in 1; empty: the paper's for these bits")
    partition: str = option("magnitude", "which weights are rounded first", choices=("magnitude", "random"))
    steps: int = option(200, "retraining steps after each portion but the last", low=0)
    lr: float = option(0.02, "retraining rate at the start of each round", low=0.0)
    batch: int = option(64, "samples per retraining step", low=1)

    def check(self) -> None:
        _check_portions(self.portions)


def _check_portions(portions: tuple[float, ...]) -> None:
    rising = all(a < b for a, b in zip((0.0, *portions), portions, strict=False))
    if portions and (not rising or portions[-1] != 1.0):
        raise ConfigError(f"portions must rise from above 0 to exactly 1, not {portions}")


@compressor("inq")
class INQ(Compressor[Options]):
    """Any trained classifier -> power-of-two weights, retrained portion by portion, and their `.cmb` file.

    After a pruning stage the zeros stay zero, and the file stores only what is left.
    """

    needs = ("logits", "retrain")
    quick = {"steps": 20}

    def stages(self) -> tuple[str, ...]:
        return ("quantise",)

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The quantised module, `inq.cmb` under `directory`, and one row beside the one-shot rounding of the same
        network.
        """
        o, state = self.options, target.state
        if state is not None and any(part.codebook is not None for part in state.tensors.values()):
            raise ConfigError("inq rounds weights that nothing has quantised yet; leave the sharing of weights out")
        work, rounds = quantise(
            target, bits=o.bits, portions=o.portions, partition=o.partition, steps=o.steps, lr=o.lr, batch=o.batch,
            generator=generator, state=state,
        )  # fmt: skip
        path = directory / "inq.cmb"
        store(path, work.module, work.state, chain=work.state.stages, bits=o.bits)
        once, _ = quantise(target, bits=o.bits, portions=(1.0,), generator=generator, state=state)
        store(directory / "one-shot.cmb", once.module, once.state, chain=["one-shot"], bits=o.bits)
        before = target.metric()["accuracy"]
        rows = [
            self._row(target, once, directory / "one-shot.cmb", f"one-shot:{o.bits} bits", before, 0),
            self._row(target, work, path, f"inq:{o.bits} bits", before, o.steps * (len(rounds) - 1)),
        ]
        figures = {"exponents": exponent_figure(work), "rounds": round_figure(rounds, before)}
        return Compression(work.module, rows, path, work.state, figures)

    def _row(self, target: Target, work: Quantiser, path: Path, chain: str, before: float, steps: int) -> Row:
        after = target.metric(work.module)["accuracy"]
        facts = {"accuracy before": before, "accuracy after": after, "retrain steps": steps}
        return compression_row(
            target, work.module, path, chain=chain, **facts, **{"paper's bits/weight": _counted(work)}
        )


def _counted(work: Quantiser) -> float:
    """Bits per weight as the paper counts: one flag, and b - 1 bits more where the weight is not zero."""
    weights = [work.module.get_parameter(name) for name in work.powers]
    total, kept = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    return 1 + (work.bits - 1) * kept / total


def exponent_figure(work: Quantiser):
    """How many weights of each layer have which power of two (white: none)."""
    from matplotlib.figure import Figure

    low, high = min(p.low for p in work.powers.values()), max(p.high for p in work.powers.values())
    counts = torch.zeros(len(work.powers), high - low + 2)
    for row, name in enumerate(work.powers):
        weight = work.module.get_parameter(name).detach().abs()
        counts[row, 0] = (weight == 0).float().mean()
        for column, exponent in enumerate(range(low, high + 1), 1):
            counts[row, column] = (weight == 2.0**exponent).float().mean()
    figure = Figure(figsize=(1.5 + 0.5 * counts.shape[1], 1.5 + 0.3 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(counts.numpy(), aspect="auto", cmap="Blues", vmin=0)
    axes.set_xticks(range(counts.shape[1]), ["0", *(f"$2^{{{e}}}$" for e in range(low, high + 1))])
    axes.set_yticks(range(len(counts)), [name.removesuffix(".weight") for name in work.powers], fontsize=7)
    figure.colorbar(shown, label="share of the layer")
    return figure


def round_figure(rounds: list[Row], before: float):
    """Test accuracy over the rounds, right after rounding and after retraining."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.add_subplot()
    portions = [row["portion"] for row in rounds]
    axes.plot(portions, [row["accuracy rounded"] for row in rounds], "o--", label="rounded")
    axes.plot(portions, [row["accuracy retrained"] for row in rounds], "o-", label="retrained")
    axes.axhline(before, color="grey", lw=1, label="float")
    axes.set(xlabel="share of weights that are powers of two", ylabel="test accuracy")
    axes.legend()
    return figure


# -- the claim -------------------------------------------------------------------------------------------------------


@config
class Config:
    method: str = option("inq", "how the weights become powers of two", choices=("inq", "one-shot", "one-shot-norm"))
    bits: int = option(5, "bits per weight", low=2, high=8)
    portions: tuple[float, ...] = option((), "accumulated portions; empty: the paper's for these bits")
    partition: str = option("magnitude", "which weights are rounded first", choices=("magnitude", "random"))
    steps: int = option(60, "retraining steps per round", low=0)
    lr: float = option(0.02, "retraining rate at the start of each round", low=0.0)
    target_steps: int = option(600, "training steps of the network to be compressed", low=1)

    def check(self) -> None:
        _check_portions(self.portions)


CLAIM = Claim(
    name="five-bits",
    statement="5-bit INQ is at least 5 points more accurate than one-shot 5-bit rounding, and within 0.5 points of the "
    "float network, as it was or retrained for equal steps, whichever is better.",
    metric="accuracy",
    direction="higher",
    margin=0.05,
    paper="Table 1: top-1 error float -> 5-bit INQ: ResNet-18 31.73 -> 31.02 %, VGG-16 31.46 -> 29.18 %",
    arms={"inq": Arm(), "one-shot": Arm({"method": "one-shot"})},
    system="inq",
    baselines=("one-shot",),
    sabotage=Arm({"portions": (1.0,)}),
    conditions=(Condition("inq", "against_best_float", ">=", -0.005),),
)


@study("inq")
class INQStudy(Study[Config]):
    """Quantises a small trained network and measures it against float, as it was and retrained for equal steps."""

    presets = {
        "smoke": Config(steps=4, portions=(0.5, 1.0), target_steps=60),
        "laptop": Config(),
        "paper": Config(steps=2000, target_steps=10_000),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        target = _target(c.target_steps, seed)
        progress(1, 3)
        portions = (1.0,) if c.method != "inq" else c.portions or PORTIONS.get(c.bits, PORTIONS[5])
        rounds = len(portions) - 1 if c.method == "inq" else len(PORTIONS.get(c.bits, PORTIONS[5])) - 1
        settings = {"lr": c.lr, "lr_scale": 1.0}
        generator = torch.Generator().manual_seed(seed + 1)
        work, rows = quantise(
            target, bits=c.bits, portions=portions, partition=c.partition, steps=c.steps, lr=c.lr, generator=generator
        )
        if c.method == "one-shot-norm":  # all weights are frozen: only biases and batch norm learn
            target.finetune(work.module, steps=c.steps * rounds, constraint=work.state, generator=generator, **settings)
        progress(2, 3)
        metrics = {"accuracy": target.metric(work.module)["accuracy"], "original": target.metric()["accuracy"]}
        if c.method == "inq":
            plain, generator = copy.deepcopy(target.module), torch.Generator().manual_seed(seed + 1)
            for _ in range(rounds):
                target.finetune(plain, steps=c.steps, generator=generator, **settings)
            metrics["float"] = target.metric(plain)["accuracy"]
            # The rate that suits INQ can harm a network that needs no repair, so retraining alone is too weak a rival.
            metrics["against_best_float"] = metrics["accuracy"] - max(metrics["float"], metrics["original"])
        metrics["bytes"] = float(store(directory / "inq.cmb", work.module, work.state))
        progress(3, 3)
        line = ([row["portion"] for row in rows], [row["accuracy retrained"] for row in rows])
        return Measurement(metrics, Curves({"accuracy over portions": line}), notes={"rounds": rows})


def _target(steps: int, seed: int) -> Target:
    """VGG-A at an eighth of its widths, 146 thousand weights, on crops of real photographs."""
    overrides = {"plan": "A", "stages": 5, "width": 0.125, "steps": steps}
    return trained("vgg", data="photos", overrides=overrides, seed=seed).target()
