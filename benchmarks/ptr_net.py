"""The pointer network's decoder in training, and its beam: fused against step by step, batched against one set at a time.

Run with `python benchmarks/ptr_net.py`. Training: the teacher-forced decoder as one LSTM sweep with all scores as one product,
against a loop of single steps. Search: a beam of 4 over 64 sets at once, against one hypothesis at a time from the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.inspect.bench import compare
from cambrian.nn.decode import beam
from cambrian.nn.seq2seq import select
from cambrian.systems.language.ptr_net import PointerNet
from cambrian.worlds import point_sets


def stepwise(model: PointerNet, points: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Logits [B, M, n + 1], a position at a time."""
    state, last, rows = model.memory(points, count), torch.full((len(points),), -1), []
    for t in range(target.shape[1]):
        logits, state = model.step(last, state)
        rows.append(logits)
        last = target[:, t]
    return torch.stack(rows, 1)


def one_at_a_time(
    model: PointerNet, points: Tensor, count: Tensor, width: int, steps: int
) -> list[tuple[list[int], float]]:
    """The best answer of every set: a beam in plain Python, one call of the decoder a hypothesis."""
    best = []
    memory = model.memory(points, count)
    for b in range(len(points)):
        alive = [([], 0.0, select(memory, torch.tensor([b])), False)]
        for _ in range(steps):
            grown = []
            for symbols, total, state, done in alive:
                if done:
                    grown.append((symbols, total, state, True))
                    continue
                logits, after = model.step(torch.tensor([symbols[-1] if symbols else -1]), state)
                scores = logits.log_softmax(1)[0]
                for value, symbol in zip(*(t.tolist() for t in scores.topk(width)), strict=True):
                    grown.append(([*symbols, symbol], total + value, after, symbol == 0))
            alive = sorted(grown, key=lambda item: -item[1])[:width]
        best.append((alive[0][0], alive[0][1]))
    return best


def main() -> None:
    """Check equality, then time."""
    torch.manual_seed(0)
    data = point_sets.load("hull", train=128, valid=10, test=64)
    model = PointerNet(hidden=128, init=0.3)
    batch, test = data.train[torch.arange(128)], data.test[torch.arange(64)]
    points, count, target = batch["points"], batch["count"], batch["target"]

    def gradient(logits: Tensor) -> list[Tensor]:
        kept = torch.where(logits.isfinite(), logits, torch.zeros_like(logits))
        return list(torch.autograd.grad(kept.square().mean(), list(model.parameters())))

    torch.testing.assert_close(
        model(points, target, count), stepwise(model, points, target, count), rtol=1e-4, atol=1e-5
    )
    for ours, theirs in zip(
        gradient(model(points, target, count)), gradient(stepwise(model, points, target, count)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    print("teacher-forced decoder, forward and backward, batch 128")
    timed = {
        "one sweep": lambda: gradient(model(points, target, count)),
        "step by step": lambda: gradient(stepwise(model, points, target, count)),
    }
    print(compare(timed, threads=1))

    sets, sizes, steps = test["points"], test["count"], 12
    with torch.no_grad():
        found = beam(model, model.memory(sets, sizes), batch=64, width=4, steps=steps, stop=0)
        for row, (symbols, total) in enumerate(one_at_a_time(model, sets, sizes, 4, steps)):
            assert [s for s in found.symbols[row, 0].tolist() if s >= 0] == symbols
            assert abs(float(found.log_prob[row, 0]) - total) < 1e-3
        print("beam of 4 over 64 sets")
        timed = {
            "batched": lambda: beam(model, model.memory(sets, sizes), batch=64, width=4, steps=steps, stop=0),
            "one hypothesis at a time": lambda: one_at_a_time(model, sets, sizes, 4, steps),
        }
        print(compare(timed, threads=1, repeats=5))


if __name__ == "__main__":
    main()
