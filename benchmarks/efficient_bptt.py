"""Memory and time at 1,000 steps: planned, sqrt(T) segments, torch.utils.checkpoint, full backpropagation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cambrian.inspect.bench import compare
from cambrian.systems.perception.efficient_bptt import Meter, bptt, fused_stretch, memory_of, plan

STEPS, BATCH, INPUTS, HIDDEN = 1000, 8, 32, 256


class Contest:
    """A GRU of 256 units with a loss on its last output."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.cell = nn.GRUCell(INPUTS, HIDDEN)
        self.x = torch.randn(STEPS, BATCH, INPUTS)
        self.h = torch.zeros(BATCH, HIDDEN)
        self.memory = memory_of(self.cell, self.x, self.h)
        alpha = self.memory.alpha
        self.plans = {
            "planned, 5 %": plan(STEPS, int(0.05 * STEPS * alpha), alpha),
            "planned, 1 %": plan(STEPS, int(0.01 * STEPS * alpha), alpha),
            "sqrt(T)": plan(STEPS, None, alpha, "sqrt"),
        }

    def loss(self, output: Tensor, t: int) -> Tensor | None:
        """Only after the last step."""
        return output.square().mean() if t == STEPS - 1 else None

    def planned(self, name: str, *, fused: bool = False) -> None:
        """Backpropagate by a plan."""
        run = fused_stretch(self.cell) if fused else None
        bptt(self.cell, self.x, self.h, self.loss, self.plans[name], run=run, meter=self.meter)

    def full(self) -> None:
        """The eager loop."""
        h = self.h
        for x in self.x:
            h = self.cell(x, h)
        h.square().mean().backward()

    def segments(self) -> None:
        """torch.utils.checkpoint over segments of the length that sqrt(T) uses."""
        length = -(-STEPS // round((STEPS * self.memory.alpha) ** 0.5))

        def segment(x: Tensor, h: Tensor) -> Tensor:
            for x_t in x:
                h = self.cell(x_t, h)
            return h

        h = self.h.clone().requires_grad_()
        for x in self.x.split(length):
            h = checkpoint(segment, x, h, use_reentrant=False)
        h.square().mean().backward()

    def kernel(self) -> None:
        """torch's GRU kernel over the whole sequence."""
        cell = self.cell
        weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
        out, _ = torch.gru(self.x, self.h[None], weights, True, 1, 0.0, True, False, False)
        out[-1].square().mean().backward()

    meter: Meter | None = None

    def watched(self, run: Callable[[], None]) -> tuple[list[Tensor], int]:
        """What `run` leaves in `.grad`, and the bytes that autograd and the plan held at most."""
        self.cell.zero_grad()
        self.meter = Meter([*self.cell.parameters(), self.x])
        with self.meter.watch():
            run()
        peak, self.meter = self.meter.peak, None
        return [p.grad.clone() for p in self.cell.parameters() if p.grad is not None], peak


def main() -> None:
    """Assert equal gradients, print bytes, then time against full backpropagation of the same eager step."""
    contest = Contest()
    ways: dict[str, Callable[[], None]] = {
        "full": contest.full,
        **{name: (lambda name=name: contest.planned(name)) for name in contest.plans},
        "planned, 5 %, fused stretches": lambda: contest.planned("planned, 5 %", fused=True),
        "torch.utils.checkpoint": contest.segments,
        "torch.gru kernel, full": contest.kernel,
    }
    expected, full = contest.watched(contest.full)
    for name, run in ways.items():
        found, peak = contest.watched(run)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        if name in (
            "full",
            *contest.plans,
        ):  # hooks do not see what torch.utils.checkpoint saves while it computes again
            print(f"{name}: {peak / full:.2%} of {full / 1e6:.1f} MB", flush=True)
    for name, run in ways.items():
        if name != "full":
            print(compare({"full": contest.full, name: run}, repeats=5, warmup=0, threads=1), flush=True)


if __name__ == "__main__":
    main()
