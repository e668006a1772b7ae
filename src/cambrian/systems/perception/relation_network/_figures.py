"""Accuracy by type of question, beside what the most frequent answer of each type would score."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cambrian.data.split import Batch

_GROUPS = {
    "neighbours": ("closest", "farthest"),
    "relational": ("closest", "farthest", "count"),
    "nonrelational": ("shape", "left", "top"),
}
PASSED = 0.95  # the bar of Weston et al. (2015) for a bAbI task


class Tally:
    """Adds up right answers; `info` is the data's, `known` a batch of training samples that sets the prior."""

    def __init__(self, info: dict[str, Any], known: Batch) -> None:
        self.kinds: tuple[str, ...] = tuple(info["kinds"])
        self.multi: bool = info["multi"]
        self.usual = _usual(known, len(self.kinds), len(info["answers"]), self.multi)
        self.right, self.by_prior, self.count = torch.zeros(3, len(self.kinds)).unbind(0)
        self.hits = torch.zeros(3)  # true positives, predicted ones, real ones

    def add(self, logits: Tensor, answer: Tensor, kind: Tensor) -> None:
        """Count one batch: `logits` [B, Q, K], `answer` int64 [B, Q] (yes/no answers: float [B, Q, K]), `kind` int64 [B, Q]."""
        if self.multi:
            guess, real = logits > 0, answer > 0.5
            self.hits += torch.stack([(guess & real).sum(), guess.sum(), real.sum()])
            good, prior = (guess == real).float().mean(-1), (real == (self.usual > 0.5)).float().mean(-1)
        else:
            good, prior = (logits.argmax(-1) == answer).float(), (self.usual[kind] == answer).float()
        one = F.one_hot(kind.flatten(), len(self.kinds)).float()
        self.right += good.flatten() @ one
        self.by_prior += prior.flatten() @ one
        self.count += one.sum(0)

    def figures(self) -> dict[str, float]:
        """`accuracy`, `prior`, one figure per type, means over groups of types, `f1` of yes/no answers, bAbI tasks passed."""
        total = self.count.sum()
        out = {"accuracy": float(self.right.sum() / total), "prior": float(self.by_prior.sum() / total)}
        out |= {name: float(r / n) for name, r, n in zip(self.kinds, self.right, self.count, strict=True) if n}
        if self.multi:
            out["f1"] = float(2 * self.hits[0] / (self.hits[1] + self.hits[2]).clamp(min=1))
        for name, members in _GROUPS.items():
            if set(members) <= out.keys():
                out[name] = sum(out[m] for m in members) / len(members)
        passed = [value >= PASSED for name, value in out.items() if name.startswith("task_")]
        return out | ({"tasks_passed": float(sum(passed))} if passed else {})


def _usual(known: Batch, kinds: int, answers: int, multi: bool) -> Tensor:
    """The most frequent answer of each type, int64 [kinds]; of yes/no answers, each one's majority, float [K]."""
    if multi:
        return (known["answer"].mean((0, 1)) > 0.5).float()
    table = torch.zeros(kinds, answers)
    places = (known["kind"].flatten(), known["answer"].flatten())
    return table.index_put(places, torch.tensor(1.0), accumulate=True).argmax(1)
