"""The L2 attack of Carlini and Wagner (2017, arXiv 1608.04644): the least distortion that succeeds, a reference for others.

    min over w:  || x' - x ||_2^2 + c f(x'),    x' = (lo + hi) / 2 + (hi - lo) / 2 tanh(w)
    f(x') = max(0, Z_y - max_{j != y} Z_j + kappa)  untargeted,   max(0, max_{j != t} Z_j - Z_t + kappa)  towards t

`c` is searched for each sample: times ten until the attack succeeds, then by bisection. `tanh` keeps `x'` inside the box.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.inspect.attack import AdamSteps, Goal, finish
from cambrian.inspect.results import AttackResult
from cambrian.inspect.target import Target

EDGE = 0.999999  # keeps atanh finite at the border of the box


def carlini_wagner(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    goal: Goal | None = None,
    steps: int = 200,
    searches: int = 5,
    lr: float = 0.01,
    confidence: float = 0.0,
    first: float = 1e-3,
) -> AttackResult:
    """The smallest successful perturbation found for each input; inputs that none was found for come back unchanged.

    `searches` values of `c` from `first` on, `steps` steps of Adam with rate `lr` (on `w`) for each. `confidence` is kappa,
    the lead in logits that a success must have. Raises `ShapeError` for bad inputs, `ConfigError` for bad settings.
    """
    goal = goal or Goal()
    target.check(x, y)
    goal.check(len(x), len(target.classes))
    if steps < 1 or searches < 1 or not lr > 0 or not first > 0 or confidence < 0:
        raise ConfigError(
            f"steps, searches, lr and first must be positive and confidence >= 0, got {steps}, {searches}, {lr}, {first}, "
            f"{confidence}"
        )
    label = goal.wanted(y) if goal.targeted else y
    hunt = _Hunt(target, x.detach(), label, -1.0 if goal.targeted else 1.0, confidence)
    c = torch.full((len(x),), first, dtype=x.dtype, device=x.device)
    low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
    with target.quiet() as module:
        for _ in range(searches):
            found = hunt.descend(module, c, steps, lr)
            high, low = torch.where(found, c, high), torch.where(found, low, c)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
    count = searches * steps * len(x)
    return finish(target, x, y, hunt.best, eps=None, goal=goal, queries={"forward": count, "backward": count})


class _Hunt:
    """The best perturbation so far of every input; `sign` is 1 away from `label`, -1 towards it."""

    def __init__(self, target: Target, x: Tensor, label: Tensor, sign: float, confidence: float) -> None:
        space = target.space
        self.middle, self.half = (space.lo + space.hi) / 2, space.width / 2
        self.x, self.label, self.sign, self.confidence = x, label, sign, confidence
        self.start = ((x - self.middle) / self.half * EDGE).atanh()
        self.origin = self.start.tanh() * self.half + self.middle  # `x` up to the edge
        self.best, self.norm = x.clone(), torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)

    def descend(self, module: nn.Module, c: Tensor, steps: int, lr: float) -> Tensor:
        """One search of Adam from the clean inputs with weights `c [B]`; which inputs it fooled the network on, `[B]` bool."""
        delta, adam = torch.zeros_like(self.x), AdamSteps(self.x, lr)
        found = torch.zeros(len(c), dtype=torch.bool, device=c.device)
        for _ in range(steps):
            squashed = (self.start + delta).tanh()
            moved = squashed * self.half + self.middle
            slope, lead = self._slope(module, moved, c)
            grad = (slope + 2 * (moved - self.origin)) * (self.half * (1 - squashed.square()))
            delta -= adam(grad)
            fooled = lead < 0
            found |= fooled
            norm = (moved - self.x).flatten(1).norm(dim=1)
            better = fooled & (norm < self.norm)
            self.norm = torch.where(better, norm, self.norm)
            self.best = torch.where(better.view(-1, *[1] * (moved.dim() - 1)), moved, self.best)
        return found

    def _slope(self, module: nn.Module, moved: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of `c f` in the inputs, and the lead `[B]` of the right side (negative: fooled with confidence)."""
        with torch.enable_grad():
            inner = moved.detach().requires_grad_(True)
            logits = module(inner)
            own = logits.gather(1, self.label[:, None]).squeeze(1)
            other = logits.scatter(1, self.label[:, None], float("-inf")).amax(1)
            lead = self.sign * (own - other) + self.confidence
            (slope,) = torch.autograd.grad((c * lead.clamp_min(0)).sum(), inner)
        return slope, lead.detach()
