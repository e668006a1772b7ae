"""A paper's claim as data, and the verdict on it from paired seeds."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cambrian.errors import ConfigError

VERDICTS = ("holds", "smaller", "fails", "inconclusive")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way to run the system: overrides of the preset's configuration, and training methods."""

    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    with_: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """A plain requirement beside the comparison: the mean of `metric` in `arm` must satisfy `op value`."""

    arm: str
    metric: str
    op: str
    value: float

    def met(self, metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> bool:
        """Whether the mean over seeds satisfies the condition."""
        missing = [m for m in metrics[self.arm] if self.metric not in m]
        if missing:
            raise ConfigError(f"condition '{self}': the arm gives no such metric; it gives: {', '.join(missing[0])}")
        mean = float(np.mean([m[self.metric] for m in metrics[self.arm]]))
        return _OPERATORS[self.op](mean, self.value)

    def __str__(self) -> str:
        return f"{self.metric} of {self.arm} {self.op} {self.value:g}"


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is tried: arms trained in one run, compared seed by seed.

    `compare="difference"`: the effect is system - baseline, in the claim's direction, and must reach `margin` (>= 0).
    `compare="ratio"`: the effect is system / baseline, and must be <= `margin` for `lower`, >= `margin` for `higher`.
    `budget` is the laptop preset's expected minutes on two cores.
    """

    name: str
    statement: str
    metric: str
    direction: str
    margin: float
    paper: str
    arms: Mapping[str, Arm]
    system: str
    baselines: tuple[str, ...]
    sabotage: Arm
    seeds: tuple[int, ...] = (0, 1, 2)
    compare: str = "difference"
    conditions: tuple[Condition, ...] = ()
    preset: str = "laptop"

    def __post_init__(self) -> None:
        if self.direction not in ("higher", "lower") or self.compare not in ("difference", "ratio"):
            raise ConfigError(f"claim {self.name}: direction is higher or lower, compare is difference or ratio")
        missing = {self.system, *self.baselines, *(c.arm for c in self.conditions)} - set(self.arms)
        if missing:
            raise ConfigError(f"claim {self.name} names arms that it does not define: {sorted(missing)}")

    def effects(self, system: Sequence[float], baselines: Sequence[Sequence[float]]) -> list[float]:
        """The effect of each seed, against the best baseline of that seed; positive (or log-ratio > 0) favours the paper."""
        sign = 1.0 if self.direction == "higher" else -1.0
        out: list[float] = []
        for seed, value in enumerate(system):
            best = max((row[seed] for row in baselines), key=lambda v: sign * v)
            if self.compare == "difference":
                out.append(sign * (value - best))
            elif value <= 0 or best <= 0:
                out.append(float("nan"))
            else:
                out.append(sign * math.log(value / best))
        return out

    @property
    def threshold(self) -> float:
        """The margin on the scale of `effects`."""
        if self.compare == "difference":
            return self.margin
        return abs(math.log(self.margin))

    def effect_text(self, effect: float) -> str:
        """An effect in the claim's own unit: a signed difference, or a ratio."""
        if self.compare == "difference":
            return f"{effect if self.direction == 'higher' else -effect:+.3g}"
        return f"{math.exp(effect if self.direction == 'higher' else -effect):.3g}x"


def bootstrap(effects: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean, by resampling seeds."""
    values = np.asarray(effects, dtype=float)
    pick = np.random.default_rng(0).integers(0, len(values), size=(draws, len(values)))
    low, high = np.quantile(values[pick].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@dataclass(frozen=True)
class Judgement:
    """A verdict and the effect that it rests on (mean, interval, per seed), on the scale of `Claim.effects`."""

    verdict: str
    mean: float
    low: float
    high: float
    effects: list[float]
    unmet: list[str]


def judge(claim: Claim, metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> Judgement:
    """The verdict from each arm's metrics per seed: `metrics[arm][seed_position][metric]`."""
    columns = {arm: [float(m[claim.metric]) for m in rows] for arm, rows in metrics.items()}
    effects = claim.effects(columns[claim.system], [columns[b] for b in claim.baselines])
    unmet = [str(c) for c in claim.conditions if not c.met(metrics)]
    if not all(map(math.isfinite, effects)):
        return Judgement("inconclusive", float("nan"), float("nan"), float("nan"), effects, unmet)
    mean, low, high = bootstrap(effects)
    if low > 0:
        verdict = "holds" if mean >= claim.threshold and not unmet else "smaller"
    elif high <= 0:
        verdict = "fails"
    else:
        verdict = "inconclusive"
    return Judgement(verdict, mean, low, high, effects, unmet)


def claim_hash(slug: str, claim: Claim, resolved: Mapping[str, Any]) -> str:
    """A hash of the claim and of every arm's full configuration: when it changes, the ledger's record is stale."""
    text = json.dumps({"slug": slug, "claim": asdict(claim), "arms": resolved}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
