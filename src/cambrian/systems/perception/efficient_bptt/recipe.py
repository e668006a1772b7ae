"""The study: what plans cost and save, measured on a GRU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Measurement, Progress, Study, study
from cambrian.engine.samples import Curves, Gallery, Plot, Table
from cambrian.systems.perception.efficient_bptt._execute import Memory, Meter, bptt, memory_of
from cambrian.systems.perception.efficient_bptt._plan import KINDS, SPLITS, Plan, plan


@config
class Config:
    """One plan on one cell."""

    length: int = option(1000, "steps of the sequence", low=2)
    kind: str = option("mixed", "what the plan may store; full is plain backpropagation", choices=KINDS)
    fraction: float = option(
        0.05, "budget as a part of the memory of full backpropagation; 0 is what sqrt(T) needs", low=0.0, high=1.0
    )
    split: str = option("optimal", "half fixes every split in the middle", choices=SPLITS)
    hidden: int = option(64, "units of the GRU", low=1)
    batch: int = option(4, "sequences side by side", low=1)
    dropout_length: int = option(200, "steps of the gradient check with dropout", low=2)


class DropoutGRU(nn.Module):
    """A GRU cell behind dropout, in double precision: `forward(x [B, I], h [B, H]) -> (output, state)`."""

    def __init__(self, *, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, hidden, dtype=torch.float64)
        self.dropout = dropout

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        state = self.cell(F.dropout(x, self.dropout, self.training and self.dropout > 0), state)
        return state, state


class Problem:
    """Copy the first input's sign at every step: a cell, a head, a sequence, and a loss at each step."""

    def __init__(self, c: Config, seed: int, length: int, dropout: float) -> None:
        random = torch.Generator().manual_seed(seed * 31 + 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = DropoutGRU(inputs=8, hidden=c.hidden, dropout=dropout)
            self.head = nn.Linear(c.hidden, 1, dtype=torch.float64)
        self.x = torch.randn(length, c.batch, 8, generator=random, dtype=torch.float64)
        self.state = torch.zeros(c.batch, c.hidden, dtype=torch.float64)
        self.target = self.x[0, :, :1].sign()
        self.parameters = [*self.cell.parameters(), *self.head.parameters()]

    def loss(self, output: Tensor, t: int) -> Tensor:
        """The loss of step t."""
        return (self.head(output) - self.target).square().mean() / len(self.x)

    def full(self) -> tuple[list[Tensor], int]:
        """Plain backpropagation: gradients, and the peak of bytes that autograd kept."""
        meter = Meter([*self.parameters, self.x, self.target])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with meter.watch():
                state, total = self.state, torch.zeros((), dtype=torch.float64)
                for t in range(len(self.x)):
                    output, state = self.cell(self.x[t], state)
                    total = total + self.loss(output, t)
            total.backward()
        return self._gradients(), meter.peak

    def planned(self, p: Plan) -> tuple[list[Tensor], int]:
        """The same by a plan."""
        meter = Meter([*self.parameters, self.x, self.target])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            bptt(self.cell, self.x, self.state, self.loss, p, meter=meter)
        return self._gradients(), meter.peak

    def _gradients(self) -> list[Tensor]:
        found = [p.grad for p in self.parameters if p.grad is not None]
        for p in self.parameters:
            p.grad = None
        return found


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of gradients, relative to each tensor's largest entry."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def make_plan(c: Config, length: int, memory: Memory) -> Plan:
    """The plan that a configuration asks for."""
    if c.kind in ("full", "sqrt"):
        return plan(length, None, memory.alpha, c.kind)
    if c.fraction:
        return plan(length, max(1, int(c.fraction * length * memory.alpha)), memory.alpha, c.kind, split=c.split)
    # steps kept one by one do not share states with their neighbours, as those of a segment do: count them in full
    alone = math.ceil(memory.alone / memory.state)
    units = plan(length, None, memory.alpha, "sqrt").peak - (alone - memory.alpha)
    return plan(length, max(1, units), alone, c.kind, split=c.split)


@study("efficient-bptt")
class EfficientBPTTStudy(Study[Config]):
    """Measures memory and work of one kind of plan against full backpropagation in the same process."""

    presets = {
        "smoke": Config(length=100, dropout_length=40),
        "laptop": Config(),
        "paper": Config(length=10_000, hidden=256),
    }

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Metrics: `peak_bytes`, `peak_fraction` of full, `forwards_per_step`, `work`, and relative gradient errors."""
        c = self.config
        problem = Problem(c, seed, c.length, 0.0)
        memory = memory_of(problem.cell, problem.x, problem.state)
        p = make_plan(c, c.length, memory)
        progress(1, 4)
        expected, full_bytes = problem.full()
        progress(2, 4)
        found, peak = (expected, full_bytes) if c.kind == "full" else problem.planned(p)
        progress(3, 4)
        noisy = Problem(c, seed, c.dropout_length, 0.2)
        short = make_plan(c, c.dropout_length, memory_of(noisy.cell, noisy.x, noisy.state))
        dropout_error = difference(noisy.planned(short)[0], noisy.full()[0])
        metrics = {
            "peak_bytes": float(peak),
            "peak_fraction": peak / full_bytes,
            "forwards_per_step": p.forwards_per_step,
            "work": p.work,
            "alpha": float(memory.alpha),
            "gradient_error": difference(found, expected),
            "dropout_gradient_error": dropout_error,
        }
        progress(4, 4)
        return Measurement(metrics, _picture(c, p, memory.alpha))

    claims = (
        Claim(
            name="memory",
            statement="At 5 % of the memory of full backpropagation, 1,000 steps cost at most 1.96 forwards each (1.32 x the work).",
            metric="peak_bytes",
            direction="lower",
            margin=0.06,
            compare="ratio",
            paper="abstract: for 1,000 steps, 95 % of the memory saved for one third more time",
            arms={"planned": Arm(), "full": Arm({"kind": "full"})},
            system="planned",
            baselines=("full",),
            conditions=(
                Condition("planned", "forwards_per_step", "<=", 1.96),
                Condition("planned", "gradient_error", "<=", 1e-12),
                Condition("planned", "dropout_gradient_error", "<=", 1e-12),
            ),
            sabotage=Arm({"split": "half"}),
        ),
        Claim(
            name="never-worse-than-sqrt",
            statement="In the memory that sqrt(T) segments need, the plan executes no more steps than they do.",
            metric="forwards_per_step",
            direction="lower",
            margin=1.0,
            compare="ratio",
            paper="section 3: never worse than sqrt(T) checkpointing",
            arms={"planned": Arm({"fraction": 0.0}), "sqrt": Arm({"kind": "sqrt"})},
            system="planned",
            baselines=("sqrt",),
            conditions=(Condition("planned", "gradient_error", "<=", 1e-12),),
            sabotage=Arm({"fraction": 0.0, "split": "half"}),
        ),
        Claim(
            name="below-sqrt",
            statement="At 1 % of the memory of full backpropagation training still runs, where sqrt(T) segments cannot.",
            metric="peak_bytes",
            direction="lower",
            margin=0.6,
            compare="ratio",
            paper="section 4: any budget down to one hidden state, sqrt(T) has one",
            arms={"planned": Arm({"fraction": 0.01}), "sqrt": Arm({"kind": "sqrt"})},
            system="planned",
            baselines=("sqrt",),
            conditions=(
                Condition("planned", "forwards_per_step", "<=", 2.71),
                Condition("planned", "gradient_error", "<=", 1e-12),
            ),
            sabotage=Arm({"fraction": 0.01, "split": "half"}),
        ),
    )


def _picture(c: Config, p: Plan, alpha: int) -> Gallery:
    length = min(c.length, 400)  # tables for a thousand steps take longer than the measurement
    parts = [part for part in (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05) if int(part * length * alpha) >= 1]
    lines: dict[str, Any] = {}
    rows: list[tuple[Any, ...]] = []
    for kind in ("mixed", "mixed-paper", "internal", "hidden"):
        plans = [plan(length, max(1, int(part * length * alpha)), alpha, kind) for part in parts]
        lines[kind] = ([100 * part for part in parts], [q.forwards_per_step for q in plans])
        rows += [(kind, part, q.budget, q.forwards_per_step) for part, q in zip(parts, plans, strict=True)]
    root = plan(length, None, alpha, "sqrt")
    rows.append(("sqrt", root.peak / (alpha * length), root.peak, root.forwards_per_step))
    return Gallery(
        {
            "cost over budget": Curves(
                lines, x=f"budget, % of full backpropagation, {length} steps", y="forwards per step"
            ),
            "timeline": Plot(p.draw()),
            "plans": Table(("kind", "part of full memory", "units", "forwards per step"), rows),
        }
    )
